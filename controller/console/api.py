"""The console's application: routes, the page, the stream, and the door in front of them.

Not responsible for sockets, TLS and signals (`process`) nor for what is behind the routes.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from controller.console import api_people, api_records, api_rooms
from controller.console.dispatch import Dispatch
from controller.console.guard import Guard
from controller.console.hub import Hub
from controller.console.page_files import PageFiles
from controller.console.refused import Refused
from controller.console.stream import stream
from controller.console.uploads import Uploads

if TYPE_CHECKING:
    from starlette.types import ASGIApp

PAGE = Path(__file__).parent / "page"
HISTORY_AT_ONCE = 2
TITLE = "iongantry operator console"
ABOUT = (
    "Commands are typed values that the room judges. Stop is always accepted; nothing else is by default. Sign in with "
    "`POST /api/login`, send the token as `Authorization: Bearer` and the console's name as `X-Console`. The stream of a room "
    "is a WebSocket at `/api/rooms/{room}/stream`; see docs/console-api.md."
)


def make_app(hub: Hub, page: Path = PAGE) -> ASGIApp:
    """The whole application with its door. Called inside the running loop, once for each hub.

    Args:
        hub: started and closed by its owner.
        page: directory of the page's files.
    """
    return Guard(make_inner(hub, page), hub)


def make_inner(hub: Hub, page: Path = PAGE) -> FastAPI:
    """The application behind the door; for its interface document."""
    app = FastAPI(
        title=TITLE,
        version=version("iongantry"),
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.hub = hub
    app.state.uploads = Uploads(hub.state)
    app.state.uploads.clear()
    app.state.dispatch = {room: Dispatch(link) for room, link in hub.links.items()}
    app.state.history_at_once = asyncio.Semaphore(HISTORY_AT_ONCE)
    for routes in (api_people.router, api_rooms.router, api_records.router, api_records.of_process):
        app.include_router(routes)
    _mount_page(app, PageFiles(page))

    @app.websocket("/api/rooms/{room}/stream")
    async def room_stream(websocket: WebSocket, room: str) -> None:
        await stream(websocket, hub, room)

    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _not_there)
    return app


def _mount_page(app: FastAPI, files: PageFiles) -> None:
    def give(request: Request, name: str) -> Response:
        found = files.get(name)
        if found is None:
            raise Refused(404, f"the page has no file {name!r}")
        headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.type, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return give(request, "index.html")

    @app.get("/page/{name:path}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        return give(request, name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> Response:
        return give(request, "icon.svg")


async def _refused(_request: Request, error: Exception) -> Response:
    refused = error if isinstance(error, Refused) else Refused(500, "fault of the program")
    return Response(refused.body, refused.status, refused.headers, "application/json")


async def _malformed(_request: Request, error: Exception) -> Response:
    """What is wrong and where; never the value, which may be a password."""
    found: list[Any] = list(error.errors()) if isinstance(error, RequestValidationError) else []
    parts = [f"{'.'.join(str(step) for step in part['loc'])}: {part['msg']}" for part in found[:8]]
    refused = Refused(422, "; ".join(parts) or "not well formed", "see /openapi.json")
    return Response(refused.body, refused.status, media_type="application/json")


async def _not_there(_request: Request, error: Exception) -> Response:
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    words = {404: "there is nothing of this name", 405: "not with this method"}.get(status, "the request could not be read")
    refused = Refused(status, words, "see /openapi.json", headers=headers)
    return Response(refused.body, refused.status, refused.headers, "application/json")
