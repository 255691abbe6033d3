"""Targets for made plans: solids put together from ellipsoids and boxes, in the fixed frame around the isocentre (mm).

Shapes named after organs have their size and lack of symmetry, not their anatomy: a mirrored axis or a flipped angle must show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """An ellipsoid (`round`) or a box, by centre and half axes, mm in fixed-frame x, y, z."""

    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    round: bool = True

    def holds(self, point_mm: Floats) -> NDArray[np.bool_]:
        """Whether points (..., 3) lie inside."""
        q = (point_mm - np.array(self.centre_mm)) / np.array(self.half_mm)
        if self.round:
            return np.asarray((q * q).sum(axis=-1) <= 1.0)
        return np.asarray(np.abs(q).max(axis=-1) <= 1.0 + 1e-9)


@dataclass(frozen=True, slots=True)
class Shape:
    """A target and how it is usually irradiated.

    Args:
        name: as on the command line.
        parts: the solid is their union.
        angles_deg: gantry angles when none are given.
        depth_mm: water in front of the isocentre when none is given.
        paintings: when none are given.
        dose_gy: when none is given, over all beams.
        spot_spacing_mm, layer_spacing_mm: when none are given.
        fractions: when none are given.
    """

    name: str
    parts: tuple[Part, ...]
    angles_deg: tuple[float, ...] = (0.0,)
    depth_mm: float = 150.0
    paintings: int = 1
    dose_gy: float = 2.0
    spot_spacing_mm: float = 3.0
    layer_spacing_mm: float = 3.0
    fractions: int = 12

    @property
    def extent_mm(self) -> float:
        """Largest width of the solid along an axis."""
        low = np.min([np.subtract(p.centre_mm, p.half_mm) for p in self.parts], axis=0)
        high = np.max([np.add(p.centre_mm, p.half_mm) for p in self.parts], axis=0)
        return float((high - low).max())

    @property
    def reach_mm(self) -> float:
        """A distance from the isocentre that the solid does not exceed."""
        far = [max(p.half_mm) if p.round else float(np.linalg.norm(p.half_mm)) for p in self.parts]
        return max(float(np.linalg.norm(p.centre_mm)) + reach for p, reach in zip(self.parts, far, strict=True))

    def holds(self, point_mm: Floats) -> NDArray[np.bool_]:
        """Whether points (..., 3) of the fixed frame lie inside."""
        inside = self.parts[0].holds(point_mm)
        for part in self.parts[1:]:
            inside = inside | part.holds(point_mm)
        return inside

    def scaled(self, factor: float) -> tuple[Part, ...]:
        """The parts, larger or smaller."""

        def times(v: tuple[float, float, float]) -> tuple[float, float, float]:
            return (v[0] * factor, v[1] * factor, v[2] * factor)

        return tuple(Part(times(p.centre_mm), times(p.half_mm), p.round) for p in self.parts)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("sphere", (Part((0, 0, 0), (25, 25, 25)),)),
        Shape("box", (Part((0, 0, 0), (25, 25, 25), round=False),)),
        # head, body and tail
        Shape(
            "pancreas",
            (Part((-20, -2, -6), (16, 15, 18)), Part((6, 3, 2), (24, 9, 10)), Part((30, 9, 9), (14, 7, 8))),
            angles_deg=(0.0, 90.0),
            depth_mm=120.0,
            dose_gy=4.0,
        ),
        # a main lobe and a smaller one; moves with breathing, hence painted several times
        Shape(
            "liver",
            (Part((0, 0, 0), (34, 30, 32)), Part((-26, 12, 6), (20, 18, 16))),
            angles_deg=(90.0,),
            depth_mm=110.0,
            paintings=4,
            dose_gy=9.0,
            spot_spacing_mm=4.0,
            layer_spacing_mm=4.0,
            fractions=4,
        ),
        Shape(
            "lung",
            (Part((0, 0, 0), (10, 11, 10)), Part((5, 4, -3), (8, 8, 7))),
            depth_mm=70.0,
            dose_gy=6.0,
            spot_spacing_mm=2.5,
            layer_spacing_mm=2.5,
            fractions=4,
        ),
        # gland and seminal vesicles
        Shape(
            "prostate",
            (Part((0, 0, 0), (22, 19, 17)), Part((3, 16, -13), (17, 8, 8))),
            angles_deg=(90.0, -90.0),
            depth_mm=180.0,
            dose_gy=4.3,
        ),
        # 25 x 25 spots in 48 layers: 30,000 spots
        Shape(
            "benchmark",
            (Part((0, 0, 0), (36, 36, 47), round=False),),
            depth_mm=160.0,
            dose_gy=3.0,
            spot_spacing_mm=3.0,
            layer_spacing_mm=2.0,
            fractions=1,
        ),
        # a single layer of spots far apart; one corner is left out, so that a mirrored axis shows
        Shape("qa-grid", (Part((0, 0, 0), (75, 75, 1), round=False),), spot_spacing_mm=25.0, fractions=1),
    )
}
