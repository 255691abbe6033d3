"""The room's states and every way between them, as data. Machine, documentation and tests are made from these tables.

Names follow IEC 60601-2-64. Pure: guards are functions of a `RoomFacts` snapshot; nothing here reads a device or a clock.
Not responsible for carrying a transition out (`machine`) or for making the facts true (`session`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from controller.room.causes import Severity
from drivers.hal.clock import NS_PER_S

ARMED_MAX_NS = 60 * NS_PER_S  # design: armed lapses after 60 s
HELD_MAX_NS = 30 * NS_PER_S  # design: held for longer becomes interrupted (IBA: hold to resume 3 to 30 s)
INTERRUPTED_MAX_NS = 300 * NS_PER_S  # design: interrupted for longer ends the field
SELF_TEST_MAX_S = 24 * 3600  # dose self-test at most a day old


class State(StrEnum):
    """Every state a room can be in; a dot separates a state from its parent."""

    STANDBY = "standby"
    IDENTIFIED = "preparatory.identified"
    POSITIONING = "preparatory.positioning"
    IMAGING = "preparatory.imaging"
    POSITIONED = "preparatory.positioned"
    SECURED = "preparatory.secured"
    ALLOCATED = "preparatory.allocated"
    TUNING = "preparatory.tuning"
    ARMED = "ready.armed"
    BEAM_ON = "irradiating.beam_on"
    HELD = "irradiating.held"
    INTERRUPTED = "interrupted"
    COMPLETE = "terminated.complete"
    PARTIAL = "terminated.partial"
    FAULT = "fault"
    QA = "service.qa"
    BEAM_TUNING = "service.beam_tuning"
    PHYSICS = "service.physics"

    @property
    def family(self) -> str:
        """The state or its parent: ``"preparatory"``, ``"irradiating"``, ``"fault"``."""
        return self.value.split(".", maxsplit=1)[0]


class Trigger(StrEnum):
    """Every event a room knows. `TRIP` is not in the table: it leads somewhere from every state (`TRIPS`)."""

    IDENTIFY = "identify"
    POSITION = "position"
    IMAGE = "image"
    ACCEPT_POSITION = "accept_position"
    SECURE = "secure"
    SEARCH_LOST = "search_lost"
    ALLOCATE = "allocate"
    TUNE = "tune"
    ARM = "arm"
    DISARM = "disarm"
    EDITED = "edited"
    BEAM_ON = "beam_on"
    HOLD = "hold"
    CONTINUE = "continue"
    INTERRUPT = "interrupt"
    RESUME = "resume"
    COMPLETE = "complete"
    END_EARLY = "end_early"
    CANCEL = "cancel"
    RELEASE = "release"
    ACKNOWLEDGE = "acknowledge"
    TO_QA = "to_qa"
    TO_BEAM_TUNING = "to_beam_tuning"
    TO_PHYSICS = "to_physics"
    LEAVE_SERVICE = "leave_service"
    TRIP = "trip"


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """What is known at one instant. Everything defaults to the answer that refuses.

    Attributes:
        t_ns: loop time of the snapshot.
        edit_version: counts every edit of plan, beam, set-up or tolerances.
        proven_version: the edit version which the operator identified and all proofs below refer to.
        identified: patient, plan, fraction and room were confirmed.
        set_up: couch, gantry, snout and range shifters were read back within tolerance of their targets.
        image_verified: the last image's residual is within tolerance.
        accepted: the operator accepted the position.
        secured: searched, door closed, E-stop healthy, by the room's own status.
        token_held: this room holds the beam token.
        route_open: the beam path leads to this room.
        tuned: accelerator, magnets and scanner map are those of the first layer.
        self_test_age_s: age of the dose self-test; negative when there was none.
        ceilings_loaded: the second dose unit has this field's ceilings.
        preset_written: room token, angle and species were written to the safety I/O as armed.
        permit_a: the hard-wired chain permits.
        permit_b: the interlock system permits.
        fresh: every supervised status is younger than its deadline.
        confirmed: the operator gave the one deliberate beam-on for this cycle.
        armed_for_ns: time since the room was armed; negative when it is not.
        delivered_all: the delivery reported everything delivered and reconciled.
        beam_given: this cycle has had beam.
        unit_closed: the delivery unit has no open grant.
        token_returned: this room holds no beam token.
        causes_gone: nothing that tripped the room is still present.
        reconciled: the open dose was reconciled.
        service_key: the key is in service.
        explain: why a fact is false, by its name, with numbers.
    """

    t_ns: int = 0
    edit_version: int = 0
    proven_version: int = -1
    identified: bool = False
    set_up: bool = False
    image_verified: bool = False
    accepted: bool = False
    secured: bool = False
    token_held: bool = False
    route_open: bool = False
    tuned: bool = False
    self_test_age_s: int = -1
    ceilings_loaded: bool = False
    preset_written: bool = False
    permit_a: bool = False
    permit_b: bool = False
    fresh: bool = False
    confirmed: bool = False
    armed_for_ns: int = -1
    delivered_all: bool = False
    beam_given: bool = True
    unit_closed: bool = False
    token_returned: bool = False
    causes_gone: bool = False
    reconciled: bool = False
    service_key: bool = False
    explain: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a transition: a pure function of the facts, and the words for when it does not hold."""

    name: str
    holds: Callable[[RoomFacts], bool]
    otherwise: str

    def reason(self, facts: RoomFacts) -> str | None:
        """None when it holds, else why not."""
        if self.holds(facts):
            return None
        detail = facts.explain.get(self.name, "")
        return f"{self.otherwise}: {detail}" if detail else self.otherwise


PROVEN = Guard("proven", lambda f: f.proven_version == f.edit_version, "something was edited since it was confirmed")
IDENTIFIED = Guard("identified", lambda f: f.identified, "patient, plan, fraction and room are not confirmed")
SET_UP = Guard("set_up", lambda f: f.set_up, "couch, gantry or nozzle is not at its target")
IMAGED = Guard("image_verified", lambda f: f.image_verified, "the position is not verified by image")
ACCEPTED = Guard("accepted", lambda f: f.accepted, "the operator has not accepted the position")
SECURED = Guard("secured", lambda f: f.secured, "the room is not searched and closed")
TOKEN = Guard("token_held", lambda f: f.token_held, "this room does not hold the beam token")
ROUTE = Guard("route_open", lambda f: f.route_open, "the beam path does not lead to this room")
TUNED = Guard("tuned", lambda f: f.tuned, "accelerator and magnets are not tuned to the first layer")
TESTED = Guard("self_tested", lambda f: 0 <= f.self_test_age_s <= SELF_TEST_MAX_S, "no dose self-test within the last 24 h")
CEILINGS = Guard("ceilings_loaded", lambda f: f.ceilings_loaded, "the second dose unit has no ceilings for this field")
PRESET = Guard("preset_written", lambda f: f.preset_written, "angle and species are not preset in the safety system")
PERMIT_A = Guard("permit_a", lambda f: f.permit_a, "the hard-wired chain does not permit beam")
PERMIT_B = Guard("permit_b", lambda f: f.permit_b, "the interlock system does not permit beam")
FRESH = Guard("fresh", lambda f: f.fresh, "a supervised status is older than its deadline")
CONFIRMED = Guard("confirmed", lambda f: f.confirmed, "no deliberate beam-on was given for this cycle")
ARMED_YOUNG = Guard(
    "armed_for_ns", lambda f: 0 <= f.armed_for_ns <= ARMED_MAX_NS, "the room was not armed within the last 60 s"
)
DELIVERED = Guard("delivered_all", lambda f: f.delivered_all, "not everything granted was delivered and reconciled")
NO_BEAM_YET = Guard("no_beam_given", lambda f: not f.beam_given, "beam was given: the field must be terminated and recorded")
UNIT_CLOSED = Guard("unit_closed", lambda f: f.unit_closed, "the delivery unit still has an open grant")
TOKEN_RETURNED = Guard("token_returned", lambda f: f.token_returned, "this room still holds the beam token")
CAUSES_GONE = Guard("causes_gone", lambda f: f.causes_gone, "a cause is still present")
RECONCILED = Guard("reconciled", lambda f: f.reconciled, "the open dose is not reconciled")
KEY = Guard("service_key", lambda f: f.service_key, "the mode key is not in service")

_PLACED = (PROVEN, IDENTIFIED, SET_UP, IMAGED, ACCEPTED)
_ALLOCATED = (*_PLACED, SECURED, TOKEN, ROUTE)
_ARMABLE = (*_ALLOCATED, TUNED, TESTED, CEILINGS, PRESET, PERMIT_A, PERMIT_B, FRESH)

PREPARATORY = (
    State.IDENTIFIED,
    State.POSITIONING,
    State.IMAGING,
    State.POSITIONED,
    State.SECURED,
    State.ALLOCATED,
    State.TUNING,
)
IRRADIATING = (State.BEAM_ON, State.HELD)
TERMINATED = (State.COMPLETE, State.PARTIAL)
SERVICE = (State.QA, State.BEAM_TUNING, State.PHYSICS)
ENDED = (*TERMINATED, State.FAULT)


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: from any of `sources` by `trigger` to `dest` when every guard holds."""

    trigger: Trigger
    sources: tuple[State, ...]
    dest: State
    guards: tuple[Guard, ...] = ()
    note: str = ""


TABLE: tuple[Transition, ...] = (
    Transition(
        Trigger.IDENTIFY, (State.STANDBY,), State.IDENTIFIED, (PROVEN, IDENTIFIED), "operator confirms patient and plan"
    ),
    Transition(Trigger.POSITION, (State.IDENTIFIED,), State.POSITIONING, (PROVEN, IDENTIFIED), "targets are reachable"),
    Transition(Trigger.IMAGE, (State.POSITIONING,), State.IMAGING, (PROVEN, IDENTIFIED, SET_UP), "all axes in place"),
    Transition(
        Trigger.ACCEPT_POSITION,
        (State.IMAGING,),
        State.POSITIONED,
        _PLACED,
        "correction applied, verified, accepted",
    ),
    Transition(Trigger.SECURE, (State.POSITIONED,), State.SECURED, (*_PLACED, SECURED), "the plant reports search and door"),
    Transition(
        Trigger.SEARCH_LOST,
        (State.SECURED, State.ALLOCATED, State.TUNING, State.ARMED),
        State.POSITIONED,
        (),
        "door or search lost before beam: search again",
    ),
    Transition(Trigger.ALLOCATE, (State.SECURED,), State.ALLOCATED, _ALLOCATED, "beam token held, path open"),
    Transition(Trigger.TUNE, (State.ALLOCATED,), State.TUNING, _ALLOCATED, "energy, magnets, presets"),
    Transition(Trigger.ARM, (State.TUNING,), State.ARMED, _ARMABLE, "one deliberate beam-on away"),
    Transition(Trigger.DISARM, (State.ARMED,), State.TUNING, (), "60 s lapsed, or a condition was lost"),
    Transition(
        Trigger.EDITED,
        (*PREPARATORY[1:], State.ARMED),
        State.IDENTIFIED,
        (),
        "any edit: identify and prove everything again",
    ),
    Transition(
        Trigger.BEAM_ON, (State.ARMED,), State.BEAM_ON, (*_ARMABLE, ARMED_YOUNG, CONFIRMED), "the operator's deliberate act"
    ),
    Transition(Trigger.HOLD, (State.BEAM_ON,), State.HELD, (), "gate shut, end of spill, energy step, refill"),
    Transition(Trigger.CONTINUE, (State.HELD,), State.BEAM_ON, (PROVEN,), "no operator involved"),
    Transition(Trigger.INTERRUPT, IRRADIATING, State.INTERRUPTED, (), "operator pause, or held for more than 30 s"),
    Transition(Trigger.RESUME, (State.INTERRUPTED,), State.BEAM_ON, (*_ARMABLE, CONFIRMED), "a fresh beam-on"),
    Transition(
        Trigger.COMPLETE,
        (*IRRADIATING, State.INTERRUPTED),
        State.COMPLETE,
        (PROVEN, DELIVERED, UNIT_CLOSED),
        "everything delivered and reconciled",
    ),
    Transition(Trigger.END_EARLY, (*IRRADIATING, State.INTERRUPTED), State.PARTIAL, (), "ended by the operator or after 300 s"),
    Transition(Trigger.CANCEL, (*PREPARATORY, State.ARMED), State.STANDBY, (NO_BEAM_YET,), "given up or refused before beam"),
    Transition(Trigger.RELEASE, TERMINATED, State.STANDBY, (UNIT_CLOSED, TOKEN_RETURNED), "closed out"),
    Transition(
        Trigger.ACKNOWLEDGE,
        (State.FAULT,),
        State.STANDBY,
        (CAUSES_GONE, RECONCILED, UNIT_CLOSED, TOKEN_RETURNED),
        "causes gone, acknowledged, open dose reconciled",
    ),
    Transition(Trigger.TO_QA, (State.STANDBY, State.BEAM_TUNING, State.PHYSICS), State.QA, (KEY,), "mode key"),
    Transition(Trigger.TO_BEAM_TUNING, (State.STANDBY, State.QA, State.PHYSICS), State.BEAM_TUNING, (KEY,), "mode key"),
    Transition(Trigger.TO_PHYSICS, (State.STANDBY, State.QA, State.BEAM_TUNING), State.PHYSICS, (KEY,), "mode key"),
    Transition(Trigger.LEAVE_SERVICE, SERVICE, State.STANDBY, (), "back to treatment: always allowed"),
)


def trip_destination(state: State, severity: Severity) -> State:
    """Where a trip of this severity leads from this state.

    A pause interrupts only what can resume; anywhere else it is as a termination. A termination ends what was begun; where
    nothing was begun (standby, service) it is a fault, because something is wrong that nobody asked for. What has ended stays
    ended, and only a fault makes more of it.
    """
    if severity is Severity.FAULT or state in (State.FAULT, State.STANDBY, *SERVICE):
        return State.FAULT
    if state in TERMINATED:
        return state
    if severity is Severity.PAUSE and (state in IRRADIATING or state is State.INTERRUPTED):
        return State.INTERRUPTED
    return State.PARTIAL


TRIPS: Mapping[tuple[State, Severity], State] = MappingProxyType(
    {(state, severity): trip_destination(state, severity) for state in State for severity in Severity}
)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The longest a state may last, and the event that follows. The session keeps the time; the machine has no clock."""

    state: State
    after_ns: int
    trigger: Trigger
    why: str


DEADLINES: tuple[Deadline, ...] = (
    Deadline(State.ARMED, ARMED_MAX_NS, Trigger.DISARM, "armed for 60 s without beam-on"),
    Deadline(State.HELD, HELD_MAX_NS, Trigger.INTERRUPT, "held for more than 30 s"),
    Deadline(State.INTERRUPTED, INTERRUPTED_MAX_NS, Trigger.END_EARLY, "interrupted for more than 300 s"),
)
