"""What the room looks at while it matters: pure checks of device states against limits, each of which makes a cause.

Everything here is slower than the hardware by design: chain A and the delivery unit have stopped the beam long before one of
these causes is made. They end or interrupt the *treatment*, and say why. Not responsible for acting on a cause (`session`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from controller.room.causes import Cause, Severity
from controller.room.states import State
from drivers.hal.capabilities import (
    COUCH_AXES,
    DoseMonitorStatus,
    EndReason,
    Hold,
    InterlockStatus,
    RingState,
    RoomStatus,
    UnitStatus,
)
from drivers.hal.clock import NS_PER_MS
from drivers.hal.frames import wrap_angle_deg
from drivers.hal.reading import Reading

GANTRY_MOVED_DEG = 0.1  # limits table: from the armed angle
ENCODER_PAIR_DEG = 0.2  # limits table: load encoder against the drives'
COUCH_MOVED_MM = 0.5  # assumed
COUCH_MOVED_DEG = 0.2  # assumed, the couch's own accuracy
_COUCH_LIMITS = {axis: COUCH_MOVED_MM if axis.endswith("_mm") else COUCH_MOVED_DEG for axis in COUCH_AXES}
DOSE_UNIT_TRIPPED = 2
FIRST_OUT_NONE = 0
NO_INPUT = 0xFFFF  # docs/wires.md, node 2: the first-out is the interlock system's own, or there is none

# Elements of chain A by bit of docs/wires.md, register 11; door and search are judged by the room status itself.
# The dose units come last, after their own words: they latch on what happens elsewhere.
_CHAIN: tuple[tuple[int, str, Severity, str, str], ...] = (
    (16, "chain.standstill", Severity.TERMINATE, "the gantry's safe standstill was lost", "service: check drives and brakes"),
    (32, "chain.torque_off", Severity.TERMINATE, "the drives' safe torque off was lost", "service: check drives and brakes"),
    (64, "chain.quench", Severity.TERMINATE, "a gantry magnet quenched or lost cooling", "service: magnet recovery"),
)
_DOSE_CHAIN: tuple[tuple[int, str, Severity, str, str], ...] = (
    (4, "chain.dose_1", Severity.TERMINATE, "dose unit 1 is not healthy", "physicist: reconcile, then reset the unit"),
    (8, "chain.dose_2", Severity.TERMINATE, "dose unit 2 is not healthy", "physicist: reconcile, then reset the unit"),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """How often the room looks and how old a status may be. Assumed; the hardware has its own, shorter times."""

    irradiating_ms: float = 50.0
    armed_ms: float = 100.0
    lazy_ms: float = 500.0
    interlock_ms: float = 200.0  # its relay is seen with every room status; this is for the cause
    ring_ms: float = 500.0
    couch_ms: float = 1000.0
    access_deadline_ms: float = 250.0
    interlock_deadline_ms: float = 500.0
    unit_deadline_ms: float = 2000.0  # units post at least once a second
    ring_deadline_ms: float = 1500.0
    request_answer_s: float = 2.0  # request line to beam enabled
    permits_s: float = 30.0  # preset written to permits A and B
    grace_s: float = 10.0  # the delivery winds up after the field ended
    closing_step_s: float = 5.0
    state_s: Mapping[State, float] = field(
        default_factory=lambda: {
            State.POSITIONING: 900.0,
            State.IMAGING: 1800.0,
            State.POSITIONED: 1800.0,
            State.SECURED: 1800.0,
            State.ALLOCATED: 60.0,
            State.TUNING: 600.0,
        }
    )

    def period_s(self, state: State) -> float:
        """How long to sleep between two looks."""
        if state in (State.BEAM_ON, State.HELD):
            return self.irradiating_ms / 1000.0
        return (self.armed_ms if state in WATCHED else self.lazy_ms) / 1000.0


ENTERED = (State.SECURED, State.ALLOCATED, State.TUNING)  # nobody is in the room, beam is not possible yet
WATCHED = (State.ARMED, State.BEAM_ON, State.HELD, State.INTERRUPTED)  # one command away from beam, or nearer


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of everything that is watched. Ages are judged against `now_ns`."""

    now_ns: int
    access: RoomStatus
    interlock: InterlockStatus
    unit: UnitStatus
    dose: DoseMonitorStatus
    ring: RingState | None = None
    couch: Mapping[str, Reading[float]] | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What was true when the room was armed."""

    angle_deg: float
    couch: Mapping[str, float]


def stale(seen: Seen, timing: Timing, *, with_ring: bool) -> list[str]:
    """Everything older than its deadline, in words with age and limit. Stale is not good (invariant C1)."""
    now = seen.now_ns
    rows = [
        ("room status", seen.access.t_ns, timing.access_deadline_ms),
        ("interlock status", seen.interlock.t_ns, timing.interlock_deadline_ms),
        ("delivery unit status", seen.unit.t_ns, timing.unit_deadline_ms),
        ("dose unit 2 status", seen.dose.t_ns, timing.unit_deadline_ms),
    ]
    if with_ring:
        rows.append(("gantry", seen.ring.angle.t_ns if seen.ring is not None else 0, timing.ring_deadline_ms))
    return [
        f"{name} is {(now - t_ns) / NS_PER_MS:.0f} ms old (limit {limit:.0f} ms)"
        for name, t_ns, limit in rows
        if now - t_ns > limit * NS_PER_MS
    ]


def chain_elements_lost(access: RoomStatus) -> list[str]:
    """Names of the elements of chain A that are not healthy, for messages."""
    names = {
        1: "E-stop",
        2: "door and search",
        4: "dose unit 1",
        8: "dose unit 2",
        16: "standstill",
        32: "torque off",
        64: "quench",
        128: "beam-off elements (reset at their cabinet)",
        256: "collision contact",
    }
    return [name for bit, name in names.items() if not access.chain_a_bits & bit]


def unsecured(access: RoomStatus, now_ns: int) -> Cause | None:
    """Door or search lost."""
    if access.door_closed and access.search_complete:
        return None
    what = "the door is open" if not access.door_closed else "the search is void"
    return Cause(
        "room.unsecured",
        Severity.TERMINATE,
        f"the room is no longer secured: {what}",
        value=f"search state {access.search_state}",
        hint="search the room again",
        t_ns=now_ns,
    )


def always(access: RoomStatus, now_ns: int) -> Iterator[Cause]:
    """What ends a session in any state."""
    if not access.estop_healthy:
        yield Cause(
            "room.estop",
            Severity.FAULT,
            "an E-stop is pressed",
            hint="release it with the local key, then acknowledge",
            t_ns=now_ns,
        )
    if access.service_mode:
        yield Cause(
            "room.service_key",
            Severity.TERMINATE,
            "the mode key was turned to service",
            hint="no treatment from service; turn it back and start again",
            t_ns=now_ns,
        )


def in_beam(seen: Seen, timing: Timing, reference: Reference, *, requested: bool) -> Iterator[Cause]:
    """Everything that must hold from armed to terminated, most severe element first.

    Args:
        seen: the latest of everything.
        timing: deadlines.
        reference: what was armed.
        requested: whether the request line is up and was answered, so that beam enabled is expected.
    """
    now = seen.now_ns
    yield from _lost(_CHAIN, seen)
    yield from _units(seen)
    yield from _lost(_DOSE_CHAIN, seen)
    if seen.ring is not None:
        yield from ring_moved(seen.ring, reference.angle_deg, now)
    if seen.couch is not None:
        yield from couch_moved(seen.couch, reference.couch, now)
    if old := stale(seen, timing, with_ring=seen.ring is not None):
        yield Cause("status.stale", Severity.PAUSE, "; ".join(old), hint="check the connection, then resume", t_ns=now)
    if not seen.access.permit_b or not seen.interlock.relay_closed:
        yield Cause(
            "permit.b",
            Severity.PAUSE,
            "the interlock system does not permit beam",
            device="interlock",
            value=_interlock_words(seen.interlock),
            limit="no active trip",
            hint="see the interlock list; reset it there, then resume",
            t_ns=now,
        )
    if requested and not seen.access.permit_r:
        yield Cause("permit.r", Severity.PAUSE, "the request relay fell", hint="the controller was late; resume", t_ns=now)


def _interlock_words(status: InterlockStatus) -> str:
    if status.first_out_code == FIRST_OUT_NONE and not status.active_trips:
        return "no trip is told: its pulse has stopped"
    shown = ""
    if status.first_out_input != NO_INPUT:
        shown = f" (value {status.first_out_value}, limit {status.first_out_limit})"
    return f"first-out code {status.first_out_code}{shown}, {status.active_trips} active"


def _lost(elements: tuple[tuple[int, str, Severity, str, str], ...], seen: Seen) -> Iterator[Cause]:
    for bit, name, severity, message, hint in elements:
        if not seen.access.chain_a_bits & bit:
            yield Cause(name, severity, message, device="chain A", value="open", limit="closed", hint=hint, t_ns=seen.now_ns)


def _units(seen: Seen) -> Iterator[Cause]:
    unit, dose, now = seen.unit, seen.dose, seen.now_ns
    if unit.latched and not (unit.reason is EndReason.SECOND_UNIT and dose.state == DOSE_UNIT_TRIPPED):
        yield Cause(
            "unit.latched",
            Severity.TERMINATE,
            f"the delivery unit latched: {unit.reason.name.lower().replace('_', ' ')}",
            value=f"grant {unit.last_grant_id}, row {unit.open_row}",
            hint="physicist: reconcile, then reset the unit",
            t_ns=now,
        )
    elif unit.hold & Hold.PAUSE_LIMIT:
        yield Cause(
            "unit.paused",
            Severity.PAUSE,
            "the delivery unit paused: position or rate beyond its pause limit",
            value=f"grant {unit.open_grant_id}, row {unit.open_row}",
            hint="look at the last spots; resume when they are in place",
            t_ns=now,
        )
    if dose.state == DOSE_UNIT_TRIPPED:
        yield Cause(
            "dose_2.tripped",
            Severity.TERMINATE,
            "the second dose unit tripped",
            value=f"{dose.counts2_total} counts, reason {dose.trip_reason}",
            hint="physicist: reconcile, then reset the unit",
            t_ns=now,
        )
    if not dose.hv_good:
        yield Cause(
            "dose_2.hv", Severity.TERMINATE, "high voltage of monitor 2 is not good", hint="run the self-test", t_ns=now
        )


def ring_moved(ring: RingState, armed_deg: float, now_ns: int) -> Iterator[Cause]:
    """The gantry left its standstill, its angle, or its encoders part."""
    moved = abs(wrap_angle_deg(ring.angle.value - armed_deg))
    # Written so that a reading which is not a number is not taken for a small one.
    if not (ring.standstill and ring.brake_applied) or not moved <= GANTRY_MOVED_DEG:
        yield Cause(
            "gantry.moved",
            Severity.TERMINATE,
            "the gantry moved in beam",
            device=ring.angle.name,
            value=f"{moved:.3f} deg from armed, standstill {ring.standstill}, brake {ring.brake_applied}",
            limit=f"{GANTRY_MOVED_DEG:g} deg",
            hint="service: check brakes and drives",
            t_ns=now_ns,
        )
    apart = abs(wrap_angle_deg(ring.angle.value - ring.motor_angle.value))
    if not apart <= ENCODER_PAIR_DEG:
        yield Cause(
            "gantry.encoders",
            Severity.TERMINATE,
            "load encoder and drive encoders of the gantry disagree",
            device=ring.angle.name,
            value=f"{apart:.3f} deg",
            limit=f"{ENCODER_PAIR_DEG:g} deg",
            hint="service: check the encoders",
            t_ns=now_ns,
        )


def couch_moved(couch: Mapping[str, Reading[float]], armed: Mapping[str, float], now_ns: int) -> Iterator[Cause]:
    """The couch left the place where it was armed."""
    for axis in COUCH_AXES:
        limit = _COUCH_LIMITS[axis]
        moved = abs(couch[axis].value - armed[axis])
        if not moved <= limit:
            unit = axis.rsplit("_", 1)[1]
            yield Cause(
                "couch.moved",
                Severity.TERMINATE,
                f"the couch moved in beam: {axis.rsplit('_', 1)[0]}",
                device=couch[axis].name,
                value=f"{moved:.2f} {unit}",
                limit=f"{limit:g} {unit}",
                hint="image again before any beam",
                t_ns=now_ns,
            )
