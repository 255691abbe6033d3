"""HTTP: what was: treatments and their files, history of readings, audit; and the health of this process.

Files are those of one treatment's directory, by exact names. Not responsible for what is in them.
"""

from __future__ import annotations

import asyncio
import re
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse

from controller.console.api_models import AuditView, HealthView, SignalsView, TreatmentDetail
from controller.console.api_parts import ONLY_ASKED, HubOf, Reader, errors
from controller.console.archive_query import HistoryView
from controller.console.hub import Hub
from controller.console.metrics import CONTENT_TYPE
from controller.console.refused import Refused
from controller.console.views import TreatmentSummary
from drivers.hal.errors import BeamlineError

router = APIRouter(tags=["records"], dependencies=ONLY_ASKED)
of_process = APIRouter(tags=["records"])  # for monitors, which may add to a query what they like
FILES = {
    "report.html": "text/html; charset=utf-8",
    "record.dcm": "application/dicom",
    "summary.json": "application/json",
    "spots.parquet": "application/vnd.apache.parquet",
    "events.jsonl": "application/x-ndjson",
}
SALVAGED = {
    f"salvage-{name}": name for name in ("report.html", "record.dcm", "summary.json", "spots.parquet")
}  # they lie in salvage/
_MORE_RECORDS = re.compile(r"record-[1-9][0-9]{0,2}\.dcm")
# A report has its style in itself and nothing else: nothing in it runs or loads.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
TreatmentId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]
NEAR_MAX = 5  # names that are told for one that is not known
RoomQuery = Annotated[str | None, Query(max_length=64)]


@router.get("/api/treatments", responses=errors(401, 404, 409, 503, 504), summary="What was treated, the newest first")
async def treatments(
    _session: Reader, hub: HubOf, room: RoomQuery = None, limit: Annotated[int, Query(ge=1, le=500)] = 200
) -> list[TreatmentSummary]:
    """Of all rooms, or of one."""
    link = hub.link(room) if room is not None else hub.any_link()
    found = [TreatmentSummary.model_validate(one) for one in await hub.ask(link, "treatments", {"limit": limit})]
    return [one for one in found if room is None or one.room == room]


@router.get("/api/treatments/{treatment_id}", responses=errors(401, 404, 409, 503, 504), summary="One treatment")
async def treatment(treatment_id: TreatmentId, _session: Reader, hub: HubOf) -> TreatmentDetail:
    """By its id, with all sessions of it."""
    told = await hub.ask(hub.any_link(), "treatment", {"id": treatment_id})
    return TreatmentDetail.model_validate({name: told[name] for name in TreatmentDetail.model_fields})


@router.get(
    "/api/treatments/{treatment_id}/files/{name}",
    responses={
        **errors(401, 404),
        200: {"description": "the file", "content": {kind.split(";")[0]: {} for kind in FILES.values()}},
    },
    response_class=Response,
    summary="A file of a treatment",
)
async def treatment_file(
    treatment_id: TreatmentId,
    name: Annotated[str, Path(max_length=64)],
    _session: Reader,
    hub: HubOf,
    session: Annotated[
        str | None, Query(pattern=r"^resume-[A-Za-z0-9_-]{1,80}$", description="directory of a later session")
    ] = None,
) -> Response:
    """report.html, record.dcm (record-2.dcm ... for more), summary.json, spots.parquet, events.jsonl; once it was
    cut off and reconciled salvage-report.html, salvage-record.dcm, salvage-summary.json, salvage-spots.parquet."""
    salvaged = SALVAGED.get(name)
    plain = salvaged or name
    kind = FILES.get(plain) or ("application/dicom" if _MORE_RECORDS.fullmatch(name) else None)
    folders = [treatment_id] if session is None else [treatment_id, session]
    folders += ["salvage"] if salvaged else []
    path = await asyncio.to_thread(_file_of, hub.state / "treatments", folders, plain) if kind is not None else None
    if path is None:
        raise Refused(404, f"treatment {treatment_id} has no file {name!r}", f"files: {', '.join([*FILES, *SALVAGED])}")
    headers = {"Cache-Control": "no-store"}
    if plain == "report.html":
        headers["Content-Security-Policy"] = _REPORT_POLICY
    return FileResponse(path, media_type=kind, headers=headers)


@router.get("/api/history/signals", responses=errors(401, 404), summary="Names of what the archive holds")
async def signals(_session: Reader, hub: HubOf, room: RoomQuery = None) -> SignalsView:
    """Of all rooms, or of one."""
    if room is not None and room not in hub.facility.rooms:
        raise Refused(404, f"there is no room {room!r}", f"rooms: {', '.join(hub.facility.rooms)}")
    return SignalsView(signals=[signal for signal in hub.archive.signals() if room is None or signal.room == room])


@router.get("/api/history", responses=errors(401, 404, 503), summary="One signal over time")
async def history(
    request: Request,
    _session: Reader,
    hub: HubOf,
    room: Annotated[str, Query(max_length=64)],
    signal: Annotated[str, Query(max_length=200)],
    from_utc: Annotated[str, Query(max_length=40, json_schema_extra={"format": "date-time"}, description="ISO 8601")],
    to_utc: Annotated[str, Query(max_length=40, json_schema_extra={"format": "date-time"}, description="ISO 8601")],
    points: Annotated[int, Query(ge=1, le=10_000)] = 600,
) -> HistoryView:
    """Least, greatest and last value of each of about `points` spans; the archived values themselves where they are fewer.

    Empty lists: the archive knows the signal, and holds nothing of it there."""
    reading: asyncio.Semaphore = request.app.state.history_at_once
    async with reading:
        try:
            told = await asyncio.to_thread(hub.archive.query, room, signal, from_utc, to_utc, points)
        except BeamlineError as error:
            status = 422 if 5161 <= error.code <= 5163 else 503
            raise Refused(status, error.message, error.hint, code=error.code) from None
    if not told.t_ms:
        _require_signal(hub, room, signal)
    return told


def _require_signal(hub: Hub, room: str, signal: str) -> None:
    """Of a signal that is not known an empty history would be no answer. Raises Refused."""
    names = [one.signal for one in hub.archive.signals() if one.room == room]
    if signal in names:
        return
    near = get_close_matches(signal, names, NEAR_MAX, 0.5) or [name for name in names if signal in name][:NEAR_MAX]
    hint = f"near it: {', '.join(near)}; " if near else ""
    what = f"the archive knows no signal {signal[:60]!r} of room {room[:20]!r}"
    raise Refused(404, what, f"{hint}all {len(names)} of the room: /api/history/signals")


@router.get("/api/audit", responses=errors(401, 404, 409, 503, 504), summary="Who did what, the newest first")
async def audit(
    _session: Reader,
    hub: HubOf,
    room: Annotated[str | None, Query(max_length=64, description="its commands; absent: sign-ins and users")] = None,
    name: Annotated[str | None, Query(max_length=64, description="of the command")] = None,
    actor: Annotated[str | None, Query(max_length=64)] = None,
    from_seq: Annotated[int, Query(ge=0, description="from this entry on; 0: the latest")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> AuditView:
    """Every command and its outcome, from the room's own hash-chained journal."""
    if room is None:
        found = [
            entry
            for entry in hub.people.recent(5000)
            if entry["seq"] >= from_seq
            and (name is None or entry["kind"] == name)
            and (actor is None or actor in (entry.get("name"), entry.get("by")))
        ]
        return AuditView(source="console", entries=found[:limit])
    arguments = {"name": name or "", "actor": actor or "", "from_seq": from_seq, "limit": limit}
    entries: list[dict[str, Any]] = await hub.ask(hub.link(room), "audit", arguments)
    return AuditView(source=room, entries=sorted(entries, key=lambda entry: int(entry["seq"]), reverse=True))


@of_process.get("/health", responses={503: {"model": HealthView, "description": "a room is not reached"}}, summary="Health")
async def health(hub: HubOf, response: Response) -> HealthView:
    """Needs no sign-in and tells nothing of anybody."""
    told = health_of(hub)
    response.status_code = 200 if told.status == "ok" else 503
    return told


@of_process.get(
    "/metrics",
    responses={
        200: {"description": "figures in Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
    response_class=Response,
    summary="Figures for Prometheus",
)
async def metrics(hub: HubOf) -> Response:
    """On the loopback without a sign-in, elsewhere with one. Nothing of any patient."""
    return Response(hub.metrics.text(), media_type=CONTENT_TYPE)


def health_of(hub: Hub) -> HealthView:
    """As told at /health."""
    reached = {name: link.connected for name, link in hub.links.items()}
    status = "ok" if all(reached.values()) else "degraded"
    return HealthView(
        status=status, version=version("iongantry"), rooms=reached, streams=hub.streams.total(), signed_in=hub.tokens.count
    )


def _file_of(root: FilePath, folders: list[str], name: str) -> FilePath | None:
    """A plain file of that very directory; a link that leads elsewhere is none."""
    directory = root
    for folder in folders:
        directory = directory / folder
        if directory.is_symlink():
            return None
    path = directory / name
    return path if path.is_file() and not path.is_symlink() else None
