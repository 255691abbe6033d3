"""One uninterrupted stretch of a grant as arrays: when each row starts and ends, how many ions and counts it gets, and
where.

Computed once, when the beam starts, for all rows that are left; whatever happens inside truncates the arrays. The
unit watches the count of monitor 1 and moves on when the *cumulative* planned count is reached, so ions that arrive
while it reacts or moves belong to the next row and the carried count stays within one reaction quantum. Before the
beam goes off it stops early by what the cut-off usually lets through. Random parts: ripple of the extraction, arrival
of ions, charge of each ion, the instant within a sampling interval, the length of the cut-off, the strips' noise. No
loop over rows anywhere.

Not responsible for permission, trips or bookkeeping (`delivery_unit`, `unit_checks`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulators.physics.noise import Ripple
from simulators.plant.chambers import StripMonitor

Floats = NDArray[np.float64]
Int64s = NDArray[np.int64]

HORIZON_S = 20.0  # a row that cannot end (no beam, dead monitor) is looked ahead this far


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows to deliver, shape (n,); positions as planned, at the isocentre plane."""

    number: Int64s  # row of the grant
    spot_index: Int64s
    x_mm: Floats
    y_mm: Floats
    counts1_goal: Int64s  # cumulative over these rows, less what the grant has already had


@dataclass(frozen=True, slots=True)
class Rules:
    """How the unit moves on.

    Attributes:
        spot_mode: beam off at every step.
        sample_s: the count is looked at this often.
        speed_x_mm_s, speed_y_mm_s, settle_s: scanner.
        beam_on_distance_max_mm: longer steps are made with the beam off.
        lead_counts: stop this early before the beam goes off.
        on_s: command to full beam.
        off_s, off_jitter_s, off_max_s: command to last ion, RF-KO (or what stands in for it).
        x_mm, y_mm: where the scanner stands at the start.
    """

    spot_mode: bool
    sample_s: float
    speed_x_mm_s: float
    speed_y_mm_s: float
    settle_s: float
    beam_on_distance_max_mm: float
    lead_counts: float
    on_s: float
    off_s: float
    off_jitter_s: float
    off_max_s: float
    x_mm: float
    y_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """What the plant gives.

    Attributes:
        rate_per_s: mean ions/s in the nozzle.
        ripple: relative intensity from the start of the stretch.
        ions_available: the fill ends there.
        counts1_per_ion, counts2_per_ion: as the monitors really count.
        spread: rms of one ion's charge over its mean.
    """

    rate_per_s: float
    ripple: Ripple
    ions_available: float
    counts1_per_ion: float
    counts2_per_ion: float
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where the rows really land and what the strips will show of it, shape (n,), mm at the isocentre plane."""

    true_x_mm: Floats
    true_y_mm: Floats
    seen_x_mm: Floats  # without sag and noise
    seen_y_mm: Floats
    map_x: tuple[float, float]  # offset mm, gain: strips to isocentre
    map_y: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Rows as delivered; all arrays have one entry per row that was begun.

    Attributes:
        counts1, counts2, ions: per row; `ended` False for a last row that was cut.
        x_mm, y_mm: true; x_seen_mm, y_seen_mm: measured; both at the isocentre plane.
        empty_ns: instant at which the fill was used up, or -1.
    """

    row: Int64s
    spot_index: Int64s
    t_start_ns: Int64s
    t_end_ns: Int64s
    counts1: Int64s
    counts2: Int64s
    ions: Floats
    x_mm: Floats
    y_mm: Floats
    x_seen_mm: Floats
    y_seen_mm: Floats
    beam_s: Floats  # beam-on clock at the end of each row
    ended: NDArray[np.bool_]
    start_ns: int
    empty_ns: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.row.size)

    @property
    def end_ns(self) -> int:
        """End of the last row."""
        return int(self.t_end_ns[-1]) if self.size else self.start_ns

    def plant_ns(self, beam_s: float) -> int:
        """Plant time of an instant on the beam-on clock; the end when it lies beyond."""
        i = int(np.searchsorted(self.beam_s, beam_s))
        if i >= self.size:
            return self.end_ns
        return max(int(self.t_end_ns[i]) - round((float(self.beam_s[i]) - beam_s) * 1e9), int(self.t_start_ns[i]))

    def beam_at(self, t_ns: int) -> bool:
        """Whether ions arrive at `t_ns` (between far rows the beam is off)."""
        i = int(np.searchsorted(self.t_end_ns, t_ns, side="right"))
        return i < self.size and int(self.t_start_ns[i]) <= t_ns

    def cut(self, t_ns: int) -> Stretch:
        """What was delivered until `t_ns`: finished rows, and the begun part of the one that was open."""
        done = int(np.searchsorted(self.t_end_ns, t_ns, side="right"))
        if done >= self.size:
            return self
        part = 0.0
        keep = done
        if t_ns > self.t_start_ns[done]:
            part = (t_ns - int(self.t_start_ns[done])) / (int(self.t_end_ns[done]) - int(self.t_start_ns[done]))
            keep = done + 1
        out = {name: getattr(self, name)[:keep].copy() for name in _ARRAYS}
        if keep > done:
            out["t_end_ns"][done] = t_ns
            out["counts1"][done] = int(part * float(self.counts1[done]))
            out["counts2"][done] = int(part * float(self.counts2[done]))
            out["ions"][done] = part * float(self.ions[done])
            out["ended"][done] = False
        return Stretch(**out, start_ns=self.start_ns, empty_ns=self.empty_ns if 0 <= self.empty_ns <= t_ns else -1)


class Running:
    """A stretch under way, for readings at any instant: sums are made once, a reading costs one search.

    Sums and times are kept as lists: one number is wanted at a time, and thousands of times.

    Attributes:
        worst_mm: largest measured position error up to each row, shape (n,).
    """

    def __init__(self, stretch: Stretch, error_mm: Floats) -> None:
        self.worst_mm = np.maximum.accumulate(error_mm) if stretch.size else error_mm
        self._starts_ns: list[int] = stretch.t_start_ns.tolist()
        self._ends_ns: list[int] = stretch.t_end_ns.tolist()
        columns = np.array([stretch.counts1, stretch.counts2, stretch.ions], dtype=np.float64)
        sums = np.concatenate([np.zeros((3, 1)), np.cumsum(columns, axis=1)], axis=1)
        self._sums: list[list[float]] = sums.T.tolist()  # counts 1, counts 2, ions before each row
        self._seen_ns = -1
        self._seen: tuple[int, int, int, float] = (0, 0, 0, 0.0)

    def at(self, t_ns: int) -> tuple[int, int, int, float]:
        """Rows finished, and counts 1, counts 2 (whole ones) and ions delivered until `t_ns`."""
        if t_ns != self._seen_ns:
            self._seen_ns, self._seen = t_ns, self._look(t_ns)
        return self._seen

    def _look(self, t_ns: int) -> tuple[int, int, int, float]:
        done = bisect_right(self._ends_ns, t_ns)
        c1, c2, ions = self._sums[done]
        if done < len(self._ends_ns) and t_ns > (begun := self._starts_ns[done]):
            part = (t_ns - begun) / (self._ends_ns[done] - begun)
            next1, next2, next_ions = self._sums[done + 1]
            return done, int(c1 + part * (next1 - c1)), int(c2 + part * (next2 - c2)), ions + part * (next_ions - ions)
        return done, int(c1), int(c2), ions


_ARRAYS = (
    "row",
    "spot_index",
    "t_start_ns",
    "t_end_ns",
    "counts1",
    "counts2",
    "ions",
    "x_mm",
    "y_mm",
    "x_seen_mm",
    "y_seen_mm",
    "beam_s",
    "ended",
)


def compute(
    rows: Rows, place: Place, rules: Rules, beam: Beam, strips: StripMonitor, start_ns: int, rng: np.random.Generator
) -> Stretch:
    """Deliver rows from `start_ns` on until they are done or the fill is used up.

    The draws are made in a fixed order and number, so that nothing else changes them.
    """
    n = rows.number.size
    normal = rng.standard_normal((6, n))
    uniform = rng.random(n)
    dx = np.abs(np.diff(rows.x_mm, prepend=rules.x_mm))
    dy = np.abs(np.diff(rows.y_mm, prepend=rules.y_mm))
    transit_s = np.maximum(dx / rules.speed_x_mm_s, dy / rules.speed_y_mm_s)
    far = np.hypot(dx, dy) > rules.beam_on_distance_max_mm
    fresh = far | rules.spot_mode  # the beam is started for this row
    fresh[0] = True
    off = np.append(fresh[1:], True)  # ... and stopped after this one

    tail_s = np.clip(rules.off_s + rules.off_jitter_s * normal[5], 0.0, rules.off_max_s)
    ended = np.ones(n, dtype=np.bool_)
    if beam.rate_per_s <= 0.0 or beam.counts1_per_ion <= 0.0:
        # Monitor 1 never counts: the first row stays open until somebody ends it.
        beam_s = HORIZON_S + np.arange(n, dtype=np.float64)
        ions = np.where(np.arange(n) == 0, beam.rate_per_s * HORIZON_S, 0.0)
        counts1 = np.zeros(n, dtype=np.int64)
        ended[0] = False
    else:
        trigger = np.maximum.accumulate(np.maximum(rows.counts1_goal - off * rules.lead_counts, 0.0))
        mean_ions = np.diff(trigger, prepend=0.0) / beam.counts1_per_ion
        # Ions needed for those counts scatter by their charge, the time they need by their arrival.
        arrival = np.maximum(mean_ions + np.sqrt(mean_ions * (1.0 + beam.spread**2)) * normal[0], 0.0)
        flat_s = np.cumsum(arrival) / beam.rate_per_s
        beam_s = beam.ripple.invert_s(flat_s) + uniform * rules.sample_s + off * tail_s
        # A row lasts at least as long as the scanner needs to get there: T_k >= T_(k-1) + transit_k, by a running maximum.
        least_s = np.cumsum(np.where(fresh, 0.0, transit_s))
        beam_s = np.asarray(least_s + np.maximum.accumulate(beam_s - least_s), dtype=np.float64)
        beyond = np.maximum(beam.ripple.integral_s(beam_s) - flat_s, 0.0) * beam.rate_per_s
        reached = trigger + beyond * beam.counts1_per_ion
        cumulative = np.maximum.accumulate(np.ceil(reached - 1e-6)).astype(np.int64)
        counts1 = np.diff(cumulative, prepend=0)
        ions = np.diff(np.maximum.accumulate(reached), prepend=0.0) / beam.counts1_per_ion
    own = beam.spread * np.sqrt(ions)
    ions = np.maximum(ions + own * normal[1], 0.0)
    charge2 = np.cumsum(np.maximum(ions + own * normal[2], 0.0)) * beam.counts2_per_ion
    counts2 = np.diff(np.floor(charge2), prepend=0.0).astype(np.int64)

    # From beam-on time to plant time: each start of the beam waits for scanner, settling and RF-KO.
    gap_s = np.where(fresh, transit_s + rules.settle_s + rules.on_s, 0.0)
    t_end = start_ns + np.round((beam_s + np.cumsum(gap_s)) * 1e9).astype(np.int64)
    before = np.concatenate([[start_ns], t_end[:-1]])
    t_start = before + np.round(gap_s * 1e9).astype(np.int64)
    t_end = np.maximum(t_end, t_start)

    # Ions that arrive while the scanner moves land between the rows: half a step off, on the mean.
    duration_s = np.maximum((t_end - t_start) * 1e-9, 1e-9)
    moving = np.where(fresh, 0.0, 0.5 * np.minimum(transit_s / duration_s, 1.0))
    back_x = -moving * np.diff(place.true_x_mm, prepend=place.true_x_mm[0])
    back_y = -moving * np.diff(place.true_y_mm, prepend=place.true_y_mm[0])
    strip_x, strip_y = strips.read_mm(place.seen_x_mm + back_x, place.seen_y_mm + back_y, duration_s, normal[3:5])
    stretch = Stretch(
        row=rows.number,
        spot_index=rows.spot_index,
        t_start_ns=t_start,
        t_end_ns=t_end,
        counts1=counts1,
        counts2=counts2,
        ions=ions,
        x_mm=place.true_x_mm + back_x,
        y_mm=place.true_y_mm + back_y,
        x_seen_mm=place.map_x[0] + place.map_x[1] * strip_x,
        y_seen_mm=place.map_y[0] + place.map_y[1] * strip_y,
        beam_s=beam_s,
        ended=ended,
        start_ns=start_ns,
        empty_ns=-1,
    )
    return _until_empty(stretch, beam.ions_available)


def _until_empty(stretch: Stretch, ions_available: float) -> Stretch:
    """Cut where the fill is used up."""
    used = np.cumsum(stretch.ions)
    if used[-1] <= ions_available:
        return stretch
    k = int(np.searchsorted(used, ions_available))
    part = (ions_available - (float(used[k - 1]) if k else 0.0)) / float(stretch.ions[k])
    t_ns = int(stretch.t_start_ns[k]) + int(part * (int(stretch.t_end_ns[k]) - int(stretch.t_start_ns[k])))
    cut = stretch.cut(t_ns)
    return Stretch(**{name: getattr(cut, name) for name in _ARRAYS}, start_ns=cut.start_ns, empty_ns=t_ns)
