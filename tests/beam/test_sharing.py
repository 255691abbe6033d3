"""The beam belongs to one room at a time, in the right order, whatever anybody asks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.beam.sharing import Allocation, BeamSupervisor, Holding, Lease, Priority
from drivers.hal.errors import CommandRejected
from drivers.hal.events import Event, EventBus
from simulators.clock import run

ROOMS = ("G1", "G2", "F1")


class SharingMachine(RuleBasedStateMachine):
    """Rooms ask, keep, resume, release, are forced and overruled in any order; truth is kept beside the allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Allocation(ROOMS)
        self.t_ns = 0
        self.using: set[str] = set()  # rooms that believe that they may use the beam
        self.tokens: dict[str, int] = {}
        self.seen: list[int] = []

    def take(self, outcome: tuple[Allocation, list[Any]]) -> None:
        before = self.state.lease
        self.state, decisions = outcome
        for decision in reversed(decisions):  # the cause is listed last when it frees the beam for a grant
            if decision.kind in ("released", "lapsed", "forced"):
                self.using.discard(decision.room)
        for decision in decisions:
            if decision.kind == "granted":
                assert self.state.lease is not None
                assert self.state.lease.token not in self.seen, "a token was used twice"
                self.seen.append(self.state.lease.token)
                self.tokens[decision.room] = self.state.lease.token
                self.using.add(decision.room)
        kinds = [d.kind for d in decisions]
        if before is not None and self.state.lease is not None and before.token != self.state.lease.token:
            assert {"released", "lapsed", "forced"} & set(kinds), "the beam changed hands without being given back"

    @rule(step=st.integers(0, 5))
    def time_passes(self, step: int) -> None:
        self.t_ns += step
        self.take(self.state.settle(self.t_ns))

    @rule(room=st.sampled_from(ROOMS), priority=st.sampled_from(Priority))
    def request(self, room: str, priority: Priority) -> None:
        if room in self.using:
            with pytest.raises(CommandRejected):
                self.state.request(room, priority, self.t_ns)
        else:
            self.take(self.state.request(room, priority, self.t_ns))

    @rule(room=st.sampled_from(ROOMS))
    def withdraw(self, room: str) -> None:
        self.take(self.state.withdraw(room, self.t_ns))

    @rule(room=st.sampled_from(ROOMS), what=st.sampled_from(["release", "keep", "resume"]))
    def holder_acts(self, room: str, what: str) -> None:
        token = self.tokens.get(room, 0)
        actions = {
            "release": lambda: self.state.release(token, self.t_ns),
            "keep": lambda: self.state.keep(token, self.t_ns + 3, self.t_ns),
            "resume": lambda: self.state.resume(token, self.t_ns),
        }
        if room in self.using:
            self.take(actions[what]())
        else:
            with pytest.raises(CommandRejected):
                actions[what]()

    @rule(manual=st.booleans())
    def mode(self, manual: bool) -> None:
        self.take(self.state.set_manual(manual, self.t_ns))

    @rule(room=st.sampled_from(ROOMS))
    def overrule(self, room: str) -> None:
        if room in self.using or any(r.room == room for r in self.state.queue):
            self.take(self.state.allocate(room, self.t_ns))

    @rule(off=st.booleans())
    @precondition(lambda self: self.state.lease is not None)
    def force(self, off: bool) -> None:
        if off:
            self.take(self.state.force_release("no answer", True, self.t_ns))
        else:
            with pytest.raises(CommandRejected):
                self.state.force_release("no answer", False, self.t_ns)

    @invariant()
    def never_two_holders(self) -> None:
        assert len(self.using) <= 1
        assert self.using == ({self.state.lease.room} if self.state.lease else set())

    @invariant()
    def nobody_waits_for_what_he_has(self) -> None:
        waiting = [r.room for r in self.state.queue]
        assert len(waiting) == len(set(waiting))
        assert not set(waiting) & self.using

    @invariant()
    def an_idle_beam_is_given_away(self) -> None:
        if not self.state.manual:
            assert self.state.lease is not None or not self.state.queue

    @invariant()
    def the_queue_is_in_order(self) -> None:
        assert list(self.state.queue) == sorted(self.state.queue, key=lambda r: r.order)


SharingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSharing = SharingMachine.TestCase


def supervised() -> tuple[BeamSupervisor, list[Event]]:
    bus = EventBus()
    events: list[Event] = []
    bus.subscribe(events.append)
    return BeamSupervisor(ROOMS, bus), events


def test_high_priority_goes_first_and_asks_the_normal_holder_to_release() -> None:
    async def scenario() -> list[str]:
        supervisor, events = supervised()
        asked: list[str] = []
        g1 = await supervisor.request("G1", on_release_asked=asked.append)
        normal = asyncio.create_task(supervisor.request("G2"))
        await asyncio.sleep(1)
        assert not asked, "an equal may not ask the holder to go"
        high = asyncio.create_task(supervisor.request("F1", Priority.HIGH))
        await asyncio.sleep(1)
        assert asked and supervisor.holds(g1), "asked, never dispossessed"
        supervisor.release(g1)
        first = await high
        assert not normal.done() and not supervisor.holds(g1)
        supervisor.release(first)
        assert (await normal).room == "G2"
        return [e.kind for e in events]

    kinds = run(scenario())
    assert kinds.count("beam.granted") == 3 and "beam.release.asked" in kinds


def test_the_beam_is_kept_for_the_next_field_until_others_have_waited_long_enough() -> None:
    async def scenario() -> None:
        supervisor, _ = supervised()
        lease = await supervisor.request("G1")
        supervisor.keep(lease, 10.0)
        other = asyncio.create_task(supervisor.request("G2"))
        await asyncio.sleep(5)
        assert not supervisor.holds(lease), "a kept beam is not in use"
        supervisor.resume(lease)
        assert supervisor.holds(lease)
        supervisor.keep(lease, 10.0)
        await asyncio.sleep(11)
        assert (await other).room == "G2"
        with pytest.raises(CommandRejected, match="not valid"):
            supervisor.resume(lease)

    run(scenario())


def test_a_wait_has_a_deadline_and_leaves_no_request_behind() -> None:
    async def scenario() -> None:
        supervisor, _ = supervised()
        lease = await supervisor.request("G1")
        with pytest.raises(CommandRejected, match="G1 holds it"):
            await supervisor.request("G2", timeout_s=3)
        supervisor.release(lease)
        assert supervisor.state.lease is None and not supervisor.state.queue

    run(scenario())


def test_a_wait_cancelled_in_the_instant_of_its_grant_gives_the_beam_back() -> None:
    async def scenario() -> None:
        supervisor, _ = supervised()
        lease = await supervisor.request("G1")
        waiter = asyncio.create_task(supervisor.request("G2"))
        await asyncio.sleep(0.1)
        supervisor.release(lease)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert supervisor.state.lease is None

    run(scenario())


def test_in_manual_mode_the_main_control_room_decides() -> None:
    async def scenario() -> Lease:
        supervisor, _ = supervised()
        supervisor.set_manual(True)
        first = asyncio.create_task(supervisor.request("G1", Priority.HIGH))
        second = asyncio.create_task(supervisor.request("G2"))
        await asyncio.sleep(1)
        assert not first.done() and not second.done()
        supervisor.allocate("G2")
        lease = await second
        supervisor.release(lease)
        await asyncio.sleep(1)
        assert not first.done()
        supervisor.set_manual(False)
        return await first

    lease = run(scenario())
    assert lease.room == "G1" and lease.holding is Holding.IN_USE


def test_a_silent_holder_is_replaced_only_when_the_beam_was_seen_off() -> None:
    async def scenario() -> None:
        supervisor, _ = supervised()
        lease = await supervisor.request("G1")
        waiter = asyncio.create_task(supervisor.request("G2"))
        await asyncio.sleep(1)
        with pytest.raises(CommandRejected, match="not known to be off"):
            supervisor.force_release("process died", beam_is_off=False)
        assert supervisor.holds(lease)
        supervisor.force_release("process died", beam_is_off=True)
        assert (await waiter).room == "G2" and not supervisor.holds(lease)

    run(scenario())
