"""The patient on the couch: how far from the planned place, how the imaging sees it, how it breathes.

The offset is drawn when the patient is laid down. It is added to where the couch truly stands relative to where the plan
wants it: small angles, so the six axes add up. No wire carries the planned couch position: staff who know the plan index the
patient for it; otherwise the patient counts as indexed for wherever the couch was driven when images are taken. Not
responsible for dose in the patient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulators.physics.breathing import Breathing, BreathingPattern
from simulators.plant.couch import AXES, Couch
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import PatientTruth

# A couch farther than this from where the patient was indexed was sent to another planned position: no set-up error is as
# large, and no correction either (20 mm, 3 deg; assumed).
ELSEWHERE = np.array([25.0] * 3 + [3.5] * 3)


class Patient:
    """Who lies on the couch of a room.

    Args:
        kernel: randomness, truth events.
        room: name of the room.
        truth: how well patients are set up and imaged.
        couch: what they lie on.

    Attributes:
        on_couch: someone lies there.
        setup_offset: lateral, longitudinal, vertical mm and angle, pitch, roll deg from the planned place; zeros when nobody
            is there.
        breathing: of the patient.
    """

    def __init__(self, kernel: Kernel, room: str, truth: PatientTruth, couch: Couch) -> None:
        self._kernel = kernel
        self._room = room
        self._truth = truth
        self._couch = couch
        self._count = 0
        self._images = 0
        self._planned: NDArray[np.float64] | None = None
        self.device = f"{room}-patient"
        self.on_couch = False
        self.setup_offset: NDArray[np.float64] = np.zeros(6)
        self.breathing = self._breathing()

    def lie_down(self, planned_couch: Sequence[float] | None = None) -> None:
        """Lay the next patient down, indexed for a couch position (six values, mm and deg) when staff know it."""
        self._count += 1
        self._images = 0
        self._planned = None if planned_couch is None else np.array(planned_couch, dtype=np.float64)
        rng = self._kernel.rng(self.device, "setup", self._count)
        truth = self._truth
        scale = np.array([truth.setup_mm] * 3 + [truth.setup_deg] * 3)
        # Truncated at 2.5 standard deviations: what lies worse is laid down again.
        self.setup_offset = scale * np.clip(rng.normal(size=6), -2.5, 2.5)
        self.breathing = self._breathing()
        self.on_couch = True
        self._kernel.emit(self.device, "patient", room=self._room, on_couch=True)

    def index(self, planned_couch: Sequence[float]) -> None:
        """The next beam wants the couch elsewhere: the patient stays as it lies."""
        self._planned = np.array(planned_couch, dtype=np.float64)

    def get_up(self) -> None:
        """The couch is empty again."""
        self.on_couch = False
        self.setup_offset = np.zeros(6)
        self._kernel.emit(self.device, "patient", room=self._room, on_couch=False)

    def residual(self, t_ns: int) -> NDArray[np.float64]:
        """Where the target truly is relative to the planned place, shape (6,), mm and deg."""
        planned = self._couch.encoder(t_ns) if self._planned is None else self._planned
        return self._couch.position(t_ns) - planned + self.setup_offset

    def registered_correction(self) -> dict[str, float]:
        """Couch correction that two X-ray images taken now suggest, by axis, mm and deg: true to the noise of registration."""
        now = self._kernel.now_ns
        if self._planned is None or np.any(np.abs(self._couch.encoder(now) - self._planned) > ELSEWHERE):
            self._planned = self._couch.encoder(now)
        self._images += 1
        rng = self._kernel.rng(self.device, "registration", self._count, self._images)
        truth = self._truth
        noise = np.array([truth.imaging_mm] * 3 + [truth.imaging_deg] * 3) * rng.normal(size=6)
        return dict(zip(AXES, (noise - self.residual(now)).tolist(), strict=True))

    def _breathing(self) -> Breathing:
        pattern = BreathingPattern(period_s=self._truth.breathing_period_s, amplitude_mm=self._truth.breathing_amplitude_mm)
        return Breathing(pattern, self._kernel.rng(self.device, "breathing", self._count))
