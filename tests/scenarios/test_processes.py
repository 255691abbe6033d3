"""Processes that die or hang, wires that are cut or freeze, in the middle of beam: it ends safely, in time, with a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from stage import Stage, at_beam, treat

from controller.record.entries import Kind

Act = Callable[[Stage], object]
NODE = "G1-interlocks"
RELAY_MS = 100.0  # docs/wires.md: a relay falls so long after its last pulse


def silence(node: int) -> Act:
    """A node of the safety line does not answer any more."""
    return lambda stage: setattr(stage.world.simulated.safety_nodes[node], "silent", True)


def freeze(node: int) -> Act:
    """A node of the safety line repeats itself, and loses what is written."""
    return lambda stage: setattr(stage.world.simulated.safety_nodes[node], "frozen", True)


@dataclass(frozen=True)
class Case:
    """What breaks 0.3 s after the first beam, and what must follow.

    Attributes:
        name: of the case.
        breaks, mends: what is done; mended `mended_s` later.
        stopped_s: the operator gives up so long after; None: the room ends it by itself.
        relay: which relay falls within 100 ms of the fault; none where no pulse runs there.
        off_ms: beam is off by then; None: the grant may run to its end, the unit and the chain watch over it.
        status: of the summary.
        word: in the reason.
        settled: every count is known; else within the interval that journal and ledger state.
        disarmed: the safety I/O could be told.
    """

    name: str
    breaks: Act
    mends: Act | None = None
    mended_s: float = 0.5
    stopped_s: float | None = None
    relay: str = ""
    off_ms: float | None = None
    status: str = "partial"
    word: str = ""
    settled: bool = True
    disarmed: bool = True

    def __str__(self) -> str:
        return self.name


CASES = [
    Case(
        "interlock node killed",
        lambda s: s.world.world.kill(NODE),
        stopped_s=2.0,
        relay="B",
        off_ms=RELAY_MS,
        word="its pulse has stopped",
    ),
    Case(
        "interlock node stopped and continued",
        lambda s: s.world.world.suspend(NODE),
        lambda s: s.world.world.resume(NODE),
        stopped_s=2.0,
        relay="B",
        off_ms=RELAY_MS,
        word="permit.b",
    ),
    Case("permit relay frozen", freeze(2), stopped_s=2.0, relay="B", off_ms=RELAY_MS, word="its pulse has stopped"),
    Case(
        "safety line cut",
        lambda s: s.world.simulated.safety.cut(),
        relay="R",
        off_ms=RELAY_MS,
        word="status.stale",
        stopped_s=2.0,
        disarmed=False,
    ),
    Case(
        "safety line cut for half a second",
        lambda s: s.world.simulated.safety.cut(),
        lambda s: s.world.simulated.safety.restore(),
        relay="R",
        off_ms=RELAY_MS,
        status="complete",
    ),
    Case("safety node silent", silence(1), relay="R", off_ms=RELAY_MS, word="status.stale", stopped_s=2.0, disarmed=False),
    Case("safety node frozen", freeze(1), relay="R", off_ms=RELAY_MS, word="status.stale", stopped_s=2.0, disarmed=False),
    Case("permit relay silent", silence(2), stopped_s=2.0, word="interlock status"),
    Case(
        "motion line cut for half a second",
        lambda s: s.world.simulated.motion.cut(),
        lambda s: s.world.simulated.motion.restore(),
        status="complete",
    ),
    Case(
        "motion line cut for five seconds",
        lambda s: s.world.simulated.motion.cut(),
        lambda s: s.world.simulated.motion.restore(),
        5.0,
        status="complete",
    ),
    Case("motion line cut", lambda s: s.world.simulated.motion.cut(), stopped_s=3.0, word="gantry is"),
    Case(
        "channels frozen for half a second",
        lambda s: s.world.channels.freeze(),
        lambda s: s.world.channels.thaw(),
        status="complete",
    ),
    Case("channels frozen", lambda s: s.world.channels.freeze(), word="has not moved", settled=False),
    Case(
        "channels lost for half a second",
        lambda s: s.world.channels.disconnect(),
        lambda s: s.world.channels.reconnect(),
        status="complete",
    ),
    Case("channels lost", lambda s: s.world.channels.disconnect(), word="is not connected", settled=False),
]


def broken(plan, case: Case, **options) -> tuple[Stage, int]:
    """The run, and the instant at which it broke."""
    at: list[int] = []

    def hook(stage: Stage) -> None:
        def strike() -> None:
            at.append(stage.world.plant.kernel.now_ns)
            case.breaks(stage)

        at_beam(stage, strike, 0.3)
        if case.mends is not None:
            at_beam(stage, lambda: case.mends(stage), 0.3 + case.mended_s)
        if case.stopped_s is not None:
            at_beam(stage, lambda: stage.fraction.stop("the operator gives up"), 0.3 + case.stopped_s)

    run = treat(plan, hook=hook, **options)
    return run, at[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_breaks_in_beam_ends_safely_and_is_recorded(sphere, case):
    run, at_ns = broken(sphere, case)
    assert run.violation is None, str(run.result.violation)
    assert run.status == case.status
    assert case.word in run.result.outcome.reason
    if case.relay:
        falls = [
            e.t_ns for e in run.happened("permit") if e.data["which"] == case.relay and e.t_ns >= at_ns and not e.data["value"]
        ]
        assert falls[0] - at_ns <= RELAY_MS * 1e6
    if case.off_ms is not None:
        assert run.beam_off_after_ns(at_ns) <= (case.off_ms + 0.5) * 1e6
    if case.disarmed:
        run.check_safe()
    else:
        assert not run.room.chain.beam_enable.value and not run.room.unit.delivering
        run.check_quiet()
    run.check_record(settled=case.settled)
    if not case.settled:
        kinds = [record.kind for record in run.journal()]
        assert kinds.count(Kind.RECONCILED) == 1 and kinds.count(Kind.CLOSED) == 1


@pytest.mark.slow
def test_a_dead_interlock_node_ends_the_field_by_itself_after_five_minutes(sphere):
    case = CASES[0]
    run, at_ns = broken(sphere, Case(case.name, case.breaks))
    run.check_trouble()
    assert run.states[-2:] == ["terminated.partial", "standby"]
    assert 300.0 <= (run.world.world.now_ns - at_ns) / 1e9 < 303.0


@pytest.mark.parametrize("at_s", [0.0, 0.05, 0.15, 0.24, 0.7, 1.2])
def test_a_killed_interlock_node_at_other_times_in_the_field(sphere, at_s):
    def hook(stage):
        at_beam(stage, lambda: stage.world.world.kill(NODE), at_s)
        at_beam(stage, lambda: stage.fraction.stop("the operator gives up"), at_s + 2.0)

    run = treat(sphere, hook=hook)
    run.check_trouble()
    assert run.status == "partial" and "interrupted" in run.states


@pytest.mark.parametrize("state", ["preparatory.positioning", "preparatory.imaging", "preparatory.tuning", "ready.armed"])
@pytest.mark.parametrize("what", ["safety", "motion", "channels", "interlocks"])
def test_what_breaks_before_beam_never_gives_beam(turned, state, what):
    """Wires and processes that are lost on the way: the session ends by itself, or waits for the operator, and no ion comes."""

    def hook(stage):
        world = stage.world

        def lose(event):
            if event.kind == "room.state" and event.data["state"] == state:
                {
                    "safety": world.simulated.safety.cut,
                    "motion": world.simulated.motion.cut,
                    "channels": world.channels.disconnect,
                    "interlocks": lambda: world.world.kill(NODE),
                }[what]()
                world.plant.kernel.after(45_000_000_000, lambda _t: stage.fraction.stop("the operator gives up"))

        world.bus.subscribe(lose)

    run = treat(turned, hook=hook)
    assert run.violation is None, str(run.result.violation)
    assert run.status in ("partial", "refused", "fault")
    assert not run.happened("beam.on")
    assert not run.room.unit.delivering and run.room.gantry.brake_applied
    run.check_quiet()
    run.check_record()
