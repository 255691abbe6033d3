"""The reference detector at the isocentre: screen and Faraday cup of physics, for commissioning and QA only.

Where it stands, a patient cannot. While installed it measures every piece of a row that is delivered: where the beam
really crosses the isocentre plane, how wide it is, and how many ions arrived, with noise of its own (assumed). It has
no part in any treatment and in no protection.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulators.plant.kernel import Kernel, TruthEvent

Floats = NDArray[np.float64]

COLUMNS = ("grant_id", "row", "x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm", "ions")
POSITION_NOISE_MM = 0.02
SIGMA_NOISE_REL = 0.01
IONS_NOISE_REL = 0.002
PIECES_KEPT = 4000


class ReferenceDetector:
    """Screen and cup of one room.

    Attributes:
        identity: what it says it is.
        installed: whether it stands at the isocentre now.
    """

    def __init__(self, kernel: Kernel, room: str) -> None:
        self.identity = f"iongantry simulated reference {room}"
        self.installed = False
        self._kernel = kernel
        self._room = room
        self._name = f"{room}-reference"
        self._pieces: list[Floats] = []
        self._seen = 0
        self._watchers: list[Callable[[], None]] = []
        kernel.observe(self._hear)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` whenever its readings have changed."""
        self._watchers.append(watcher)

    def install(self, installed: bool) -> None:
        """Put it up (readings start empty) or take it away."""
        self.installed = installed
        self._pieces.clear()
        self._changed()

    def readings(self) -> Floats:
        """Pieces measured since it was put up, the latest 4,000: shape (m, 7), columns `COLUMNS`."""
        if not self._pieces:
            return np.empty((0, len(COLUMNS)))
        return np.concatenate(self._pieces)[-PIECES_KEPT:]

    def _hear(self, event: TruthEvent) -> None:
        if not self.installed or event.kind != "delivery.segment" or event.data["room"] != self._room:
            return
        data = event.data
        self._seen += 1
        noise = self._kernel.rng(self._name, "readings", self._seen).standard_normal((5, data["row"].size))
        self._pieces.append(
            np.column_stack(
                [
                    np.full(data["row"].size, float(data["grant_id"])),
                    data["row"].astype(np.float64),
                    data["x_mm"] + POSITION_NOISE_MM * noise[0],
                    data["y_mm"] + POSITION_NOISE_MM * noise[1],
                    data["sigma_x_mm"] * (1.0 + SIGMA_NOISE_REL * noise[2]),
                    data["sigma_y_mm"] * (1.0 + SIGMA_NOISE_REL * noise[3]),
                    data["ions"] * (1.0 + IONS_NOISE_REL * noise[4]),
                ]
            )
        )
        self._changed()

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()
