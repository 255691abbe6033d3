"""One `treat`: what was admitted, a room (simulated where no endpoint is given), the fraction, its outcome and outputs.

Not responsible for what may begin (`admission`), for the command line's words (`cli`), for what happens in the room
(`fraction`), or for the files (`outputs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.admission import Admitted, TreatOptions, admit, make_output
from controller.books import open_books, tell_start
from controller.intake import Refused, report, take_in
from controller.interlock_plan import entrust_plan, take_back
from controller.request import Earlier
from controller.stopping import Stops, stopping
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError
from drivers.hal.events import EventBus, Listener

if TYPE_CHECKING:
    from controller.fraction import Fraction
    from controller.history import History
    from controller.record.outcome import BeamOutcome, FractionOutcome, SignedInterval
    from controller.surroundings import Surroundings
    from controller.taps import Taps
    from drivers.hal.capabilities import RoomDevices
    from simulators.invariants import Violation

SIMULATED_EPOCH = datetime(2031, 1, 1, 8, tzinfo=UTC)  # date of loop time 0 in simulated time: equal runs give equal files
SESSION_APART = timedelta(hours=1)  # between the sessions of one treatment, in simulated time
Around = Callable[[EventBus, Stops], "Surroundings"]


@dataclass(slots=True, eq=False, repr=False)
class Ran:
    """What the run left: outcomes of its beams, everything that was said, and its measures.

    Without a repr: asyncio formats a task's result when it restores signal handlers, and this one is large.

    Attributes:
        refusal: why nothing could begin although the plan was admitted: a device that does not answer.
        failure: an error that nobody foresaw, by name.
        stopped: who ended it from outside.
        simulated: whether anything of the room was.
        operator: who answered.
        locked: whether a beam waits for a physicist's signature.
        intervals: beams of the treatment whose dose had to be accepted by a signature.
        late_s: how late the loop was, each time one looked.
    """

    history: History
    started_utc: datetime
    t_origin_ns: int
    run_id: int
    beams: tuple[BeamOutcome, ...] = ()
    intervals: tuple[SignedInterval, ...] = ()
    t_end_ns: int = 0
    late_s: Sequence[float] = ()
    violation: Violation | None = None
    refusal: str = ""
    failure: str = ""
    stopped: str = ""
    simulated: bool = True
    operator: str = "scripted operator"
    locked: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TreatResult:
    """What a treatment came to.

    Attributes:
        summary: as in summary.json.
        output: where the outputs are; None: none were written.
        failures: what could not be written.
        violation: the violated invariant, if any.
        locked: whether a beam waits for a physicist's signature.
    """

    summary: dict[str, Any]
    outcome: FractionOutcome
    output: Path | None
    failures: Sequence[str]
    violation: Violation | None
    locked: bool = False

    @property
    def status(self) -> str:
        """complete, partial, refused or fault; outputs that are missing are a fault."""
        return "fault" if self.failures else str(self.summary["status"])


def check_plan(
    plan: Path, facility: str, room: str | None, beams: tuple[int, ...], overrides: Mapping[str, str]
) -> dict[str, Any]:
    """What `check` prints. Raises Refused with every reason."""
    return report(take_in(plan, facility, room, beams, overrides))


def run_treatment(
    options: TreatOptions, listener: Listener | None = None, objections: Sequence[str] = (), *, stop_by_signal: bool = False
) -> TreatResult:
    """Treat one fraction.

    Args:
        options: what was asked.
        listener: of everything that is said.
        objections: what is known to be wrong with the request already; told together with everything else.
        stop_by_signal: end the fraction, with a record, when this process is interrupted.

    Raises:
        Refused: before anything moved, and nothing was written; every reason at once.
    """
    admitted = admit(options, objections)
    output = make_output(options, admitted.intake.plan.label)
    return treat_admitted(options, admitted, output, listener, stop_by_signal=stop_by_signal)


def treat_admitted(
    options: TreatOptions,
    admitted: Admitted,
    output: Path | None,
    listener: Listener | None = None,
    earlier: Earlier | None = None,
    *,
    stop_by_signal: bool = False,
    around: Around | None = None,
) -> TreatResult:
    """One session of what was admitted, and its outputs.

    Args:
        options, admitted, output, listener: of this session.
        earlier: what sessions before it left.
        stop_by_signal: end with a record when this process is interrupted.
        around: makes other surroundings than those that were admitted, from the bus and the functions that end the
            fraction; a replay does.

    Raises:
        Refused: nothing moved.
    """
    wall_start_s = time.perf_counter()
    try:
        with stopping(stop_by_signal) as stops:
            from controller.assembly import loop_factory  # what follows takes a second: an interrupt is not lost in it
            from controller.outputs import outcome_of, write_outputs
            from controller.taps import taps_of

            with (
                taps_of(options, admitted) as taps,
                asyncio.Runner(loop_factory=loop_factory(admitted.factor)) as runner,
            ):
                ran = runner.run(_treat(options, admitted, output, listener, stops, earlier or Earlier(), taps, around))
    except Refused:
        if output is not None:
            with contextlib.suppress(OSError):
                output.rmdir()
        raise
    outcome = outcome_of(admitted.intake, ran, options, wall_s=time.perf_counter() - wall_start_s)
    summary, failures = write_outputs(output, outcome, ran.history.events)
    taps.close(status=summary["status"], termination=summary["termination"], violation=ran.violation is not None)
    failures = [*failures, *([taps.failure] if taps.failure else [])]
    return TreatResult(summary, outcome, output, failures, ran.violation, ran.locked)


async def _treat(
    options: TreatOptions,
    admitted: Admitted,
    output: Path | None,
    listener: Listener | None,
    stops: Stops,
    earlier: Earlier,
    taps: Taps,
    around: Around | None,
) -> Ran:
    """The run itself, in its loop: world, devices, fraction. Raises Refused when the ledger objects."""
    from controller.beam.sharing import BeamSupervisor
    from controller.history import History
    from controller.measures import quiet_garbage
    from controller.surroundings import surroundings

    intake = admitted.intake
    bus = EventBus()
    history = History(bus)
    if listener is not None:
        bus.subscribe(listener)
    real = admitted.factor is not None
    run_id = time.time_ns() if real else (options.seed << 8 | (earlier.session + 1) & 0xFF) & 0x7FFF_FFFF_FFFF_FFFF
    world: Surroundings
    if around is not None:
        world = around(bus, stops)
    else:
        world = surroundings(intake.facility, admitted.where, options.seed, bus, intake.room.name, taps.tap(bus), options.plan)
    started = datetime.now(UTC) if real else SIMULATED_EPOCH + earlier.session * SESSION_APART
    ran = Ran(history, started, now_ns(), run_id, simulated=admitted.simulated, operator=world.operator_name)
    taps.note(run_id=run_id, started_utc=started.isoformat(), session=earlier.session, operator=world.operator_name)
    tell_start(options, admitted, bus)
    during = partial(quiet_garbage, collect=real)
    with open_books(options, admitted, output, earlier, ran, world, bus, during) as books:
        if not await _open(ran, world):
            return ran
        devices = world.devices()
        fraction = books.begin(
            devices,
            BeamSupervisor(intake.facility.rooms, bus),
            world.operator,
            machine_limited_s=taps.noted(world.machine_limited_s),
        )
        loop = asyncio.get_running_loop()

        def stop_now(why: str) -> None:
            taps.stopped(why)
            fraction.stop(why)

        def stop(why: str) -> None:
            ran.stopped = ran.stopped or why
            loop.call_soon_threadsafe(stop_now, why)

        stops.append(stop)
        await _run(ran, options, admitted, world, devices, fraction, bus)
        stops.clear()
    return ran


async def _run(
    ran: Ran,
    options: TreatOptions,
    admitted: Admitted,
    world: Surroundings,
    devices: RoomDevices,
    fraction: Fraction,
    bus: EventBus,
) -> None:
    """Connect, treat, close; whatever is raised is told in `ran`, because what was delivered has to be written down."""
    from controller.assembly import InvariantViolated
    from controller.measures import LagProbe
    from simulators.pacing import Pacer

    def unforeseen(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody awaits has failed: a callback, a server, a task that was let go."""
        if listening is not None:
            listening(loop, context)
        _tell_failure(ran, bus, context.get("exception") or RuntimeError(str(context.get("message"))))
        fraction.stop("a fault of the program")

    loop = asyncio.get_running_loop()
    listening = loop.get_exception_handler()
    loop.set_exception_handler(unforeseen)
    buttons = ""  # of the interlock system that was told the plan
    probe, pacer = LagProbe(), Pacer(options.speed) if options.paced else None
    if admitted.factor is not None:
        probe.start()
    if pacer is not None:
        pacer.start()
    try:
        await world.inject(admitted.faults)
        if await _connect(ran, devices):
            if admitted.on_wires:  # a controller that died may have left the room armed; nothing armed may move
                await devices.access.preset(0, 0.0, 0, False)
            if admitted.where is not None:
                room, digest = admitted.intake.room.name, admitted.intake.plan.sha256
                buttons = admitted.where.endpoints.interlock_buttons.get(room, "")
                ran.refusal = await entrust_plan(buttons, options.plan, digest, room, bus)
            if not ran.refusal:
                await world.until_violated(fraction.run())
    except InvariantViolated as violated:
        ran.violation = violated.violation
    except Exception as error:  # noqa: BLE001 - named in the outcome, and the end of this run
        _tell_failure(ran, bus, error)
    finally:
        for device in devices.all():
            try:
                await device.close()
            except BeamlineError as error:
                bus.emit("treatment", "close.failed", device=device.name, error=str(error))
        await probe.stop()
        if pacer is not None:
            pacer.stop()
        if buttons:
            await take_back(Path(buttons), admitted.intake.room.name)
        await world.stop()
    ran.late_s = pacer.late_s if pacer is not None else probe.late_s


async def _open(ran: Ran, world: Surroundings) -> bool:
    """Open the wires; what cannot be opened is a refusal, because nothing has moved yet."""
    try:
        await world.start()
    except BeamlineError as error:
        ran.refusal = str(error)
        await world.stop()
        return False
    return True


def _tell_failure(ran: Ran, bus: EventBus, error: BaseException) -> None:
    """The first failure names the end of the run; all are in the events, with where they came from."""
    text = f"{type(error).__name__}: {error}"
    ran.failure = ran.failure or text
    bus.emit("treatment", "program.exception", error=text, trace=traceback.format_exception(error))


async def _connect(ran: Ran, devices: RoomDevices) -> bool:
    """Connect every device, and say all that do not answer: nothing has moved yet, so this is a refusal."""
    problems = []
    for device in devices.all():
        try:
            await device.connect()
        except BeamlineError as error:
            problems.append(str(error))
    ran.refusal = "; ".join(problems)
    return not problems
