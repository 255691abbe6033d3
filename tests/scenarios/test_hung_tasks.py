"""Each task that has to live in beam is made to hang, and the program to stand still: beam is off in time, the cause named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from stage import Stage, at_beam, treat

from controller.delivery.layers import OPEN_S, RESULTS_S
from controller.record.entries import Kind
from controller.record.journal import Journal
from controller.room.watch import LOOK_S

RELAY_S = 0.1  # docs/wires.md: a relay falls so long after its last pulse
GRACE_S = 0.1
PULSE_S = 0.05
PLAN_NS = 1e9


async def for_ever(*_args: object, **_options: object) -> object:
    return await asyncio.get_running_loop().create_future()


def hang_room_watch(stage: Stage) -> None:
    class Hanging:
        """The room's watch, which is never done with looking."""

        refresh = staticmethod(for_ever)

        def __getattr__(self, name: str) -> object:
            return getattr(watch, name)

    watch, stage.session._watch = stage.session._watch, Hanging()


def hang_delivery(stage: Stage) -> None:
    """It never hears that its grant has ended."""
    stage.fraction._devices.unit.wait_ended = for_ever


def hang_results(stage: Stage) -> None:
    stage.fraction._devices.unit.results = for_ever


def hang_pulse(stage: Stage) -> None:
    stage.fraction._devices.access._client.read_write = for_ever


def hang_interlock_view(stage: Stage) -> None:
    stage.fraction._devices.interlock._read = for_ever


def hang_gantry_reader(stage: Stage) -> None:
    stage.fraction._devices.gantry.read_state = for_ever


@dataclass(frozen=True)
class Case:
    """What hangs 0.3 s after the first beam.

    Attributes:
        name, hang: of the task, and what makes it hang.
        within_s: no pulse may leave later than this after the task had something to do and did not.
        cause: name of the first cause, in the record.
    """

    name: str
    hang: Callable[[Stage], None]
    within_s: float
    cause: str

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("room watch", hang_room_watch, PULSE_S + LOOK_S + GRACE_S + 0.25, "watchdog.room_watch"),
    Case("request pulse", hang_pulse, 0.0, "permit.r"),
    Case("interlock view", hang_interlock_view, 0.5 + GRACE_S + PULSE_S, "status.stale"),
    Case("gantry reader", hang_gantry_reader, 2.0 + GRACE_S + PULSE_S, "status.stale"),
]


def hung(plan, act: Callable[[Stage], None]) -> tuple[Stage, int]:
    """The run, and the instant from which on something hung."""
    at: list[int] = []

    def hook(stage: Stage) -> None:
        def strike() -> None:
            at.append(stage.world.plant.kernel.now_ns)
            act(stage)

        at_beam(stage, strike, 0.3)
        at_beam(stage, lambda: stage.fraction.stop("the operator gives up"), 30.0)

    run = treat(plan, hook=hook)
    assert run.violation is None, str(run.result.violation)
    return run, at[0]


def relay_fell_ns(run: Stage, after_ns: int) -> int:
    """When relay R fell, by the plant's truth."""
    return next(e.t_ns for e in run.happened("permit") if e.data["which"] == "R" and e.t_ns >= after_ns and not e.data["value"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_task_that_hangs_in_beam_takes_the_request_away_and_is_named(plan_of, case):
    run, at_ns = hung(plan_of(shape="sphere", diameter_mm=30.0, depth_mm=100.0, dose_gy=1.0), case.hang)
    limit_ns = (case.within_s + RELAY_S) * PLAN_NS
    assert relay_fell_ns(run, at_ns) - at_ns <= limit_ns
    assert run.beam_off_after_ns(at_ns) <= limit_ns
    assert run.interlocks[0] == case.cause, run.interlocks
    assert run.status in ("partial", "fault")
    assert case.cause in run.result.summary["reason"]
    assert run.result.summary["interlocks"][0]["first_out"]
    run.check_quiet()
    run.check_record(settled=False)


def test_a_delivery_that_misses_the_end_of_its_grant_does_not_keep_the_request(turned):
    run, at_ns = hung(turned, hang_delivery)
    ended_ns = run.happened("grant.ended")[-1].t_ns  # of the grant after: the one before was being waited for already
    assert ended_ns > at_ns
    assert relay_fell_ns(run, ended_ns) - ended_ns <= (0.1 + OPEN_S + GRACE_S + PULSE_S + RELAY_S) * PLAN_NS
    assert run.interlocks[0] == "watchdog.delivery"
    assert run.status == "fault"
    run.check_quiet()


def test_results_that_are_never_collected_take_the_request_away(turned):
    run, at_ns = hung(turned, hang_results)
    (ended_ns, *_) = [e.t_ns for e in run.happened("grant.ended") if e.t_ns >= at_ns]
    assert relay_fell_ns(run, ended_ns) - ended_ns <= (0.1 + RESULTS_S + GRACE_S + PULSE_S + RELAY_S) * PLAN_NS
    assert run.interlocks[0] == "watchdog.collecting_of_results"
    run.check_quiet()


def stand_still(stage: Stage, s: float) -> None:
    """The program's loop does nothing for so long, while the plant goes on."""
    stage.loop.call_soon(lambda: setattr(stage.loop, "now_ns", stage.loop.now_ns + round(s * 1e9)))


@pytest.mark.parametrize("s", [0.16, 0.3, 3.0])
def test_a_loop_that_stands_still_loses_the_request_and_does_not_take_it_back(sphere, s):
    run, at_ns = hung(sphere, lambda stage: stand_still(stage, s))
    assert relay_fell_ns(run, at_ns) - at_ns <= RELAY_S * PLAN_NS
    assert run.beam_off_after_ns(at_ns) <= RELAY_S * PLAN_NS + 500_000
    # The interlock system lives in the same loop here, and says the same of itself.
    assert run.interlocks[:2] == ["LOOP_STALL", "watchdog.loop"]
    assert "without a pulse; limit 100 ms" in run.result.summary["interlocks"][1]["description"]
    rises = [e.t_ns for e in run.happened("permit") if e.data["which"] == "R" and e.data["value"] and e.t_ns > at_ns]
    resumed = [e.t_ns for e in run.said("room.state") if e.data["event"] == "resume"]
    assert not rises or (resumed and rises[0] >= resumed[0]), "a late pulse closes nothing; the operator's fresh beam-on does"
    run.check_record()


def test_a_loop_that_stands_still_for_less_than_its_relay_costs_nothing(sphere):
    run, _ = hung(sphere, lambda stage: stand_still(stage, 0.04))
    assert run.status == "complete" and run.interlocks == []


def test_the_interlock_system_notices_a_program_that_stands_still_by_itself(sphere):
    """Its own process goes on: here its node is stepped by the plant while the program's loop is away."""

    def away(stage: Stage) -> None:
        node, kernel = stage.world.simulated.interlock, stage.world.plant.kernel
        start_ns = kernel.now_ns

        def elsewhere() -> None:
            for ms in range(10, 400, 10):
                kernel.advance_to(start_ns + ms * 1_000_000)
                node.step(kernel.now_ns)
            stage.loop.now_ns = max(stage.loop.now_ns, kernel.now_ns)

        stage.loop.call_soon(elsewhere)

    run, at_ns = hung(sphere, away)
    (trip, *_) = [e for e in run.said("interlock.trip") if e.data["id"] == "CONTROLLER_HEARTBEAT"]
    falls = [e.t_ns for e in run.happened("permit") if e.data["which"] == "B" and e.t_ns >= at_ns and not e.data["value"]]
    assert falls[0] - at_ns <= (0.21 + 0.1) * PLAN_NS, "200 ms of standstill, then a relay of 100 ms"
    assert trip.data["first_out"]
    run.check_record()


def test_a_disk_that_stalls_is_a_program_that_stands_still(turned, monkeypatch):
    append, stalled = Journal.append, []

    def stall(self, kind, *args, **options):
        if kind == Kind.DONE and not stalled:
            loop = asyncio.get_running_loop()
            stalled.append(loop.now_ns)
            loop.now_ns += 300_000_000
        return append(self, kind, *args, **options)

    monkeypatch.setattr(Journal, "append", stall)
    run = treat(turned)
    assert relay_fell_ns(run, stalled[0]) - stalled[0] <= RELAY_S * PLAN_NS
    assert run.interlocks[:2] == ["LOOP_STALL", "watchdog.loop"]
    run.check_record()
