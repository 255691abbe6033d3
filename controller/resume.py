"""Finishes a fraction that ended early: the beams it left, each with what is left of it, as another session of the treatment.

What was asked, and the plan, come from the treatment's own directory; what was received comes from the ledger, and the claim is
refused when anything changed in between. Not responsible for a program that died (`recover`), nor for delivery (`treatment`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.admission import VIRTUAL, Admitted, TreatOptions, library_in, locate_room, pace_of
from controller.delivery.remainder import remaining_schedule
from controller.intake import Intake, Refused, take_in
from controller.record.journal import read_journal
from controller.record.ledger import BeamState, Received
from controller.record.store import DiskStore
from controller.request import JOURNAL, Earlier, Request, kept_plan, read_request, session_directory, sessions, under_its_name
from controller.standing import BeamStanding, open_state, received_of, standings
from controller.taps import record_objections, sort_faults, wire_fault_objections
from controller.treatment import TreatResult, treat_admitted
from drivers.hal.errors import BeamlineError
from drivers.hal.events import Listener

if TYPE_CHECKING:
    from controller.assembly import TimedFault
    from drivers.wire.tap.faults import WireFault


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """What `resume` was asked. `seed`: of the simulated plant; None: that of the treatment. `state`: where the facility's state
    is now; None: where it was. The rest as of `treat`."""

    directory: Path
    seed: int | None = None
    speed: float = VIRTUAL
    scenario: Path | None = None
    faults: tuple[str, ...] = ()
    endpoints: Path | None = None
    operator: str = ""
    record: Path | None = None
    state: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Resumed:
    """One more session, and where every beam stands after it."""

    session: int
    treated: TreatResult
    beams: tuple[BeamStanding, ...]

    @property
    def status(self) -> str:
        """As of a treatment; complete only when all sessions together gave what was prescribed, and that is known."""
        if self.treated.status == "complete" and not all(beam.as_prescribed for beam in self.beams):
            return "partial"
        return self.treated.status

    def report(self) -> dict[str, Any]:
        """For programs: the session's summary, and the beams over all sessions."""
        return {
            **self.treated.summary,
            "session": self.session,
            "output": str(self.treated.output),
            "over_all_sessions": [beam.report() for beam in self.beams],
        }


def run_resume(
    options: ResumeOptions, listener: Listener | None = None, objections: Sequence[str] = (), *, stop_by_signal: bool = False
) -> Resumed:
    """Treat what is left of a fraction.

    Args:
        options: what was asked.
        listener: of everything that is said.
        objections: what is known to be wrong with the request already.
        stop_by_signal: end with a record when this process is interrupted.

    Raises:
        Refused: see `admit_remainder`.
    """
    root = options.directory
    left = admit_remainder(options, objections)
    treated = treat_admitted(left.options, left.admitted, left.output, listener, left.earlier, stop_by_signal=stop_by_signal)
    names = {beam.number: beam.name for beam in left.admitted.intake.plan.beams}
    return Resumed(left.earlier.session, treated, standings(_received(left.request, root), names, root))


@dataclass(frozen=True, slots=True, eq=False)
class Remainder:
    """What is left of a fraction, admitted: its session may begin in `output`, which is made."""

    request: Request
    options: TreatOptions
    admitted: Admitted
    output: Path
    earlier: Earlier


def admit_remainder(options: ResumeOptions, objections: Sequence[str] = ()) -> Remainder:
    """Everything that can be refused of another session before anything moves.

    Raises:
        Refused: nothing is left, a beam is open or locked, another plan, a damaged or rolled-back record; every reason.
    """
    root = options.directory
    request = read_request(root).with_state(options.state)
    found = sessions(root)
    state = request.state_directory(root)
    reasons = [*objections, *_damage(found)]
    plan = kept_plan(request, root)
    received = _received(request, root)
    reasons += _standing_objections(received, root)
    session = len(found)
    treat = TreatOptions(
        plan=plan,
        facility=request.facility,
        room=request.room,
        beams=tuple(n for n, r in received.items() if r.state in (BeamState.PARTIAL, BeamState.UNTOUCHED)),
        fraction=request.fraction,
        seed=request.seed if options.seed is None else options.seed,
        speed=options.speed,
        scenario=options.scenario,
        faults=options.faults,
        overrides=request.overrides,
        output=session_directory(root, session),
        state=state,
        endpoints=options.endpoints,
        operator=options.operator,
        record=options.record,
    )
    if treat.record is not None:
        reasons += record_objections(treat.record)
    if treat.seed < 0:
        reasons.append(f"--seed {treat.seed}: expected 0 or more")
    if request.real and options.endpoints is None:
        reasons.append(
            f"{root}: begun in a room where {', '.join(request.real)} {'is' if len(request.real) == 1 else 'are'} real: name "
            "its devices with --endpoints"
        )
    faults, wire_faults = _faults(options, request, reasons)
    if reasons:
        raise Refused(list(dict.fromkeys(reasons)))
    intake = take_in(plan, request.facility, request.room, treat.beams, request.overrides, *library_in(state))
    intake = _left(under_its_name(intake, request), received)
    before = {n: r for n, r in received.items() if r.state is BeamState.PARTIAL}
    where, objected = locate_room(treat, intake, faults)
    objected += wire_fault_objections(wire_faults, intake.facility, intake.room.name, where.real if where is not None else ())
    if objected:
        raise Refused(objected)
    return Remainder(
        request,
        treat,
        Admitted(intake, tuple(faults), where, pace_of(treat, where), tuple(wire_faults)),
        _make(session_directory(root, session)),
        Earlier(session, before, request.beams),
    )


def _damage(found: Sequence[Path]) -> list[str]:
    """Journals that cannot be read to their end, and why."""
    reasons = []
    for path in found:
        try:
            if read_journal(DiskStore(), path / JOURNAL).torn_bytes and not (path / "recovery.bin").exists():
                reasons.append(f"{path / JOURNAL}: its end is torn, the program died; `iongantry recover {found[0]}` first")
        except BeamlineError as error:
            reasons.append(str(error))
    return reasons


def _received(request: Request, root: Path) -> dict[int, Received]:
    try:
        with open_state(request, root) as ledger:
            if who := ledger.in_session(request.plan_uid):
                raise Refused([who])
            return received_of(ledger, request)
    except BeamlineError as error:
        raise Refused([f"ledger: {error}"]) from None


def _standing_objections(received: Mapping[int, Received], root: Path) -> list[str]:
    """Why the beams as they stand cannot be taken up."""
    reasons = []
    for r in received.values():
        if r.state is BeamState.OPEN:
            reasons.append(f"{r.key} is open: it is being treated now, or its program died; `iongantry recover {root}` first")
        elif r.state is BeamState.LOCKED:
            reasons.append(
                f"{r.key} is locked: {_bounds(r)} ({r.reason}); "
                f"a physicist must sign: `iongantry recover {root} --sign NAME --reason TEXT`"
            )
    if all(r.state is BeamState.COMPLETE for r in received.values()):
        reasons.append(f"{root}: every beam that was asked for is complete; nothing is left to deliver")
    return reasons


def _bounds(received: Received) -> str:
    low, high = int(received.lower.sum()), int(received.upper.sum())
    if low == high:
        return f"it received {low} counts, and something was wrong with them"
    return f"its dose is known only between {low} and {high} counts"


def _faults(options: ResumeOptions, request: Request, reasons: list[str]) -> tuple[list[TimedFault], list[WireFault]]:
    """The faults to plant in the plant and on the wires; what is wrong with them is added to `reasons`."""
    from controller.assembly import unsuited_faults
    from drivers.hal.facility import load_facility

    try:
        faults, wire_faults = sort_faults(options.faults, options.scenario, options.seed or request.seed)
        reasons += unsuited_faults(faults, load_facility(request.facility).name, request.room)
    except ValueError as error:
        reasons += str(error).splitlines()
        return [], []
    except BeamlineError as error:
        reasons.append(str(error))
        return [], []
    return faults, wire_faults


def _left(intake: Intake, received: Mapping[int, Received]) -> Intake:
    """The intake with what is left of each beam. Raises Refused when it cannot be told, or nothing of it can be delivered."""
    from controller.fraction import planned_counts

    beams, schedules, reasons = [], [], []
    for beam, schedule in zip(intake.beams, intake.schedules, strict=True):
        given = received[beam.number]
        if given.state is BeamState.PARTIAL:
            if not np.array_equal(planned_counts(beam, schedule), given.planned):
                reasons.append(
                    f"{given.key}: the plan now means other counts than when the beam was begun ({schedule.counts1}, then "
                    f"{int(given.planned.sum())}); the beam library was changed: put the released one of then back"
                )
                continue
            schedule = remaining_schedule(beam, schedule, given.upper)  # noqa: PLW2901 - what is left of it
        if schedule.passes:
            beams.append(beam)
            schedules.append(schedule)
    if not beams and not reasons:
        reasons.append(
            "what is left of the beams is within a reaction quantum of each spot and cannot be delivered; `iongantry recover` "
            "closes them as complete"
        )
    if reasons:
        raise Refused(reasons)
    return replace(intake, beams=tuple(beams), schedules=tuple(schedules))


UNBEGUN = frozenset({"summary.json", "events.jsonl"})  # outputs of a session that was refused before its journal was begun
REFUSED = "refused-"


def _make(directory: Path) -> Path:
    """The directory of a session. One that was refused before anything was asked of the machine makes place: its outputs are
    put into a directory beside, so that nobody takes them for those of the session that follows. Raises Refused."""
    try:
        there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
        aside = {name for name in there if name.startswith(REFUSED)}
        if there - aside - UNBEGUN:
            raise Refused([f"{directory}: is there already and has no journal; move it away"])
        if there & UNBEGUN:
            (place := directory / f"{REFUSED}{len(aside) + 1}").mkdir()
            for name in there & UNBEGUN:
                (directory / name).rename(place / name)
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise Refused([f"{directory}: cannot be made: {error.strerror or error}"]) from None
    return directory.resolve()
