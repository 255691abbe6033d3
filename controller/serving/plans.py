"""The plans that a facility holds: each in a directory of its own, named after its file's SHA-256, with who received and who
approved it.

A file comes from `plans/.incoming`, is read in another process, held against every room, and filed as a whole or not at all.
Approval here is the facility's own: a physicist takes responsibility for this very file (its hash is recorded and looked at
again whenever the plan is loaded). It does not lift what the plan itself lacks: a DICOM plan that is not APPROVED needs an
override beside it. Not responsible for what is deliverable (`controller.plan`), nor for who is a physicist (the desk).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.admission import library_in
from controller.console.views import PlanView
from controller.record.store import DiskStore, write_atomic
from drivers.hal.errors import CommandRejected, DataError

PLANS, INCOMING, ABOUT = "plans", ".incoming", "plan.json"
FILE_BYTES_MAX = 64 * 1024 * 1024  # assumed: the largest public carbon plan has 3 MB
ID_LENGTH = 12
NAME_MAX = 80
EXAMPLE_APPROVER = "shipped example (simulated rooms only)"
NO_FILE, TOO_LARGE, NOT_HELD, CHANGED, APPROVED_BEFORE, REFUSED = 4441, 4442, 4443, 4444, 4445, 4446

Inspect = Callable[[Path, str, Path | None, Path | None], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Held:
    """One plan of the store.

    Attributes:
        about: what `plan_inspection` found.
        approved_by, approved_utc: empty while nobody has approved it here.
    """

    id: str
    path: Path
    file: str
    sha256: str
    about: Mapping[str, Any]
    received_utc: str
    received_by: str
    approved_by: str = ""
    approved_utc: str = ""

    def view(self) -> PlanView:
        """As shown."""
        about = self.about
        return PlanView(
            id=self.id,
            file=self.file,
            sha256=self.sha256,
            uid=about["uid"],
            label=about["label"],
            patient_id=about["patient_id"],
            patient_name=about["patient_name"],
            species=about["species"],
            approval=about["approval"],
            approved_by=self.approved_by,
            machine=about["machine"],
            fractions=about["fractions"],
            beams=about["beams"],
            received_utc=self.received_utc,
            objections=about["objections"],
        )


class PlanStore:
    """`STATE/plans`.

    Args:
        state: the facility's state directory.
        facility: shipped name or file, as given on the command line.
        inspect: reads a file; see `plan_inspection`.
    """

    def __init__(self, state: Path, facility: str, inspect: Inspect) -> None:
        self._state = state
        self._facility = facility
        self._inspect = inspect
        self._store = DiskStore()
        self._held: dict[str, Held] = {}
        self._looked_ns = 0

    @property
    def incoming(self) -> Path:
        """Where received files wait."""
        return self._state / PLANS / INCOMING

    def open(self) -> None:
        """Make the directories, look what is there. Raises OSError."""
        self.incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self._state / PLANS).iterdir():
            if directory.name.startswith(".new-"):
                shutil.rmtree(directory, ignore_errors=True)  # of a process that died while it filed a plan
        self._look()

    def _look(self) -> None:
        """What other rooms of the facility have filed and approved meanwhile."""
        plans = self._state / PLANS
        changed_ns = plans.stat().st_mtime_ns
        if changed_ns == self._looked_ns:
            return
        self._looked_ns = changed_ns
        found = [_read(directory) for directory in sorted(plans.iterdir()) if not directory.name.startswith(".")]
        self._held = {held.id: held for held in found if held is not None}

    def plans(self) -> list[PlanView]:
        """Every plan, the latest first."""
        self._look()
        return [held.view() for held in sorted(self._held.values(), key=lambda h: h.received_utc, reverse=True)]

    def get(self, plan_id: object) -> Held:
        """A plan. Raises CommandRejected."""
        self._look()
        held = self._held.get(plan_id) if isinstance(plan_id, str) else None
        if held is None:
            raise CommandRejected(f"the store holds no plan {str(plan_id)[:40]!r}", code=NOT_HELD, hint="see the list of plans")
        return held

    def whole(self, plan_id: object) -> Held:
        """A plan whose file is still the one that was filed. Raises CommandRejected."""
        held = self.get(plan_id)
        try:
            same = hashlib.sha256(held.path.read_bytes()).hexdigest() == held.sha256
        except OSError as error:
            raise CommandRejected(f"{held.path}: cannot be read: {error.strerror or error}", code=CHANGED) from None
        if not same:
            raise CommandRejected(
                f"plan {held.id}: its file is no longer the one that was filed", code=CHANGED, hint="import the plan again"
            )
        return held

    async def take(self, file: object, name: object, who: str) -> PlanView:
        """File a plan out of `incoming`; the received file is gone afterwards, whatever became of it.

        Args:
            file: name in `incoming`.
            name: what the sender calls it; a raster file takes its label from it.
            who: files it.

        Raises:
            CommandRejected: no such file, too large, or refused with every reason.
        """
        path = self._received(file)
        try:
            return (await self._file(path.read_bytes(), str(name or path.name), who)).view()
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    async def add_example(self, data: bytes, name: str) -> PlanView | None:
        """Put an example into a store that holds no plan, approved for simulated rooms; None when there are plans already."""
        if self._held:
            return None
        held = await self._file(data, name, EXAMPLE_APPROVER)
        self._approve(held, EXAMPLE_APPROVER)
        return held.view()

    def approve(self, plan_id: object, who: str) -> PlanView:
        """A physicist approves a plan for this facility. Raises CommandRejected."""
        held = self.whole(plan_id)
        if held.approved_by:
            raise CommandRejected(f"{held.approved_by} has approved plan {held.id} already", code=APPROVED_BEFORE)
        self._approve(held, who)
        return held.view()

    def _approve(self, held: Held, who: str) -> None:
        held.approved_by, held.approved_utc = who, _now()
        self._write(held, held.path.parent)
        os.utime(self._state / PLANS)  # other rooms look again

    def _received(self, file: object) -> Path:
        """A plain file of ours in `incoming`: no path, no link, not too large. Raises CommandRejected."""
        path = self.incoming / str(file)
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", file):
            raise CommandRejected(f"{str(file)[:60]!r} is no name of a received file", code=NO_FILE)
        try:
            about = path.lstat()
        except OSError:
            raise CommandRejected(f"no file {file} was received", code=NO_FILE) from None
        if not stat.S_ISREG(about.st_mode):
            raise CommandRejected(f"{file} is no plain file", code=NO_FILE)
        if about.st_size > FILE_BYTES_MAX:
            raise CommandRejected(
                f"{file} has {about.st_size} bytes, limit {FILE_BYTES_MAX}", code=TOO_LARGE, hint="is it a plan at all?"
            )
        return path

    async def _file(self, data: bytes, name: str, who: str) -> Held:
        sha256 = hashlib.sha256(data).hexdigest()
        plan_id = sha256[:ID_LENGTH]
        if plan_id in self._held:
            return self._held[plan_id]
        directory = self._state / PLANS / f".new-{plan_id}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        try:
            path = directory / _plain(name)
            write_atomic(self._store, path, data)
            about = await self._inspect(path, self._facility, *library_in(self._state))
            if reasons := about["reasons"]:
                raise CommandRejected("; ".join(reasons), code=REFUSED, hint="nothing was filed")
            place = self._state / PLANS / plan_id
            held = Held(plan_id, place / path.name, path.name, sha256, about, _now(), who)
            self._write(held, directory)
            directory.rename(place)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._held[plan_id] = held
        return held

    def _write(self, held: Held, directory: Path) -> None:
        about = {name: getattr(held, name) for name in Held.__slots__ if name != "path"}
        write_atomic(self._store, directory / ABOUT, json.dumps(about, indent=1).encode())


def _read(directory: Path) -> Held | None:
    """A filed plan; None for what is none."""
    try:
        about = json.loads((directory / ABOUT).read_bytes())
        return Held(path=directory / about["file"], **about)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _plain(name: str) -> str:
    """A sender's name of a file as one of ours: no path, no surprises."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", name.replace("\\", "/").rsplit("/", maxsplit=1)[-1]).strip(".-")[-NAME_MAX:]
    if not base or base == ABOUT:
        raise DataError("the file has no usable name", code=5163, hint="name it PLAN.dcm or PLAN.rst")
    return base


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
