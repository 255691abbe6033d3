"""An absolute encoder: what it reads of a true angle, and the ways in which it can lie.

A reading is a pure function of angle and time: its noise comes from a table drawn once and is looked up by time, so
that reading twice, or not at all, changes nothing. Not responsible for what the angle is.
"""

from __future__ import annotations

import math
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import EncoderTruth

NS_PER_MS = 1_000_000
_TABLE = 4096


class Encoder:
    """One encoder on one shaft.

    Args:
        kernel: time and randomness.
        device: name for the random stream, for example ``"G1-gantry"``.
        quantity: which encoder of the device, for example ``"load-encoder"``.
        truth: how it is mounted.
    """

    def __init__(self, kernel: Kernel, device: str, quantity: str, truth: EncoderTruth) -> None:
        self._kernel = kernel
        self.name = f"{device}.{quantity}"
        self.truth = truth
        self._draw = partial(kernel.rng, device, quantity)
        self._phase_rad = math.radians(truth.runout_phase_deg)
        self.sign = truth.sign
        self._frozen_mdeg: int | None = None
        self._frozen_from_ns = 0
        self._jump_mdeg = 0.0
        self._jump_from_ns = 0
        self._drift_mdeg_s = 0.0
        self._drift_from_ns = 0
        self.valid = True  # what its status bit says
        self._real: tuple[float, float, int] | None = None  # mdeg, mdeg/s, since: what a real encoder reads
        self._known: tuple[float, int, float] = (math.nan, 0, 0.0)  # angle, sign, reading without noise: shafts mostly rest

    @cached_property
    def _noise_mdeg(self) -> NDArray[np.float64]:
        """Drawn when it is read first: most encoders of a facility stand in rooms that nobody looks at."""
        return self._draw().normal(0.0, self.truth.noise_mdeg, _TABLE)

    @cached_property
    def _noise_list(self) -> list[float]:
        noise_mdeg: list[float] = self._noise_mdeg.tolist()
        return noise_mdeg

    @property
    def bound_mdeg(self) -> float:
        """Largest error of a sound reading, or infinity when something is wrong with the encoder."""
        truth = self.truth
        if self.faulty or self._real is not None or self.sign != 1 or truth.scale != 1.0:
            return math.inf
        return abs(truth.offset_mdeg) + abs(truth.runout_mdeg) + 5.0 * truth.noise_mdeg

    @property
    def faulty(self) -> bool:
        """Whether a fault is planted."""
        return self._frozen_mdeg is not None or self._jump_mdeg != 0.0 or self._drift_mdeg_s != 0.0

    @property
    def drifts(self) -> bool:
        """Whether its error grows with time."""
        return self._drift_mdeg_s != 0.0 or (self._real is not None and self._real[1] != 0.0)

    def follow_real(self, mdeg: float, mdeg_per_s: float = 0.0) -> None:
        """From now on read what a real encoder reads, carried on at its speed; planted faults and noise play no part."""
        self._real = (mdeg, mdeg_per_s, self._kernel.now_ns)

    def read_mdeg(self, angle_deg: float, t_ns: int) -> int:
        """Reading at a true angle, mdeg."""
        if self._real is not None:
            mdeg, mdeg_per_s, since_ns = self._real
            return round(mdeg + mdeg_per_s * (t_ns - since_ns) / 1e9)
        if self._frozen_mdeg is not None and t_ns >= self._frozen_from_ns:
            return self._frozen_mdeg
        known_deg, known_sign, value = self._known
        if angle_deg != known_deg or self.sign != known_sign:
            truth = self.truth
            value = (
                self.sign * truth.scale * angle_deg * 1000.0
                + truth.offset_mdeg
                + truth.runout_mdeg * math.sin(math.radians(angle_deg) - self._phase_rad)
            )
            self._known = angle_deg, self.sign, value
        # A step that shares no factor with 4096 walks through the whole table, one entry per ms.
        value += self._noise_list[t_ns // NS_PER_MS * 1657 % _TABLE]
        if self._jump_mdeg and t_ns >= self._jump_from_ns:
            value += self._jump_mdeg
        if self._drift_mdeg_s and t_ns > self._drift_from_ns:
            value += self._drift_mdeg_s * (t_ns - self._drift_from_ns) / 1e9
        return round(value)

    def read_many_mdeg(self, angle_deg: NDArray[np.float64], t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Readings at true angles of shape (n,) and times of shape (n,), mdeg, not rounded."""
        if self._real is not None:
            mdeg, mdeg_per_s, since_ns = self._real
            return np.asarray(mdeg + mdeg_per_s * (t_ns - since_ns) / 1e9, dtype=np.float64)
        truth = self.truth
        value: NDArray[np.float64] = (
            self.sign * truth.scale * angle_deg * 1000.0
            + truth.offset_mdeg
            + truth.runout_mdeg * np.sin(np.radians(angle_deg) - self._phase_rad)
            + self._noise_mdeg[t_ns // NS_PER_MS * 1657 % _TABLE]
            + np.where(t_ns >= self._jump_from_ns, self._jump_mdeg, 0.0)
            + self._drift_mdeg_s * np.maximum(t_ns - self._drift_from_ns, 0) / 1e9
        )
        if self._frozen_mdeg is not None:
            value = np.where(t_ns >= self._frozen_from_ns, float(self._frozen_mdeg), value)
        return value

    def freeze(self, angle_deg: float) -> None:
        """From now on repeat what is read now."""
        now = self._kernel.now_ns
        self._frozen_mdeg = self.read_mdeg(angle_deg, now)
        self._frozen_from_ns = now

    def jump(self, by_mdeg: float) -> None:
        """From now on read `by_mdeg` more."""
        self._jump_mdeg += by_mdeg
        self._jump_from_ns = self._kernel.now_ns

    def drift(self, mdeg_per_s: float) -> None:
        """From now on read ever more."""
        self._drift_mdeg_s = mdeg_per_s
        self._drift_from_ns = self._kernel.now_ns

    def mirror(self) -> None:
        """Mount it the wrong way round (again to undo)."""
        self.sign = -self.sign

    def repair(self) -> None:
        """Take every planted fault away."""
        self._frozen_mdeg = None
        self._jump_mdeg = self._drift_mdeg_s = 0.0
        self.sign = self.truth.sign
