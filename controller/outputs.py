"""From what ran to the files of `treat --output`: record, spot table, events, summary, report.

Everything here happens after the beam. A file that cannot be written does not keep the others from being written. Not
responsible for the contents (`controller.record`), nor for journal and ledger, which were written while it happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.intake import Intake
from controller.measures import lag_of
from controller.record.outcome import FractionOutcome, Interlock, Machine, Override, Span, Status, Termination
from drivers.hal.events import Event

if TYPE_CHECKING:
    from controller.admission import TreatOptions
    from controller.record.outcome import BeamOutcome
    from controller.treatment import Ran
    from simulators.invariants import Violation


def outcome_of(intake: Intake, ran: Ran, options: TreatOptions, wall_s: float) -> FractionOutcome:
    """One value with everything the outputs need."""
    from importlib.metadata import version

    status, termination, reason = _ending(intake, ran)
    interlocks = ran.history.interlocks()
    if ran.violation is not None:
        interlocks = _with_violation(interlocks, ran.violation)
    room = intake.room
    return FractionOutcome(
        plan=intake.plan,
        fraction=options.fraction,
        machine=Machine(
            facility=intake.facility.name,
            room=room.name,
            machine_name=room.machine_names[0],
            simulated=ran.simulated,
            institution=intake.facility.title,
            software_version=version("iongantry"),
        ),
        seed=options.seed if ran.simulated else None,
        started_utc=ran.started_utc,
        t_origin_ns=ran.t_origin_ns,
        beams=ran.beams,
        status=status,
        termination=termination,
        reason=reason,
        research=bool(intake.overridden),
        operator=ran.operator,
        motion=ran.history.motion(),
        spills=_spills(ran.beams),
        holds=ran.history.holds(ran.t_end_ns),
        states=ran.history.states(ran.t_end_ns),
        interlocks=interlocks,
        intervals=tuple(ran.intervals),
        overrides=tuple(
            Override(ran.t_origin_ns, lifted.override, options.overrides[lifted.override], ran.operator, str(lifted))
            for lifted in intake.overridden
        ),
        loop_lag=lag_of(ran.late_s),
        wall_s=wall_s,
        run_id=ran.run_id,
    )


def _ending(intake: Intake, ran: Ran) -> tuple[Status, Termination, str]:
    """Status, termination and reason of the fraction.

    Complete is every beam that was asked for, and known to be so without an interval that somebody signed; refused is nothing
    moved and nothing given; a violated invariant and an error that nobody foresaw are faults, whatever the beams say;
    everything else ended early.
    """
    if ran.violation is not None:
        return Status.FAULT, Termination.MACHINE, str(ran.violation)
    if ran.failure:
        return Status.FAULT, Termination.MACHINE, ran.failure
    statuses = [beam.status for beam in ran.beams]
    early = next((beam for beam in ran.beams if beam.status is not Status.COMPLETE), None)
    reason = (early.reason if early is not None else "") or ran.refusal
    termination = early.termination if early is not None else Termination.NORMAL
    if Status.FAULT in statuses:
        return Status.FAULT, Termination.MACHINE, reason
    if statuses == [Status.COMPLETE] * len(intake.beams):
        unsure = "; ".join(str(interval) for interval in ran.intervals if not interval.exact)
        return (Status.PARTIAL if unsure else Status.COMPLETE), Termination.NORMAL, unsure
    if early is None:
        termination = Termination.OPERATOR if ran.stopped else Termination.MACHINE
        reason = reason or ran.stopped
    untouched = all(status is Status.REFUSED for status in statuses)
    return Status.REFUSED if untouched else Status.PARTIAL, termination, reason


def _with_violation(trips: tuple[Interlock, ...], violation: Violation) -> tuple[Interlock, ...]:
    """A violated invariant among the trips, at its time: what came after it followed from it."""
    before = [trip for trip in trips if trip.t_ns < violation.t_ns]
    after = [replace(trip, first_out=False) for trip in trips if trip.t_ns >= violation.t_ns]
    own = Interlock(violation.t_ns, f"invariant {violation.name}", violation.message, "invariants", first_out=not before)
    return (*before, own, *after)


def write_outputs(output: Path | None, outcome: FractionOutcome, events: Sequence[Event]) -> tuple[dict[str, Any], list[str]]:
    """Write every file, what beam left behind (record, spots) first; None writes nothing.

    What was refused leaves summary and events, and nothing that looks like a record.

    Returns:
        The summary, and what could not be written, in words.
    """
    from controller.record.dicom_record import write_records
    from controller.record.report import write_report
    from controller.record.spots import build_spots, write_spots
    from controller.record.summary import build_summary, write_summary

    table = build_spots(outcome.beams)
    summary = build_summary(outcome, table)
    failures: list[str] = []

    def attempt(name: str, write: Callable[[Path], object]) -> None:
        if output is None:
            return
        try:
            write(output / name)
        except OSError as error:
            failures.append(f"{output / name} cannot be written: {error.strerror or error}")

    if outcome.status is not Status.REFUSED:
        attempt("record.dcm", lambda path: write_records(outcome, table, path.parent))
        attempt("spots.parquet", lambda path: write_spots(table, path, outcome))
    attempt("events.jsonl", lambda path: _write_events(path, events))
    attempt("summary.json", lambda path: write_summary(summary, path))
    if outcome.status is not Status.REFUSED:
        attempt("report.html", lambda path: write_report(outcome, table, path))
    return summary.model_dump(mode="json"), failures


def _write_events(path: Path, events: Sequence[Event]) -> None:
    from controller.record.event_file import event_line
    from controller.record.whole_file import whole_file

    with whole_file(path) as draft:
        draft.write_bytes(b"".join(event_line(event) for event in events))


def _spills(beams: Sequence[BeamOutcome]) -> tuple[Span, ...]:
    """First to last ion of each spill, as the unit saw it."""
    spans: dict[int, tuple[int, int]] = {}
    for beam in beams:
        for piece in beam.pieces[["spill", "t_start_ns", "t_end_ns"]].tolist():
            spill, start, end = piece
            first, last = spans.get(spill, (start, end))
            spans[spill] = (min(first, start), max(last, end))
    return tuple(Span(start, end, str(spill)) for spill, (start, end) in sorted(spans.items(), key=lambda item: item[1]))
