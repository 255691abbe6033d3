"""From what ran to the files of `treat --output`: record, spot table, events, summary, report.

Everything here happens after the beam. Not responsible for the contents (`controller.record`), nor for journal and ledger,
which were written while it happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.intake import Intake
from controller.record.outcome import FractionOutcome, Interlock, Machine, Override, Span, Status, Termination
from drivers.hal.events import Event

if TYPE_CHECKING:
    from controller.record.outcome import BeamOutcome
    from controller.treatment import Ran, TreatOptions

_WORST = (Status.FAULT, Status.PARTIAL, Status.REFUSED, Status.COMPLETE)


def outcome_of(intake: Intake, ran: Ran, options: TreatOptions, wall_s: float) -> FractionOutcome:
    """One value with everything the outputs need."""
    from importlib.metadata import version

    statuses = {beam.status for beam in ran.beams}
    status = next((s for s in _WORST if s in statuses), Status.REFUSED)
    if status is Status.REFUSED and Status.COMPLETE in statuses:
        status = Status.PARTIAL  # an earlier beam was given
    reason = next((beam.reason for beam in ran.beams if beam.reason), "")
    interlocks = ran.history.interlocks()
    if ran.violation is not None:
        status, reason = Status.FAULT, str(ran.violation)
        interlocks = (*interlocks, Interlock(ran.violation.t_ns, f"invariant {ran.violation.name}", ran.violation.message))
    termination = next(
        (beam.termination for beam in ran.beams if beam.termination is not Termination.NORMAL), Termination.NORMAL
    )
    room = intake.room
    return FractionOutcome(
        plan=intake.plan,
        fraction=options.fraction,
        machine=Machine(
            facility=intake.facility.name,
            room=room.name,
            machine_name=room.machine_names[0],
            simulated=True,
            institution=intake.facility.title,
            software_version=version("iongantry"),
        ),
        seed=options.seed,
        started_utc=ran.started_utc,
        t_origin_ns=ran.t_origin_ns,
        beams=ran.beams,
        status=status,
        termination=termination,
        reason=reason,
        research=bool(intake.overridden),
        operator="scripted operator",
        motion=ran.history.motion(),
        spills=_spills(ran.beams),
        holds=ran.history.holds(ran.t_end_ns),
        states=ran.history.states(ran.t_end_ns),
        interlocks=interlocks,
        overrides=tuple(
            Override(ran.t_origin_ns, lifted.override, options.overrides[lifted.override], "scripted operator", str(lifted))
            for lifted in intake.overridden
        ),
        loop_lag=ran.loop_lag,
        wall_s=wall_s,
        run_id=ran.run_id,
    )


def write_outputs(output: Path | None, outcome: FractionOutcome, events: Sequence[Event]) -> dict[str, Any]:
    """Write every file, what beam left behind (record, spots) first; None writes nothing. Returns the summary."""
    from controller.record.dicom_record import write_records
    from controller.record.event_file import event_line
    from controller.record.report import write_report
    from controller.record.spots import build_spots, write_spots
    from controller.record.summary import build_summary, write_summary

    table = build_spots(outcome.beams)
    summary = build_summary(outcome, table)
    if output is None:
        return summary.model_dump(mode="json")
    if any(beam.passes for beam in outcome.beams):
        write_records(outcome, table, output)
    write_spots(table, output / "spots.parquet", outcome)
    (output / "events.jsonl").write_bytes(b"".join(event_line(event) for event in events))
    write_summary(summary, output / "summary.json")
    write_report(outcome, table, output / "report.html")
    return summary.model_dump(mode="json")


def _spills(beams: Sequence[BeamOutcome]) -> tuple[Span, ...]:
    """First to last ion of each spill, as the unit saw it."""
    spans: dict[int, tuple[int, int]] = {}
    for beam in beams:
        for piece in beam.pieces[["spill", "t_start_ns", "t_end_ns"]].tolist():
            spill, start, end = piece
            first, last = spans.get(spill, (start, end))
            spans[spill] = (min(first, start), max(last, end))
    return tuple(Span(start, end, str(spill)) for spill, (start, end) in sorted(spans.items(), key=lambda item: item[1]))
