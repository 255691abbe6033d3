"""Questions that change nothing: plans, treatments, audit, interlock rows. Answers are JSON-able.

Not responsible for telemetry (`room_view`), nor for the archive (the console process).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.console.views import TreatmentSummary
from controller.record.ledger import Received
from controller.serving.attempts import Attempt, Attempts
from controller.serving.audit import Audit
from controller.serving.cut_off import (
    CUT_OFF,
    UNBEGUN,
    Ending,
    Given,
    LedgerBook,
    ending_of,
    loaded_in,
    names_of,
    room_of,
    root_of_journal,
)
from controller.serving.fraction_book import FractionBook, metersets
from controller.serving.fraction_words import DONE, ended_words, judged
from controller.serving.ground import Ground
from controller.serving.interlock_book import InterlockBook
from controller.serving.plans import PlanStore
from drivers.hal.errors import BeamlineError, CommandRejected

FILES = ("report.html", "record.dcm", "summary.json", "spots.parquet", "events.jsonl")
SALVAGED = ("report.html", "record.dcm", "summary.json", "spots.parquet")  # in `salvage/`, told as salvage-NAME
LISTED_MAX = 500
UNKNOWN, NO_TREATMENT = 4481, 4482


class Asking:
    """Of one room."""

    def __init__(
        self, ground: Ground, plans: PlanStore, audit: Audit, interlocks: InterlockBook, ledger: LedgerBook | None = None
    ) -> None:
        self._ground = ground
        self._plans = plans
        self._audit = audit
        self._interlocks = interlocks
        self._ledger = ledger or LedgerBook(ground.state, ground.boot_id)
        self._fractions = FractionBook(ground, self._ledger)
        self._attempts = Attempts(ground)
        self._summaries: dict[Path, tuple[tuple[object, ...], TreatmentSummary]] = {}

    async def answer(self, what: str, arguments: Mapping[str, Any]) -> Any:
        """Answer ``plans``, ``plan{id}``, ``treatments{limit}``, ``treatment{id}``, ``audit{from_seq, limit, actor, name}`` or
        ``interlocks``.

        Raises CommandRejected: there is no such question, or nothing of that name.
        """
        match what:
            case "plans":
                plans = await asyncio.to_thread(self._fractions.told, self._plans.plans())
                return [plan.model_dump(mode="json") for plan in plans]
            case "plan":
                plan = self._plans.get(arguments.get("id")).view()
                (told,) = await asyncio.to_thread(self._fractions.told, [plan])
                return told.model_dump(mode="json")
            case "treatments":
                found = await asyncio.to_thread(self._treatments, _number(arguments.get("limit"), 100))
                return [summary.model_dump(mode="json") for summary in found]
            case "treatment":
                return await asyncio.to_thread(self._treatment, arguments.get("id"))
            case "audit":
                return await asyncio.to_thread(
                    self._audit.query,
                    _number(arguments.get("from_seq"), 0),
                    _number(arguments.get("limit"), 100),
                    str(arguments.get("actor") or ""),
                    str(arguments.get("name") or ""),
                )
            case "interlocks":
                return [{name: getattr(row, name) for name in row.__slots__} for row in self._ground.world.rows.values()]
        raise CommandRejected(
            f"nothing is known of {what[:40]!r}", code=UNKNOWN, hint="plans, plan, treatments, treatment, audit, interlocks"
        )

    def _treatments(self, limit: int) -> list[TreatmentSummary]:
        """The latest first. A treatment without a summary is under way, or its process died."""
        root = self._ground.treatments
        names = sorted((path.name for path in root.iterdir() if path.is_dir()), reverse=True)[: min(limit, LISTED_MAX)]
        return [summary for name in names if (summary := self._summary(root / name)) is not None]

    def _treatment(self, wanted: object) -> dict[str, Any]:
        if not isinstance(wanted, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,120}", wanted):
            raise CommandRejected("which treatment?", code=NO_TREATMENT, hint="give its id")
        directory = self._ground.treatments / wanted
        summary = self._summary(directory) if directory.is_dir() else None
        if summary is None:
            raise CommandRejected(f"there is no treatment {wanted}", code=NO_TREATMENT, hint="see the list of treatments")
        whole = _json(directory / "summary.json") or {}
        sessions = [
            {
                "directory": path.name,
                "files": _files(path),
                "summary": _json(path / "summary.json"),
            }
            for path in _resumed(directory)
        ]
        return {**summary.model_dump(mode="json"), "summary": whole, "sessions": sessions, "directory": str(directory)}

    def _summary(self, directory: Path) -> TreatmentSummary | None:
        """Of one treatment with all its sessions; kept until a summary, or what the ledger says of it, changes."""
        files = [directory / "summary.json", *(path / "summary.json" for path in _resumed(directory))]
        changed = tuple(_changed(file) for file in files)
        ended, told_whole = bool(changed[-1]), all(changed)
        doubtful = self._doubtful(directory.name)
        loaded = loaded_in(directory)
        here, elsewhere = self._given(directory, loaded)
        # Whether somebody treats it is not in the ledger: what lacks a summary is looked at every time.
        key = (changed, tuple((r.key, r.state) for r in doubtful), tuple(here.items()), elsewhere)
        known = self._summaries.get(directory)
        if known is not None and told_whole and known[0] == key:
            return known[1]
        told = [data for file, when in zip(files, changed, strict=True) if when and (data := _json(file))]
        first, last = (told[0], told[-1]) if told else ({}, {})
        beams = first.get("beams", ())
        ending = None
        if not told_whole:
            ending = self._ending(directory, loaded)
        elif doubtful:
            ending = ending_of({r.key.beam_number: r for r in doubtful}, {})
        planned, delivered, unit = self._metersets(told, loaded, ending if not told_whole else None)
        status = ending.status if ending is not None and not ended else str(last.get("status", "open"))
        attempt = self._attempts.of(directory) if status != "open" else None
        status, standing = self._standing(status, attempt, loaded, here, advice=not elsewhere)
        made = TreatmentSummary(
            id=directory.name,
            room=str(first.get("room") or room_of(directory) or self._ground.room),
            plan_label=str((first.get("plan") or loaded).get("label", "")),
            patient_id=str(loaded.get("patient_id", "")),
            fraction=int(first.get("fraction") or loaded.get("fraction", 0)),
            status=status,
            termination=str(last.get("termination", "")) if ended else "",
            started_utc=_started_of(directory.name),
            simulated=bool(first.get("simulated", self._ground.simulated)),
            meterset_planned=planned,
            meterset_delivered=delivered,
            unit=str(beams[0].get("unit", "")) if beams else unit,
            files=_files(directory),
            needs=ending.needs if ending is not None else "",
            bounds=list(ending.bounds) if ending is not None else [],
            reason=attempt.reason if attempt is not None else "",
            standing=standing,
        )
        self._summaries[directory] = key, made
        return made

    def _given(self, directory: Path, loaded: Mapping[str, Any]) -> tuple[dict[int, Given], bool]:
        """What the beams of a treatment received in it, and whether another one gave something of its fraction."""
        uid, _ = self._held_beams(loaded)
        if not uid:
            return {}, False
        try:
            beams = self._ledger.given({uid}).get(uid, {}).get(int(loaded.get("fraction") or 0), {})
        except BeamlineError:
            return {}, False
        here = {n: each for n, each in beams.items() if root_of_journal(Path(each.journal)).name == directory.name}
        return here, len(here) < len(beams)

    def _standing(
        self, status: str, attempt: Attempt | None, loaded: Mapping[str, Any], given: Mapping[int, Given], *, advice: bool
    ) -> tuple[str, str]:
        """Status over all sessions, by the ledger, and how its fraction stands in words; what is being treated has none yet."""
        _, held = self._held_beams(loaded)
        if attempt is None or not held:
            return status, ""
        planned, fraction = metersets(held), int(loaded.get("fraction") or 0)
        judgement = judged(fraction, planned, given).status
        if status in ("complete", "given", "partial") and given and judgement in (*DONE, "partial"):
            status = judgement
        why = "" if judgement in DONE else attempt.reason
        words = ended_words(fraction, planned, given, why, attempt.beams)
        return status, words if advice else words.partition(". Next: ")[0]

    def _doubtful(self, name: str) -> tuple[Received, ...]:
        """Beams of a treatment that are open or locked; none where the ledger cannot be read now, which is told elsewhere."""
        try:
            return self._ledger.unsettled().get(name, ())
        except BeamlineError:
            return ()

    def _held_beams(self, loaded: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """UID of the plan of a treatment and the beams of it that were asked for, as the plan store knows them."""
        try:
            about = self._plans.get(loaded.get("plan_id")).about
        except CommandRejected:
            return "", []
        wanted = loaded.get("beams") or [beam["number"] for beam in about["beams"]]
        return str(about["uid"]), [beam for beam in about["beams"] if beam["number"] in wanted]

    def _ending(self, directory: Path, loaded: Mapping[str, Any]) -> Ending:
        """Of a treatment, or its last session, that has no summary."""
        uid, beams = self._held_beams(loaded)
        if not uid:
            return Ending(CUT_OFF, "reconcile") if self._doubtful(directory.name) else Ending("open")
        try:
            return self._ledger.ending(directory, uid, int(loaded.get("fraction", 0)), names_of(beams, ()))
        except BeamlineError as error:
            return Ending("open", "", (f"the ledger cannot be read: {error}",))

    def _metersets(
        self, told: Sequence[Mapping[str, Any]], loaded: Mapping[str, Any], ending: Ending | None
    ) -> tuple[float | None, float | None, str]:
        """Planned and delivered meterset with the plan's unit. What no summary says comes from plan and ledger, or is None."""
        planned = sum(float(beam.get("meterset_planned", 0.0)) for beam in told[0].get("beams", ())) if told else None
        if ending is None:
            beams = [beam for data in told for beam in data.get("beams", ())]
            return planned, sum(float(beam.get("meterset_delivered_primary", 0.0)) for beam in beams) if told else None, ""
        _, held = self._held_beams(loaded)
        if not held:
            return planned, None, ""
        unit = str(held[0].get("unit", ""))
        whole = sum(float(beam["meterset"]) for beam in held)
        parts = [
            None if (share := ending.shares.get(int(beam["number"]))) is None else share * float(beam["meterset"])
            for beam in held
        ]
        known = [part for part in parts if part is not None]
        delivered = sum(known) if len(known) == len(parts) else 0.0 if ending.status == UNBEGUN else None
        return whole, delivered, unit


def _resumed(directory: Path) -> list[Path]:
    """Later sessions of a treatment, in order."""
    return sorted(directory.glob("resume-*"), key=lambda path: (len(path.name), path.name))


def _changed(file: Path) -> float:
    """When it was written; 0 where it is not."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _started_of(name: str) -> str:
    """The id of a treatment begins with the time at which it was loaded."""
    found = re.match(r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z-", name)
    return "{}-{}-{}T{}:{}:{}+00:00".format(*found.groups()) if found else ""


def _files(directory: Path) -> list[str]:
    salvaged = [f"salvage-{name}" for name in SALVAGED if (directory / "salvage" / name).is_file()]
    return [name for name in FILES if (directory / name).is_file()] + salvaged


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
