"""What is kept of a fraction while it is treated: ledger, session lock, journal, trips and overrides, and the fraction itself.

The same for a run that makes its world (`treatment`) and for a room that stands by (`controller.serving`): both treat the one
fraction that these books open. Not responsible for the world, for connecting devices, nor for the outputs (`outputs`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.admission import Admitted, TreatOptions, ledger_objections, open_ledger
from controller.intake import Intake, Refused
from controller.request import JOURNAL, Earlier, Request, keep_plan, plan_name
from controller.what_is_left import Informed, WhatIsLeft
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError

if TYPE_CHECKING:
    from controller.fraction import Fraction
    from controller.record.journal import Journal
    from controller.record.ledger import Ledger
    from controller.record.session_lock import SessionLock
    from controller.record.store import Store
    from controller.room.ports import BeamSharing, OperatorPort
    from controller.surroundings import Surroundings
    from controller.treatment import Ran
    from drivers.hal.capabilities import RoomDevices
    from drivers.hal.events import EventBus


@dataclass(slots=True, eq=False)
class Books:
    """Open books of one session of a treatment.

    Attributes:
        ledger, journal: open for writing.
        fraction: what is treated by them, once it was made.
        forget: what is given of it is not followed any more.
    """

    options: TreatOptions
    admitted: Admitted
    earlier: Earlier
    ledger: Ledger
    journal: Journal
    bus: EventBus
    fraction: Fraction | None = field(default=None)
    forget: Callable[[], None] = field(default=lambda: None)

    def begin(self, devices: RoomDevices, supervisor: BeamSharing, operator: OperatorPort, **more: Any) -> Fraction:
        """The fraction of these books, not yet running; the operator is asked with what is left. `more`: as of `Fraction`."""
        from controller import fraction

        left = WhatIsLeft(self.admitted.intake, self.options.fraction, self.earlier)
        self.forget = self.bus.subscribe(left.take)
        self.fraction = fraction.Fraction(
            self.admitted.intake,
            self.options.fraction,
            devices,
            supervisor,
            Informed(operator, left.about),
            self.journal,
            self.ledger,
            self.bus,
            simulated=self.admitted.simulated,
            before=self.earlier.before,
            **more,
        )
        return self.fraction


@contextlib.contextmanager
def open_books(
    options: TreatOptions,
    admitted: Admitted,
    output: Path | None,
    earlier: Earlier,
    ran: Ran,
    world: Surroundings,
    bus: EventBus,
    during: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[Books]:
    """Open everything that is written while a fraction is treated; afterwards say in `ran` what it left.

    Args:
        options, admitted, output, earlier: of the session; without an output everything is kept in memory.
        ran: identity and start of the run; takes outcomes and signed intervals.
        world: told what may be delivered.
        bus: trips on it are written down.
        during: a context for the time in which nothing may disturb the loop.

    Raises:
        Refused: another session treats the plan, the ledger objects, or the plan cannot be kept; nothing moved.
    """
    from controller.assembly import prescription_of
    from controller.record.entries import write_override
    from controller.record.journal import Journal
    from controller.record.journal_events import TripJournal
    from controller.record.memory_store import MemoryStore
    from controller.record.probe import JournalProbe
    from controller.record.store import DiskStore

    intake = admitted.intake
    store: Store = DiskStore() if output is not None else MemoryStore()
    where = output if output is not None else Path("memory")
    identity = request_of(options, admitted, earlier, ran.started_utc).identity()
    with (
        _ledger(options, where, store, ran.run_id) as ledger,
        _session(ledger, intake, str(output) if output is not None else ""),
        during(),
    ):
        if reasons := ledger_objections(ledger, intake, options.fraction, earlier.before):
            raise Refused(reasons)
        if output is not None and not earlier.session:
            keep_plan(options.plan, output, intake)
        with (
            Journal.open(store, where / JOURNAL, boot_id=ran.run_id, identity=identity) as journal,
            TripJournal(bus, journal),
        ):
            for lifted in intake.overridden:
                reason = options.overrides[lifted.override]
                write_override(journal, lifted.override, reason, operator=ran.operator, detail=str(lifted))
            world.watch(prescription_of(intake, earlier.before), JournalProbe(store, journal.path))
            books = Books(options, admitted, earlier, ledger, journal, bus)
            try:
                yield books
            finally:
                books.forget()
        if books.fraction is not None:
            _settle(ran, books)
    if books.fraction is not None:
        ran.beams, ran.t_end_ns = tuple(books.fraction.outcomes), now_ns()


def _settle(ran: Ran, books: Books) -> None:
    """What the ledger says of the beams now."""
    from controller.record.ledger import BeamState
    from controller.standing import signed_intervals

    intake, fraction = books.admitted.intake, books.options.fraction
    try:
        ran.intervals = signed_intervals(books.ledger, intake, fraction, books.earlier)
        ran.locked = any(
            books.ledger.delivered(intake.plan.uid, fraction, beam.number).state is BeamState.LOCKED for beam in intake.beams
        )
    except BeamlineError as error:  # the ledger's disk is lost: said before, or now; what was delivered is still written
        books.bus.emit("treatment", "ledger.unreadable", error=str(error))


def _ledger(options: TreatOptions, where: Path, store: Store, boot_id: int) -> Ledger:
    """The facility's ledger, or that of a fresh world inside the outputs. Raises Refused."""
    try:
        if options.state is not None:
            return open_ledger(options.state, boot_id=boot_id)
        return open_ledger(where / "state", boot_id=boot_id, store=store)
    except BeamlineError as error:
        raise Refused([f"ledger: {error}"]) from None


def _session(ledger: Ledger, intake: Intake, outputs: str) -> SessionLock:
    """Keep another process from setting the same patient up. Raises Refused."""
    try:
        return ledger.begin_session(intake.plan.uid, since_utc=datetime.now(UTC).isoformat(timespec="seconds"), outputs=outputs)
    except BeamlineError as error:
        raise Refused([str(error)]) from None


def request_of(options: TreatOptions, admitted: Admitted, earlier: Earlier, started: datetime) -> Request:
    """What the journal's opening record says of a session."""
    intake = admitted.intake
    shipped = options.facility == intake.facility.name
    return Request(
        facility=options.facility if shipped else str(Path(options.facility).resolve()),
        room=intake.room.name,
        beams=tuple(beam.number for beam in intake.beams),
        fraction=options.fraction,
        seed=options.seed,
        overrides=options.overrides,
        state=str(options.state.resolve()) if options.state is not None else "",
        plan_file=plan_name(intake),
        plan_uid=intake.plan.uid,
        plan_sha256=intake.plan.sha256,
        session=earlier.session,
        started_utc=started.isoformat(),
        plan_called=intake.plan.name if intake.plan.kind == "rst" else options.plan.name,
        simulated=admitted.simulated,
        real=admitted.where.real if admitted.where is not None else (),
        wires=admitted.where is not None,
    )


def tell_start(options: TreatOptions, admitted: Admitted, bus: EventBus) -> None:
    """What a run is, in its events."""
    intake = admitted.intake
    bus.emit(
        "treatment",
        "treatment.started",
        plan_uid=intake.plan.uid,
        plan_label=intake.plan.label,
        fraction=options.fraction,
        beams=[beam.number for beam in intake.beams],
        facility=intake.facility.name,
        room=intake.room.name,
        seed=options.seed,
        simulated=admitted.simulated,
    )
    for lifted in intake.overridden:
        bus.emit(
            "treatment", "override", name=lifted.override, reason=options.overrides[lifted.override], detail=lifted.sentence
        )
