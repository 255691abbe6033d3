"""Scanning magnets of one room: from supply currents to where the beam is moved at the isocentre.

Gain, small rotation, offset and the part of the mechanical sag that the structure leaves come from the plant's truth.
Faults make the magnets other than what was commissioned. Not responsible for when the scanner moves (`timeline`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulators.physics.optics import scanner_displacement_mm
from simulators.plant.truth import ScannerTruth

Floats = NDArray[np.float64]


class Scanner:
    """Two scanning magnets.

    Attributes:
        mirrored_x, mirrored_y: polarity reversed.
        swapped: the two supplies feed each other's magnet.
        scale: kick over what it should be.
        stuck: supplies do not follow; the currents stay at 0.
    """

    def __init__(self, truth: ScannerTruth) -> None:
        self.truth = truth
        self.mirrored_x = False
        self.mirrored_y = False
        self.swapped = False
        self.scale = 1.0
        self.stuck = False

    def displacement_mm(self, current_x_a: Floats, current_y_a: Floats, rigidity_tm: float) -> tuple[Floats, Floats]:
        """True displacement (x, y) at the isocentre plane, IEC gantry axes; arrays of the currents' shape."""
        t = self.truth
        ix = np.clip(current_x_a, -t.current_max_a, t.current_max_a)
        iy = np.clip(current_y_a, -t.current_max_a, t.current_max_a)
        if self.stuck:
            ix, iy = np.zeros_like(ix), np.zeros_like(iy)
        if self.swapped:
            ix, iy = iy, ix
        ix = ix * (-self.scale if self.mirrored_x else self.scale)
        iy = iy * (-self.scale if self.mirrored_y else self.scale)
        x, y = scanner_displacement_mm(ix, iy, (t.kick_x_tm_per_a, t.kick_y_tm_per_a), rigidity_tm, (t.sad_x_mm, t.sad_y_mm))
        c, s = math.cos(t.rotation_mrad * 1e-3), math.sin(t.rotation_mrad * 1e-3)
        return np.asarray(c * x - s * y + t.offset_x_mm), np.asarray(s * x + c * y + t.offset_y_mm)

    def sag_mm(self, angle_deg: float) -> tuple[float, float]:
        """Displacement (x, y) of beam and nozzle together against the isocentre at a beam angle; the strips do not see it.

        A first harmonic across and a second one along the gantry's axis, at most `sag_mm` each (assumed shape).
        """
        phase = math.radians(angle_deg + self.truth.sag_phase_deg)
        return self.truth.sag_mm * math.sin(phase), 0.5 * self.truth.sag_mm * (1.0 + math.cos(2.0 * phase))
