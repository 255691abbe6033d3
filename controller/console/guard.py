"""The door of the console process: what every request passes, and stop passes by.

In this order: stop; the host it was meant for (on the loopback, against names that are made to point there); who asks; how
often; what it carries. Nothing but stop is accepted by default: below `/api` only a sign-in needs no token. Every answer gets
the headers that keep a browser from loading or being embedded elsewhere. Not responsible for what a request does (`api`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from controller.console.hub import Hub
from controller.console.refused import Refused, too_many, unauthorized
from controller.console.stops import StopLane
from controller.console.tokens import Session
from controller.roles import Role

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 64 * 1024
BODY_S = 10.0
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_STOP = re.compile(r"/api/rooms/([^/]{1,64})/stop")
_OPEN = frozenset({"/api/login"})
_UPLOAD = "/api/plans"
_CONTENT_POLICY = (
    "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'; img-src 'self' data:"
)
_HEADERS = [
    (b"content-security-policy", _CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]
_STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
_log = logging.getLogger("iongantry.console")


class Guard:
    """ASGI application around another one. Made inside the running loop."""

    def __init__(self, inner: ASGIApp, hub: Hub) -> None:
        self._inner = inner
        self._hub = hub
        self._stops = {room: StopLane(link) for room, link in hub.links.items()}
        self._headers = [*_HEADERS, *([_STRICT_TRANSPORT] if hub.exposure.remote else [])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        headers = _headers_of(scope)
        if scope["type"] == "http":
            stop = _STOP.fullmatch(scope["path"]) if scope["method"] == "POST" else None
            if stop is not None:
                await self._stop(stop[1], headers, _peer(scope), send)
            else:
                await self._http(scope, headers, receive, send)
        elif scope["type"] == "websocket":
            try:
                self._meant_for_us(headers, scope)
            except Refused as refused:
                await receive()
                await send({"type": "websocket.close", "code": 4403, "reason": refused.reason[:120]})
                return
            await self._inner(scope, receive, send)

    # --- stop -------------------------------------------------------------------------------------------------------------

    async def _stop(self, room: str, headers: dict[str, str], peer: str, send: Send) -> None:
        """No body is read, no key and no sign-in is asked for. A token that happens to be there names who it was."""
        lane = self._stops.get(room)
        if lane is None:
            refused = Refused(404, f"no room {room!r} is treated in here", f"rooms: {', '.join(self._stops)}")
            await self._refuse(refused, send)
            return
        self._hub.count("stops")
        actor, role, console = "anybody", Role.OBSERVER, f"http {peer}"
        try:
            session = self._session(headers, peer)
            actor, role, console = session.name, session.role, session.console
        except Refused:
            pass  # whoever it is
        answer = await lane.stop(actor, role, console)
        await _answer(send, 200 if answer.accepted else 503, answer.model_dump_json().encode(), self._headers)

    # --- everything else --------------------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        started = False

        async def outward(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = list(message.get("headers", []))
                said = {name.lower() for name, _value in own}
                message["headers"] = [*own, *(header for header in self._headers if header[0] not in said)]
                self._hub.count(f"http {message['status']}")
            await send(message)

        try:
            self._admit(scope, headers)
            inward = receive if _is_upload(scope) else await _whole_body(headers, receive)
            await self._inner(scope, inward, outward)
        except Refused as refused:
            if not started:
                await self._refuse(refused, send)
        except ClientDisconnect:  # in the middle of a plan: nothing of it is kept, and nobody is there to be told
            self._hub.count("left in the middle")
        except Exception as error:  # noqa: BLE001 - named in the log without its words, which might hold a secret
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else "?"
            _log.error("fault of the program at %s: %s, in %s %s", place, type(error).__name__, scope["method"], scope["path"])
            self._hub.count("faults")
            if not started:
                await self._refuse(Refused(500, "fault of the program", "look at the log of the console process"), send)

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        """Raises Refused: 401, 415, 421, 429."""
        scope.setdefault("state", {})["came_s"] = asyncio.get_running_loop().time()
        self._meant_for_us(headers, scope)
        path, peer = scope["path"], _peer(scope)
        session, refused = None, None
        if "authorization" in headers:
            try:
                session = self._session(headers, peer, method=scope["method"])
            except Refused as why:
                refused = why
        wait_s = (
            self._hub.by_person.take(f"{session.name}@{session.console}")
            if session is not None
            else self._hub.by_peer.take(peer)
        )
        if wait_s > 0.0:
            raise too_many("too many requests", wait_s)
        if session is None and self._needs_token(path):
            raise refused or unauthorized("this needs a sign-in", "POST /api/login, then send the token as Bearer")
        scope["state"]["session"] = session
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Refused(415, "bodies are taken as they are, not compressed", "send it without Content-Encoding")

    def _needs_token(self, path: str) -> bool:
        if path in _OPEN:
            return False
        return path == "/api" or path.startswith("/api/") or (self._hub.exposure.remote and path == "/metrics")

    def _session(self, headers: dict[str, str], peer: str, method: str = "GET") -> Session:
        """Raises Refused 401."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("this needs a sign-in", "POST /api/login, then send the token as Bearer")
        console = headers.get("x-console")
        if console is None and method not in ("GET", "HEAD", "OPTIONS"):
            raise unauthorized("the request does not say its console", "send the header X-Console, as at the sign-in")
        return self._hub.tokens.find(token.strip(), console, peer)

    def _meant_for_us(self, headers: dict[str, str], scope: Scope) -> None:
        """A browser that was led here by another name, or comes from another site, is not served. Raises Refused 421, 403."""
        host = headers.get("host", "")
        if not self._hub.exposure.remote and _without_port(host) not in LOOPBACK_NAMES:
            raise Refused(421, "this console answers on the loopback only, under 127.0.0.1 or localhost", "use that address")
        origin = headers.get("origin")
        if origin is not None and scope["type"] == "websocket" and urlsplit(origin).netloc != host:
            raise Refused(403, "a page of another site may not listen here", "open the console's own page")

    async def _refuse(self, refused: Refused, send: Send) -> None:
        self._hub.count(f"http {refused.status}")
        more = [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
        await _answer(send, refused.status, refused.body, [*more, *self._headers])


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})


async def _whole_body(headers: dict[str, str], receive: Receive) -> Receive:
    """The body, read before anything is done with it. Raises Refused: 408, 413; ClientDisconnect: it did not come whole."""
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or int(declared[:20]) > BODY_BYTES:
        raise Refused(413, f"a body has at most {BODY_BYTES} bytes", "plans go to POST /api/plans")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":  # part of a command is not to be acted on, even if it can be read
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > BODY_BYTES:
                    raise Refused(413, f"a body has at most {BODY_BYTES} bytes", "plans go to POST /api/plans")
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise Refused(408, f"the body did not come within {BODY_S:g} s", "send it again") from None
    handed_over = False

    async def replay() -> dict[str, Any]:
        nonlocal handed_over
        if handed_over:
            return dict(await receive())
        handed_over = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return replay


def _headers_of(scope: Scope) -> dict[str, str]:
    """Of those that matter there is one; a second one does not replace it."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found


def _is_upload(scope: Scope) -> bool:
    return bool(scope["method"] == "POST" and scope["path"] == _UPLOAD)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "?"


def _without_port(host: str) -> str:
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdigit() else host.strip().lower()
