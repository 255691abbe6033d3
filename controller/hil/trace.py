"""What was seen of a drive: its status block again and again, with times; and the motion that was asked of it.

Pure values. Not responsible for reading them (`drive_bench`) nor for judging them (`judge_drive`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from drivers.wire.codecs.cia402 import DriveState, Safety, drive_state

STANDS_DEG_S = 0.02  # slower than this it stands (assumed: twice the standstill bound of the ring, for one encoder's noise)


@dataclass(frozen=True, slots=True)
class Sample:
    """One status block of one drive.

    `t_s` is loop time in the middle between question and answer; it was taken at most `unsure_s` before or after.
    """

    t_s: float
    statusword: int
    position_deg: float
    speed_deg_s: float
    torque_percent: float
    error_code: int
    safety: int
    counter: int
    token: tuple[int, ...] = ()  # the drive's own cycles, which it wants back with a command; empty when it tells none
    unsure_s: float = 0.0

    @property
    def state(self) -> DriveState:
        """State of the power state machine."""
        return drive_state(self.statusword)

    @property
    def braked(self) -> bool:
        """Whether the brake is applied (SBC)."""
        return bool(self.safety & Safety.SBC)

    @property
    def proven(self) -> bool:
        """Whether torque has been proven."""
        return bool(self.safety & Safety.TORQUE_PROVEN)

    @property
    def still(self) -> bool:
        """Whether it stands."""
        return abs(self.speed_deg_s) < STANDS_DEG_S


@dataclass(slots=True)
class Trace:
    """Everything seen of one drive, and the words that were sent to it."""

    label: str
    samples: list[Sample] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def since(self, t_s: float) -> list[Sample]:
        """Samples from `t_s` on."""
        return [sample for sample in self.samples if sample.t_s >= t_s]

    @property
    def last(self) -> Sample:
        """The newest sample."""
        return self.samples[-1]


@dataclass(frozen=True, slots=True)
class Profile:
    """A rest-to-rest motion, jerk limited or trapezoidal, as a drive plans it.

    Three boxes folded into each other: cruise, acceleration, jerk; so it starts and ends at rest and never exceeds a limit.
    """

    start_deg: float
    target_deg: float
    speed_deg_s: float
    acceleration_deg_s2: float
    jerk_deg_s3: float  # 0: no limit

    @property
    def boxes_s(self) -> tuple[float, ...]:
        """Durations of the boxes; shorter moves do not reach speed, or not even acceleration."""
        distance, v, a, j = (
            abs(self.target_deg - self.start_deg),
            self.speed_deg_s,
            self.acceleration_deg_s2,
            self.jerk_deg_s3,
        )
        if distance == 0.0:
            return ()
        rise = a / j if j else 0.0
        if distance / v < v / a + rise:
            v = a / 2.0 * (math.sqrt(rise * rise + 4.0 * distance / a) - rise)
        if j and v / a < rise:
            v = min(self.speed_deg_s, (distance * distance * j / 4.0) ** (1.0 / 3.0))
            root = math.sqrt(v / j)
            return (distance / v, root, root)
        return (distance / v, v / a, rise) if rise else (distance / v, v / a)

    @property
    def duration_s(self) -> float:
        """From the first to the last movement."""
        return sum(self.boxes_s)

    def positions_deg(self, t_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where it is at times after its start, shape as `t_s`."""
        boxes = self.boxes_s
        if not boxes:
            return np.full_like(t_s, self.start_deg)
        order = len(boxes)
        t_s = np.clip(t_s, 0.0, sum(boxes))
        done = np.zeros_like(t_s)
        for ends in product((0, 1), repeat=order):
            late = t_s - sum(box for box, end in zip(boxes, ends, strict=True) if end)
            done += (-1) ** sum(ends) * np.maximum(late, 0.0) ** order
        done /= math.factorial(order) * math.prod(boxes)
        return self.start_deg + (self.target_deg - self.start_deg) * done


def reaction_s(samples: Sequence[Sample], profile: Profile, t0_s: float, longest_s: float) -> tuple[float, float]:
    """The start delay with which a motion fits its profile best, and the largest deviation in deg that is then left.

    A sample counts with the least deviation at any moment at which it may have been taken. Fast: a drive waits to be polled.
    """
    if not samples:
        return 0.0, 0.0
    t_s, unsure_s, seen = (
        np.array(column) for column in zip(*((s.t_s, s.unsure_s, s.position_deg) for s in samples), strict=True)
    )

    def worst(delay_s: float) -> float:
        early = profile.positions_deg(t_s - t0_s - delay_s - unsure_s)
        late = profile.positions_deg(t_s - t0_s - delay_s + unsure_s)
        low, high = np.minimum(early, late), np.maximum(early, late)
        return float(np.maximum(0.0, np.maximum(low - seen, seen - high)).max())

    coarse = min((longest_s * i / 20 for i in range(21)), key=worst)
    fine = (coarse + longest_s * i / 200 for i in range(-9, 10))
    best = min((delay for delay in fine if 0.0 <= delay <= longest_s), key=worst)
    return best, worst(best)


def longest_gap_s(samples: Sequence[Sample]) -> float:
    """Longest time between two samples, s: whether a drive could think that nobody polls it."""
    return max((b.t_s - a.t_s for a, b in pairwise(samples)), default=0.0)


def first(samples: Sequence[Sample], wanted: Callable[[Sample], bool]) -> Sample | None:
    """The first sample that is as wanted."""
    return next((sample for sample in samples if wanted(sample)), None)
