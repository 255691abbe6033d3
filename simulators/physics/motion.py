"""Closed-form jerk-limited motion: where an axis is at any time, without stepping.

A `Trajectory` is a chain of segments of constant jerk; its last segment lasts for ever (usually at rest). `move` plans from
rest to rest in at most seven segments, `stop` brings any state to rest, `coast` and `friction_stop` describe an axis without
torque. Time is in s from the start of the trajectory; position in any unit u (deg or mm), speed in u/s and so on.

The rest-to-rest durations are the symmetric double-S profile of Biagiotti and Melchiorri, Trajectory Planning for Automatic
Machines and Robots (2008), section 3.4. Not responsible for limits of travel, brakes or drives.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an axis may do; all above 0.

    Attributes:
        speed: largest speed, u/s.
        acceleration: largest acceleration, u/s2.
        jerk: largest jerk, u/s3.
    """

    speed: float
    acceleration: float
    jerk: float

    def __post_init__(self) -> None:
        for name in ("speed", "acceleration", "jerk"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} limit {value} must be above 0 and finite")


@dataclass(frozen=True, slots=True)
class State:
    """An axis at one instant: position u, speed u/s, acceleration u/s2."""

    position: float
    speed: float = 0.0
    acceleration: float = 0.0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Segments of constant jerk; `starts[0]` is 0 and the last segment has no end.

    Attributes:
        starts: start of each segment, s, ascending.
        states: position, speed, acceleration at the start of each segment.
        jerks: jerk of each segment.
    """

    starts: tuple[float, ...]
    states: tuple[tuple[float, float, float], ...]
    jerks: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        """Start of the last segment: for a trajectory that ends at rest, the time at which it rests."""
        return self.starts[-1]

    @property
    def end(self) -> float:
        """Position at `duration_s`."""
        return self.states[-1][0]

    @property
    def at_rest_from_start(self) -> bool:
        """Whether nothing ever moves."""
        return len(self.starts) == 1 and self.states[0][1] == 0.0 and self.states[0][2] == 0.0 and self.jerks[0] == 0.0

    def at(self, t_s: float) -> State:
        """State at `t_s`; before 0 the first state."""
        k = bisect_right(self.starts, t_s) - 1
        if k < 0:
            return State(*self.states[0])
        p, v, a = self.states[k]
        j = self.jerks[k]
        d = t_s - self.starts[k]
        return State(p + d * (v + d * (a / 2.0 + d * j / 6.0)), v + d * (a + d * j / 2.0), a + d * j)

    def position(self, t_s: float) -> float:
        """Position at `t_s`."""
        k = bisect_right(self.starts, t_s) - 1
        if k < 0:
            return self.states[0][0]
        p, v, a = self.states[k]
        d = t_s - self.starts[k]
        return p + d * (v + d * (a / 2.0 + d * self.jerks[k] / 6.0))

    def sample(self, t_s: Floats) -> tuple[Floats, Floats, Floats]:
        """Position, speed and acceleration at each of `t_s`, shape (n,) each."""
        t = np.asarray(t_s, dtype=np.float64)
        starts = np.asarray(self.starts)
        k = np.clip(np.searchsorted(starts, t, side="right") - 1, 0, None)
        states = np.asarray(self.states, dtype=np.float64)[k]
        jerk = np.asarray(self.jerks)[k]
        d = np.maximum(t - starts[k], 0.0)
        p, v, a = states[..., 0], states[..., 1], states[..., 2]
        return p + d * (v + d * (a / 2.0 + d * jerk / 6.0)), v + d * (a + d * jerk / 2.0), a + d * jerk

    def time_of(self, position: float, resolution_s: float = 1e-6) -> float | None:
        """First time at which a trajectory that never turns back reaches `position`; None when it never does."""
        first = self.states[0][0]
        if position == first:
            return 0.0
        forward = position > first
        end_s = self.duration_s
        _, v, a = self.states[-1]
        last = self.states[-1][0]
        if (last < position) if forward else (last > position):
            if v == 0.0 and a == 0.0:
                return None
            # The open last segment: solve p + v d + a d^2 / 2 = position for the smallest d above 0.
            gap = position - last
            if a == 0.0:
                return end_s + gap / v if gap / v > 0 else None
            root = v * v + 2.0 * a * gap
            if root < 0.0:
                return None
            candidates = sorted(d for d in ((-v + math.sqrt(root)) / a, (-v - math.sqrt(root)) / a) if d > 0.0)
            return end_s + candidates[0] if candidates else None
        low, high = 0.0, end_s
        while high - low > resolution_s:
            middle = (low + high) / 2.0
            reached = self.position(middle) >= position if forward else self.position(middle) <= position
            low, high = (low, middle) if reached else (middle, high)
        return high


def chain(start: State, pieces: Iterable[tuple[float, float]], end: float | None = None) -> Trajectory:
    """Join pieces of (duration s, jerk) that begin at `start`, then rest at `end` (default: where the pieces lead)."""
    starts: list[float] = []
    states: list[tuple[float, float, float]] = []
    jerks: list[float] = []
    t, p, v, a = 0.0, start.position, start.speed, start.acceleration
    for duration, jerk in pieces:
        if duration <= 0.0:
            continue
        starts.append(t)
        states.append((p, v, a))
        jerks.append(jerk)
        d = duration
        p += d * (v + d * (a / 2.0 + d * jerk / 6.0))
        v += d * (a + d * jerk / 2.0)
        a += d * jerk
        t += d
    starts.append(t)
    states.append((p if end is None else end, 0.0, 0.0))
    jerks.append(0.0)
    return Trajectory(tuple(starts), tuple(states), tuple(jerks))


def rest(position: float) -> Trajectory:
    """Standing still for ever."""
    return Trajectory((0.0,), ((position, 0.0, 0.0),), (0.0,))


def move(start: float, end: float, limits: Limits) -> Trajectory:
    """From rest at `start` to rest at `end`, as fast as the limits allow; arrives exactly."""
    distance = abs(end - start)
    if distance == 0.0:
        return rest(start)
    v, a, j = limits.speed, limits.acceleration, limits.jerk
    if v * j < a * a:
        jerk_s = math.sqrt(v / j)
        ramp_s = 2.0 * jerk_s
    else:
        jerk_s = a / j
        ramp_s = jerk_s + v / a
    cruise_s = distance / v - ramp_s
    if cruise_s < 0.0:  # the top speed is never reached
        cruise_s = 0.0
        if distance >= 2.0 * a**3 / j**2:
            jerk_s = a / j
            ramp_s = jerk_s / 2.0 + math.sqrt(jerk_s**2 / 4.0 + distance / a)
        else:
            jerk_s = (distance / (2.0 * j)) ** (1.0 / 3.0)
            ramp_s = 2.0 * jerk_s
    hold_s = max(ramp_s - 2.0 * jerk_s, 0.0)
    sign = math.copysign(1.0, end - start)
    up, down = sign * j, -sign * j
    pieces = ((jerk_s, up), (hold_s, 0.0), (jerk_s, down), (cruise_s, 0.0), (jerk_s, down), (hold_s, 0.0), (jerk_s, up))
    return chain(State(start), pieces, end)


def stop(state: State, deceleration: float, jerk: float) -> Trajectory:
    """From any state to rest, as fast as deceleration and jerk allow.

    Taking the present acceleration a to zero by itself changes the speed by a|a|/(2 j); what is then left of the speed decides
    the direction of the stop, so an axis that already brakes harder than it needs to is not driven backward.
    """
    v, a = state.speed, state.acceleration
    left = v + a * abs(a) / (2.0 * jerk)
    if left == 0.0:
        return chain(state, ((abs(a) / jerk, -math.copysign(jerk, a)),))
    sign = math.copysign(1.0, left)
    v, a = sign * v, sign * a  # now the stop needs negative acceleration
    peak = math.sqrt(jerk * v + a * a / 2.0)
    hold_s = 0.0
    if peak > deceleration:
        peak = deceleration
        # Speed that the two jerk phases take: (a^2 - peak^2) / (2 j) up to the peak, peak^2 / (2 j) back to zero.
        first = (a * a - peak * peak) / (2.0 * jerk) * (1.0 if a >= -peak else -1.0)
        hold_s = (v + first - peak * peak / (2.0 * jerk)) / peak
    turn = -1.0 if a >= -peak else 1.0
    return chain(
        state,
        ((abs(a + peak) / jerk, sign * turn * jerk), (hold_s, 0.0), (peak / jerk, sign * jerk)),
    )


def coast(position: float, speed: float, acceleration: float) -> Trajectory:
    """Free motion under a constant acceleration, without end."""
    return Trajectory((0.0,), ((position, speed, acceleration),), (0.0,))


def friction_stop(position: float, speed: float, deceleration: float) -> Trajectory:
    """Constant friction until rest: the acceleration jumps, as it does when a brake closes."""
    if speed == 0.0:
        return rest(position)
    duration = abs(speed) / deceleration
    first = (position, speed, -math.copysign(deceleration, speed))
    return Trajectory((0.0, duration), (first, (position + speed * duration / 2.0, 0.0, 0.0)), (0.0, 0.0))
