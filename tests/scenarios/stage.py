"""Runs whole treatments on the simulated facility for the scenario tests, and keeps everything that happened.

`treat` is `run_treatment` as the command line calls it, with a hurried operator and the beam line already switched to the
room, so that a run costs a third of a second. A test changes the plant, the controller or the world by a hook.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import controller.assembly
import controller.fraction
import controller.record.memory_store
from controller.record.entries import Kind, read_done
from controller.record.journal import Record, scan
from controller.record.memory_store import MemoryStore
from controller.treatment import TreatOptions, TreatResult, run_treatment
from drivers.hal.events import Event
from simulators.clock import VirtualLoop
from simulators.people import Pace, ScriptedOperator
from simulators.plant.kernel import TruthEvent
from simulators.plant.room import RoomPlant

HURRIED = Pace(button_s=0.4, walk_out_s=0.4, door_s=0.4, walk_in_s=0.4, patient_s=0.5, prompt_s=0.2, estop_s=0.1)

AFTERWARDS_NS = 250_000_000  # the plant lives on for a moment without any program: relays fall, brakes close


class StageLoop(VirtualLoop):
    """Virtual time that notes what escapes and what is left behind, and may do something after the n-th callback.

    Attributes:
        asked: callbacks asked for so far.
        interrupt: (n, act): `act` runs right behind the n-th callback.
    """

    def __init__(self, schedule_seed: int | None = None) -> None:
        super().__init__(schedule_seed)
        self.asked = 0
        self.interrupt: tuple[int, Callable[[], None]] | None = None
        self.escaped: list[str] = []
        self.left: list[str] = []
        self._runs = 0
        self.set_exception_handler(
            lambda _loop, context: self.escaped.append(f"{context['message']}: {context.get('exception')!r}")
        )

    def call_soon(self, callback, *args, context=None):
        handle = super().call_soon(callback, *args, context=context)
        self.asked += 1
        if self.interrupt is not None and self.asked == self.interrupt[0]:
            super().call_soon(self.interrupt[1])
        return handle

    def run_until_complete(self, future):
        try:
            return super().run_until_complete(future)
        finally:
            self._runs += 1
            if self._runs == 1:  # the treatment itself; then the runner tidies up
                self.left = [task.get_name() for task in asyncio.all_tasks(self) if not task.done()]


@dataclass
class Stage:
    """One run, while it is running and after it."""

    loop: StageLoop | None = None
    world: Any = None
    fraction: Any = None
    result: TreatResult | None = None
    events: list[Event] = field(default_factory=list)
    truth: list[TruthEvent] = field(default_factory=list)
    store: Any = None  # the disk, in memory
    probe: Any = None
    prescription: Any = None
    asked_at_beam: int = 0  # callbacks that were asked for when the first beam began
    struck: int = 0  # events that had been heard when the test struck

    @property
    def room(self) -> RoomPlant:
        """The treated room of the plant."""
        return self.world.plant.rooms[self.world.room]

    @property
    def session(self) -> Any:
        """The session of the beam that is being treated."""
        return self.fraction.session

    @property
    def status(self) -> str:
        return self.result.summary["status"]

    @property
    def termination(self) -> str:
        return self.result.summary["termination"]

    @property
    def violation(self) -> str | None:
        """Name of the violated invariant."""
        return self.result.violation.name if self.result.violation is not None else None

    @property
    def interlocks(self) -> list[str]:
        """Names of what tripped, first-out first."""
        return [interlock.name for interlock in self.result.outcome.interlocks]

    @property
    def states(self) -> list[str]:
        """States of the room, in order."""
        return [event.data["state"] for event in self.events if event.kind == "room.state"]

    def said(self, kind: str) -> list[Event]:
        """Events of a kind."""
        return [event for event in self.events if event.kind == kind]

    def happened(self, kind: str) -> list[TruthEvent]:
        """Truth events of a kind, in the treated room where it has one."""
        return [
            event for event in self.truth if event.kind == kind and event.data.get("room", self.world.room) == self.world.room
        ]

    def given_counts1(self) -> int:
        """What the plant gave to spots."""
        return sum(int(event.data["counts1"].sum()) for event in self.happened("delivery.segment"))

    def recorded_counts1(self) -> int:
        """What the record says was given."""
        return sum(int(p.pieces["counts1"].sum()) for beam in self.result.outcome.beams for p in beam.passes)

    def journal(self) -> tuple[Record, ...]:
        """The journal as a power cut would leave it."""
        return scan(self.journal_bytes(), "journal").records

    def journal_bytes(self) -> bytes:
        return self.probe._read(self.probe._path, 0)

    def beam_off_after_ns(self, t_ns: int) -> int:
        """How long beam went on after an instant; 0 when there was none then."""
        on = 0
        for event in self.happened("beam.on") + self.happened("beam.off"):
            if event.t_ns <= t_ns:
                on += 1 if event.kind == "beam.on" else -1
        later = [event.t_ns - t_ns for event in self.happened("beam.off") if event.t_ns > t_ns]
        return min(later) if on else 0

    # --- what must be true after every run ------------------------------------------------------------------------

    def check_safe(self) -> None:
        """Beam off, request low, disarmed, brakes set, no task left, nothing escaped."""
        room = self.room
        assert not room.unit.delivering
        assert room.unit.open_grant is None
        assert not room.chain.beam_enable.value and not room.chain.permit_r.value
        assert not self.fraction._devices.access.requested
        assert not room.chain.armed
        assert room.gantry.brake_applied and not room.gantry.drive_enabled
        self.check_quiet()

    def check_quiet(self) -> None:
        """No task is left, nothing escaped into the loop."""
        assert self.loop.left == []
        assert self.loop.escaped == []

    def check_record(self, *, settled: bool = True) -> None:
        """Plant, journal and record agree; with `settled` to the count, else within the stated interval."""
        given = self.given_counts1()
        done = sum(int(read_done(r).pieces["counts1"].sum()) for r in self.journal() if r.kind == Kind.DONE)
        assert self.probe.done_counts1() == done
        assert done <= given <= done + self.probe.open_counts1()
        assert done == self.recorded_counts1()
        if settled:
            assert done == given
            kinds = [record.kind for record in self.journal()]
            assert kinds.count(Kind.GRANT) == kinds.count(Kind.DONE)
            assert kinds.count(Kind.CLAIMED) == kinds.count(Kind.CLOSED)

    def check_trouble(self, *, settled: bool = True) -> None:
        """All of it, for a run that ended early, and no invariant violated."""
        assert self.violation is None, str(self.result.violation)
        assert self.status in ("partial", "fault", "refused")
        self.check_safe()
        self.check_record(settled=settled)


Hook = Callable[[Stage], None]


@contextmanager
def _staged(
    stage: Stage,
    hook: Hook | None,
    on_fraction: Hook | None,
    schedule_seed: int | None,
    pace: Pace,
    interrupt: tuple[int, Hook] | None,
) -> Iterator[None]:
    """The classes that a treatment is made of, replaced by ones that tell the stage."""

    def take(event: TruthEvent) -> None:
        stage.truth.append(event)
        if event.kind == "beam.on" and not stage.asked_at_beam:
            stage.asked_at_beam = stage.loop.asked

    class World(controller.assembly.SimulatedWorld):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stage.world = self
            self.plant.kernel.observe(take)

        def watch(self, prescription=None, record=None):
            stage.prescription, stage.probe = prescription, record
            return super().watch(prescription, record)

        async def start(self) -> None:
            await super().start()
            yard, room = self.plant.switchyard, self.plant.rooms[self.room]
            if room.kind == "gantry":
                yard.route = yard._target = room.name
            if hook is not None:
                hook(stage)

    class Fraction(controller.fraction.Fraction):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stage.fraction = self
            if on_fraction is not None:
                on_fraction(stage)

    def new_store() -> MemoryStore:
        stage.store = MemoryStore()
        return stage.store

    def new_loop() -> StageLoop:
        stage.loop = StageLoop(schedule_seed)
        if interrupt is not None:
            stage.loop.interrupt = (interrupt[0], functools.partial(interrupt[1], stage))
        return stage.loop

    with ExitStack() as stack:
        for module, name, new in (
            (controller.assembly, "SimulatedWorld", World),
            (controller.assembly, "ScriptedOperator", functools.partial(ScriptedOperator, pace=pace)),
            (controller.assembly, "VirtualLoop", new_loop),
            (controller.fraction, "Fraction", Fraction),
            (controller.record.memory_store, "MemoryStore", new_store),
        ):
            stack.enter_context(patch.object(module, name, new))
        yield


def treat(
    plan: Path,
    *faults: str,
    hook: Hook | None = None,
    on_fraction: Hook | None = None,
    schedule_seed: int | None = None,
    pace: Pace = HURRIED,
    interrupt: tuple[int, Hook] | None = None,
    **options: Any,
) -> Stage:
    """Treat a plan, with faults.

    Args:
        plan: file.
        faults: as on the command line.
        hook: called when the world has started: plant, servers and interlock node are there.
        on_fraction: called when the fraction was made: devices are there, not yet connected.
        schedule_seed: shuffles callbacks that are ready together.
        pace: of the operator.
        interrupt: (n, act): `act(stage)` runs in the loop right behind the n-th callback that anything asked for.
        options: of `TreatOptions`.
    """
    stage = Stage()
    with _staged(stage, hook, on_fraction, schedule_seed, pace, interrupt):
        stage.result = run_treatment(TreatOptions(plan=plan, faults=faults, **options), stage.events.append)
    kernel = stage.world.plant.kernel
    kernel.advance_to(kernel.now_ns + AFTERWARDS_NS)
    return stage


def caught(run: Stage) -> str | None:
    """Name of the violated invariant, of a run in which a bug was planted and did nothing but what it should."""
    run.check_quiet()
    return run.violation


def at_beam(stage: Stage, act: Callable[[], None], after_s: float = 0.0) -> None:
    """Do something in the plant's world `after_s` after the first beam."""
    kernel, armed = stage.world.plant.kernel, [True]

    def listen(event: TruthEvent) -> None:
        if armed[0] and event.kind == "beam.on":
            armed[0] = False
            kernel.after(round(after_s * 1e9), lambda _t: act())

    kernel.observe(listen)


def spot_errors_mm(stage: Stage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True errors of place of everything delivered, x and y in mm, and the counts that lie there."""
    segments = [event.data for event in stage.happened("delivery.segment")]
    x, y, counts = (np.concatenate([segment[name] for segment in segments]) for name in ("x_mm", "y_mm", "counts1"))
    planned_x = np.concatenate([segment["planned_x_mm"] for segment in segments])
    planned_y = np.concatenate([segment["planned_y_mm"] for segment in segments])
    return x - planned_x, y - planned_y, counts
