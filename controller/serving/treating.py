"""Loads, treats and puts away: one fraction at a time, in a room that stands by before and afterwards.

Everything that can be refused is refused before anything moves, with every reason; the fraction runs with the same books as
`treat`; its outputs are written by a worker while the room stands by again. Not responsible for who may command (the desk), nor
for what the room asks (`questions`).
"""

from __future__ import annotations

import asyncio
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from controller.admission import open_ledger
from controller.books import open_books, tell_start
from controller.commands import TOLD, Command
from controller.console.views import SpotsView
from controller.fraction import Fraction
from controller.history import History
from controller.intake import Refused
from controller.measures import LagProbe, quiet_garbage
from controller.outputs import outcome_of, write_outputs
from controller.recover import Survived, ask_unit, run_recovery
from controller.room.session import Session
from controller.room.states import State
from controller.room.supervision import Timing
from controller.serving.console_words import plain_reason
from controller.serving.fraction_book import FractionBook
from controller.serving.ground import Ground
from controller.serving.loading import BAD_ARGUMENT, WRITING, Loaded, Loader
from controller.serving.plans import PlanStore
from controller.serving.questions import Questions
from controller.treatment import Ran
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError, CommandRejected
from drivers.hal.events import Event

NOT_ADMITTED, BUSY, NOT_APPROVED = 4451, 4452, 4453
NOTHING_LOADED, OVERTAKEN, NOT_RECONCILED = 4455, 4456, 4457

WRITTEN_S = 30.0  # for the outputs of the treatment before; assumed, they take a second or two
PERMITS_S = 300.0  # for somebody at a console to reset what stands before the room arms; assumed
RUNNING = "running"
QA_INTENTS = ("VERIFICATION", "MACHINE_QA")  # DICOM PlanIntent
DISARMED_S = 0.5  # for the interlock system to see that nothing is armed any more: it keeps its plan until then
DOSE_TRIPPED = 2  # `DoseMonitorStatus.state`


class Treating:
    """One per room.

    Args:
        ground: the room.
        plans: what can be loaded.
        questions: what the room asks.
        alive: whether the commanding console is.
        obstacles: why nothing may be loaded now, in words (devices, service mode, bypasses).
        publish_spots: told layers as they change.
        fractions: what comes next of a plan, where nobody named the fraction.

    Attributes:
        loaded: the fraction that is treated, or was treated last until it is put away.
    """

    def __init__(
        self,
        ground: Ground,
        plans: PlanStore,
        questions: Questions,
        alive: Callable[[], bool],
        obstacles: Callable[[], list[str]],
        publish_spots: Callable[[SpotsView], None],
        fractions: FractionBook,
    ) -> None:
        self.loaded: Loaded | None = None
        self._before = ""  # how the last treatment ended here, before this process began
        self._looked: object = None
        self._ground = ground
        self._plans = plans
        self._questions = questions
        self._alive = alive
        self._obstacles = obstacles
        self._fractions = fractions
        self._loader = Loader(ground, publish_spots)
        self._fraction: Fraction | None = None
        self._task: asyncio.Task[None] | None = None
        self._loading = False
        self._stops = 0
        self._why_stopped = ""
        self._reconciled = False
        ground.bus.subscribe(self._take)

    def _take(self, event: Event) -> None:
        if self.loaded is None:
            return
        self.loaded.picture.take(event)
        if event.kind == "room.state" and self.under_way and event.data.get("state") != State.STANDBY.value:
            self.loaded.begun = True

    # --- what is known ----------------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The session of the beam that is treated, or was treated last."""
        return self._fraction.session if self._fraction is not None else None

    @property
    def under_way(self) -> bool:
        """Whether a fraction is loaded that has not ended."""
        return self._task is not None and not self._task.done()

    @property
    def is_qa(self) -> bool:
        """Whether a plan for quality assurance is loaded."""
        return self.under_way and self.loaded is not None and self.loaded.admitted.intake.plan.intent in QA_INTENTS

    def spots(self) -> Sequence[SpotsView]:
        """Layers of the current beam."""
        return self.loaded.picture.spots() if self.loaded is not None else ()

    def standing_by(self, *, asked: bool) -> str:
        """What a room in standby says of what is loaded here, or was treated last; empty when there is nothing to say."""
        if self.loaded is None:
            return self._before
        return self.loaded.words(asked=asked, under_way=self.under_way)

    async def look_back(self, stamp: object) -> None:
        """Find how the last treatment ended here, until something is loaded; again when `stamp`, the ledger's, has changed."""
        if self._looked == stamp or self.loaded is not None or self._loading:
            return
        first, self._looked = self._looked is None, stamp
        if not first and not self._before:
            return  # it was put back, or there was none: what others treat is not told here
        found = await asyncio.to_thread(self._fractions.looking_back, lambda plan_id: self._plans.get(plan_id).about)
        if self.loaded is None:
            self._before = found

    # --- commands ---------------------------------------------------------------------------------------------------------

    async def load(self, command: Command) -> dict[str, Any]:
        """`load_plan`: admit, and stand ready to ask. Raises CommandRejected with every reason; nothing moved."""
        if self._task is not None and not self._loading and self.loaded is not None and self.loaded.status == WRITING:
            await asyncio.wait({self._task}, timeout=WRITTEN_S)  # the room stands by already: nobody sees what it waits for
        if self.under_way or self._loading:
            raise self._no(BUSY, "a treatment is loaded already", "put it back first, or wait until its outputs are written")
        return await self._load(command.arguments, command.actor.name)

    def unload(self, command: Command) -> dict[str, Any]:
        """`unload_plan`: nothing was begun, or it has ended."""
        loaded = self._wanted()
        if self.under_way:
            if loaded.status == WRITING:
                raise self._no(BUSY, "the outputs of the treatment are being written", "a moment")
            self._end(f"put back by {command.actor.name}")
        else:
            self.loaded, self._fraction, self._before = None, None, ""
        return {"treatment": loaded.id}

    def answer(self, command: Command) -> str:
        """`identify`, `move_on`, `accept_position`, `beam_on`, `resume`, `decline`."""
        yes = command.name != "decline"
        return self._questions.answer(command.name, command.arguments.get("challenge"), yes, command.actor.name)

    def pause(self, command: Command) -> None:
        """`pause`."""
        session = self.session
        if session is None or not session.pause(f"{command.actor.name} at {command.console}"):
            raise self._ground.machine.refusal or self._no(NOTHING_LOADED, "nothing is treated", "")

    def terminate(self, command: Command) -> None:
        """`terminate` and `cancel`: end the field, and with it the fraction."""
        self._wanted()
        self._end(f"{command.name} by {command.actor.name}")

    def stop(self, why: str) -> None:
        """End whatever is under way, now. Never refused."""
        self._stops += 1
        if self.under_way:
            self._end(why)

    async def edit(self, command: Command) -> dict[str, Any]:
        """`edit`: the room is disarmed before anything else; then what was changed is looked at. Raises CommandRejected."""
        arguments = dict(command.arguments)
        what = str(arguments.pop("what", ""))
        loaded, session = self._wanted(), self.session
        if what not in ("plan", "fraction", "beams", "setup"):
            raise self._no(
                BAD_ARGUMENT,
                f"{what or 'nothing'!r} cannot be edited here",
                "plan, fraction, beams or setup; tolerances are of the facility file, which is changed away from the console",
            )
        if session is None or not self.under_way:
            raise self._no(NOTHING_LOADED, "nothing is being prepared", "load a plan")
        other_plan = arguments.get("plan_id", loaded.held.id) != loaded.held.id
        before = {
            "plan_id": loaded.held.id,
            "fraction": loaded.options.fraction,
            "beams": list(loaded.options.beams),
            "overrides": dict(loaded.options.overrides),
        }
        if what != "setup":
            self._refuse_edit(loaded, arguments, known=list(before), other_plan=other_plan)
        version = session.edit(f"{what} by {command.actor.name}")
        if what == "setup":
            return {"treatment": loaded.id, "version": version}
        self._end(f"{what} edited by {command.actor.name}")
        if self._task is not None:
            await asyncio.wait({self._task})
        kept = {} if other_plan else before  # fraction, beams and what was overridden are those of the plan they were said of
        return await self._load({**kept, **arguments}, command.actor.name)

    def _refuse_edit(self, loaded: Loaded, arguments: Mapping[str, Any], *, known: Sequence[str], other_plan: bool) -> None:
        """What cannot be meant is refused while everything still stands as it did. Raises CommandRejected."""
        if unknown := sorted(set(arguments) - set(known)):
            raise self._no(BAD_ARGUMENT, f"unknown: {', '.join(unknown)}", f"known: {', '.join(known)}")
        if loaded.earlier.session and not other_plan:
            raise self._no(
                BAD_ARGUMENT,
                f"what is left of fraction {loaded.options.fraction} is loaded: its plan, fraction and beams are those of the "
                "treatment that ended early, and are not edited",
                "put the plan back and load what is meant; nothing was changed",
            )

    async def acknowledge(self, command: Command) -> None:
        """`acknowledge`: leave fault when every cause is gone. Raises CommandRejected with what is left."""
        if self.under_way:
            raise self._no(BUSY, "the treatment has not ended yet", "a moment")
        session, room = self.session, self._ground.machine
        if session is not None:
            await session.close_out()
            done = await session.acknowledge(reconciled=self._reconciled)
        else:
            done = room.fire("acknowledge", why=command.actor.name)
        if not done and room.state is State.FAULT:
            raise room.refusal or self._no(BUSY, "the room stays in fault", "see the causes")

    async def reconcile(self, command: Command) -> dict[str, Any]:
        """`reconcile`: settle what an interrupted treatment gave; with a reason the physicist accepts what is in doubt."""
        if self.under_way:
            raise self._no(BUSY, "the treatment has not ended yet", "end it first")
        root = self._root(command.arguments.get("treatment"))
        reason = str(command.arguments.get("reason") or "").strip()
        if command.arguments.get("reason") is not None and not reason:
            raise self._no(BAD_ARGUMENT, "a signature needs a reason: on what is the dose accepted?", "nothing was signed")
        survived: Survived | None = None
        try:
            survived = await ask_unit(self._ground.devices.unit, root)
        except (BeamlineError, Refused) as error:
            self._ground.bus.emit("treatment", "unit.not_asked", error=str(error))
        sign = command.actor.name if reason else ""
        try:
            recovered = await asyncio.to_thread(run_recovery, root, sign=sign, reason=reason, survived=survived)
        except Refused as refused:
            raise self._no(NOT_ADMITTED, "; ".join(refused.reasons), "nothing was changed") from None
        self._reconciled, self._looked = not recovered.locked, "to be looked at again"  # what recovery wrote is to be told, too
        if self.session is not None and self._ground.machine.state in (State.COMPLETE, State.PARTIAL):
            await self.session.close_out()
        return {**recovered.report(), "lines": list(recovered.lines())}

    async def reset_dose(self, command: Command) -> list[str]:
        """`reset_dose_trip`: clear what the dose units latched, once what they gave is settled."""
        await self._refuse_open()
        devices, said = self._ground.devices, []
        if devices.unit.status.latched:
            await devices.unit.reset()
            said.append(f"{devices.unit.name}: latch cleared")
        if devices.dose_monitor.status.state == DOSE_TRIPPED:
            await devices.dose_monitor.acknowledge()
            said.append(f"{devices.dose_monitor.name}: trip cleared; beam needs a new field")
        if not said:
            raise self._no(NOTHING_LOADED, "no dose unit is tripped", "see the interlocks")
        self._ground.bus.emit("treatment", "dose.reset", by=command.actor.name, said=said)
        return said

    async def close(self) -> None:
        """End, with a record, whatever is under way."""
        self.stop("the room process ends")
        if self._task is not None:
            await asyncio.wait({self._task})

    # --- loading ----------------------------------------------------------------------------------------------------------

    async def _load(self, arguments: Mapping[str, Any], who: str) -> dict[str, Any]:
        stops, self._loading = self._stops, True
        try:
            if found := self._obstacles():
                raise self._no(NOT_ADMITTED, "; ".join(found), "nothing was loaded")
            held = self._plans.whole(arguments.get("plan_id"))
            if self._ground.facility.require_approval and not held.approved_by:
                raise self._no(NOT_APPROVED, f"plan {held.id} is not approved here", "a physicist approves it first")
            meant = await asyncio.to_thread(self._fractions.meant, held.view(), arguments)
            options = self._loader.options(held, meant)
            try:
                if meant.get("remainder"):
                    loaded = await asyncio.to_thread(self._loader.admit_remainder, held, options, who)
                else:
                    loaded = await asyncio.to_thread(self._loader.admit, held, options, who)
            except Refused as refused:
                raise self._no(NOT_ADMITTED, "; ".join(refused.reasons), "nothing was loaded") from None
            if self._stops != stops:
                raise self._no(OVERTAKEN, "stopped while the plan was being loaded", "load it again")
            self._begin(loaded)
        finally:
            self._loading = False
        remainder = bool(loaded.earlier.session)
        value = {"treatment": loaded.id, "fraction": options.fraction, "remainder": remainder}
        chosen = {TOLD: f"{'what is left of ' if remainder else ''}fraction {options.fraction}, which comes next"}
        return value if "fraction" in arguments else value | chosen

    # --- treating ---------------------------------------------------------------------------------------------------------

    def _begin(self, loaded: Loaded) -> None:
        unit = self._ground.devices.unit.status
        loaded.counts_base = unit.counts1_total, unit.counts2_total
        self.loaded, self._fraction, self._reconciled, self._why_stopped = loaded, None, False, ""
        self._questions.begin(next_patient=not loaded.earlier.session)
        self._task = asyncio.create_task(self._treat(loaded), name="treatment")

    async def _treat(self, loaded: Loaded) -> None:
        """One fraction, from its first question to its files. Raises nothing: the room must stand by again."""
        history = History(self._ground.bus)
        start_s, run_id = time.perf_counter(), time.time_ns()
        ran = Ran(history, loaded.started, now_ns(), run_id, simulated=self._ground.simulated, operator=loaded.by)
        try:
            await self._walk(loaded, ran)
        except Refused as refused:
            ran.refusal = "; ".join(refused.reasons)
        except Exception as error:  # noqa: BLE001 - named in the outcome; what was delivered is written down all the same
            self._tell_failure(ran, error)
        finally:
            history.close()
            loaded.status = WRITING  # the room stands by already: it must not say that it makes ready
            await asyncio.sleep(DISARMED_S)
            await self._ground.world.take_plan_back()
        loaded.picture.settle()
        ran.stopped = self._why_stopped
        if self._questions.answered_by:
            ran.operator = ", ".join(self._questions.answered_by)
        try:
            wall_s = time.perf_counter() - start_s
            await asyncio.to_thread(self._write, loaded, ran, wall_s)
        except Exception as error:  # noqa: BLE001 - journal and ledger hold what was delivered; the words say what is missing
            self._tell_failure(ran, error)
            loaded.status, loaded.reason = "fault", ran.failure
        self._ground.bus.emit(
            "treatment", "treatment.ended", id=loaded.id, status=loaded.status, reason=loaded.reason, failures=loaded.failures
        )

    async def _walk(self, loaded: Loaded, ran: Ran) -> None:
        from controller.assembly import InvariantViolated

        ground = self._ground
        tell_start(loaded.options, loaded.admitted, ground.bus)
        try:
            await ground.world.give_plan(loaded.held.path.absolute(), loaded.held.sha256)
        except BeamlineError as error:
            raise Refused([str(error)]) from None
        probe = LagProbe()
        during = partial(quiet_garbage, collect=False)
        with open_books(
            loaded.options, loaded.admitted, loaded.output, loaded.earlier, ran, ground.world, ground.bus, during
        ) as books:
            fraction = self._fraction = books.begin(
                ground.devices,
                ground.supervisor,
                self._questions,
                room=ground.machine,
                console_alive=self._alive,
                machine_limited_s=ground.world.machine_limited_s,
                timing=replace(Timing(), permits_s=PERMITS_S),
            )
            loaded.picture.follow(fraction)
            loaded.status = RUNNING
            if self._why_stopped:
                fraction.stop(self._why_stopped)
            if not ground.virtual:
                probe.start()
            try:
                await ground.world.until_violated(fraction.run())
            except InvariantViolated as violated:
                ran.violation = violated.violation
            except Exception as error:  # noqa: BLE001 - named in the outcome, and the end of this run
                self._tell_failure(ran, error)
            finally:
                await probe.stop()
                ran.late_s = probe.late_s

    def _write(self, loaded: Loaded, ran: Ran, wall_s: float) -> None:
        """The outputs, in a worker."""
        outcome = outcome_of(loaded.admitted.intake, ran, loaded.options, wall_s=wall_s)
        summary, failures = write_outputs(loaded.output, outcome, ran.history.events)
        loaded.failures = failures
        loaded.reason = "; ".join([str(summary.get("reason") or ""), *failures]).strip("; ")
        loaded.status = "fault" if failures else str(summary["status"])
        loaded.ended = self._how_it_ended(loaded)

    def _how_it_ended(self, loaded: Loaded) -> str:
        """In words, over all sessions of the fraction, with what may follow."""
        asked = loaded.earlier.beams or [beam.number for beam in loaded.admitted.intake.beams]
        why = "" if loaded.status == "complete" else plain_reason(loaded.reason)
        return self._fractions.ended(loaded.held.about, loaded.options.fraction, why, asked)

    def _tell_failure(self, ran: Ran, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"
        ran.failure = ran.failure or text
        self._ground.bus.emit("treatment", "program.exception", error=text, trace=traceback.format_exception(error))

    def _end(self, why: str) -> None:
        self._why_stopped = self._why_stopped or why
        if self._fraction is not None:
            self._fraction.stop(why)

    def unforeseen(self, error: BaseException) -> None:
        """Something that nobody awaits has failed: the fraction ends."""
        self._ground.bus.emit(
            "treatment", "program.exception", error=f"{type(error).__name__}: {error}", trace=traceback.format_exception(error)
        )
        self.stop("a fault of the program")

    # --- common -----------------------------------------------------------------------------------------------------------

    async def _refuse_open(self) -> None:
        """Nothing may be cleared while it is not settled what was given."""
        if self.under_way:
            raise self._no(BUSY, "the treatment has not ended yet", "end it first")
        loaded = self.loaded
        if loaded is None:
            return
        plan = loaded.admitted.intake.plan
        numbers = [beam.number for beam in loaded.admitted.intake.beams]

        def look() -> dict[int, str]:
            with open_ledger(self._ground.state, boot_id=self._ground.boot_id) as ledger:
                return {n: ledger.delivered(plan.uid, loaded.options.fraction, n).state.value for n in numbers}

        states = await asyncio.to_thread(look)
        if doubtful := [f"beam {number} is {state}" for number, state in states.items() if state in ("open", "locked")]:
            raise self._no(NOT_RECONCILED, "; ".join(doubtful), "reconcile the treatment first")

    def _root(self, wanted: object) -> Path:
        """The directory of a treatment by its id, or of the last one. Raises CommandRejected."""
        if wanted is None and self.loaded is not None:
            return self.loaded.output if not self.loaded.earlier.session else self.loaded.output.parent
        if not isinstance(wanted, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,120}", wanted):
            raise self._no(BAD_ARGUMENT, "which treatment?", "give its id, as in the list of treatments")
        root = self._ground.treatments / wanted
        if not root.is_dir():
            raise self._no(BAD_ARGUMENT, f"there is no treatment {wanted}", "see the list of treatments")
        return root

    def _wanted(self) -> Loaded:
        if self.loaded is None:
            raise self._no(NOTHING_LOADED, "no plan is loaded", "load one")
        return self.loaded

    def _no(self, code: int, why: str, hint: str) -> CommandRejected:
        return CommandRejected(why, code=code, device=self._ground.room, hint=hint)
