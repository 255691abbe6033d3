"""What was asked of `treat`, as its journal's opening record keeps it, and the copy of the plan beside it.

All that `resume` and `recover` read of a treatment besides journal and ledger. The sessions of one treatment are its directory
and the directories `resume-1`, `resume-2`, ... in it, each with a journal of its own.

Not responsible for judging the request (`admission`), nor for what was delivered (`record.ledger`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.intake import Refused
from controller.record.journal import OPENED, Record, read_journal
from controller.record.store import DiskStore, write_atomic
from drivers.hal.errors import BeamlineError

if TYPE_CHECKING:
    from controller.intake import Intake
    from controller.record.ledger import Received

JOURNAL = "journal.bin"
STATE = "state"
PLAN_NAMES = {"dicom": "plan.dcm", "rst": "plan.rst"}
_KEY = "request"


@dataclass(frozen=True, slots=True)
class Request:
    """One request for a fraction.

    Attributes:
        facility: shipped name, or absolute path of a facility file.
        beams: numbers that were asked for, in the plan's order.
        state: the facility's state directory, absolute; empty: `state` in the treatment's own directory.
        plan_file: name of the plan's copy in the treatment's directory; empty when none was kept.
        session: 0 for `treat`, n for the n-th `resume` of it.
        started_utc: date at the opening record's time, ISO 8601.
        plan_called: name of the plan file as it was given; a raster file has no other name.
        simulated: whether anything of the room was.
        real: devices and parts of devices that no simulator answered for.
        wires: whether its devices answered over real wires, so that they outlived the controller.
    """

    facility: str
    room: str
    beams: tuple[int, ...]
    fraction: int
    seed: int
    overrides: Mapping[str, str]
    state: str
    plan_file: str
    plan_uid: str
    plan_sha256: str
    session: int
    started_utc: str
    plan_called: str = ""
    simulated: bool = True
    real: tuple[str, ...] = ()
    wires: bool = False

    def identity(self) -> dict[str, Any]:
        """Values for the journal's opening record."""
        return {
            "facility": self.facility,
            "room": self.room,
            "plan": self.plan_uid,
            "seed": self.seed,
            _KEY: {**asdict(self), "overrides": dict(self.overrides)},
        }

    @classmethod
    def of_journal(cls, records: tuple[Record, ...], where: Path) -> Request:
        """The request in a journal's first record. Raises Refused when there is none."""
        if not records:
            raise Refused([f"{where}: holds no record; the treatment ended before anything was asked of the machine"])
        try:
            values = dict(records[0].data[_KEY] if records[0].kind == OPENED else {})
            return cls(**{**values, "beams": tuple(values["beams"]), "real": tuple(values.get("real", ()))})
        except (TypeError, KeyError, ValueError):
            raise Refused([f"{where}: its opening record does not say what was asked; it cannot be taken up"]) from None

    @property
    def started(self) -> datetime:
        """Date at the opening record's time."""
        return datetime.fromisoformat(self.started_utc)

    def with_state(self, state: Path | None) -> Request:
        """The same, whose facility's state lies elsewhere now; None: where it was."""
        return self if state is None else replace(self, state=str(state.absolute()))

    def state_directory(self, directory: Path) -> Path:
        """The facility's state, for a treatment whose outputs are in `directory` (they may have been moved)."""
        return Path(self.state) if self.state else directory / STATE


@dataclass(frozen=True, slots=True, eq=False)
class Earlier:
    """What a session finds: its number, what the ledger says of each beam that was begun, by beam number, and all beams of the
    treatment (empty: those of this session)."""

    session: int = 0
    before: Mapping[int, Received] = field(default_factory=dict)
    beams: tuple[int, ...] = ()


def session_directory(root: Path, number: int) -> Path:
    """Directory of the n-th session of a treatment; 0 is `treat` itself."""
    return root / f"resume-{number}" if number else root


def sessions(root: Path) -> list[Path]:
    """Directories of all sessions that have a journal, in order. Raises Refused when there is none."""
    if not (root / JOURNAL).is_file():
        raise Refused(
            [
                f"{root.absolute()}: there is no {JOURNAL}; give the directory that `treat --output` wrote, or "
                "STATE/treatments/ID of a served room"
            ]
        )
    found = [root]
    while (session_directory(root, len(found)) / JOURNAL).is_file():
        found.append(session_directory(root, len(found)))
    return found


def read_request(root: Path) -> Request:
    """The request of `treat`.

    Raises:
        Refused: no journal, a damaged one, or one of a resumed session.
    """
    path = sessions(root)[0] / JOURNAL
    try:
        request = Request.of_journal(read_journal(DiskStore(), path).records, path)
    except BeamlineError as error:
        raise Refused([str(error)]) from None
    if request.session:
        raise Refused(
            [
                f"{root}: is session {request.session} of a treatment; give the directory of the treatment itself, "
                f"{root.absolute().parent}: it takes all sessions together"
            ]
        )
    return request


def under_its_name(intake: Intake, request: Request) -> Intake:
    """An intake of the plan's copy, called as the original: a raster file takes label and beam name from its file's name."""
    if intake.plan.kind != "rst" or not request.plan_called:
        return intake
    label = Path(request.plan_called).stem
    beams = {beam.number: replace(beam, name=label) for beam in intake.plan.beams}
    plan = replace(intake.plan, label=label, name=request.plan_called, beams=tuple(beams.values()))
    return replace(intake, plan=plan, beams=tuple(beams[beam.number] for beam in intake.beams))


def plan_name(intake: Intake) -> str:
    """Name of the copy of a plan file."""
    return PLAN_NAMES.get(intake.plan.kind, "plan")


def keep_plan(source: Path, directory: Path, intake: Intake) -> None:
    """Copy a plan file byte by byte, durably. Raises Refused when it cannot be, or is no longer the plan that was read."""
    try:
        data = source.read_bytes()
        if hashlib.sha256(data).hexdigest() != intake.plan.sha256:
            raise Refused([f"{source}: changed while it was being read; try again"])
        write_atomic(DiskStore(), directory / plan_name(intake), data)
    except (OSError, BeamlineError) as error:
        raise Refused([f"{directory}: the plan cannot be kept there: {error}"]) from None


def kept_plan(request: Request, directory: Path) -> Path:
    """The copy of the plan. Raises Refused when it is missing or is not the plan that was treated."""
    path = directory / request.plan_file
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Refused([f"{path}: the plan that was treated cannot be read: {error.strerror or error}"]) from None
    if digest != request.plan_sha256:
        raise Refused(
            [
                f"{path}: is another plan (SHA-256 {digest[:12]}...) than the one that was treated "
                f"({request.plan_sha256[:12]}...); put the treated plan back"
            ]
        )
    return path
