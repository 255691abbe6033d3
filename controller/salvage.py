"""The record of a session whose program died: what its journal holds, as an RT record, a spot table, a summary and a report.

Grants whose pieces are in the journal are in it, spot by spot. What is known only by counters or as an interval stands in
words: no position was measured for it. So does all that was given by a session that died in its first grant: its record has the
layers that were granted, with nothing measured in them. The gantry angle is the plan's, which beam requires within the
interlocks' limit. The termination status is UNKNOWN. Not responsible for finding out what was delivered (`recover`,
`record.reconcile`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from controller.intake import Intake
from controller.plan.deliverability import machine_angle_deg
from controller.plan.schedule import planned_counts
from controller.record.dicom_record import write_records
from controller.record.entries import BeamHistory, Kind, beam_histories
from controller.record.journal import Record
from controller.record.ledger import Counts
from controller.record.outcome import BeamOutcome, FractionOutcome, Machine, Override, PassOutcome, Status, Termination
from controller.record.report import write_report
from controller.record.spots import build_spots, empty_pieces, write_spots
from controller.record.summary import build_summary, write_summary
from controller.request import Request
from drivers.hal.capabilities import EndReason

SALVAGE = "salvage"
OPERATOR = "not known: the program died"


def write_salvage(
    directory: Path,
    request: Request,
    intake: Intake,
    records: Sequence[Record],
    words: Mapping[int, str],
    before: Mapping[int, Counts],
) -> Path | None:
    """Write `salvage/` into a session's directory; all of it or nothing, and never again where it stands.

    Args:
        directory: of the session.
        request: of the session.
        intake: its plan, room and library.
        records: the whole journal, recovery included.
        words: by beam number, between what bounds its dose is known.
        before: by beam number, what earlier sessions gave at most, flat in the plan's order.

    Returns:
        The directory, or None when nothing was granted in this session. Raises OSError.
    """
    target, unfinished = directory / SALVAGE, directory / f"{SALVAGE}.part"
    if target.exists():
        return target
    if not any(history.grants for history in beam_histories(records)):
        return None
    outcome = _outcome(request, intake, records, words, before)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    table = build_spots(outcome.beams)
    write_records(outcome, table, unfinished)
    write_spots(table, unfinished / "spots.parquet", outcome)
    write_summary(build_summary(outcome, table), unfinished / "summary.json")
    write_report(outcome, table, unfinished / "report.html")
    unfinished.rename(target)
    return target


def _outcome(
    request: Request, intake: Intake, records: Sequence[Record], words: Mapping[int, str], before: Mapping[int, Counts]
) -> FractionOutcome:
    room = intake.room
    beams = tuple(_beam(intake, h, records, words, before) for h in beam_histories(records))
    return FractionOutcome(
        plan=intake.plan,
        fraction=request.fraction,
        machine=Machine(
            facility=intake.facility.name,
            room=room.name,
            machine_name=room.machine_names[0],
            simulated=request.simulated,
            institution=intake.facility.title,
            software_version=version("iongantry"),
        ),
        seed=request.seed if request.simulated else None,
        started_utc=request.started,
        t_origin_ns=records[0].t_ns,
        beams=beams,
        status=Status.PARTIAL,
        termination=Termination.UNKNOWN,
        reason=next((b.reason for b in beams if b.reason), ""),
        research=bool(intake.overridden),
        operator=OPERATOR,
        overrides=tuple(
            Override(records[0].t_ns, refusal.override, request.overrides[refusal.override], OPERATOR, str(refusal))
            for refusal in intake.overridden
        ),
        run_id=records[0].boot_id,
    )


def _beam(
    intake: Intake, history: BeamHistory, records: Sequence[Record], words: Mapping[int, str], before: Mapping[int, Counts]
) -> BeamOutcome:
    number = history.claim.beam_number
    beam = intake.plan.beam(number)
    times = _times_ns(records, number)
    angle_deg = machine_angle_deg(intake.room, beam.gantry_angle_deg) or 0.0
    known = {grant_id: (done.pieces, done.reason, times[Kind.DONE, grant_id]) for grant_id, done in history.done.items()}
    if not known:  # it may have given dose all the same: where, says the grant
        known = {grant_id: (empty_pieces(), EndReason.NONE, max(times.values())) for grant_id in history.grants}
    passes = tuple(
        PassOutcome(
            grant=history.grants[grant_id],
            pieces=pieces,
            reason=reason,
            attempt=history.attempts[grant_id],
            t_granted_ns=times[Kind.GRANT, grant_id],
            t_started_ns=times.get((Kind.STARTED, grant_id), times[Kind.GRANT, grant_id]),
            t_ended_ns=t_ended_ns,
            gantry_angle_deg=angle_deg,
        )
        for grant_id, (pieces, reason, t_ended_ns) in known.items()
    )
    conversions = [c for _, c in planned_counts(beam, intake.facility, intake.room, intake.library)]
    closed = next(
        (r.data["status"] for r in reversed(records) if r.kind == Kind.CLOSED and r.data["beam_number"] == number), ""
    )
    complete = closed == "complete"
    earlier = before.get(number)
    return BeamOutcome(
        beam=beam,
        passes=passes,
        counts1_per_meterset=np.array([c.counts1_per_unit for c in conversions]),
        counts2_per_meterset=np.array([c.counts1_per_unit * c.counts2_per_count1 for c in conversions]),
        status=Status.COMPLETE if complete else Status.PARTIAL,
        termination=Termination.NORMAL if complete else Termination.UNKNOWN,
        reason="" if complete else f"the program died while treating; {words.get(number, 'see the ledger')}",
        gantry_angle_deg=angle_deg,
        t_begin_ns=times[Kind.CLAIMED, number],
        t_end_ns=max(times.values()),
        continuation=earlier is not None and bool(earlier.any()),
        received_before=earlier,
    )


def _times_ns(records: Sequence[Record], beam_number: int) -> dict[tuple[Kind, int], int]:
    """Time of each record of one beam, by kind and grant id (the beam's number for CLAIMED)."""
    times: dict[tuple[Kind, int], int] = {}
    mine = False
    for record in records:
        if record.kind == Kind.CLAIMED:
            mine = record.data["beam_number"] == beam_number
            if mine:
                times[Kind.CLAIMED, beam_number] = record.t_ns
        elif mine and record.kind in (Kind.GRANT, Kind.STARTED, Kind.DONE):
            times[Kind(record.kind), int(record.data["grant_id"])] = record.t_ns
    return times
