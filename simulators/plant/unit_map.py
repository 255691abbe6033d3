"""The map a delivery unit is loaded with for one energy.

Planned position to scanner currents, strips to isocentre, counts per ion; as received on the wire (docs/wires.md,
`MAP:SP`); whether it is right shows only in the beam.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MAP_VALUES = 16


@dataclass(frozen=True, slots=True, eq=False)
class LoadedMap:
    """One map.

    Attributes:
        kev_u: energy token it belongs to.
        scanner_a: x0, xx, xy, y0, yx, yy: A, and A per mm at the isocentre plane.
        monitor_x, monitor_y: offset in mm and gain, strips to isocentre.
        counts1_per_ion, counts2_per_ion: what one ion should count.
    """

    kev_u: int
    scanner_a: tuple[float, float, float, float, float, float]
    monitor_x: tuple[float, float]
    monitor_y: tuple[float, float]
    counts1_per_ion: float
    counts2_per_ion: float
    focus_id: int
    library_version: int
    values: Floats  # as received

    @classmethod
    def of(cls, values: Floats) -> LoadedMap:
        """Read the array of the wire.

        Raises:
            ValueError: not 16 finite numbers, or counts per ion not above 0.
        """
        if values.shape != (MAP_VALUES,) or not np.all(np.isfinite(values)):
            raise ValueError(f"a map has {MAP_VALUES} finite numbers, not {values.size}")
        v = [float(value) for value in values]
        if v[11] <= 0.0 or v[12] <= 0.0:
            raise ValueError(f"counts per ion {v[11]:g} and {v[12]:g}: both must be above 0")
        return cls(
            kev_u=round(v[0]),
            scanner_a=(v[1], v[2], v[3], v[4], v[5], v[6]),
            monitor_x=(v[7], v[8]),
            monitor_y=(v[9], v[10]),
            counts1_per_ion=v[11],
            counts2_per_ion=v[12],
            focus_id=round(v[13]),
            library_version=round(v[14]),
            values=values.copy(),
        )

    def currents_a(self, x_mm: Floats, y_mm: Floats) -> tuple[Floats, Floats]:
        """Scanner currents for planned positions, arrays of their shape."""
        x0, xx, xy, y0, yx, yy = self.scanner_a
        return np.asarray(x0 + xx * x_mm + xy * y_mm), np.asarray(y0 + yx * x_mm + yy * y_mm)
