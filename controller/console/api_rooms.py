"""HTTP: the facility, what its rooms show, commands, plans. Not responsible for judging a command (the room's desk)."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from controller.console.api_models import ErrorView, FacilityView, RoomSummary, RuleView
from controller.console.api_parts import ONLY_ASKED, WORDS, Doer, HubOf, Reader, RoomName, errors, shown
from controller.console.dispatch import Dispatch, finite, status_of
from controller.console.hub import Hub
from controller.console.refused import Refused
from controller.console.uploads import PACKED, TYPES, Uploads, check_type
from controller.console.views import (
    AlarmView,
    AnswerView,
    CommandBody,
    DeviceView,
    InterlocksView,
    PlanView,
    RoomView,
    SpotsView,
)
from controller.roles import RULES

router = APIRouter(tags=["rooms"], dependencies=ONLY_ASKED)
Key = Annotated[
    str,
    Header(alias="Idempotency-Key", min_length=1, max_length=128, pattern=r"^[!-~]+$", description="one for each command"),
]
FileName = Annotated[str | None, Header(alias="X-File-Name", max_length=1024, description="a label; percent-encoded")]
PlanId = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$", description="first 12 hexadecimal digits of the file's SHA-256")]
_KINDS = sorted(set(PACKED.values()))
_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": AnswerView | ErrorView, "description": WORDS[status]}
    for status in (403, 404, 409, 422, 425, 429, 503, 504)
}


@router.get("/api/facility", responses=errors(401), summary="The facility and all its rooms")
async def facility(_session: Reader, hub: HubOf) -> FacilityView:
    """Rooms that nobody serves are listed too, and say so."""
    return FacilityView(
        name=hub.facility.name,
        title=hub.facility.title,
        purpose=hub.facility.purpose,
        species=[offer.symbol for offer in hub.facility.accelerator.species],
        rooms=_rooms(hub),
    )


@router.get("/api/rooms", responses=errors(401), summary="All rooms in a line each")
async def rooms(_session: Reader, hub: HubOf) -> list[RoomSummary]:
    """Those of the facility's file."""
    return _rooms(hub)


@router.get("/api/rooms/{room}", responses=errors(401, 404, 503), response_model=RoomView, summary="Everything a room shows")
async def room_view(room: RoomName, _session: Reader, hub: HubOf) -> Response:
    """The last view, as the room's process encoded it."""
    return Response(hub.shown(room), media_type="application/json")


@router.get("/api/rooms/{room}/devices", responses=errors(401, 404, 503), response_model=list[DeviceView], summary="Devices")
async def devices(room: RoomName, _session: Reader, hub: HubOf) -> Response:
    """Every device of a room with its signals."""
    return JSONResponse(shown(hub, room)["devices"])


@router.get(
    "/api/rooms/{room}/interlocks", responses=errors(401, 404, 503), response_model=InterlocksView, summary="Interlocks"
)
async def interlocks(room: RoomName, _session: Reader, hub: HubOf) -> Response:
    """What stands, first-out first."""
    return JSONResponse(shown(hub, room)["interlocks"])


@router.get("/api/rooms/{room}/alarms", responses=errors(401, 404, 503), response_model=list[AlarmView], summary="Alarms")
async def alarms(room: RoomName, _session: Reader, hub: HubOf) -> Response:
    """The alarm list."""
    return JSONResponse(shown(hub, room)["alarms"])


@router.get("/api/rooms/{room}/spots", responses=errors(401, 404, 503), response_model=list[SpotsView], summary="Spot map")
async def spots(room: RoomName, _session: Reader, hub: HubOf) -> Response:
    """The layers of the current beam, planned against delivered."""
    return JSONResponse([json.loads(line)["spots"] for line in hub.link(room).spots_lines])


@router.get("/api/rules", responses=errors(401), summary="Who may do what, when")
async def rules(_session: Reader) -> list[RuleView]:
    """The table that the rooms judge by. Stop is always allowed; nothing else is by default."""
    return [
        RuleView(
            name=rule.name,
            does=rule.does,
            roles={mode.value: sorted(role.value for role in who) for mode, who in rule.roles.items()},
            states=sorted(state.value for state in rule.states),
            needs_control=rule.needs_control,
        )
        for rule in RULES.values()
    ]


@router.post(
    "/api/rooms/{room}/commands",
    responses={**errors(400, 401, 404), **_ANSWERS},
    response_model=AnswerView,
    summary="Send a command",
)
async def command(room: RoomName, body: CommandBody, key: Key, request: Request, session: Doer, hub: HubOf) -> Response:
    """Executed once for each Idempotency-Key of a console. Who sends it, and as what, comes from the sign-in."""
    link = hub.link(room)
    if body.name == "import_plan":
        raise Refused(422, "a plan is sent as a file, not as a command", "POST /api/plans")
    finite(body)
    dispatch: Dispatch = request.app.state.dispatch[link.room]
    answer = await dispatch.command(session, body, key, request.state.came_s)
    hub.metrics.count_command(link.room, body.name, answer.accepted)
    return _answered(answer)


@router.post("/api/rooms/{room}/stop", responses={404: errors()[422], 503: _ANSWERS[503]}, summary="Stop", tags=["stop"])
async def stop(room: RoomName) -> AnswerView:
    """Beam off, motion off. No sign-in, no body, no key, no limit: it is taken in front of everything else."""
    raise Refused(404, f"no room {room!r} is treated in here")  # what is treated in was answered by the guard


@router.get("/api/plans", responses=errors(401, 409, 503, 504), summary="Plans that the facility holds")
async def plans(_session: Reader, hub: HubOf) -> list[PlanView]:
    """With what speaks against each, room by room."""
    return [PlanView.model_validate(plan) for plan in await hub.ask(hub.any_link(), "plans")]


@router.get("/api/plans/{plan_id}", responses=errors(401, 404, 409, 503, 504), summary="One plan")
async def plan(plan_id: PlanId, _session: Reader, hub: HubOf) -> PlanView:
    """By its id."""
    return PlanView.model_validate(await hub.ask(hub.any_link(), "plan", {"id": plan_id}))


@router.post(
    "/api/plans",
    responses={**errors(401, 404, 507), **_ANSWERS},
    response_model=AnswerView,
    summary="Bring a plan in",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "An RT Ion Plan or a raster file as it is. What begins as a packed file does is refused (415): "
            f"{', '.join(_KINDS)}.",
            "content": {kind: {"schema": {"type": "string", "format": "binary", "minLength": 1}} for kind in TYPES},
        }
    },
)
async def bring_plan(
    request: Request,
    session: Doer,
    hub: HubOf,
    x_file_name: FileName = None,
    room: Annotated[str | None, Query(max_length=64, description="whose process reads it; default: any")] = None,
) -> Response:
    """The bytes of the file as the body, up to 64 MiB, not compressed. A room's process reads, judges and files it."""
    check_type(request.headers.get("content-type"))
    link = hub.link(room) if room is not None else hub.any_link()
    uploads: Uploads = request.app.state.uploads
    async with uploads.receive(request.stream(), x_file_name or "", request.headers.get("content-length")) as upload:
        arguments: dict[str, object] = {"file": upload.path.name, "name": upload.name}
        dispatch: Dispatch = request.app.state.dispatch[link.room]
        # The person acted when the file had come whole: sending it may take longer than a command may be old.
        answer = await dispatch.once(session, "import_plan", arguments)
    return _answered(answer)


def _answered(answer: AnswerView) -> Response:
    return Response(answer.model_dump_json(), status_of(answer), media_type="application/json")


def _rooms(hub: Hub) -> list[RoomSummary]:
    return [_summary(hub, name) for name in hub.facility.rooms]


def _summary(hub: Hub, name: str) -> RoomSummary:
    room, link = hub.facility.rooms[name], hub.links.get(name)
    plain = RoomSummary(
        name=name,
        kind=room.kind,
        machine_names=list(room.machine_names),
        ports_deg=list(room.ports_deg),
        served=link is not None,
        connected=link is not None and link.connected,
    )
    if link is None or not link.connected or link.last_view is None:
        return plain
    view = shown(hub, name)
    treatment, control, age_s = view["treatment"], view["control"], link.view_age_s
    return plain.model_copy(
        update={
            "state": view["state"],
            "mode": view["mode"],
            "banners": view["banners"],
            "patient_name": treatment["patient_name"] if treatment is not None else None,
            "control": control["console"] if control is not None else None,
            "view_age_ms": round(1000.0 * age_s, 1) if age_s is not None else None,
        }
    )
