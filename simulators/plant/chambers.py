"""Chambers of one room's nozzle: two flat ionisation chambers and a strip monitor.

The flat chambers have electronics and high voltage of their own. A monitor answers how many counts one ion makes; the
strips answer where the beam crosses their plane. Errors of gain, offset and pitch are the plant's; faults make them
dead, drifting, mirrored or blind. Not responsible for adding up counts (`timeline`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulators.physics.dose import chamber_charge_pc
from simulators.plant.truth import ChambersTruth

Floats = NDArray[np.float64]
PROTON_TOKEN = 1001
HV_GOOD_REL = 0.98  # supervision calls the voltage good above this


class Monitor:
    """One flat chamber with its electronics.

    Attributes:
        gain_factor: fault: relative change of gain (1.2 is +20 %).
        dead: fault: no counts at all.
        hv_rel: fault: high voltage over nominal; below 0.98 it is reported bad, and charge is lost.
    """

    def __init__(self, gap_mm: float, charge_per_count_fc: float, proton_fc: float, gain_rel: float) -> None:
        self._gap_mm = gap_mm
        self._charge_per_count_fc = charge_per_count_fc
        self._proton_fc = proton_fc
        self._gain = 1.0 + gain_rel
        self._gain_factor = 1.0
        self._dead = False
        self._hv_rel = 1.0
        self._cache: dict[tuple[int, float], float] = {}
        self._watchers: list[Callable[[], None]] = []

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call when a fault is planted or removed."""
        self._watchers.append(watcher)

    @property
    def gain_factor(self) -> float:
        """Relative change of gain."""
        return self._gain_factor

    @gain_factor.setter
    def gain_factor(self, value: float) -> None:
        self._gain_factor = value
        self._tell()

    @property
    def dead(self) -> bool:
        """Whether the electronics is frozen."""
        return self._dead

    @dead.setter
    def dead(self, value: bool) -> None:
        self._dead = value
        self._tell()

    @property
    def hv_rel(self) -> float:
        """High voltage over nominal."""
        return self._hv_rel

    @hv_rel.setter
    def hv_rel(self, value: float) -> None:
        self._hv_rel = value
        self._tell()

    @property
    def hv_good(self) -> bool:
        """What the voltage supervision says."""
        return self._hv_rel >= HV_GOOD_REL

    @property
    def fresh(self) -> bool:
        """Whether the electronics delivers new samples."""
        return not self._dead

    def healthy(self, tolerance_rel: float) -> bool:
        """Whether a test charge would come back right: voltage, electronics, and gain within a tolerance."""
        return self.hv_good and self.fresh and abs(self._gain_factor - 1.0) <= tolerance_rel

    def counts_per_ion(self, token: int, energy_mev_u: float) -> float:
        """Mean counts that one ion really makes now."""
        if self._dead:
            return 0.0
        # Collection falls off quickly below the plateau: linear is enough for a fault (assumed).
        collected = 1.0 if self._hv_rel >= HV_GOOD_REL else max(self._hv_rel, 0.0)
        return self.sound_counts_per_ion(token, energy_mev_u) * self._gain_factor * collected

    def sound_counts_per_ion(self, token: int, energy_mev_u: float) -> float:
        """Mean counts that one ion makes when no fault is planted."""
        key = (token, energy_mev_u)
        if key not in self._cache:
            per_count = self._proton_fc if token == PROTON_TOKEN else self._charge_per_count_fc
            self._cache[key] = chamber_charge_pc(token, energy_mev_u, self._gap_mm) * 1e3 / per_count * self._gain
        return self._cache[key]

    def _tell(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()


class StripMonitor:
    """Position monitor upstream of the isocentre.

    Attributes:
        dead_x, dead_y: fault: the channel reads 0.
        swapped: fault: the two planes are exchanged.
    """

    def __init__(self, truth: ChambersTruth, sad_x_mm: float, sad_y_mm: float) -> None:
        self._truth = truth
        self._shrink_x = (sad_x_mm - truth.monitor_distance_mm) / sad_x_mm
        self._shrink_y = (sad_y_mm - truth.monitor_distance_mm) / sad_y_mm
        self.dead_x = False
        self.dead_y = False
        self.swapped = False

    def read_mm(self, x_iso_mm: Floats, y_iso_mm: Floats, duration_s: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """Reading (x, y) in the strips' own mm.

        Args:
            x_iso_mm, y_iso_mm: where the beam really crosses the isocentre plane, without sag, shape (n,).
            duration_s: time looked at, (n,): the noise of one frame falls with the root of the number of frames.
            noise: standard normal draws, shape (2, n).
        """
        t = self._truth
        frames = np.maximum(duration_s * 1e6 / t.frame_us, 1.0)
        sigma = np.hypot(t.position_noise_mm / np.sqrt(frames), t.position_floor_mm)
        x = (x_iso_mm * self._shrink_x - t.strip_offset_x_mm) * (1.0 + t.strip_gain_x_rel) + sigma * noise[0]
        y = (y_iso_mm * self._shrink_y - t.strip_offset_y_mm) * (1.0 + t.strip_gain_y_rel) + sigma * noise[1]
        if self.swapped:
            x, y = y, x
        return np.zeros_like(x) if self.dead_x else x, np.zeros_like(y) if self.dead_y else y
