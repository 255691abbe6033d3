"""The same cause interrupts a field three times at most, whoever found it: then somebody has to look before any more beam.

The watchdog's own pause, a program that stood still, is a cause like any other: a computer that stands still four times in a
field of minutes is not one to treat with, however well each time went.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from stage import Stage, treat

from controller.room.causes import Cause, Severity
from controller.room.session import PAUSES_MAX
from drivers.hal.clock import now_ns

STANDSTILL_S = 0.16  # longer than the request relay holds, and than the interlock system lets its own loop stand
APART_NS = 20_000_000
FOUND_AS = ("watchdog.loop", "permit.b")  # the interlock system stands still in the same loop here, and may be looked at first


def stand_still(stage: Stage) -> None:
    """The program's loop does nothing for a while; the plant goes on."""
    stage.loop.call_soon(lambda: setattr(stage.loop, "now_ns", stage.loop.now_ns + round(STANDSTILL_S * 1e9)))


def pauses_for(names: Iterator[str]) -> Callable[[Stage], None]:
    """Each time for the next of the names, as the room's watch would."""

    def pause(stage: Stage) -> None:
        stage.session._act(Cause(next(names), Severity.PAUSE, "paused", device="test", t_ns=now_ns()))

    return pause


def each_time_beam_is_resumed(act: Callable[[Stage], None], times: int) -> Callable[[Stage], None]:
    """Act shortly after the first beam, and after the first beam of each resumption, so many times in all."""

    def hook(stage: Stage) -> None:
        kernel, struck = stage.world.plant.kernel, []

        def listen(event) -> None:
            resumed = sum(1 for e in stage.events if e.kind == "room.state" and e.data["event"] == "resume")
            if event.kind == "beam.on" and len(struck) < times and len(struck) <= resumed:
                struck.append(event.t_ns)
                kernel.after(APART_NS, lambda _t: act(stage))

        kernel.observe(listen)

    return hook


def test_a_program_that_stands_still_three_times_goes_on_and_gives_the_plan(sphere):
    run = treat(sphere, hook=each_time_beam_is_resumed(stand_still, PAUSES_MAX))
    assert run.status == "complete", run.result.summary["reason"]
    assert run.states.count("interrupted") == PAUSES_MAX
    assert set(run.interlocks) <= {"LOOP_STALL", *FOUND_AS} and "watchdog.loop" in run.interlocks
    run.check_record()


def test_at_the_fourth_time_the_field_is_ended_and_the_operator_told_to_find_the_cause(sphere):
    run = treat(sphere, hook=each_time_beam_is_resumed(stand_still, PAUSES_MAX + 3))
    assert run.status == "partial" and run.termination == "MACHINE"
    assert run.interlocks.count("watchdog.loop") == PAUSES_MAX + 1
    assert run.states.count("interrupted") >= PAUSES_MAX and "terminated.partial" in run.states
    assert [e.data["severity"] for e in run.said("trip") if e.data["cause"] == "watchdog.loop"][PAUSES_MAX:] == ["terminate"]
    reason = run.result.outcome.reason
    assert reason.startswith("watchdog.loop") and "for the 4th time in this field" in reason
    assert "find its cause before any beam" in reason
    run.check_trouble()


def test_causes_are_counted_apart(sphere):
    """Four interruptions by two causes, none of them oftener than three times."""
    times = PAUSES_MAX + 1
    run = treat(sphere, hook=each_time_beam_is_resumed(pauses_for(itertools.cycle(["one", "another"])), times))
    assert run.status == "complete", run.result.summary["reason"]
    assert run.states.count("interrupted") == times
    run.check_record()
