"""Questions that change nothing: plans, treatments, audit, interlock rows. Answers are JSON-able.

Not responsible for telemetry (`room_view`), nor for the archive (the console process).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.console.views import TreatmentSummary
from controller.serving.audit import Audit
from controller.serving.ground import Ground
from controller.serving.interlock_book import InterlockBook
from controller.serving.plans import PlanStore
from drivers.hal.errors import CommandRejected

FILES = ("report.html", "record.dcm", "summary.json", "spots.parquet", "events.jsonl")
LOADED = "loaded.json"  # who was to be treated with what, written when the plan was loaded
LISTED_MAX = 500
UNKNOWN, NO_TREATMENT = 4481, 4482


class Asking:
    """Of one room."""

    def __init__(self, ground: Ground, plans: PlanStore, audit: Audit, interlocks: InterlockBook) -> None:
        self._ground = ground
        self._plans = plans
        self._audit = audit
        self._interlocks = interlocks
        self._summaries: dict[Path, tuple[tuple[float, ...], TreatmentSummary]] = {}

    async def answer(self, what: str, arguments: Mapping[str, Any]) -> Any:
        """Answer ``plans``, ``plan{id}``, ``treatments{limit}``, ``treatment{id}``, ``audit{from_seq, limit, actor, name}`` or
        ``interlocks``.

        Raises CommandRejected: there is no such question, or nothing of that name.
        """
        match what:
            case "plans":
                return [plan.model_dump(mode="json") for plan in self._plans.plans()]
            case "plan":
                return self._plans.get(arguments.get("id")).view().model_dump(mode="json")
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
        """Of one treatment with all its sessions; kept until one of their summaries changes."""
        files = [directory / "summary.json", *(path / "summary.json" for path in _resumed(directory))]
        changed = tuple(_changed(file) for file in files)
        known = self._summaries.get(directory)
        if known is not None and any(changed) and known[0] == changed:
            return known[1]
        told = [data for file, when in zip(files, changed, strict=True) if when and (data := _json(file))]
        first, last = (told[0], told[-1]) if told else ({}, {})
        beams = first.get("beams", ())
        loaded = _json(directory / LOADED) or {}
        made = TreatmentSummary(
            id=directory.name,
            room=str(first.get("room", self._ground.room)),
            plan_label=str((first.get("plan") or loaded).get("label", "")),
            patient_id=str(loaded.get("patient_id", "")),
            fraction=int(first.get("fraction") or loaded.get("fraction", 0)),
            status=str(last.get("status", "open")),
            termination=str(last.get("termination", "")),
            started_utc=_started_of(directory.name),
            simulated=bool(first.get("simulated", self._ground.simulated)),
            meterset_planned=sum(float(beam.get("meterset_planned", 0.0)) for beam in beams),
            meterset_delivered=sum(
                float(beam.get("meterset_delivered_primary", 0.0)) for data in told for beam in data.get("beams", ())
            ),
            unit=str(beams[0].get("unit", "")) if beams else "",
            files=_files(directory),
        )
        self._summaries[directory] = changed, made
        return made


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
    return [name for name in FILES if (directory / name).is_file()]


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
