"""Judges what was seen of a drive by figures of the profile, the facility and the overlay. Pure: samples in, findings out.

A finding is (good, measured, limit, reason). Not responsible for making the drive do anything (`drive_procedure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.hil.trace import Profile, Sample, Trace, first, reaction_s
from drivers.wire.codecs.cia402 import DriveState, Status, fault_text

SPEED_MARGIN = 1.05  # assumed: ripple of a speed loop
SPEED_MARGIN_DEG_S = 0.05
SPEED_SPAN_S = 0.06  # speed by positions is judged over at least this long: a position has a resolution
REACTION_S = 0.10  # assumed: from a word on the line to full deceleration, a jerk limit included
RAMP_MARGIN = 1.2  # assumed: on the distance of the stated ramp
START_S = 0.30  # assumed: longest delay between set-point and motion
REPORT_S = 0.5  # assumed: how much later than planned a move may be reported as done, beside the settling time
SHIFT_DEG = 0.05  # assumed: what an axis may move while its brake is set or released
SUPERVISION_MARGIN_S = 0.1  # assumed: on the supervision time, for the drive's own cycle
ERROR_SUPERVISION = 0x8700

POWERED = (DriveState.SWITCHED_ON, DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP)


class Finding(NamedTuple):
    """What a judge says."""

    good: bool
    measured: str
    limit: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop as it was seen: where and how fast when it was asked for, and what came."""

    speed_deg_s: float
    from_deg: float
    samples: Sequence[Sample]

    @property
    def distance_deg(self) -> float:
        """How far it went after the word."""
        return max((abs(sample.position_deg - self.from_deg) for sample in self.samples), default=0.0)


def stopping_deg(speed_deg_s: float, deceleration_deg_s2: float, late_s: float = 0.0) -> float:
    """Longest distance allowed for a stop: the stated ramp with its margin, the reaction, and what comes before the ramp."""
    ramp = speed_deg_s * speed_deg_s / (2.0 * deceleration_deg_s2)
    return RAMP_MARGIN * ramp + speed_deg_s * (REACTION_S + late_s) + SHIFT_DEG


def enabling(samples: Sequence[Sample], window_deg: float) -> Finding:
    """States come in the profile's order and the axis stays where it is."""
    seen = [sample.state for i, sample in enumerate(samples) if i == 0 or sample.state is not samples[i - 1].state]
    order = [DriveState.SWITCH_ON_DISABLED, DriveState.READY, DriveState.SWITCHED_ON, DriveState.OPERATION_ENABLED]
    places = [order.index(state) if state in order else -1 for state in seen]
    path = " > ".join(state.value for state in seen)
    moved = max(abs(sample.position_deg - samples[0].position_deg) for sample in samples)
    took_s = samples[-1].t_s - samples[0].t_s
    limit = f"in this order; moved at most {window_deg:g} deg"
    reason = ""
    if -1 in places or places != sorted(places):
        reason = f"states came as {path}"
    elif moved > window_deg:
        reason = f"it moved {moved:.3f} deg while it was being enabled"
    return Finding(not reason, f"{path} in {took_s:.2f} s, moved {moved:.3f} deg", limit, reason)


def torque_first(samples: Sequence[Sample]) -> Finding:
    """Torque is proven before the brake opens; operation enabled means both."""
    start_s = samples[0].t_s
    proven = first(samples, lambda s: s.proven)
    released = first(samples, lambda s: not s.braked)
    enabled = first(samples, lambda s: s.state is DriveState.OPERATION_ENABLED)
    limit = "proven, then released, then operation enabled"

    def at(sample: Sample | None) -> str:
        return "never" if sample is None else f"at {sample.t_s - start_s:.3f} s"

    measured = f"torque proven {at(proven)}, brake released {at(released)}, operation enabled {at(enabled)}"
    free = first(samples, lambda s: not s.braked and not s.proven)
    if free is not None:
        return Finding(False, measured, limit, f"the brake was released {at(free)} and torque was not proven")
    early = first(samples, lambda s: s.state is DriveState.OPERATION_ENABLED and (s.braked or not s.proven))
    if early is not None:
        what = "with the brake still applied" if early.braked else "without proven torque"
        return Finding(False, measured, limit, f"it said operation enabled {at(early)} {what}")
    return Finding(True, measured, limit)


def brake_first(samples: Sequence[Sample], start_deg: float) -> Finding:
    """On the way down: the brake is applied while torque is still there, and the axis stays."""
    t0_s = samples[0].t_s
    braked = first(samples, lambda s: s.braked)
    unproven = first(samples, lambda s: not s.proven)
    limit = f"brake, then torque off; moved at most {SHIFT_DEG:g} deg"
    moved = max(abs(sample.position_deg - start_deg) for sample in samples)
    measured = (
        f"brake applied {'never' if braked is None else f'at {braked.t_s - t0_s:.3f} s'}, torque off "
        f"{'never' if unproven is None else f'at {unproven.t_s - t0_s:.3f} s'}, moved {moved:.3f} deg"
    )
    free = first(samples, lambda s: not s.braked and not s.proven)
    if free is not None:
        return Finding(False, measured, limit, f"torque was off at {free.t_s - t0_s:.3f} s and the brake was not applied")
    if braked is None:
        return Finding(False, measured, limit, "the brake was not applied")
    if moved > SHIFT_DEG:
        return Finding(False, measured, limit, f"it moved {moved:.3f} deg while its brake was set")
    return Finding(True, measured, limit)


def arrival(samples: Sequence[Sample], profile: Profile, window_deg: float) -> Finding:
    """It ends at its target, standing."""
    last = samples[-1]
    error = last.position_deg - profile.target_deg
    measured = f"ends {error:+.3f} deg from its target after {last.t_s - samples[0].t_s:.2f} s"
    reason = "" if abs(error) <= window_deg else f"it stands {error:+.3f} deg from its target"
    return Finding(not reason, measured, f"{window_deg:g} deg", reason)


def reached_honest(samples: Sequence[Sample], profile: Profile, window_deg: float) -> Finding:
    """Bit 10 only inside the window."""
    told = [sample for sample in samples if sample.statusword & Status.TARGET_REACHED]
    limit = f"within {window_deg:g} deg of the target"
    if not told:
        return Finding(False, "never set", limit, "the drive never said that it reached its target")
    farthest = max(told, key=lambda sample: abs(sample.position_deg - profile.target_deg))
    away = abs(farthest.position_deg - profile.target_deg)
    measured = f"first set {abs(told[0].position_deg - profile.target_deg):.3f} deg from the target, at most {away:.3f} deg"
    reason = "" if away <= window_deg else f"target reached was set {away:.3f} deg away from the target"
    return Finding(not reason, measured, limit, reason)


def settling(samples: Sequence[Sample], profile: Profile, window_deg: float, settle_s: float) -> Finding:
    """Settling time and overshoot."""
    way = 1.0 if profile.target_deg >= profile.start_deg else -1.0
    over = max(0.0, *(way * (sample.position_deg - profile.target_deg) for sample in samples))
    told = first(samples, lambda s: bool(s.statusword & Status.TARGET_REACHED))
    planned_s = profile.duration_s
    late_s = (told.t_s if told is not None else samples[-1].t_s) - samples[0].t_s - planned_s
    allowed_s = settle_s + REPORT_S
    limit = f"overshoot {window_deg:g} deg, reported within {allowed_s:g} s of the planned {planned_s:.2f} s"
    reason = ""
    if over > window_deg:
        reason = f"it went {over:.3f} deg over its target"
    elif told is None or late_s > allowed_s:
        reason = f"it was not reported as done until {late_s:.2f} s after the planned end"
    return Finding(not reason, f"overshoot {over:.3f} deg, reported {late_s:+.2f} s after the planned end", limit, reason)


def velocity(samples: Sequence[Sample], profile: Profile) -> Finding:
    """Neither the speed it says nor the speed of its positions exceeds the profile velocity."""
    told = max(abs(sample.speed_deg_s) for sample in samples)
    shown, since = 0.0, 0
    for sample in samples:
        while sample.t_s - samples[since + 1 if since + 1 < len(samples) else since].t_s >= SPEED_SPAN_S:
            since += 1
        span_s = sample.t_s - samples[since].t_s
        if span_s >= SPEED_SPAN_S:
            longest_s = span_s + sample.unsure_s + samples[since].unsure_s
            shown = max(shown, abs(sample.position_deg - samples[since].position_deg) / longest_s)
    allowed = SPEED_MARGIN * profile.speed_deg_s + SPEED_MARGIN_DEG_S
    allowed_shown = 1.1 * allowed + SPEED_MARGIN_DEG_S
    measured = f"{told:.3f} deg/s by its speed register, {shown:.3f} deg/s by its positions"
    reason = ""
    if told > allowed:
        reason = f"it says {told:.3f} deg/s, commanded {profile.speed_deg_s:g} deg/s"
    elif shown > allowed_shown:
        reason = f"its positions show {shown:.3f} deg/s, commanded {profile.speed_deg_s:g} deg/s"
    return Finding(not reason, measured, f"{allowed:.3f} deg/s said, {allowed_shown:.3f} deg/s shown", reason)


def following(samples: Sequence[Sample], profile: Profile, t0_s: float, allowed_deg: float) -> Finding:
    """Setpoint against actual; the start delay is not counted."""
    delay_s, worst_deg = reaction_s(samples, profile, t0_s, START_S)
    flagged = first(samples, lambda s: bool(s.statusword & Status.FOLLOWING_ERROR))
    measured = f"at most {worst_deg:.3f} deg, {1000 * delay_s:.0f} ms after the set-point"
    reason = ""
    if flagged is not None:
        reason = "the drive itself says following error (bit 13)"
    elif worst_deg > allowed_deg:
        reason = f"it is up to {worst_deg:.3f} deg away from the commanded profile"
    return Finding(not reason, measured, f"{allowed_deg:g} deg, bit 13 clear", reason)


def quick_stop(stop: Stopped, deceleration_deg_s2: float) -> Finding:
    """Distance and end of a quick stop."""
    allowed = stopping_deg(stop.speed_deg_s, deceleration_deg_s2)
    last = stop.samples[-1]
    ended = last.state in (DriveState.QUICK_STOP, DriveState.SWITCH_ON_DISABLED)
    measured = (
        f"{stop.distance_deg:.3f} deg from {stop.speed_deg_s:.2f} deg/s, ends in {last.state.value}, "
        f"brake {'applied' if last.braked else 'released'}"
    )
    limit = f"{allowed:.3f} deg (ramp {deceleration_deg_s2:g} deg/s2), quick stop active or switch on disabled, brake"
    reason = ""
    if not last.still:
        reason = f"it still moves at {last.speed_deg_s:+.2f} deg/s, {last.t_s - stop.samples[0].t_s:.2f} s after the quick stop"
    elif stop.distance_deg > allowed:
        reason = f"it went {stop.distance_deg:.3f} deg after the quick stop, allowed {allowed:.3f} deg"
    elif not ended:
        reason = f"it ended in {last.state.value}"
    elif not last.braked:
        reason = "the brake was not applied after the quick stop"
    return Finding(not reason, measured, limit, reason)


def polling_lost(stops: Sequence[Stopped], deceleration_deg_s2: float, deadline_s: float, silent_s: float) -> Finding:
    """After silence: at rest, not far, brake, and the fault that says why; one drive of a ring may say it for both."""
    late_s = deadline_s + SUPERVISION_MARGIN_S
    speed = max(stop.speed_deg_s for stop in stops)
    allowed = stopping_deg(speed, deceleration_deg_s2, late_s)
    after = [stop.samples[0] for stop in stops]
    distance = max(stop.distance_deg for stop in stops)
    codes = ", ".join(fault_text(sample.error_code) if sample.error_code else "no error" for sample in after)
    states = ", ".join(sample.state.value for sample in after)
    measured = f"{distance:.3f} deg from {speed:.2f} deg/s in {silent_s:.2f} s of silence; {states}; {codes}"
    limit = f"{allowed:.3f} deg; not enabled, brake applied, 0x{ERROR_SUPERVISION:04X}"
    reason = ""
    if any(not sample.still for sample in after):
        reason = "it still moves although nobody polls it"
    elif any(sample.state is DriveState.OPERATION_ENABLED for sample in after):
        reason = "it is still enabled although nobody polls it"
    elif distance > allowed:
        reason = f"it went on for {distance:.3f} deg without being polled, allowed {allowed:.3f} deg"
    elif any(not sample.braked for sample in after):
        reason = "its brake is not applied"
    elif all(sample.error_code != ERROR_SUPERVISION for sample in after):
        reason = f"it does not say that polling was lost (0x{ERROR_SUPERVISION:04X}): {codes}"
    return Finding(not reason, measured, limit, reason)


def held(traces: Sequence[Trace]) -> Finding:
    """At every sample the brake is applied or torque is proven."""
    seen = sum(len(trace.samples) for trace in traces)
    free = [(trace.label, sample) for trace in traces for sample in trace.samples if not sample.braked and not sample.proven]
    limit = "every sample"
    if not free:
        return Finding(True, f"{seen} samples", limit)
    label, sample = free[0]
    return Finding(
        False,
        f"{len(free)} of {seen} samples not held",
        limit,
        f"{label} was held neither by torque nor by its brake in {len(free)} samples, first in {sample.state.value} at "
        f"{sample.position_deg:.3f} deg",
    )


def statuswords(traces: Sequence[Trace]) -> Finding:
    """Every statusword is one of the profile's."""
    words = {sample.statusword: sample.state for trace in traces for sample in trace.samples}
    strange = sorted(word for word, state in words.items() if state is DriveState.UNKNOWN)
    dead = sorted(w for w, state in words.items() if state in POWERED and not w & Status.VOLTAGE_ENABLED)
    states = sorted({state.value for state in words.values()})
    limit = "bits 0 to 3, 5, 6 code a state; bit 4 set from switched on to quick stop active"
    reason = ""
    if strange:
        reason = f"statusword 0x{strange[0]:04X} codes no state of the profile"
    elif dead:
        reason = f"statusword 0x{dead[0]:04X} says {words[dead[0]].value} without voltage enabled (bit 4)"
    return Finding(not reason, f"{len(words)} different words: {', '.join(states)}", limit, reason)


def standstill_of_counter_s(trace: Trace) -> float:
    """Longest time for which the liveness counter stood still while the drive was being polled, s."""
    longest, moved_s = 0.0, None
    previous: Sample | None = None
    for sample in trace.samples:
        if previous is None or sample.counter != previous.counter or moved_s is None:
            moved_s = sample.t_s
        elif sample.t_s - previous.t_s < SUPERVISION_MARGIN_S:
            longest = max(longest, sample.t_s - moved_s)
        else:
            moved_s = sample.t_s
        previous = sample
    return longest
