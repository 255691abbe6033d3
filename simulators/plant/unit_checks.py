"""What the delivery unit's hardware would find wrong in a stretch of beam, and when: the earliest instant wins.

Vectorised over the rows. Where something is wrong for good (a dead monitor, a gain, a wrong ion) the instant follows
from rates, so that one long spot is watched as closely as many short ones. Limits are the unit's own (design values,
assumed): position 1 mm pause, 2 mm terminate; monitors 5 % or 20 counts over 100 ms, 10 % at once; rate 2 x pause, 3
x terminate; signal per ion 15 %.

Not responsible for what follows from a finding (`delivery_unit`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulators.plant.timeline import Beam, Stretch
from simulators.plant.unit_terms import Reason

PAUSE_MM, TERMINATE_MM = 1.0, 2.0
POSITION_NS = 300_000  # two frames of the strips
DISAGREE_REL, DISAGREE_AT_ONCE_REL, DISAGREE_COUNTS = 0.05, 0.10, 20.0
DISAGREE_WINDOW_NS = 100_000_000
RATE_PAUSE, RATE_TERMINATE = 2.0, 3.0
RATE_NS = 100_000
SIGNAL_REL = 0.15
SIGNAL_NS = 100_000_000
DEAD_NS = 1_500_000  # ten frames of frozen counts: with start and cut-off, beam is off within 2 ms
NO_BEAM_NS = 5_000_000_000
ROUNDING_COUNTS = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something beyond a limit at an instant; `pause` when the grant may go on afterwards."""

    t_ns: int
    reason: Reason
    pause: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """What grant and map lead the unit to expect; arrays of shape (n,), for the rows of the stretch and maybe more.

    Attributes:
        x_mm, y_mm: planned.
        counts1_goal: cumulative goal from the start of the stretch.
        counts2_goal: the same for monitor 2.
        counts2_before: what the grant has had of monitor 2 before the stretch.
        counts1_per_ion, counts2_per_ion: of the loaded map.
        intensity_per_s, quantum_counts: of the grant.
    """

    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    counts1_goal: NDArray[np.int64]
    counts2_goal: NDArray[np.int64]
    counts2_before: int
    counts1_per_ion: float
    counts2_per_ion: float
    intensity_per_s: float
    quantum_counts: int


def first_finding(stretch: Stretch, expected: Expectation, beam: Beam) -> Finding | None:
    """The earliest finding in a stretch, or None; at one instant termination goes before a pause."""
    found = [
        *_position(stretch, expected),
        *_monitors(stretch, expected, beam),
        *_rate(stretch, expected, beam),
        *_dose(stretch, expected),
    ]
    return min(found, key=lambda f: (f.t_ns, f.pause), default=None)


def position_error_mm(stretch: Stretch, expected: Expectation) -> NDArray[np.float64]:
    """Largest measured error of either axis, per row."""
    n = stretch.size
    return np.maximum(np.abs(stretch.x_seen_mm - expected.x_mm[:n]), np.abs(stretch.y_seen_mm - expected.y_mm[:n]))


def _position(stretch: Stretch, expected: Expectation) -> list[Finding]:
    error = position_error_mm(stretch, expected)
    beam_there = stretch.t_end_ns > stretch.t_start_ns
    found = []
    for limit, pause in ((TERMINATE_MM, False), (PAUSE_MM, True)):
        over = np.flatnonzero((error > limit) & beam_there)
        if over.size:
            k = int(over[0])
            found.append(
                Finding(min(int(stretch.t_start_ns[k]) + POSITION_NS, int(stretch.t_end_ns[k])), Reason.POSITION, pause)
            )
    return found


def _monitors(stretch: Stretch, expected: Expectation, beam: Beam) -> list[Finding]:
    found: list[Finding] = []
    begin = int(stretch.t_start_ns[0])
    one = beam.counts1_per_ion / expected.counts1_per_ion
    two = beam.counts2_per_ion / expected.counts2_per_ion
    if beam.rate_per_s <= 0.0:
        return [Finding(begin + NO_BEAM_NS, Reason.DEAD)]
    if one <= 0.0 or two <= 0.0:
        return [Finding(begin + DEAD_NS, Reason.DEAD)]
    if abs(one - 1.0) > SIGNAL_REL:
        found.append(Finding(begin + SIGNAL_NS, Reason.TOKEN))
    # A lasting difference reaches the allowed counts after that many seconds of beam.
    lasting = abs(one - two) / max(one, two, 1e-9)
    if lasting > DISAGREE_REL:
        counts_per_s = abs(one - two) * expected.counts1_per_ion * beam.rate_per_s
        wait_ns = round(DISAGREE_COUNTS / counts_per_s * 1e9)
        wait_ns = max(wait_ns, 1_000_000 if lasting > DISAGREE_AT_ONCE_REL else DISAGREE_WINDOW_NS)
        found.append(Finding(begin + wait_ns, Reason.DISAGREE))
    ratio = expected.counts1_per_ion / expected.counts2_per_ion
    sum1, sum2 = np.cumsum(stretch.counts1), np.cumsum(stretch.counts2) * ratio
    back = np.searchsorted(stretch.t_end_ns, stretch.t_end_ns - DISAGREE_WINDOW_NS)
    window1 = sum1 - np.where(back > 0, sum1[back - 1], 0)
    window2 = sum2 - np.where(back > 0, sum2[back - 1], 0)
    single1, single2 = stretch.counts1, stretch.counts2 * ratio
    over = (np.abs(window1 - window2) > np.maximum(DISAGREE_REL * window1, DISAGREE_COUNTS)) | (
        np.abs(single1 - single2) > np.maximum(DISAGREE_AT_ONCE_REL * np.maximum(single1, single2), DISAGREE_COUNTS)
    )
    if over.any():
        found.append(Finding(int(stretch.t_end_ns[int(np.argmax(over))]), Reason.DISAGREE))
    return found


def _rate(stretch: Stretch, expected: Expectation, beam: Beam) -> list[Finding]:
    """Mean rate and bursts against the rate asked for, as monitor 1 sees them."""
    seen = beam.rate_per_s * beam.counts1_per_ion / (expected.intensity_per_s * expected.counts1_per_ion)
    found = []
    for factor, beam_s in ((seen, 0.0), (seen * beam.ripple.burst_factor, beam.ripple.burst_start_s)):
        if factor > RATE_PAUSE and (beam_s == 0.0 or beam_s < float(stretch.beam_s[-1])):
            t_ns = stretch.plant_ns(beam_s + RATE_NS * 1e-9)
            found.append(Finding(t_ns, Reason.RATE, pause=factor <= RATE_TERMINATE))
    return found


def _dose(stretch: Stretch, expected: Expectation) -> list[Finding]:
    n, found = stretch.size, []
    sum1, sum2 = np.cumsum(stretch.counts1), np.cumsum(stretch.counts2)
    over1 = sum1 - expected.counts1_goal[:n] > expected.quantum_counts + ROUNDING_COUNTS
    # Monitor 2 does not steer: over the whole grant its gain may differ by what the comparison of the monitors allows.
    quantum2 = expected.quantum_counts * expected.counts2_per_ion / expected.counts1_per_ion
    allowed2 = np.maximum(DISAGREE_REL * (expected.counts2_before + sum2), DISAGREE_COUNTS)
    over2 = sum2 - expected.counts2_goal[:n] > quantum2 + allowed2
    for over, reason in ((over1, Reason.DOSE_1), (over2, Reason.DOSE_2)):
        if over.any():
            found.append(Finding(int(stretch.t_end_ns[int(np.argmax(over))]), reason))
    return found
