"""The room machine: no way to beam past a proof, a trip from anywhere ends safe, nothing is half entered."""

from __future__ import annotations

import dataclasses
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.room import machine as machine_module
from controller.room import states as states_module
from controller.room.causes import Cause, Severity, cause_of
from controller.room.diagram import PAGE, page
from controller.room.machine import Room, StateChange
from controller.room.states import (
    ARMED_MAX_NS,
    ENDED,
    IRRADIATING,
    TABLE,
    TRIPS,
    Guard,
    RoomFacts,
    State,
    Trigger,
    trip_destination,
)
from drivers.hal.errors import DeviceError

PROVEN = RoomFacts(
    edit_version=1,
    proven_version=1,
    identified=True,
    set_up=True,
    image_verified=True,
    accepted=True,
    secured=True,
    token_held=True,
    route_open=True,
    tuned=True,
    self_test_age_s=10,
    ceilings_loaded=True,
    preset_written=True,
    permit_a=True,
    permit_b=True,
    fresh=True,
    confirmed=True,
    delivered_all=True,
    beam_given=False,
    unit_closed=True,
    token_returned=True,
    causes_gone=True,
    reconciled=True,
    service_key=True,
)
TO_BEAM = ("identify", "position", "image", "accept_position", "secure", "allocate", "tune", "arm", "beam_on")
NEEDED_FOR_BEAM = {
    "identified": False,
    "set_up": False,
    "image_verified": False,
    "accepted": False,
    "secured": False,
    "token_held": False,
    "route_open": False,
    "tuned": False,
    "self_test_age_s": 24 * 3600 + 1,
    "ceilings_loaded": False,
    "preset_written": False,
    "permit_a": False,
    "permit_b": False,
    "fresh": False,
    "confirmed": False,
    "proven_version": 0,
}


class Line:
    """A request line that remembers, and may be stuck."""

    def __init__(self) -> None:
        self.up = False
        self.stuck = False
        self.history: list[bool] = []

    def request_beam(self, on: bool) -> None:
        if self.stuck:
            raise OSError("bus lost")
        self.up = on
        self.history.append(on)


def make(facts: RoomFacts = PROVEN, path: tuple[str, ...] = ()) -> tuple[Room, Line]:
    line = Line()
    room = Room("G1", line, facts=lambda: facts)
    for event in path:
        assert room.fire(event), room.refusal
    return room, line


def cause(severity: Severity, name: str = "test") -> Cause:
    return Cause(name, severity, "planted")


def paths() -> dict[State, tuple[str, ...]]:
    """A shortest sequence of events from standby to every state the table reaches with everything proven."""
    found: dict[State, tuple[str, ...]] = {State.STANDBY: ()}
    queue = deque([State.STANDBY])
    while queue:
        state = queue.popleft()
        for row in TABLE:
            if state in row.sources and row.dest not in found:
                found[row.dest] = (*found[state], row.trigger.value)
                queue.append(row.dest)
    return found


PATHS = paths()


def room_in(state: State, facts: RoomFacts = PROVEN) -> tuple[Room, Line]:
    """A room put into a state, as if it had walked there."""
    room, line = make(facts)
    put(room, line, state)
    return room, line


def put(room: Room, line: Line, state: State) -> None:
    room._model.state = state.value
    room._armed_ns = 0 if state is State.ARMED else None
    line.up = state in IRRADIATING


def test_every_state_can_be_reached_and_left() -> None:
    assert set(PATHS) | {State.FAULT} == set(State)
    assert {source for row in TABLE for source in row.sources} == set(State)


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(State))
def test_the_room_does_what_the_table_says_and_nothing_else(state: State) -> None:
    room, line = make()
    for trigger in Trigger:
        if trigger is Trigger.TRIP:
            continue
        put(room, line, state)
        row = next((r for r in TABLE if r.trigger is trigger and state in r.sources), None)
        taken = room.fire(trigger)
        if row is None:
            assert not taken
            assert room.state is state
            assert room.refusal is not None
            assert room.refusal.code == 4101
        else:
            assert taken
            assert room.state is row.dest
        assert line.up == (room.state in IRRADIATING)


def test_every_state_is_reached_by_walking() -> None:
    for state, path in PATHS.items():
        room, line = make(path=path)
        assert room.state is state
        assert line.up == (state in IRRADIATING)


@pytest.mark.parametrize("missing", list(NEEDED_FOR_BEAM))
def test_no_sequence_of_events_reaches_beam_without(missing: str) -> None:
    """Exhaustive search over every state reachable by any events while one proof is missing."""
    facts = dataclasses.replace(PROVEN, **{missing: NEEDED_FOR_BEAM[missing]})
    room, line = make(facts)
    seen, queue = {State.STANDBY}, deque([State.STANDBY])
    while queue:
        state = queue.popleft()
        for trigger in Trigger:
            if trigger is Trigger.TRIP:
                continue
            put(room, line, state)
            room.fire(trigger)
            assert not line.up, (missing, state, trigger)
            assert room.state not in IRRADIATING
            if room.state not in seen:
                seen.add(room.state)
                queue.append(room.state)
    assert len(seen) > 1


@pytest.mark.parametrize(
    "step", [State.IDENTIFIED, State.IMAGING, State.POSITIONED, State.SECURED, State.ALLOCATED, State.TUNING]
)
def test_every_way_to_beam_leads_through(step: State) -> None:
    """Take one state out of the table: beam cannot be reached any more."""
    reached, queue = {State.STANDBY}, deque([State.STANDBY])
    while queue:
        state = queue.popleft()
        for row in TABLE:
            if state in row.sources and row.dest not in reached and row.dest is not step:
                reached.add(row.dest)
                queue.append(row.dest)
    assert not reached & {*IRRADIATING, State.ARMED}


def test_a_proof_that_is_lost_after_arming_refuses_beam() -> None:
    for missing, value in NEEDED_FOR_BEAM.items():
        current = PROVEN
        line = Line()
        room = Room("G1", line, facts=lambda: current)  # noqa: B023 - the test changes what the room sees
        for event in TO_BEAM[:-1]:
            room.fire(event)
        current = dataclasses.replace(PROVEN, **{missing: value})
        assert not room.fire("beam_on"), missing
        assert not line.up
        assert room.refusal is not None


def test_beam_on_a_minute_after_arming_is_refused_even_when_no_deadline_fired() -> None:
    now = 0

    def facts() -> RoomFacts:
        return dataclasses.replace(PROVEN, t_ns=now)

    line = Line()
    room = Room("G1", line, facts=facts)
    for event in TO_BEAM[:-1]:
        room.fire(event)
    now = ARMED_MAX_NS + 1
    assert not room.fire("beam_on")
    assert room.state is State.ARMED
    now = ARMED_MAX_NS
    assert room.fire("beam_on")


def test_a_refusal_says_every_missing_guard_in_words() -> None:
    facts = dataclasses.replace(PROVEN, secured=False, explain={"secured": "door open"})
    room, _ = make(facts, TO_BEAM[:4])
    assert not room.fire("secure")
    assert "not searched and closed: door open" in str(room.refusal)
    assert room.state is State.POSITIONED


def test_an_event_nobody_knows_is_refused() -> None:
    room, _ = make()
    assert not room.fire("to_irradiating")
    assert not room.fire("trip ")
    assert room.state is State.STANDBY


# --- beam off first ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["interrupt", "complete", "end_early"])
def test_beam_off_goes_to_the_line_before_the_state_changes(event: str) -> None:
    line = Line()
    room = Room("G1", line, facts=lambda: PROVEN)
    for step in TO_BEAM:
        room.fire(step)
    states_at_drop: list[State] = []
    original = line.request_beam

    def watching(on: bool) -> None:
        if not on:
            states_at_drop.append(room.state)
        original(on)

    line.request_beam = watching  # type: ignore[method-assign]
    assert room.fire(event)
    assert states_at_drop[0] is State.BEAM_ON


def test_hold_and_continue_do_not_touch_the_request() -> None:
    room, line = make(path=TO_BEAM)
    line.history.clear()
    room.fire("hold")
    room.fire("continue")
    assert line.history == []
    assert line.up


# --- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["beam_on", "disarm", "nonsense", "edited", "search_lost"])
def test_an_edit_after_arming_disarms_before_the_next_event(event: str) -> None:
    facts = PROVEN
    line = Line()
    room = Room("G1", line, facts=lambda: facts)
    for step in TO_BEAM[:-1]:
        room.fire(step)
    facts = dataclasses.replace(PROVEN, edit_version=2)
    taken = room.fire(event)
    assert room.state is State.IDENTIFIED
    assert taken == (event == "edited")
    assert True not in line.history


def test_an_edit_in_beam_terminates() -> None:
    facts = PROVEN
    line = Line()
    room = Room("G1", line, facts=lambda: facts)
    for step in TO_BEAM:
        room.fire(step)
    facts = dataclasses.replace(PROVEN, edit_version=2)
    assert not room.fire("hold")
    assert room.state is State.PARTIAL
    assert not line.up
    assert room.cause is not None
    assert room.cause.name == "edit.in_beam"


# --- trips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", list(Severity))
def test_a_trip_leads_where_the_table_says_from_every_state(severity: Severity) -> None:
    for state in State:
        room, line = room_in(state)
        assert room.fire("trip", cause=cause(severity))
        assert room.state is TRIPS[(state, severity)] is trip_destination(state, severity)
        assert not line.up
        assert room.state in (*ENDED, State.INTERRUPTED)
        assert (room.state is State.INTERRUPTED) == (severity is Severity.PAUSE and state in (*IRRADIATING, State.INTERRUPTED))


def guards() -> list[Guard]:
    return list({guard.name: guard for row in TABLE for guard in row.guards}.values())


@pytest.mark.parametrize("severity", [Severity.TERMINATE, Severity.FAULT])
@pytest.mark.parametrize("how", ["trip and hold", "trip and refuse", "raise", "raise a named error"])
def test_a_trip_from_every_condition(how: str, severity: Severity) -> None:
    for guard in guards():
        trip_in(guard.name, how, severity)


def trip_in(name: str, how: str, severity: Severity) -> None:
    """Every guard in turn trips the room, or raises, while it is judged: in every transition that asks it."""
    for row in TABLE:
        for source in row.sources if name in [g.name for g in row.guards] else ():
            room, line = room_in(source)

            def act(_facts: RoomFacts, room: Room = room) -> bool:
                if how.startswith("raise"):
                    raise DeviceError("planted", code=3999) if "named" in how else ZeroDivisionError("planted")
                room.trip(cause(severity, "planted.in.guard"))
                return how == "trip and hold"

            guard = next(g for g in row.guards if g.name == name)
            original = guard.holds
            object.__setattr__(guard, "holds", act)
            try:
                taken = room.fire(row.trigger)
            finally:
                object.__setattr__(guard, "holds", original)
            assert not taken
            assert not line.up
            assert room.state in ENDED, (row.trigger, source)
            assert room.cause is not None
            if how == "raise":
                assert room.state is State.FAULT
                assert room.cause.name == "program.exception" or source is State.FAULT
            elif how.startswith("trip"):
                assert "planted.in.guard" in [c.name for c in room.causes]


@pytest.mark.parametrize("how", ["trip", "raise", "fire"])
@pytest.mark.parametrize("hook", ["_raise_line", "_leave_beam"])
def test_a_trip_from_every_callback(hook: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(Room, hook)

    def act(self: Room, event: object) -> None:
        if how == "raise":
            raise ZeroDivisionError("planted")
        original(self, event)
        if how == "trip":
            self.trip(cause(Severity.TERMINATE))
        else:
            self.fire("hold")

    if hook == "_raise_line":
        monkeypatch.setattr(Room, hook, act)
        room, line = make(path=TO_BEAM[:-1])
        event = "beam_on"
    else:
        monkeypatch.setattr(Room, hook, act)
        room, line = make(path=TO_BEAM)
        event = "interrupt"
    assert not room.fire(event)
    assert not line.up
    assert room.state is (State.PARTIAL if how == "trip" else State.FAULT)
    # And the room can be left: nothing that raises stands in the way of a trip.
    room.trip(cause(Severity.FAULT))
    assert room.state is State.FAULT


@pytest.mark.parametrize("hook", ["prepare_event", "before_state_change", "after_state_change"])
@pytest.mark.parametrize("how", ["trip", "raise"])
def test_a_trip_from_a_hook_of_the_machine(hook: str, how: str) -> None:
    """Hooks that the room does not use today: a trip there would still win, and the request would never go up after it."""
    room, line = make(path=TO_BEAM[:-1])
    line.history.clear()

    def act(_event: object) -> None:
        if how == "raise":
            raise ZeroDivisionError("planted")
        room.trip(cause(Severity.TERMINATE))
        assert not line.up, "the line is down before the trip returns"

    getattr(room._machine, hook).append(act)
    assert not room.fire("beam_on")
    assert not line.up
    assert room.state is (State.PARTIAL if how == "trip" else State.FAULT)
    if hook != "after_state_change":
        assert True not in line.history


@pytest.mark.parametrize("how", ["trip", "raise", "fire", "trip always"])
def test_a_trip_from_a_listener(how: str) -> None:
    room, line = make(path=TO_BEAM[:-1])
    told: list[StateChange] = []

    def listener(change: StateChange) -> None:
        told.append(change)
        if how == "trip always" or (how == "trip" and change.dest is State.BEAM_ON):
            room.trip(cause(Severity.TERMINATE))
        elif how == "raise":
            raise ZeroDivisionError("planted")
        elif how == "fire":
            room.fire("hold")

    room.subscribe(listener)
    assert not room.fire("beam_on")
    assert not line.up
    assert room.state is (State.PARTIAL if how.startswith("trip") else State.FAULT)
    assert told[-1].dest is room.state
    assert len(told) < 10


def test_facts_that_cannot_be_had_are_a_fault() -> None:
    line = Line()

    def facts() -> RoomFacts:
        raise KeyError("no such device")

    room = Room("G1", line, facts=facts)
    assert not room.fire("identify")
    assert room.state is State.FAULT


def test_an_interrupt_of_the_program_passes_on_after_the_room_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    room, line = make(path=TO_BEAM)

    def act(self: Room, event: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine_module.Room, "_leave_beam", act)
    room._machine.get_state("irradiating").on_exit[:] = [lambda event: act(room, event)]
    with pytest.raises(KeyboardInterrupt):
        room.fire("interrupt")
    assert room.state is State.FAULT
    assert not line.up
    room.trip(cause(Severity.FAULT))  # the door still opens
    assert room.state is State.FAULT


def test_a_line_that_cannot_be_dropped_is_a_fault_and_does_not_keep_the_room_in_beam() -> None:
    room, line = make(path=TO_BEAM)
    line.stuck = True
    room.trip(cause(Severity.PAUSE, "console.lost"))
    assert room.state is State.FAULT
    assert [c.name for c in room.causes] == ["console.lost", "request.stuck"]


def test_the_first_cause_names_the_trip_and_the_most_severe_decides() -> None:
    room, _ = make(path=TO_BEAM)
    original = states_module.DELIVERED.holds

    def act(_facts: RoomFacts) -> bool:
        room.trip(cause(Severity.PAUSE, "first"))
        room.trip(cause(Severity.FAULT, "second"))
        return True

    object.__setattr__(states_module.DELIVERED, "holds", act)
    try:
        room.fire("complete")
    finally:
        object.__setattr__(states_module.DELIVERED, "holds", original)
    assert room.state is State.FAULT
    assert [c.name for c in room.causes] == ["first", "second"]
    room.trip(cause(Severity.FAULT, "third"))
    assert room.cause is not None
    assert room.cause.name == "first"


def test_a_worse_cause_later_names_the_worse_state() -> None:
    room, _ = make(path=TO_BEAM)
    room.trip(cause(Severity.PAUSE, "permit.b"))
    room.trip(cause(Severity.TERMINATE, "gantry.moved"))
    assert room.state is State.PARTIAL
    assert room.cause is not None
    assert room.cause.name == "gantry.moved"


def test_resume_and_acknowledge_clear_the_causes() -> None:
    room, line = make(path=TO_BEAM)
    room.trip(cause(Severity.PAUSE))
    assert room.fire("resume")
    assert line.up
    assert room.causes == ()
    room.trip(cause(Severity.FAULT))
    assert not room.fire("release")
    assert room.fire("acknowledge")
    assert room.causes == ()


def test_acknowledging_needs_causes_gone_and_dose_reconciled() -> None:
    for missing in ("causes_gone", "reconciled", "unit_closed", "token_returned"):
        room, _ = make(dataclasses.replace(PROVEN, **{missing: False}))
        room.trip(cause(Severity.FAULT))
        assert not room.fire("acknowledge"), missing
        assert room.state is State.FAULT


def test_terminated_is_not_resumed() -> None:
    for end in ("complete", "end_early"):
        room, line = make(path=(*TO_BEAM, end))
        for event in ("resume", "beam_on", "continue", "arm", "identify"):
            assert not room.fire(event)
        assert not line.up
        assert room.fire("release")


def test_no_treatment_from_service() -> None:
    room, line = make(path=("to_qa",))
    for event in (*TO_BEAM, "resume"):
        assert not room.fire(event)
    assert not line.up


def test_an_unforeseen_exception_is_a_fault_and_a_named_one_ends_the_field() -> None:
    assert cause_of(ZeroDivisionError("x"), "here", 5).severity is Severity.FAULT
    assert cause_of(TimeoutError(), "here", 5).severity is Severity.FAULT
    named = cause_of(DeviceError("brake slips", code=3007, device="G1-gantry", hint="call service"), "here", 5)
    assert (named.severity, named.name, named.device) == (Severity.TERMINATE, "error.3007", "G1-gantry")
    assert "brake slips" in str(named)


def test_a_trip_without_a_cause_is_a_fault() -> None:
    room, _ = make(path=TO_BEAM)
    room.fire("trip")
    assert room.state is State.FAULT


# --- documentation ----------------------------------------------------------------------------------------------------


def test_the_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m controller.room.diagram"


def test_the_machine_has_the_transitions_of_the_table_and_no_others() -> None:
    room, _ = make()
    machine = room._machine
    built = {
        (name, t.source, t.dest) for name, event in machine.events.items() for ts in event.transitions.values() for t in ts
    }
    assert built == {(row.trigger.value, source.value, row.dest.value) for row in TABLE for source in row.sources}
    assert not hasattr(room._model, "to_irradiating")


# --- any order of anything --------------------------------------------------------------------------------------------

BOOLEANS = sorted(f.name for f in dataclasses.fields(RoomFacts) if f.type == "bool")


class AnyOrder(RuleBasedStateMachine):
    """Random events, facts, edits and trips: beam is requested only where everything is proven, and trips always win."""

    @initialize()
    def start(self) -> None:
        self.now = 0
        self.facts = PROVEN
        self.line = Line()
        self.tripping: str | None = None
        self.room = Room("G1", self.line, facts=self.snapshot)

    def snapshot(self) -> RoomFacts:
        return dataclasses.replace(self.facts, t_ns=self.now)

    @rule(name=st.sampled_from(BOOLEANS))
    def flip(self, name: str) -> None:
        self.facts = dataclasses.replace(self.facts, **{name: not getattr(self.facts, name)})

    @rule()
    def prove_everything(self) -> None:
        self.facts = dataclasses.replace(PROVEN, edit_version=self.facts.edit_version, proven_version=self.facts.edit_version)

    @rule()
    def edit(self) -> None:
        self.facts = dataclasses.replace(self.facts, edit_version=self.facts.edit_version + 1)

    @rule(seconds=st.integers(0, 90))
    def wait(self, seconds: int) -> None:
        self.now += seconds * 10**9

    @rule(event=st.sampled_from([t.value for t in Trigger if t is not Trigger.TRIP]))
    def fire(self, event: str) -> None:
        before, up_before = self.room.state, self.line.up
        taken = self.room.fire(event)
        if not taken and self.facts.edit_version == self.facts.proven_version:
            assert self.room.state is before
            assert self.line.up == up_before
        if self.line.up and not up_before:
            f = self.facts
            assert all((f.identified, f.set_up, f.image_verified, f.accepted, f.secured, f.token_held, f.route_open, f.tuned))
            assert all((f.ceilings_loaded, f.preset_written, f.permit_a, f.permit_b, f.fresh, f.confirmed))
            assert f.edit_version == f.proven_version

    @rule(data=st.data())
    def walk_on(self, data: st.DataObject) -> None:
        """A step that the table offers here, so that the search goes deep."""
        offered = [row.trigger.value for row in TABLE if self.room.state in row.sources]
        self.fire(data.draw(st.sampled_from(offered)))

    @rule(severity=st.sampled_from(list(Severity)))
    def trip(self, severity: Severity) -> None:
        self.room.trip(cause(severity))
        assert not self.line.up
        assert self.room.state in (*ENDED, State.INTERRUPTED)

    @precondition(lambda self: hasattr(self, "room"))
    @invariant()
    def the_request_is_up_only_while_irradiating(self) -> None:
        assert self.line.up == (self.room.state in IRRADIATING)


AnyOrder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
TestAnyOrder = AnyOrder.TestCase
