"""The whole state graph of the real room machine, against the rules stated a second time, in words, by hand.

Walked: every state with every combination of ten facts on which beam depends, and every state with every combination of the
facts on which leaving depends, each with every event there is; from that the graph is built and searched. Facts may change
between any two events (each change is an edge of the graph), so nothing rests on facts staying as they were. Events that the
rules do not know in a state are tried with all facts, none, each one alone and each one missing, instead of all combinations.
Not responsible for what makes a fact true (test_session) nor for trips from inside callbacks (test_machine).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator

import pytest
from room_fakes import World

from controller.room.causes import Cause, Severity
from controller.room.machine import Room
from controller.room.states import RoomFacts, State, Trigger
from controller.room.supervision import Reference
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.errors import CommandRejected
from simulators.clock import run

pytestmark = pytest.mark.xdist_group("state graph")  # which is walked once

# A letter is a fact, or facts that stand and fall together (each of those alone: test_machine).
LETTERS: dict[str, dict[str, object]] = {
    "A": {"permit_a": True},
    "B": {"permit_b": True},
    "S": {"secured": True},
    "L": {"set_up": True},
    "P": {"image_verified": True, "accepted": True},
    "T": {"self_test_age_s": 24 * 3600},
    "K": {"token_held": True, "route_open": True},
    "U": {"tuned": True, "ceilings_loaded": True, "preset_written": True, "fresh": True},
    "C": {"confirmed": True},
    "E": {"proven_version": 7},  # nothing was edited since it was proven
    "Y": {},  # armed not longer than a minute ago
    "I": {"identified": True},
    "D": {"delivered_all": True},
    "X": {"unit_closed": True},
    "R": {"token_returned": True},
    "G": {"causes_gone": True, "reconciled": True},
    "N": {"beam_given": False},
    "M": {"service_key": True},
}
BEAM, LEAVE = "ABSPTKUCEY", "EILDXRGNM"  # which vary together; the others of the letters hold meanwhile
UNPROVEN = RoomFacts(edit_version=7, self_test_age_s=24 * 3600 + 1)
RULES = """
standby                   identify         preparatory.identified   EI
preparatory.identified    position         preparatory.positioning  EI
preparatory.positioning   image            preparatory.imaging      EIL
preparatory.imaging       accept_position  preparatory.positioned   EILP
preparatory.positioned    secure           preparatory.secured      EILPS
preparatory.secured       allocate         preparatory.allocated    EILPSK
preparatory.allocated     tune             preparatory.tuning       EILPSK
preparatory.tuning        arm              ready.armed              EILPSKTUAB
ready.armed               beam_on          irradiating.beam_on      EILPSKTUABCY
interrupted               resume           irradiating.beam_on      EILPSKTUABC
irradiating.beam_on       hold             irradiating.held
irradiating.held          continue         irradiating.beam_on      E
irradiating.beam_on       interrupt        interrupted
irradiating.held          interrupt        interrupted
irradiating.beam_on       complete         terminated.complete      EDX
irradiating.held          complete         terminated.complete      EDX
interrupted               complete         terminated.complete      EDX
irradiating.beam_on       end_early        terminated.partial
irradiating.held          end_early        terminated.partial
interrupted               end_early        terminated.partial
terminated.complete       release          standby                  XR
terminated.partial        release          standby                  XR
fault                     acknowledge      standby                  XRG
ready.armed               disarm           preparatory.tuning
preparatory.secured       search_lost      preparatory.positioned
preparatory.allocated     search_lost      preparatory.positioned
preparatory.tuning        search_lost      preparatory.positioned
ready.armed               search_lost      preparatory.positioned
standby                   to_qa            service.qa               M
standby                   to_beam_tuning   service.beam_tuning      M
standby                   to_physics       service.physics          M
"""
SERVICES = ("service.qa", "service.beam_tuning", "service.physics")
BEFORE_BEAM = (
    *("preparatory.positioning", "preparatory.imaging", "preparatory.positioned", "preparatory.secured"),
    *("preparatory.allocated", "preparatory.tuning", "ready.armed"),
)
IN_BEAM = ("irradiating.beam_on", "irradiating.held")


def stated() -> dict[tuple[str, str], tuple[str, frozenset[str]]]:
    """(state, event) -> (next state, letters needed)."""
    rules = {}
    for line in RULES.strip().splitlines():
        state, event, dest, *needed = line.split()
        rules[state, event] = dest, frozenset("".join(needed))
    for state in BEFORE_BEAM:
        rules[state, "edited"] = "preparatory.identified", frozenset()
    for state in ("preparatory.identified", *BEFORE_BEAM):
        rules[state, "cancel"] = "standby", frozenset("N")
    for here, there in itertools.permutations(SERVICES, 2):
        rules[here, "to_" + there.split(".")[1]] = there, frozenset("M")
    for state in SERVICES:
        rules[state, "leave_service"] = "standby", frozenset()
    return rules


STATED = stated()


def by_the_rules(state: str, event: str, letters: frozenset[str]) -> str:
    """Where the room has to be after an event."""
    if "E" not in letters and state in (*IN_BEAM, "interrupted"):
        return "terminated.partial"  # an edit in beam ends the field, whatever the event
    if "E" not in letters and state in BEFORE_BEAM:
        state = "preparatory.identified"  # an edit disarms before the event is looked at
    dest, needed = STATED.get((state, event), (state, frozenset()))
    return dest if needed <= letters else state


def after_a_trip(state: str, severity: str) -> str:
    if severity == "FAULT" or state in ("standby", "fault", *SERVICES):
        return "fault"
    if state.startswith("terminated"):
        return state
    return "interrupted" if severity == "PAUSE" and state in (*IN_BEAM, "interrupted") else "terminated.partial"


class Line:
    """A request line that remembers what it was told."""

    def __init__(self) -> None:
        self.up = False
        self.told: list[bool] = []

    def request_beam(self, on: bool) -> None:
        self.up = on
        self.told.append(on)


class Walker:
    """One real machine, put into a state with facts, to see what an event makes of it."""

    def __init__(self) -> None:
        self.line = Line()
        self.facts = UNPROVEN
        self.room = Room("G1", self.line, facts=lambda: self.facts)
        self.fired = 0

    def put(self, state: str, letters: frozenset[str]) -> None:
        values: dict[str, object] = {}
        for letter in letters:
            values |= LETTERS[letter]
        self.facts = dataclasses.replace(UNPROVEN, t_ns=10**12, **values)  # type: ignore[arg-type]
        self.room._model.state = state
        armed = {"Y": 10**12 - 60 * 10**9, "": 10**12 - 60 * 10**9 - 1}["Y" if "Y" in letters else ""]
        self.room._armed_ns = armed if state == "ready.armed" else None
        self.room._causes.clear()
        self.line.up, self.line.told = state in IN_BEAM, []

    def fire(self, state: str, letters: frozenset[str], event: str) -> str:
        self.put(state, letters)
        self.fired += 1
        self.room.fire(event)
        return self.room.state.value


def combinations(letters: str) -> Iterator[frozenset[str]]:
    for chosen in itertools.product((False, True), repeat=len(letters)):
        yield frozenset(itertools.compress(letters, chosen))


def corners(letters: str) -> list[frozenset[str]]:
    """All, none, each alone, each missing."""
    whole = frozenset(letters)
    return [whole, frozenset(), *(frozenset(x) for x in letters), *(whole - {x} for x in letters)]


EVENTS = [trigger.value for trigger in Trigger if trigger is not Trigger.TRIP]
LEFT_READY, BEAM_READY = frozenset("ILDXRGNM"), frozenset("ABSPTKUCY")


def world(state: State) -> Iterator[tuple[frozenset[str], str]]:
    """Facts and event of every firing from one state."""
    for event in EVENTS:
        known = (state.value, event) in STATED
        for letters in combinations(BEAM) if known else corners(BEAM):
            yield letters | LEFT_READY, event
        for letters in combinations(LEAVE) if known else corners(LEAVE):
            yield letters | BEAM_READY, event


@pytest.fixture(scope="module")
def graph() -> dict[str, dict[tuple[str, frozenset[str]], str]]:
    """What the real machine did: by state, (event, facts) -> next state. Judged while it is walked."""
    walker, seen = Walker(), {}
    for state in State:
        moves = seen[state.value] = {}
        for letters, event in world(state):
            dest = walker.fire(state.value, letters, event)
            assert dest == by_the_rules(state.value, event, letters), (state, event, "".join(sorted(letters)))
            assert walker.line.up == (dest in IN_BEAM), (state, event, letters)
            assert walker.line.up == (state.value in IN_BEAM) or walker.line.told, "the line moves by being told"
            moves[event, letters] = dest
    known = len(STATED) * (2 ** len(BEAM) + 2 ** len(LEAVE))
    unknown = (len(State) * len(EVENTS) - len(STATED)) * (2 + 2 * len(BEAM) + 2 + 2 * len(LEAVE))
    assert walker.fired == known + unknown
    return seen


def reached(graph: dict[str, dict[tuple[str, frozenset[str]], str]], without: str) -> set[str]:
    """States that any events reach from standby while one letter never holds, the others changing at will. Trips included."""
    found, queue = {"standby"}, deque(["standby"])
    while queue:
        state = queue.popleft()
        ahead = {dest for (_, letters), dest in graph[state].items() if without not in letters}
        for dest in ahead | {after_a_trip(state, severity.name) for severity in Severity}:
            if dest not in found:
                found.add(dest)
                queue.append(dest)
    return found


def test_every_state_is_reached_from_standby(graph):
    assert reached(graph, without="none of them") == {state.value for state in State}


@pytest.mark.parametrize("letter", "ABSLPTKUCEYI")
def test_no_path_reaches_beam_without(graph, letter):
    """Contributions A and B, search, position, dose self-test, token, tuning, operator, no edit, freshly armed, identity.

    The third contribution is the request line itself, which is up in beam and nowhere else (asserted at every firing).
    """
    found = reached(graph, without=letter)
    assert found.isdisjoint(IN_BEAM)
    assert "interrupted" not in found, "which is a way back to beam"
    if letter not in "CY":
        assert "ready.armed" not in found


def test_beam_is_entered_by_two_doors_and_both_ask_for_everything_at_that_instant(graph):
    doors = set()
    for state, moves in graph.items():
        for (event, letters), dest in moves.items():
            if dest in IN_BEAM and state not in IN_BEAM:
                doors.add((state, event))
                assert set("ABSLPTKUCEI") <= letters
    assert doors == {("ready.armed", "beam_on"), ("interrupted", "resume")}


def test_every_state_has_a_way_to_standby_with_everything_lost_but_what_leaving_needs(graph):
    """No permit, no search, no position, no token, no confirmation, beam given, key out: still nobody is stuck."""
    for lost in (frozenset("XRG"), frozenset("XRGE")):
        home = {"standby"}
        while True:
            more = {
                state
                for state, moves in graph.items()
                if state not in home
                and (
                    any(dest in home for (_, letters), dest in moves.items() if letters & frozenset(LEAVE) <= lost)
                    or any(after_a_trip(state, severity.name) in home for severity in Severity)
                )
            }
            if not more:
                break
            home |= more
        assert home == set(graph)


def test_nothing_but_closing_out_leaves_an_end(graph):
    for state in ("terminated.complete", "terminated.partial", "fault"):
        exits = {(event, dest) for (event, _), dest in graph[state].items() if dest != state}
        assert exits == {("acknowledge" if state == "fault" else "release", "standby")}
        for (_, letters), dest in graph[state].items():
            assert dest == state or set("XR") <= letters


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("severity", list(Severity))
def test_a_trip_from_every_state_with_any_facts_drops_the_request_in_the_same_step(state, severity):
    walker = Walker()
    for letters in (*corners(BEAM), *corners(LEAVE)):
        walker.put(state.value, letters)
        order: list[tuple[bool, str]] = []
        tell = walker.line.request_beam

        def told(on: bool, order: list = order, tell=tell) -> None:
            order.append((on, walker.room.state.value))
            tell(on)

        walker.line.request_beam = told
        assert walker.room.fire("trip", cause=Cause("planted", severity, "planted"))
        walker.line.request_beam = tell
        assert walker.room.state.value == after_a_trip(state.value, severity.name)
        assert not walker.line.up
        assert order[0] == (False, state.value), "the line first, the state after it"
        assert all(not on for on, _ in order)


# --- the session over the machine: everything that can be lost, alone and in pairs ----------------------------------------


def off(name, attribute, value):
    return lambda w: setattr(getattr(w, name), attribute, value)


def chain(bit):
    return lambda w: setattr(w.access, "chain", w.access.chain & ~bit)


# what is lost: (how, severity as it should be judged)
LOSSES = {
    "door": (off("access", "door_closed", False), "TERMINATE"),
    "search": (off("access", "searched", False), "TERMINATE"),
    "estop": (off("access", "estop_healthy", False), "FAULT"),
    "service key": (off("access", "service", True), "TERMINATE"),
    "dose unit 1": (chain(4), "TERMINATE"),
    "dose unit 2": (chain(8), "TERMINATE"),
    "standstill": (chain(16), "TERMINATE"),
    "torque off": (chain(32), "TERMINATE"),
    "quench": (chain(64), "TERMINATE"),
    "permit B": (off("access", "b", False), "PAUSE"),
    "relay B": (off("interlock", "relay_closed", False), "PAUSE"),
    "answer to the request": (off("access", "answers", False), "PAUSE"),
    "room status": (off("access", "silent", True), "PAUSE"),
    "interlock status": (off("interlock", "silent", True), "PAUSE"),
    "unit status": (off("unit", "silent", True), "PAUSE"),
    "dose unit status": (off("dose", "silent", True), "PAUSE"),
    "unit latch": (off("unit", "latched", True), "TERMINATE"),
    "dose trip": (off("dose", "tripped", True), "TERMINATE"),
    "high voltage": (off("dose", "hv_good", False), "TERMINATE"),
    "gantry angle": (off("gantry", "angle_deg", 0.2), "TERMINATE"),
    "gantry standstill": (off("gantry", "standstill", False), "TERMINATE"),
    "gantry encoders": (off("gantry", "motor_error_deg", 0.3), "TERMINATE"),
    "couch": (lambda w: w.couch.axes.update(vertical_mm=1.0), "TERMINATE"),
}
TOLD_BY_THE_ROOM = {  # and hidden while the room does not answer
    *("door", "search", "estop", "service key", "dose unit 1", "dose unit 2", "standstill", "torque off", "quench"),
    *("permit B", "answer to the request"),
}
IN_ANY_STATE, WHEN_CLOSED = {"estop", "service key"}, {"door", "search"}
CLOSED = ("preparatory.secured", "preparatory.allocated", "preparatory.tuning")
NEAR_BEAM = ("ready.armed", *IN_BEAM, "interrupted")
WALK = ("preparatory.identified", *BEFORE_BEAM, *IN_BEAM, "interrupted")
ORDER = {"PAUSE": 1, "TERMINATE": 2, "FAULT": 3}


def session_by_the_rules(state: str, lost: tuple[str, ...]) -> str:
    """Where the room has to be once the session saw what is lost."""
    shown = [name for name in lost if "room status" not in lost or name not in TOLD_BY_THE_ROOM]
    matters = set(IN_ANY_STATE)
    if state in (*CLOSED, *NEAR_BEAM):
        matters |= WHEN_CLOSED
    if state in NEAR_BEAM:
        matters = set(LOSSES) - ({"answer to the request"} if state not in IN_BEAM else set())
    found = [name for name in shown if name in matters]
    early = state not in (*IN_BEAM, "interrupted")
    if early and WHEN_CLOSED & set(found):
        state, found = "preparatory.positioned", [n for n in found if n not in WHEN_CLOSED]
    elif state == "ready.armed" and any(LOSSES[n][1] == "PAUSE" for n in found):
        state = "preparatory.tuning"
    severities = [LOSSES[n][1] for n in found if state in (*IN_BEAM, "interrupted") or LOSSES[n][1] != "PAUSE"]
    return after_a_trip(state, max(severities, key=ORDER.__getitem__)) if severities else state


async def prepared(state: str) -> World:
    """A room in a state as if its session had walked there, with everything in order."""
    w = World()
    w.access.secure()
    w.session.room.attach(w.session.facts)
    w.room.subscribe(w.session._changed)
    w.session._watch.reference = Reference(0.0, dict.fromkeys(COUCH_AXES, 0.0))
    w.room._model.state = state
    w.access.r = state in IN_BEAM
    w.session._permission.answered = state in IN_BEAM
    w.session.proofs.beam_given = state in (*IN_BEAM, "interrupted")
    await asyncio.sleep(5.0)
    return w


async def lose(state: str, lost: tuple[str, ...]) -> World:
    """One look of the supervision, 3 s after."""
    w = await prepared(state)
    await w.session._watch.refresh(with_ring=True)
    for name in lost:
        LOSSES[name][0](w)
    await asyncio.sleep(3.0)
    seen = await w.session._watch.refresh(with_ring=True)
    for cause in w.session._causes(w.room.state, seen):
        w.session._act(cause)
    return w


@pytest.mark.parametrize("state", WALK)
def test_whatever_is_lost_alone_or_in_pairs_leads_where_it_must_and_leaves_no_request(state):
    async def all_of_them() -> int:
        tried = 0
        for lost in (*((name,) for name in LOSSES), *itertools.combinations(LOSSES, 2)):
            w = await lose(state, lost)
            assert w.room.state.value == session_by_the_rules(state, lost), (state, lost, w.room.causes)
            assert not w.access.r or state not in NEAR_BEAM, (state, lost)
            if w.session._deadline is not None:
                w.session._deadline.cancel()
            tried += 1
        return tried

    assert run(all_of_them()) == len(LOSSES) * (len(LOSSES) + 1) // 2


@pytest.mark.parametrize("state", WALK)
@pytest.mark.parametrize("command", ["pause", "stop", "edit"])
def test_the_operators_commands_from_every_state_never_raise_the_request(state, command):
    async def give() -> None:
        w = await prepared(state)
        w.access.requests.clear()
        if command == "edit" and state in (*IN_BEAM, "interrupted"):
            with pytest.raises(CommandRejected) as refused:
                w.session.edit("dose")
            assert refused.value.code == 4106
        else:
            getattr(w.session, command)("test")
        if w.session._deadline is not None:
            w.session._deadline.cancel()
        assert True not in w.access.requests
        after = w.room.state.value
        if command == "stop":
            assert not w.access.r
            assert after == ("terminated.partial" if state in (*IN_BEAM, "interrupted") else "standby")
        elif command == "pause":
            assert after == ("interrupted" if state in IN_BEAM else state)
            assert not w.access.r

    run(give())
