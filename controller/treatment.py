"""One `treat`: intake, a room (simulated where no endpoint is given), the fraction, its outcome.

Not responsible for the command line's words (`cli`), what happens in the room (`fraction`), or the files (`outputs`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.intake import Intake, Refused, report, take_in
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError
from drivers.hal.events import EventBus, Listener

if TYPE_CHECKING:
    from controller.assembly import TimedFault
    from controller.history import History
    from controller.record.ledger import Ledger
    from controller.record.outcome import BeamOutcome, FractionOutcome, LoopLag
    from simulators.invariants import Violation

VIRTUAL = float("inf")
SIMULATED_EPOCH = datetime(2031, 1, 1, 8, tzinfo=UTC)  # date of loop time 0 in virtual time: equal runs give equal files


@dataclass(frozen=True, slots=True)
class TreatOptions:
    """What `treat` was asked. `speed` is a factor of real time; infinity is virtual time."""

    plan: Path
    facility: str = "asan"
    room: str | None = None
    beams: tuple[int, ...] = ()
    fraction: int = 1
    seed: int = 0
    speed: float = VIRTUAL
    scenario: Path | None = None
    faults: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    output: Path | None = None
    state: Path | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ran:
    """What the run left: outcomes of its beams, everything that was said, and its measures.

    Without a repr: asyncio formats a task's result when it restores signal handlers, and this one is large.
    """

    beams: tuple[BeamOutcome, ...]
    history: History
    t_origin_ns: int
    t_end_ns: int
    started_utc: datetime
    run_id: int
    loop_lag: LoopLag
    violation: Violation | None


@dataclass(frozen=True, slots=True, eq=False)
class TreatResult:
    """`summary` as in summary.json, where the outputs are (None: none were written), and a violated invariant, if any."""

    summary: dict[str, Any]
    outcome: FractionOutcome
    output: Path | None
    violation: Violation | None

    def lines(self) -> Iterator[str]:
        """What the operator reads at the end."""
        summary = self.summary
        yield f"{summary['status']} ({summary['termination']}), simulated"
        for beam in summary["beams"]:
            yield (
                f"  beam {beam['number']} {beam['name']}: {beam['meterset_delivered_primary']:.6g} of "
                f"{beam['meterset_planned']:.6g} {beam['unit']} in {beam['spots_delivered']} of {beam['spots']} spots, "
                f"{beam['irradiation_s']:.1f} s"
            )
        for interlock in self.outcome.interlocks:
            yield f"  {'first out' if interlock.first_out else 'then'}: {interlock.name}: {interlock.description}"
        if self.outcome.reason:
            yield f"  {self.outcome.reason}"
        if self.violation is not None:
            yield f"  INVARIANT VIOLATED: {self.violation}"
        if self.output is not None:
            yield f"report: {self.output / 'report.html'}"


def parse_speed(text: str) -> float:
    """`max`, `real` or a positive factor. Raises Refused."""
    named = {"max": VIRTUAL, "real": 1.0}
    if text in named:
        return named[text]
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0.0 < factor < VIRTUAL:
        raise Refused([f"--speed {text!r}: expected max, real, or a factor above 0"])
    return factor


def check_plan(
    plan: Path, facility: str, room: str | None, beams: tuple[int, ...], overrides: Mapping[str, str]
) -> dict[str, Any]:
    """What `check` prints. Raises Refused with every reason."""
    return report(take_in(plan, facility, room, beams, overrides))


def run_treatment(options: TreatOptions, listener: Listener | None = None) -> TreatResult:
    """Treat one fraction. Raises Refused before anything moves; every reason at once."""
    from controller.assembly import loop_factory, read_faults
    from controller.outputs import outcome_of, write_outputs

    state = options.state
    library = state / "library.json" if state is not None and (state / "library.json").exists() else None
    intake = take_in(
        options.plan,
        options.facility,
        options.room,
        options.beams,
        options.overrides,
        library,
        state / "keys" if state is not None else None,
    )
    reasons: list[str] = []
    if options.fraction > max(intake.plan.fractions_planned, 1):
        reasons.append(f"--fraction {options.fraction}: the plan has {intake.plan.fractions_planned} fractions")
    faults: list[TimedFault] = []
    try:
        faults = read_faults(options.faults, options.scenario)
    except ValueError as error:
        reasons += str(error).splitlines()
    if reasons:
        raise Refused(reasons)
    if options.output is not None:
        _make_directory(options.output)
    wall_start_s = time.perf_counter()
    with asyncio.Runner(loop_factory=loop_factory(options.speed)) as runner:
        ran = runner.run(_treat(options, intake, faults, listener))
    outcome = outcome_of(intake, ran, options, wall_s=time.perf_counter() - wall_start_s)
    summary = write_outputs(options.output, outcome, ran.history.events)
    return TreatResult(summary, outcome, options.output, ran.violation)


def _make_directory(output: Path) -> None:
    """An empty directory for the outputs: what is there already is never overwritten."""
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise Refused([f"--output {output}: exists and is not empty; name a new directory"])
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused([f"--output {output}: cannot be made: {error}"]) from None


def _ledger_refusals(ledger: Ledger, intake: Intake, fraction: int) -> list[str]:
    """Beams of this fraction that the ledger shows delivered, open or locked."""
    from controller.record.ledger import BeamState

    reasons = []
    for beam in intake.beams:
        received = ledger.delivered(intake.plan.uid, fraction, beam.number)
        if received.state is not BeamState.UNTOUCHED:
            reasons.append(
                f"beam {beam.number} of fraction {fraction} is {received.state.value} in the ledger: "
                f"{int(received.upper.sum())} counts at most were given (journal {received.journal or 'unknown'})"
            )
    return reasons


async def _treat(options: TreatOptions, intake: Intake, faults: list[TimedFault], listener: Listener | None) -> Ran:
    """The run itself, in its loop: world, devices, fraction."""
    from controller.assembly import InvariantViolated, SimulatedWorld, prescription_of
    from controller.beam.sharing import BeamSupervisor
    from controller.fraction import Fraction
    from controller.history import History
    from controller.measures import LagProbe, quiet_garbage
    from controller.record.journal import Journal
    from controller.record.ledger import Ledger
    from controller.record.memory_store import MemoryStore
    from controller.record.probe import JournalProbe
    from controller.record.store import DiskStore, Store

    virtual = options.speed == VIRTUAL
    bus = EventBus()
    history = History(bus)
    if listener is not None:
        bus.subscribe(listener)
    store: Store = DiskStore() if options.output is not None else MemoryStore()
    where = options.output or Path("memory")
    run_id = (options.seed << 8 | 1) & 0x7FFF_FFFF_FFFF_FFFF if virtual else time.time_ns()
    identity = {"facility": intake.facility.name, "room": intake.room.name, "plan": intake.plan.uid, "seed": options.seed}
    world = SimulatedWorld(intake.facility, options.seed, bus, intake.room.name)
    started_utc, t_origin_ns = SIMULATED_EPOCH if virtual else datetime.now(UTC), now_ns()
    lag, violation = LagProbe(), None
    with (
        Ledger(store, (options.state or where / "state") / "ledger", boot_id=run_id) as ledger,
        quiet_garbage(),
    ):
        if reasons := _ledger_refusals(ledger, intake, options.fraction):
            raise Refused(reasons)
        with Journal.open(store, where / "journal.bin", boot_id=run_id, identity=identity) as journal:
            world.watch(prescription_of(intake), JournalProbe(store, journal.path))
            await world.start()
            devices = world.devices()
            fraction = Fraction(
                intake,
                options.fraction,
                devices,
                BeamSupervisor(intake.facility.rooms, bus),
                world.simulated.operator,
                journal,
                ledger,
                bus,
                machine_limited_s=world.machine_limited_s,
            )
            lag.start(virtual=virtual)
            try:
                world.inject(faults)
                for device in devices.all():
                    await device.connect()
                await world.until_violated(fraction.run())
            except InvariantViolated as violated:
                violation = violated.violation
            finally:
                for device in devices.all():
                    try:
                        await device.close()
                    except BeamlineError as error:
                        bus.emit("treatment", "close.failed", device=device.name, error=str(error))
                await lag.stop()
                await world.stop()
    return Ran(tuple(fraction.outcomes), history, t_origin_ns, now_ns(), started_utc, run_id, lag.result(), violation)
