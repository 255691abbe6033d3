"""Walks one fraction of one beam through the room: one owned task per state, deadlines, supervision, and a clean way out.

A state's task proves something and returns the event; the session fires it, never from inside. Supervision and deadlines fire
by themselves. Whatever happens, `run` leaves with the request line low, the unit's grant ended, gantry and couch at rest and
the beam token given back, or says what it could not do. Not responsible for what a state does (`activities`), for judging
(`states`), or for dose (`controller.delivery`, behind `Deliver`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from controller.room.activities import Activities, Step
from controller.room.causes import Cause, Severity, cause_of
from controller.room.closing import Closing
from controller.room.machine import Room, StateChange
from controller.room.permission import Permission
from controller.room.ports import BeamSharing, Deliver, DeliveryResult, Job, OperatorPort, Tuned, Tuner
from controller.room.positioning import Placement, Targets
from controller.room.proofs import Proofs
from controller.room.request_watch import RequestWatch
from controller.room.states import DEADLINES, ENDED, IRRADIATING, Deadline, RoomFacts, State, Trigger
from controller.room.supervision import WATCHED, Seen, Timing
from controller.room.tasks import limited, uninterrupted
from controller.room.watch import LOOK_S, Watch
from drivers.hal.capabilities import RoomDevices
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommandRejected
from drivers.hal.events import EventBus
from drivers.hal.facility import Room as RoomBelief

REFUSALS_MAX = 5  # a state whose own event is refused this often does not know where it stands
REFUSED_PAUSE_S = 0.25
PAUSES_MAX = 3  # the same cause interrupts a field no oftener: resuming must not become a habit (assumed)
MOVING = ("position", "image")
OWN_DOING = "permit.r"  # the request relay falls when the request is dropped
_DEADLINE_OF: dict[State, Deadline] = {deadline.state: deadline for deadline in DEADLINES}


class Outcome(StrEnum):
    """How a session ended."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    REFUSED = "refused"  # declined or cancelled before beam
    FAULT = "fault"


@dataclass(frozen=True, slots=True, eq=False)
class SessionResult:
    """What happened, for the record.

    Attributes:
        outcome: see `Outcome`.
        reason: why it is not complete, in words.
        causes: everything that tripped the room, first first.
        delivery: what the delivery returned; None when it was never asked or did not return.
        tuned, targets, placement: as they were at the end; None where it did not come to that.
        correction: couch correction by image, mm and deg per axis.
        moved: something was sent moving.
        beam_given: the room was irradiating.
        problems: what could not be closed out.
    """

    outcome: Outcome
    reason: str
    causes: tuple[Cause, ...]
    delivery: DeliveryResult | None
    tuned: Tuned | None
    targets: Targets | None
    placement: Placement | None
    correction: Mapping[str, float]
    moved: bool
    beam_given: bool
    problems: tuple[str, ...]


class Session:
    """One fraction of one beam.

    Args:
        room: the room machine, in standby.
        belief: the facility file's view of the room.
        devices: the room's capabilities, connected.
        operator: who confirms.
        beam_supervisor: who gives the beam token.
        tuner: brings accelerator and magnets to the first layer.
        deliver: delivers; see `ports.DeliveryContext`.
        job: what to treat.
        bus: where events go.
        timing: periods and deadlines.
        console_alive: False when the commanding console was lost; None when nothing depends on a console.
    """

    def __init__(
        self,
        room: Room,
        belief: RoomBelief,
        devices: RoomDevices,
        operator: OperatorPort,
        beam_supervisor: BeamSharing,
        tuner: Tuner,
        deliver: Deliver,
        job: Job,
        bus: EventBus,
        *,
        timing: Timing | None = None,
        console_alive: Callable[[], bool] | None = None,
    ) -> None:
        self.room = room
        self.job = job
        self.proofs = Proofs()
        self._devices = devices
        self._beam = beam_supervisor
        self._bus = bus
        self._timing = timing or Timing()
        self._console_alive = console_alive
        self._watch = Watch(devices, self._timing)
        self._request = RequestWatch(room, devices, self._watch, self._timing, self._act)
        self._permission = Permission(room, devices.access, self._post, self._timing)
        self._activities = Activities(
            belief,
            devices,
            operator,
            beam_supervisor,
            tuner,
            deliver,
            self.proofs,
            self._permission,
            self._watch,
            self._timing,
            self._emit,
            lambda: self.job,
            self._request.watchdog,
        )
        self._closing = Closing(devices, beam_supervisor, self.proofs, self._activities, self._timing)
        self._tasks: dict[str, asyncio.Task[Step]] = {}
        self._posts: deque[tuple[Trigger, str]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._refusals = 0
        self._pauses: Counter[str] = Counter()
        self._edited = False
        self._over = False
        self._declined = False
        self._reason = ""
        self._shown_deg = float("nan")
        self._tripped: tuple[Cause, ...] = ()
        self._ended = State.STANDBY
        self._released = False  # what happens to the room from then on is not of this session

    # --- commands ---------------------------------------------------------------------------------------------------

    def pause(self, why: str = "operator") -> bool:
        """Interrupt the beam now. False (see `room.refusal`) when the room is not irradiating."""
        return self.room.fire(Trigger.INTERRUPT, why=why)

    def stop(self, why: str = "operator") -> bool:
        """End the session now, from any state; never refused. Before beam it cancels, with beam it terminates."""
        self._reason = self._reason or f"stopped: {why}"
        if self.room.state in (*IRRADIATING, State.INTERRUPTED):
            self.room.fire(Trigger.END_EARLY, why=why)
        elif self.room.state not in ENDED:
            self._decline(self._reason)
        self._notify()
        return True

    def edit(self, what: str, job: Job | None = None) -> int:
        """Plan, beam, set-up or tolerances change: the room is disarmed before the next event. Returns the new version.

        Raises:
            CommandRejected: 4106 while irradiating or interrupted: nothing is edited in beam.
        """
        if self.room.state in (*IRRADIATING, State.INTERRUPTED):
            raise CommandRejected(
                f"{what} cannot be edited in beam", code=4106, device=self.room.name, hint="end this field first"
            )
        self.proofs.edit_version += 1
        if job is not None:
            self.job = job
        self._edited = True
        self._emit("edit", {"what": what, "version": self.proofs.edit_version})
        self._notify()
        return self.proofs.edit_version

    async def acknowledge(self, *, reconciled: bool = False) -> bool:
        """Leave `fault` when every cause is gone. `reconciled`: the open dose was reconciled and signed elsewhere."""
        self.proofs.acknowledged_dose = self.proofs.acknowledged_dose or reconciled
        await self._watch.refresh()
        return self.room.fire(Trigger.ACKNOWLEDGE)

    async def close_out(self) -> tuple[str, ...]:
        """Try again what could not be closed, then release a terminated room. Returns what is still open."""
        self._closing.problems.clear()
        await self._closing.run(self._tasks.pop("irradiate", None))
        if self.room.state in (State.COMPLETE, State.PARTIAL) and not self.room.fire(Trigger.RELEASE):
            self._closing.problems.append(str(self.room.refusal))
        return tuple(self._closing.problems)

    # --- the walk ---------------------------------------------------------------------------------------------------

    def facts(self) -> RoomFacts:
        """The snapshot that the room's guards judge."""
        return self.proofs.facts(
            self._watch.seen(), self._timing, self._beam.holds, armed_or_later=self._watch.reference is not None
        )

    async def run(self) -> SessionResult:
        """Walk from standby to an end, and close out. Cancelling it terminates the field first.

        Raises:
            CommandRejected: 4107, the room is not in standby.
        """
        if self.room.state is not State.STANDBY:
            raise CommandRejected(
                f"the room is {self.room.state}, not standby",
                code=4107,
                device=self.room.name,
                hint="acknowledge or release it first",
            )
        self.room.attach(self.facts)
        unsubscribe = self.room.subscribe(self._changed)
        self._request.begin()
        guard = asyncio.ensure_future(self._supervise())
        try:
            await self._walk(guard)
        except asyncio.CancelledError:
            self._abandon(Cause("session.cancelled", Severity.TERMINATE, "the session was cancelled", t_ns=now_ns()))
            raise
        except BaseException as error:
            self._abandon(cause_of(error, "the session", now_ns()))
            if not isinstance(error, Exception):
                raise
        finally:
            self._ended = self.room.state
            await uninterrupted(self._wind_up(guard))
            self._request.end()
            unsubscribe()
        return self.result()

    def _abandon(self, cause: Cause) -> None:
        """Trip, unless nothing was begun or it is over already."""
        if self.room.state is State.STANDBY:
            self._declined = True
            self._reason = self._reason or str(cause)
        elif not self._declined:
            self.room.trip(cause)

    async def _walk(self, guard: asyncio.Task[None]) -> None:
        while not self._over and self.room.state not in ENDED:
            state = self.room.state
            if self._edited:
                self._edited = False
                if state not in (State.STANDBY, State.IDENTIFIED):
                    self.room.fire(Trigger.EDITED)
                await self._match_tasks(())
                continue
            wanted = self._activities.of_state.get(state)
            if wanted is None:
                self._decline(f"the room went to {state}")
                continue
            await self._match_tasks(wanted)
            if self.room.state is not state or self._over:
                continue
            if self._posts:
                self._take_post()
                continue
            done = await self._wait(guard)
            if guard in done:
                error = None if guard.cancelled() else guard.exception()
                raise error or RuntimeError("supervision ended by itself")
            if self._over or self._edited:
                continue  # a stop or an edit in the same instant wins over whatever has just been finished
            for name in [n for n, task in self._tasks.items() if task in done]:
                await self._finish(name, self._tasks.pop(name))

    async def _match_tasks(self, wanted: tuple[str, ...]) -> None:
        """Cancel what does not belong to the state, start what does."""
        for name in [n for n in self._tasks if n not in wanted]:
            await self._cancel(name)
        for name in wanted:
            if name not in self._tasks:
                limit_s = self._timing.state_s.get(self.room.state)
                self._tasks[name] = asyncio.ensure_future(limited(self._activities.start(name), limit_s))

    async def _wait(self, guard: asyncio.Task[None]) -> set[asyncio.Future[Any]]:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            waiting: set[asyncio.Future[Any]] = {guard, self._wake, *self._tasks.values()}
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return done
        finally:
            self._wake.cancel()
            self._wake = None

    async def _finish(self, name: str, task: asyncio.Task[Step]) -> None:
        """A state's task has ended: fire what it returned, or turn what it raised into a refusal or a cause."""
        if name not in self._activities.of_state.get(self.room.state, ()):
            return  # it ended in the instant in which its state was left
        state = self.room.state
        if task.cancelled():
            self.room.trip(Cause("program.task_lost", Severity.FAULT, f"the task of {state} was cancelled", t_ns=now_ns()))
            return
        error = task.exception()
        if isinstance(error, CommandRejected) and not self.proofs.beam_given:
            self._emit("refused", {"state": state.value, "reason": str(error)})
            self._decline(str(error))
        elif error is not None:
            if state in IRRADIATING:
                await self._look_behind()
            self.room.trip(cause_of(error, state.value, now_ns()))
        else:
            await self._fire(task.result(), state)

    async def _look_behind(self) -> None:
        """Trouble in beam is often the echo of something not seen yet: request off, then see what it is and name it first."""
        self._devices.access.request_beam(False)
        self._request.expect_no_pulse()  # while we look, however long a silent line takes
        seen = await self._watch.refresh(with_ring=True)
        for cause in self._causes(self.room.state, seen):
            if cause.name != OWN_DOING:
                self._act(cause)

    async def _fire(self, step: Step, state: State) -> None:
        if step.trigger is Trigger.END_EARLY:
            self._reason = self._reason or step.why
        if self.room.fire(step.trigger, why=step.why):
            self._refusals = 0
            return
        self._refusals += 1
        if self.room.state is state and state is not State.POSITIONED and self._refusals >= REFUSALS_MAX:
            refusal = self.room.refusal
            self.room.trip(
                Cause("room.refused", Severity.TERMINATE, f"{refusal}", value=f"{self._refusals} times", t_ns=now_ns())
            )
        else:
            await asyncio.sleep(REFUSED_PAUSE_S)

    def _decline(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._declined = self._over = True
        if self.room.state not in (State.STANDBY, *ENDED):
            self.room.fire(Trigger.CANCEL, why=reason)
        self._notify()

    # --- what the delivery says -------------------------------------------------------------------------------------

    def _post(self, trigger: Trigger, why: str) -> None:
        self._posts.append((trigger, why))
        self._notify()

    def _take_post(self) -> None:
        trigger, why = self._posts.popleft()
        expected = State.BEAM_ON if trigger is Trigger.HOLD else State.HELD
        if self.room.state is expected:
            self.room.fire(trigger, why=why)

    # --- change, deadlines, supervision -----------------------------------------------------------------------------

    def _changed(self, change: StateChange) -> None:
        """Told by the room after every change; sets flags and timers, fires nothing."""
        if change.dest is change.source:
            return  # one more cause: no deadline starts again
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        deadline = _DEADLINE_OF.get(change.dest)
        if deadline is not None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(deadline.after_ns / NS_PER_S, self._deadline_passed, deadline)
        if change.dest in IRRADIATING:
            self.proofs.beam_given = True
        self._permission.state_changed(change.dest)
        self._request.state_changed(change)
        self._notify()

    def _deadline_passed(self, deadline: Deadline) -> None:
        self._deadline = None
        if self.room.state is deadline.state:
            if deadline.trigger is Trigger.END_EARLY:
                self._reason = self._reason or deadline.why
            self.room.fire(deadline.trigger, why=deadline.why)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _supervise(self) -> None:
        while True:
            period_s = self._timing.period_s(self.room.state)
            if self._watch.beat is not None:
                self._watch.beat.beat(period_s + LOOK_S)
            await asyncio.sleep(self._watch.pause_s(period_s))
            seen = await self._watch.refresh(with_ring=self.room.state in WATCHED, period_s=period_s)
            state = self.room.state
            if state in ENDED or self._over:
                continue
            if state is State.POSITIONING:
                self._show_angle()
            found = self._causes(state, seen)
            if found and state in IRRADIATING:
                await self._look_behind()
            for cause in found:
                self._act(cause)

    def _causes(self, state: State, seen: Seen) -> list[Cause]:
        causes = self._watch.causes(state, seen, requested=self._permission.answered)
        stalled = self._watch.stalled(state, seen)
        if stalled is not None:
            causes.append(stalled)
        if state in WATCHED and self._console_alive is not None and not self._console_alive():
            causes.append(
                Cause("console.lost", Severity.PAUSE, "no commanding console", limit="1 s", hint="reconnect", t_ns=seen.now_ns)
            )
        return causes

    def _act(self, cause: Cause) -> None:
        """What a cause does depends on how near to beam the room is."""
        state = self.room.state
        early = state not in (*IRRADIATING, State.INTERRUPTED)
        if cause.name == "room.unsecured" and early:
            if state in (State.SECURED, State.ALLOCATED, State.TUNING, State.ARMED):
                self.room.fire(Trigger.SEARCH_LOST, why=cause.message)
        elif cause.severity is Severity.PAUSE and state is State.ARMED:
            self.room.fire(Trigger.DISARM, why=str(cause))
        elif cause.severity is Severity.PAUSE and state not in IRRADIATING:
            pass  # an interrupted room stays so; it resumes when this is gone
        elif state not in ENDED:
            if cause.severity is Severity.PAUSE:
                self._pauses[cause.name] += 1
                if self._pauses[cause.name] > PAUSES_MAX:
                    again = f"{cause.message}, for the {self._pauses[cause.name]}th time in this field"
                    cause = replace(cause, severity=Severity.TERMINATE, message=again, hint="find its cause before any beam")
            self.room.trip(replace(cause, device=cause.device or self.room.name))

    def _show_angle(self) -> None:
        for reading in self._devices.gantry.readings():
            if reading.name.endswith(".angle") and reading.good and isinstance(reading.value, float):
                if not abs(reading.value - self._shown_deg) < 0.5:
                    self._shown_deg = reading.value
                    self._emit("gantry.angle", {"angle_deg": reading.value})
                return

    # --- the way out ------------------------------------------------------------------------------------------------

    async def _cancel(self, name: str) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=self._timing.closing_step_s)
        if not done:
            self.room.trip(
                Cause(
                    "program.uncancelled", Severity.FAULT, f"the task {name!r} does not let itself be cancelled", t_ns=now_ns()
                )
            )
        elif not task.cancelled() and task.exception() is not None:
            self._emit("task.error", {"task": name, "error": str(task.exception())})
        if name in MOVING:
            await self._closing.stop_motion()

    async def _wind_up(self, guard: asyncio.Task[None]) -> None:
        """The common end of every path."""
        self._over = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._request.look_no_more()
        guard.cancel()
        await asyncio.wait({guard})
        for name in [n for n in self._tasks if n != "irradiate"]:
            await self._cancel(name)
        if self.room.state not in (State.STANDBY, *ENDED):
            self.room.trip(Cause("session.left", Severity.FAULT, "the session ended without an end", t_ns=now_ns()))
        await self._closing.run(self._tasks.pop("irradiate", None), tripped=bool(self.room.causes))
        self._tripped = self.room.causes
        if self.room.state in (State.COMPLETE, State.PARTIAL):
            self._released = self.room.fire(Trigger.RELEASE)
            if not self._released:
                self._closing.problems.append(str(self.room.refusal))
        for problem in self._closing.problems:
            self._emit("problem", {"what": problem})

    def result(self) -> SessionResult:
        """What happened; also after a `run` that raised."""
        ended = self._ended
        if self._declined:
            outcome = Outcome.REFUSED
        elif ended is State.FAULT or (self.room.state is State.FAULT and not self._released):
            outcome = Outcome.FAULT
        else:
            outcome = Outcome.COMPLETE if ended is State.COMPLETE else Outcome.PARTIAL
        proofs, causes = self.proofs, self._tripped
        return SessionResult(
            outcome=outcome,
            reason=str(causes[0]) if causes else self._reason,
            causes=causes,
            delivery=proofs.delivery,
            tuned=proofs.tuned,
            targets=proofs.targets,
            placement=proofs.placement,
            correction=dict(proofs.image.correction) if proofs.image is not None else {},
            moved=proofs.moved,
            beam_given=proofs.beam_given,
            problems=tuple(self._closing.problems),
        )

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        self._bus.emit(f"room.{self.room.name}", kind, **data)
