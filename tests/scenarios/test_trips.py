"""A trip, a stop or a pause at any point of a whole treatment: between any two callbacks of the loop, and inside any event."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from stage import Stage, treat

import controller.treatment
from controller.room.causes import Cause, Severity
from controller.stopping import Stops

ENDED = {"terminated.partial", "terminated.complete", "fault"}


def trip(severity: Severity):
    """Something that trips the room."""

    def act(stage: Stage) -> None:
        stage.struck = len(stage.events)
        if stage.fraction is not None:
            stage.fraction.room.trip(Cause("test.trip", severity, "planted by the test"))

    return act


def stop(stage: Stage) -> None:
    """The operator ends it."""
    stage.struck = len(stage.events)
    if stage.fraction is not None:
        stage.fraction.stop("operator")


def pause(stage: Stage) -> None:
    """The operator pauses; refused where there is nothing to pause."""
    if stage.fraction is not None and stage.fraction.session is not None:
        stage.fraction.session.pause("operator")


@pytest.fixture(scope="module")
def clean(sphere) -> Stage:
    """The same treatment without any of it: how many callbacks and events there are, and where beam begins."""
    run = treat(sphere)
    assert run.status == "complete"
    return run


def points(total: int, number: int, share: int = 0, of: int = 1) -> list[int]:
    """`number` points spread evenly over 1..total."""
    return [int(n) for n in np.unique(np.linspace(1, total, number).round()).astype(int)][share::of]


def check_ended(run: Stage) -> None:
    """Whatever happened: beam is off, the request low, the record whole, and the room has ended or never begun."""
    assert run.violation is None, str(run.result.violation)
    run.check_safe()
    run.check_record()
    assert not run.result.failures
    assert ENDED & set(run.states) or run.status == "refused" or "standby" in run.states


def ended_before(run: Stage) -> bool:
    """Whether all was delivered and the field had ended when it struck: then it changes nothing of that."""
    before = [event for event in run.events[: run.struck] if event.kind == "room.state"]
    return any(event.data["state"] == "terminated.complete" for event in before)


SAMPLES = 8


@pytest.mark.parametrize("severity", [Severity.TERMINATE, Severity.FAULT])
@pytest.mark.parametrize("sample", range(SAMPLES))
def test_a_trip_behind_any_callback(sphere, clean, severity, sample):
    total = clean.loop.asked
    before = clean.asked_at_beam
    # Half of the points before beam, half in beam; the two severities interleave.
    grid = points(before, SAMPLES) if sample % 2 else [before + n for n in points(total - before - 40, SAMPLES)]
    at = grid[min(sample, len(grid) - 1)] + (7 if severity is Severity.FAULT else 0)
    run = treat(sphere, interrupt=(at, trip(severity)), schedule_seed=sample)
    check_ended(run)
    assert run.status in ("partial", "fault") or (run.status == "refused" and not run.happened("motion.start"))
    if severity is Severity.FAULT:
        assert run.status == "fault"


STATES = (
    "preparatory.identified",
    "preparatory.positioning",
    "preparatory.imaging",
    "preparatory.positioned",
    "preparatory.secured",
    "preparatory.allocated",
    "preparatory.tuning",
    "ready.armed",
    "irradiating.beam_on",
    "irradiating.held",
    "interrupted",
)


@pytest.mark.parametrize("what", ["trip", "stop"])
@pytest.mark.parametrize("state", STATES)
def test_a_trip_or_a_stop_in_each_state(turned, state, what):
    """A moment after the state was entered (its second time, where it comes more than once)."""
    act, done = (trip(Severity.TERMINATE) if what == "trip" else stop), []

    def hook(stage):
        kernel, entered = stage.world.plant.kernel, []

        def listen(event):
            if event.kind != "room.state":
                return
            if event.data["state"] == "irradiating.beam_on" and state == "interrupted":
                kernel.after(30_000_000, lambda _t: pause(stage))
            if event.data["state"] == state:
                entered.append(event)
                if len(entered) == (2 if state.startswith("irradiating") else 1):
                    kernel.after(1_000_000, strike)

        def strike(_t_ns):
            done.append(stage.fraction.room.state)
            act(stage)

        stage.world.bus.subscribe(listen)

    run = treat(turned, hook=hook)
    assert done
    check_ended(run)
    moved = ("partial",) if state != "preparatory.identified" else ("partial", "refused")  # the first motion begins about now
    assert run.status in moved and run.termination == ("MACHINE" if what == "trip" else "OPERATOR")
    if what == "trip":
        assert run.interlocks[0] == "test.trip"


@pytest.mark.slow
@pytest.mark.parametrize("share", range(20))
def test_a_trip_behind_every_callback(sphere, clean, share):
    for at in points(clean.loop.asked, 600, share, 20):
        for severity in (Severity.TERMINATE, Severity.FAULT):
            run = treat(sphere, interrupt=(at, trip(severity)))
            check_ended(run)
            if not ended_before(run):
                assert run.status in ("partial", "fault", "refused"), at
            elif run.status != "fault":  # a fault while it is being closed makes it one
                assert (run.status, run.termination) == ("complete", "NORMAL"), at
            else:
                assert severity is Severity.FAULT, at


@pytest.mark.parametrize("sample", range(8))
def test_a_trip_inside_an_event(sphere, clean, sample):
    """From inside a listener of the bus: inside the door of the room, a driver, the delivery or the interlock system."""
    number = points(len(clean.events) - 6, 8)[sample]

    def listen(stage):
        def heard(event):
            if event.seq == number:
                trip(Severity.TERMINATE)(stage)

        stage.world.bus.subscribe(heard)

    check_ended(treat(sphere, hook=listen))


@pytest.mark.slow
@pytest.mark.parametrize("share", range(10))
def test_a_trip_inside_every_event(sphere, clean, share):
    for number in points(len(clean.events), len(clean.events), share, 10):

        def listen(stage, number=number):
            stage.world.bus.subscribe(lambda event: trip(Severity.FAULT)(stage) if event.seq == number else None)

        check_ended(treat(sphere, hook=listen))


@pytest.mark.parametrize("sample", range(8))
def test_a_stop_by_the_operator_at_any_point(sphere, clean, sample):
    at = points(clean.loop.asked - 40, 9)[sample] + 3
    run = treat(sphere, interrupt=(at, stop), schedule_seed=100 + sample)
    check_ended(run)
    assert run.termination == "OPERATOR" and run.status in ("partial", "refused")


def test_an_interrupt_before_there_is_anything_to_end_is_not_lost(sphere, monkeypatch):
    """Ctrl-C while everything is still being loaded and connected: nothing moves, and it is said who ended it."""
    interrupted = Stops()
    interrupted("SIGINT at the console")
    monkeypatch.setattr(controller.treatment, "stopping", lambda _by_signal: contextlib.nullcontext(interrupted))
    run = treat(sphere)
    check_ended(run)
    assert run.status == "refused" and run.termination == "OPERATOR"
    assert not run.happened("motion.start") and not run.happened("beam.on")
    assert "SIGINT at the console" in run.result.summary["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("share", range(10))
def test_a_stop_by_the_operator_at_every_point(sphere, clean, share):
    for at in points(clean.loop.asked, 300, share, 10):
        run = treat(sphere, interrupt=(at, stop))
        check_ended(run)
        assert run.termination == ("NORMAL" if ended_before(run) else "OPERATOR"), at


def test_a_trip_as_the_room_is_released_is_not_of_what_was_delivered(sphere):
    """The field is over and complete, whatever becomes of the room in the instant in which it is left."""

    def hook(stage):
        def heard(event):
            if event.kind == "room.state" and event.data["state"] == "standby":
                asyncio.get_running_loop().call_soon(trip(Severity.TERMINATE), stage)

        stage.world.bus.subscribe(heard)

    run = treat(sphere, hook=hook)
    check_ended(run)
    assert ended_before(run) and run.states[-1] == "fault"
    assert (run.status, run.termination) == ("complete", "NORMAL")


@pytest.mark.parametrize("sample", range(6))
def test_a_pause_at_any_point_resumes_to_the_right_dose(sphere, clean, sample):
    total = clean.loop.asked
    before = clean.asked_at_beam
    run = treat(sphere, interrupt=(before + points(total - before - 60, 6)[sample], pause), schedule_seed=200 + sample)
    assert run.status == "complete"
    check_ended(run)
    beam = run.result.summary["beams"][0]
    assert beam["meterset_delivered_primary"] == pytest.approx(beam["meterset_planned"], rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(10))
def test_a_pause_at_every_point_resumes_to_the_right_dose(sphere, clean, share):
    for at in points(clean.loop.asked, 300, share, 10):
        run = treat(sphere, interrupt=(at, pause))
        assert run.status == "complete", at
        check_ended(run)
        beam = run.result.summary["beams"][0]
        assert beam["meterset_delivered_primary"] == pytest.approx(beam["meterset_planned"], rel=0.005)


def test_three_pauses_in_one_field(sphere):
    def thrice(stage):
        kernel, seen = stage.world.plant.kernel, []

        def listen(event):
            if event.kind == "beam.on":
                seen.append(event)
                if len(seen) in (1, 2, 4):
                    kernel.after(20_000_000, lambda _t: pause(stage))

        kernel.observe(listen)

    run = treat(sphere, hook=thrice)
    assert run.status == "complete" and run.states.count("interrupted") == 3
    check_ended(run)
    attempts = {p.attempt for beam in run.result.outcome.beams for p in beam.passes}
    assert max(attempts) >= 3
