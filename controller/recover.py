"""After a crash: what did the patient receive, how surely is that known, and what may follow?

Reads a treatment's journals as they stand and never changes them. What recovery finds is written to `recovery.bin`, which
begins with a copy of the journal without its torn end. Each open grant is reconciled with what survived in the delivery unit;
where nothing did, its dose is the interval from nothing to all of it, and the beam stays locked until a physicist has signed.
Then the ledger's open claims are closed with these bounds, and a salvage record is written.

Every step is done once, whatever became of the last attempt: twice gives the same as once. Not responsible for beam or motion,
nor for what follows (`resume`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from controller.admission import library_in
from controller.delivery.remainder import remaining_schedule
from controller.intake import Intake, Refused, take_in
from controller.record.entries import Kind, beam_histories, write_closed, write_done
from controller.record.journal import Anchor, Journal, Record, Scan, read_journal
from controller.record.ledger import BeamKey, BeamState, Claim, Counts, Ledger, Received
from controller.record.reconcile import BeamReconciliation, reconcile, record_outcomes
from controller.record.store import DiskStore, write_atomic
from controller.request import JOURNAL, Request, kept_plan, read_request, session_directory, sessions, under_its_name
from controller.standing import BeamStanding, open_state, received_of, standings
from drivers.hal.capabilities import EndReason, UnitLatch
from drivers.hal.errors import BeamlineError, DataError

if TYPE_CHECKING:
    from drivers.hal.capabilities import DeliveryUnit

RECOVERY = "recovery.bin"
SUMMARY = "summary.json"
RECONCILED = "reconciled"
SPENT = "nothing is left that could be delivered"


@dataclass(frozen=True, slots=True, eq=False)
class Survived:
    """What the delivery unit still knows: its latch, and pieces of its last grants by grant id, read under `boot_id`."""

    latch: UnitLatch | None = None
    kept: Mapping[int, NDArray[np.void]] = field(default_factory=dict)
    boot_id: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """What is known after a recovery, and what could not be done besides."""

    directory: Path
    beams: tuple[BeamStanding, ...]
    salvage: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def locked(self) -> bool:
        """Whether a signature is awaited."""
        return any(beam.state is BeamState.LOCKED for beam in self.beams)

    def lines(self) -> Iterator[str]:
        """For the operator."""
        yield from (beam.line() for beam in self.beams)
        yield from (f"salvage record: {path}" for path in self.salvage)
        yield from self.notes

    def report(self) -> dict[str, Any]:
        """For programs."""
        return {
            "status": "locked" if self.locked else "recovered",
            "beams": [beam.report() for beam in self.beams],
            "salvage": [str(path) for path in self.salvage],
            "notes": list(self.notes),
        }


async def ask_unit(unit: DeliveryUnit, directory: Path) -> Survived:
    """What a connected delivery unit still knows of a treatment that died.

    A grant that is still open in the unit is ended first. Pieces that cannot be read whole are left out.

    Raises:
        CommunicationError: the unit does not answer.
    """
    status = unit.status
    if status.open_grant_id:
        await unit.abort()
        status = await unit.wait_ended(status.open_grant_id)
    latch: UnitLatch | None = None
    with contextlib.suppress(DataError):
        latch = await unit.read_latch()
    kept: dict[int, NDArray[np.void]] = {}
    last = sessions(directory)[-1] / JOURNAL
    histories = beam_histories(read_journal(DiskStore(), last).records)
    for history in histories[-1:]:
        for grant_id, grant in history.grants.items():
            if grant_id not in history.done and grant.unit_boot_id == status.boot_id and grant_id <= status.last_grant_id:
                with contextlib.suppress(BeamlineError):
                    kept[grant_id] = await unit.results(grant_id)
    return Survived(latch, kept, status.boot_id)


def run_recovery(
    directory: Path, *, sign: str = "", reason: str = "", survived: Survived | None = None, state: Path | None = None
) -> Recovered:
    """Recover a treatment.

    Args:
        directory: what `treat --output` wrote.
        sign: name of the physicist who accepts the stated intervals; empty: nobody does now.
        reason: why they may be accepted; needed with `sign`.
        survived: what the delivery unit still knows; None when it cannot be asked (a simulated one dies with its process).
        state: where the facility's state is now; None: where it was when this was treated.

    Raises:
        Refused: still being treated, damaged, rolled back, or put together from two treatments; nothing was changed then.
    """
    if sign.strip() and not reason.strip():
        raise Refused(["--sign needs a --reason: say on what the interval is accepted"])
    if reason.strip() and not sign.strip():
        raise Refused(["--reason needs a --sign: say who signs"])
    request = read_request(directory).with_state(state)
    found = sessions(directory)
    intake, notes = _intake(request, directory)
    try:
        with open_state(request, directory) as ledger:
            closed = [_Session(path, ledger, request).close(survived if path == found[-1] else None) for path in found]
            _refuse_foreign(ledger, request, directory)
            if sign.strip():
                _sign(ledger, request, sign.strip(), reason.strip())
            if intake is not None:
                _complete_spent(ledger, request, intake)
            received = received_of(ledger, request)
    except BeamlineError as error:
        raise Refused([str(error)]) from None
    salvage = []
    given: dict[int, Counts] = {}  # at most, by the sessions before, by beam number
    if intake is not None:
        for number, (path, (records, bounds)) in enumerate(zip(found, closed, strict=True)):
            if not (path / SUMMARY).exists():
                made = _salvage(path, request, number, intake, records, bounds, received, given)
                salvage += [made] if made is not None else []
            given |= {beam: given[beam] + upper if beam in given else upper for beam, (_, upper) in bounds.items()}
    names = {beam.number: beam.name for beam in intake.plan.beams} if intake is not None else {}
    return Recovered(directory, standings(received, names, directory), tuple(salvage), tuple(notes))


Bounds = Mapping[int, tuple[Counts, Counts]]  # lower and upper by beam number, of one session


class _Session:
    """Recovery of one session's directory."""

    def __init__(self, path: Path, ledger: Ledger, request: Request) -> None:
        self._path = path
        self._ledger = ledger
        self._request = request
        self._store = DiskStore()

    def close(self, survived: Survived | None) -> tuple[tuple[Record, ...], Bounds]:
        """Close what this session left open, in journal (its copy) and ledger. Returns all records and the bounds."""
        lock = self._store.lock(self._path / JOURNAL)  # refuses while its process is alive
        try:
            scan = read_journal(self._store, self._path / JOURNAL)
            claims = self._adopt(scan)
            try:
                records = self._reconciled(scan, survived or Survived())
                beams = {b.claim.beam_number: b for b in reconcile(records, None)}
                for claim in claims:
                    self._close_claim(claim, beams.get(claim.key.beam_number), records)
            finally:
                for claim in claims:
                    claim.lock.release()
        finally:
            lock.release()
        return records, {number: beam.received() for number, beam in beams.items()}

    def _adopt(self, scan: Scan) -> list[Claim]:
        """The open claims of this session. Those of another journal are left alone."""
        claims = []
        for number in self._request.beams:
            key = BeamKey(self._request.plan_uid, self._request.fraction, number)
            if self._ledger.delivered(key.plan_uid, key.fraction, number).state is not BeamState.OPEN:
                continue
            claim = self._ledger.adopt(key)
            if _holds(scan.records, claim):
                claims.append(claim)
            else:
                claim.lock.release()
        return claims

    def _reconciled(self, scan: Scan, survived: Survived) -> tuple[Record, ...]:
        """All records with the outcome of every grant, from `recovery.bin` where the journal does not say it."""
        copy = self._path / RECOVERY
        whole = all(history.closed for history in beam_histories(scan.records))
        if not copy.exists():
            if whole:
                return scan.records
            write_atomic(self._store, copy, self._store.read(self._path / JOURNAL)[: scan.good_bytes])
        last = scan.records[-1]
        before = read_journal(self._store, copy, anchor=Anchor(last.seq, last.sha256))
        if all(history.closed for history in beam_histories(before.records)):
            return before.records
        about = {"recovers": JOURNAL, "journal_torn_bytes": scan.torn_bytes}
        with Journal.open(
            self._store,
            copy,
            boot_id=last.boot_id,
            identity=about,
            anchor=Anchor(last.seq, last.sha256),
            clock=lambda: last.t_ns,
        ) as journal:
            self._write_outcomes(journal, survived)
        return read_journal(self._store, copy).records

    def _write_outcomes(self, journal: Journal, survived: Survived) -> None:
        history = beam_histories(journal.history)[-1]
        for grant_id, pieces in survived.kept.items():
            grant = history.grants.get(grant_id)
            known = grant_id in history.done or grant_id in history.reconciled
            if grant is not None and not known and grant.unit_boot_id == survived.boot_id:
                write_done(journal, grant_id, EndReason.NONE, pieces)
        records = read_journal(self._store, journal.path).records
        beam = reconcile(records, survived.latch)[-1]
        record_outcomes(journal, beam)
        write_closed(journal, beam.claim.beam_number, RECONCILED, _why(beam))

    def _close_claim(self, claim: Claim, beam: BeamReconciliation | None, records: tuple[Record, ...]) -> None:
        """Close a claim with the bounds that its journal gives; one that never came to the journal granted nothing."""
        nothing = np.zeros_like(claim.claimed_counts1)
        if beam is None:
            self._ledger.close_claim(
                claim, nothing, nothing, complete=False, reason="the program died before anything was granted"
            )
            return
        if not np.array_equal(beam.claim.claimed_counts1, claim.claimed_counts1):
            raise DataError(
                f"{claim.key}: the journal claims other counts than the ledger",
                code=5150,
                hint="journal and ledger are not of one treatment; a physicist must reconcile by hand",
            )
        closed = next(r for r in reversed(records) if r.kind == Kind.CLOSED and r.data["beam_number"] == claim.key.beam_number)
        lower, upper = beam.received()
        self._ledger.close_claim(
            claim,
            lower,
            upper,
            complete=closed.data["status"] == "complete",
            reason=str(closed.data["reason"]),
            needs_signature=beam.needs_signature or str(closed.data["reason"]).startswith(UNEXPLAINED),
        )


UNEXPLAINED = "unexplained counts: "


def _why(beam: BeamReconciliation) -> str:
    """Reason for journal and ledger; what is unexplained must be found again in it, because only the unit's latch showed it."""
    prefix = UNEXPLAINED if beam.unexplained_counts1 else ""
    return prefix + ("; ".join(beam.reasons) or "the program died while treating; every grant is accounted for")


def _holds(records: tuple[Record, ...], claim: Claim) -> bool:
    """Whether a claim was made with this journal: the record that was its head then is in it, in its place."""
    seq, sha256 = int(claim.details.get("journal_seq", 0)), str(claim.details.get("journal_sha256", ""))
    return 0 < seq <= len(records) and records[seq - 1].sha256.hex() == sha256


def _refuse_foreign(ledger: Ledger, request: Request, directory: Path) -> None:
    """An open claim that none of the journals here explains stays open: it counts in full, and nothing may be delivered."""
    for number in request.beams:
        received = ledger.delivered(request.plan_uid, request.fraction, number)
        if received.state is BeamState.OPEN:
            claim = ledger.adopt(received.key)
            if not claim.claimed_counts1.any():  # from `_complete_spent`, cut short
                ledger.close_claim(claim, claim.claimed_counts1, claim.claimed_counts1, complete=True, reason=SPENT)
                continue
            claim.lock.release()
            raise DataError(
                f"{received.key}: its open claim was made with journal {received.journal}; no journal in {directory} holds it",
                code=5151,
                hint="the journal was rolled back, or another directory is the one to recover",
            )


def _sign(ledger: Ledger, request: Request, name: str, reason: str) -> None:
    for number in request.beams:
        key = BeamKey(request.plan_uid, request.fraction, number)
        if ledger.delivered(key.plan_uid, key.fraction, number).state is BeamState.LOCKED:
            ledger.sign(key, name, reason)


def _complete_spent(ledger: Ledger, request: Request, intake: Intake) -> None:
    """A partly delivered beam of which nothing is left that could be delivered is complete: there will be no other session."""
    for beam, schedule in zip(intake.beams, intake.schedules, strict=True):
        received = ledger.delivered(request.plan_uid, request.fraction, beam.number)
        if received.state is not BeamState.PARTIAL or received.planned.sum() != schedule.counts1:
            continue
        if remaining_schedule(beam, schedule, received.upper).passes:
            continue
        nothing = np.zeros_like(received.planned)
        claim = ledger.claim(received.key, nothing, journal=received.journal, resume=True, after_claims=received.claims)
        ledger.close_claim(claim, nothing, nothing, complete=True, reason=SPENT)


def _intake(request: Request, directory: Path) -> tuple[Intake | None, list[str]]:
    """Plan and library for the salvage record; without them recovery is done all the same."""
    try:
        intake = take_in(
            kept_plan(request, directory),
            request.facility,
            request.room,
            request.beams,
            request.overrides,
            *library_in(request.state_directory(directory)),
        )
    except Refused as refused:
        return None, [f"no salvage record: {reason}" for reason in refused.reasons]
    return under_its_name(intake, request), []


def _salvage(
    path: Path,
    request: Request,
    number: int,
    intake: Intake,
    records: tuple[Record, ...],
    bounds: Bounds,
    received: Mapping[int, Received],
    before: Mapping[int, Counts],
) -> Path | None:
    from controller.salvage import write_salvage

    own = request if number == 0 else Request.of_journal(records, session_directory(path.parent, number))
    words = {}
    for beam, (lower, upper) in bounds.items():
        planned = max(int(received[beam].planned.sum()), 1)
        low, high = 100 * int(lower.sum()) / planned, 100 * int(upper.sum()) / planned
        words[beam] = (
            f"this session gave between {low:.2f} and {high:.2f} % of plan" if low != high else f"it gave {low:.2f} % of plan"
        )
    return write_salvage(path, own, intake, records, words, before)
