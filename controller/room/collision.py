"""Is there room between nozzle and couch? A simple geometric check that errs on the side of refusing.

The nozzle is two boxes in the gantry frame (snout and body), the couch two boxes in the table-top frame (panel and head
extension). Every dimension is assumed and stands in `Envelope`; the patient and fixation devices are not in it. Not responsible
for stopping anything: collision sensors and the operator's dry run do that. What is refused here is refused with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.errors import CommandRejected
from drivers.hal.frames import fixed_to_table_top, gantry_to_fixed, support_to_fixed, table_top_to_support, wrap_angle_deg

Points = NDArray[np.float64]
GAP_MIN_MM = 50.0  # hazard M8: at least 50 mm between nozzle and couch (assumed)
PATH_STEP_DEG = 2.0
PATH_SPACING_MM = 40.0
PLACE_SPACING_MM = 20.0
FINE_SPACING_MM = 8.0  # where the coarse bound does not decide
FINE_STEP_DEG = 0.25


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box by its corners, mm."""

    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]

    def corners(self) -> Points:
        """The eight corners, shape (8, 3)."""
        low, high = np.array(self.low_mm), np.array(self.high_mm)
        pick = np.array([[i & 1, (i >> 1) & 1, (i >> 2) & 1] for i in range(8)])
        return np.asarray(np.where(pick == 1, high, low), dtype=np.float64)

    def distance(self, points_mm: Points) -> NDArray[np.float64]:
        """Distance of points (..., 3) from the box, mm; 0 inside."""
        outside = np.maximum(np.array(self.low_mm) - points_mm, points_mm - np.array(self.high_mm))
        outside = np.maximum(outside, 0.0)
        return np.asarray(np.sqrt(np.einsum("...i,...i->...", outside, outside)), dtype=np.float64)

    @lru_cache(maxsize=64)  # noqa: B019 - a frozen value, and few of them: a path looks at the same nozzle many times
    def surface(self, spacing_mm: float) -> Points:
        """Points on the five faces that are not the far one in z, no cell larger than `spacing_mm`, shape (n, 3)."""
        low, high = self.low_mm, self.high_mm
        grid = [np.linspace(a, b, max(2, int(np.ceil((b - a) / spacing_mm)) + 1)) for a, b in zip(low, high, strict=True)]
        faces = [_face(grid[0], grid[1], 2, low[2])]
        for end in (0, 1):
            faces.append(_face(grid[1], grid[2], 0, (low[0], high[0])[end]))
            faces.append(_face(grid[0], grid[2], 1, (low[1], high[1])[end]))
        points = np.concatenate(faces)
        points.flags.writeable = False
        return points


def _face(u: Points, v: Points, axis: int, at: float) -> Points:
    uu, vv = (a.ravel() for a in np.meshgrid(u, v, indexing="ij"))
    return np.insert(np.stack([uu, vv], axis=-1), axis, at, axis=1)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Assumed dimensions, mm. The nozzle looks from +z of the gantry frame; the table top's origin is on its surface."""

    snout_half_width_mm: float = 160.0  # 200 mm field, ripple filter frame and housing
    body_half_width_mm: float = 450.0
    body_face_mm: float = 600.0  # from the isocentre
    body_end_mm: float = 1200.0
    panel: Box = Box((-265.0, -2000.0, -60.0), (265.0, -300.0, 0.0))  # carbon panel, 530 mm wide
    head_extension: Box = Box((-120.0, -300.0, -60.0), (120.0, 150.0, 0.0))

    def nozzle(self, snout_mm: float) -> tuple[Box, Box]:
        """Snout and body in the gantry frame, the snout's face at `snout_mm` from the isocentre."""
        s, b = self.snout_half_width_mm, self.body_half_width_mm
        face = min(snout_mm, self.body_face_mm)
        return Box((-s, -s, face), (s, s, self.body_face_mm)), Box((-b, -b, self.body_face_mm), (b, b, self.body_end_mm))

    def couch(self) -> tuple[Box, Box]:
        """Panel and head extension in the table-top frame."""
        return self.panel, self.head_extension


ASSUMED = Envelope()


def _axes(couch: Mapping[str, float]) -> tuple[Points, float, float, float]:
    lateral, longitudinal, vertical, angle, pitch, roll = (float(couch[axis]) for axis in COUCH_AXES)
    return np.array([lateral, longitudinal, vertical]), angle, pitch, roll


def gap_mm(gantry_deg: float, snout_mm: float, couch: Mapping[str, float], *, envelope: Envelope = ASSUMED) -> float:
    """A lower bound of the gap between nozzle and couch at one place, mm; 0 when they may touch.

    The nozzle's surface is sampled; a point of it is at most half a cell's diagonal from a sample, which is subtracted.
    """
    return _enough_mm(gantry_deg, snout_mm, couch, envelope)


def _enough_mm(gantry_deg: float, snout_mm: float, couch: Mapping[str, float], envelope: Envelope) -> float:
    """A lower bound that is as sharp as the decision needs: coarse where that is enough, else fine."""
    coarse = _gap_mm(gantry_deg, snout_mm, couch, PLACE_SPACING_MM, envelope)
    return coarse if coarse >= GAP_MIN_MM else _gap_mm(gantry_deg, snout_mm, couch, FINE_SPACING_MM, envelope)


def _gap_mm(gantry_deg: float, snout_mm: float, couch: Mapping[str, float], spacing_mm: float, envelope: Envelope) -> float:
    return _gap_at(gantry_deg, snout_mm, tuple([float(couch[axis]) for axis in COUCH_AXES]), spacing_mm, envelope)


@lru_cache(maxsize=1024)  # ways are asked for again: by who offers a move and by who makes it, and in each session of a plan
def _gap_at(gantry_deg: float, snout_mm: float, axes: tuple[float, ...], spacing_mm: float, envelope: Envelope) -> float:
    surface = np.concatenate([box.surface(spacing_mm) for box in envelope.nozzle(snout_mm)])
    points = fixed_to_table_top(gantry_to_fixed(surface, gantry_deg), np.array(axes[:3]), *axes[3:])
    nearest = min(float(box.distance(points).min()) for box in envelope.couch())
    return max(0.0, nearest - spacing_mm / math.sqrt(2.0))


def swept_gap_mm(snout_mm: float, couch: Mapping[str, float], *, envelope: Envelope = ASSUMED) -> float:
    """A lower bound of the gap at *every* gantry angle, mm.

    The nozzle never comes nearer to the gantry axis than its face; the couch never reaches farther from it than its corners.
    """
    translation, angle, pitch, roll = _axes(couch)
    corners = np.concatenate([box.corners() for box in envelope.couch()])
    fixed = support_to_fixed(table_top_to_support(corners, translation, pitch, roll), angle)
    reach = float(np.hypot(fixed[:, 0], fixed[:, 2]).max())
    return max(0.0, min(snout_mm, envelope.body_face_mm) - reach)


def turn(from_deg: float, to_deg: float) -> float:
    """The angle to command, within [-180, 180]: the ring never crosses +-180, so there is one way, except to 180 itself.

    180 can be reached from both sides; the nearer one is taken.
    """
    target = wrap_angle_deg(to_deg)
    if target == 180.0 and from_deg < 0.0:
        return -180.0
    return target


def check_gantry_path(
    from_deg: float, to_deg: float, snout_mm: float, couch: Mapping[str, float], *, envelope: Envelope = ASSUMED, room: str = ""
) -> float:
    """The smallest gap on the way from one gantry angle to another with the couch at rest, mm.

    Raises:
        CommandRejected: 4301 when it is below `GAP_MIN_MM`, with the angle where it is smallest.
    """
    everywhere = swept_gap_mm(snout_mm, couch, envelope=envelope)
    if everywhere >= GAP_MIN_MM:
        return everywhere
    steps = max(1, int(np.ceil(abs(to_deg - from_deg) / PATH_STEP_DEG)))
    worst, at_deg = np.inf, from_deg
    for middle in np.linspace(from_deg, to_deg, steps + 1):
        half = abs(to_deg - from_deg) / steps / 2.0
        gap = _gap_mm(float(middle), snout_mm, couch, PATH_SPACING_MM, envelope) - _travel_mm(2.0 * half, envelope)
        if gap < GAP_MIN_MM:  # the bound is too coarse to decide: look closely here
            near = np.arange(middle - half, middle + half + FINE_STEP_DEG / 2.0, FINE_STEP_DEG)
            fine = [_gap_mm(float(angle), snout_mm, couch, FINE_SPACING_MM, envelope) for angle in near]
            gap = min(fine) - _travel_mm(FINE_STEP_DEG, envelope)
        if gap < worst:
            worst, at_deg = gap, float(middle)
    worst = max(0.0, float(worst))
    _judge(worst, at_deg, snout_mm, couch, "on the way of the gantry", room)
    return worst


def _travel_mm(step_deg: float, envelope: Envelope) -> float:
    """Between two sampled angles no point of the nozzle travels farther than half a step at the body's far corner."""
    return math.hypot(envelope.body_end_mm, envelope.body_half_width_mm) * math.radians(step_deg) / 2.0


def check_couch_path(
    start: Mapping[str, float],
    end: Mapping[str, float],
    gantry_deg: float,
    snout_mm: float,
    *,
    envelope: Envelope = ASSUMED,
    room: str = "",
) -> float:
    """The smallest gap while the couch goes from `start` to `end` with the gantry at rest, mm.

    All axes are taken to run together, sampled at 21 places. Raises CommandRejected (4301) like `check_gantry_path`.
    """
    if min(swept_gap_mm(snout_mm, place, envelope=envelope) for place in (start, end)) >= GAP_MIN_MM and _same_angles(
        start, end
    ):
        # Corners move on straight lines when no angle changes, and distance from an axis is convex along a line.
        return GAP_MIN_MM
    worst, where = np.inf, start
    for share in np.linspace(0.0, 1.0, 21):
        place = {axis: float(start[axis]) + float(share) * (float(end[axis]) - float(start[axis])) for axis in COUCH_AXES}
        gap = _enough_mm(gantry_deg, snout_mm, place, envelope)
        if gap < worst:
            worst, where = gap, place
    _judge(float(worst), gantry_deg, snout_mm, where, "on the way of the couch", room)
    return float(worst)


def check_place(
    gantry_deg: float, snout_mm: float, couch: Mapping[str, float], *, envelope: Envelope = ASSUMED, room: str = ""
) -> float:
    """The gap at one place, mm. Raises CommandRejected (4301) when it is below `GAP_MIN_MM`."""
    gap = gap_mm(gantry_deg, snout_mm, couch, envelope=envelope)
    _judge(gap, gantry_deg, snout_mm, couch, "at the treatment position", room)
    return gap


def _same_angles(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return all(a[axis] == b[axis] for axis in ("angle_deg", "pitch_deg", "roll_deg"))


def _judge(gap: float, gantry_deg: float, snout_mm: float, couch: Mapping[str, float], where: str, room: str) -> None:
    if gap >= GAP_MIN_MM:
        return
    translation, angle, _pitch, _roll = _axes(couch)
    raise CommandRejected(
        f"nozzle and couch would come within {gap:.0f} mm {where} (at least {GAP_MIN_MM:.0f} mm): gantry {gantry_deg:.1f} deg, "
        f"snout {snout_mm:.0f} mm, couch angle {angle:.1f} deg at ({translation[0]:.0f}, {translation[1]:.0f}, "
        f"{translation[2]:.0f}) mm",
        code=4301,
        device=room,
        hint="retract the snout in the plan, or choose another couch angle",
    )
