"""A client of the console's interface: signs in, follows a room's stream, sends commands, stops.

Stop has a line of its own and needs nothing else: no sign-in, no stream, no free line of the other requests. Nothing is sent
twice by itself but stop; what became of a command whose answer is lost is said to be unknown. The heartbeats that keep the room
commanded are sent by the loop that draws: a terminal that hangs lets go of the room. Not responsible for showing (`watch_app`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import websockets

from drivers.hal.errors import CommandRejected, CommunicationError, ConfigError

REQUEST_S = 20.0  # a command may take as long as a self-test
STOP_S, STOP_TRIES = 2.0, 3
HEARTBEAT_S = 0.25  # at least three a second are asked for
LEAVE_S = 2.0
KEEP_S = 2.0  # the console lets an idle line go after 5 s (uvicorn); who lets go later sends a command into a line that closes
RETRY_FIRST_S, RETRY_MAX_S = 0.2, 3.0
STALE_S = 1.0  # views come ten times a second
EVENTS_KEPT = 500
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
SIGNED_OUT = 4401  # code with which the console closes a stream whose sign-in has ended

Json = dict[str, Any]


@dataclass(slots=True)
class Told:
    """What became of something that was asked for."""

    accepted: bool
    reason: str = ""
    hint: str = ""
    value: Any = None

    def __str__(self) -> str:
        return self.reason + (f"; {self.hint}" if self.hint else "")


@dataclass(slots=True)
class Shown:
    """What is known of the room.

    Attributes:
        view: the last `RoomView`; None before the first.
        at_s: loop time at which it came.
        events: the latest, oldest first.
        linked: whether the room's process is there, as the console says.
        trouble: why the room is not shown, as the console or the room says; empty once it is.
    """

    view: Json | None = None
    at_s: float = 0.0
    events: deque[Json] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    linked: bool = True
    trouble: str = ""


class WatchClient:
    """One terminal.

    Args:
        url: of the console, for example ``"http://127.0.0.1:8080"``.
        ca: PEM file of who has signed the console's certificate; None: the system's own.
        changed: called in the loop when there is something new to show.

    Attributes:
        room: followed; empty until one is chosen.
        shown: of that room.
        name, role: of who is signed in; empty: nobody.
        ended: why nobody is signed in any more.
        trouble: why the stream is not there; empty while it is.
    """

    def __init__(self, url: str, ca: Path | None = None, changed: Callable[[], None] = lambda: None) -> None:
        self.room = ""
        self.console = f"watch-{secrets.token_hex(4)}"
        self.shown = Shown()
        self.name, self.role, self.ended, self.trouble = "", "", "", ""
        self.changed = changed
        self._url = url.rstrip("/")
        self._tls = _trust(self._url, ca)
        self._http = self._client(REQUEST_S)
        self._stops = self._client(STOP_S)
        self._token = ""
        self._control_token = 0
        self._stream: asyncio.Task[None] | None = None

    # --- what is known ----------------------------------------------------------------------------------------------------

    @property
    def signed_in(self) -> bool:
        """Whether somebody is, as far as is known."""
        return bool(self._token)

    @property
    def in_control(self) -> bool:
        """Whether this terminal commands the room, as the room shows it."""
        control = (self.shown.view or {}).get("control") or {}
        return bool(self._control_token) and control.get("console") == self.console

    @property
    def stale(self) -> bool:
        """Whether what is shown may no longer be so."""
        age_s = asyncio.get_running_loop().time() - self.shown.at_s
        return self.shown.view is None or not self.shown.linked or bool(self.trouble) or age_s > STALE_S

    # --- people -----------------------------------------------------------------------------------------------------------

    async def sign_in(self, name: str, password: str, role: str | None = None) -> Told:
        """Sign in, and follow the room if one is chosen."""
        await self.sign_out()
        body = {"name": name, "password": password, "console": self.console} | ({"role": role} if role else {})
        told = await self._asked("POST", "/api/login", body)
        if told.accepted:
            self._token, self.name, self.role = told.value["token"], told.value["name"], told.value["role"]
            self.ended = ""
            if self.room:
                self.follow(self.room)
        return told

    async def sign_out(self) -> None:
        """Nobody is signed in here any more."""
        await self._unfollow()
        if self._token:
            await self._asked("POST", "/api/logout")
        self._forget("signed out")

    async def stay(self) -> None:
        """Somebody is here: the sign-in lives on."""
        if self._token:
            await self._asked("GET", "/api/me")

    # --- what is asked ----------------------------------------------------------------------------------------------------

    async def health(self) -> Told:
        """Whether the console is well, and which rooms it serves; for everybody."""
        return await self._asked("GET", "/health")

    async def view(self, room: str) -> Told:
        """One view of a room; `value` is that."""
        return await self._asked("GET", f"/api/rooms/{room}")

    async def plans(self) -> Told:
        """Plans of the facility; `value` is their list."""
        return await self._asked("GET", "/api/plans")

    async def command(self, name: str, arguments: Mapping[str, Any] | None = None, *, acted_s: float | None = None) -> Told:
        """Send a command, once.

        Args:
            name, arguments: see the console's interface document (`/openapi.json`).
            acted_s: loop time at which the person acted; default: now.
        """
        if self.shown.view is None:
            return Told(False, "nothing is known of the room yet", "wait until it is shown")
        now_s = asyncio.get_running_loop().time()
        body = {
            "name": name,
            "arguments": dict(arguments or {}),
            "control_token": self._control_token,
            "boot_id": self.shown.view["boot_id"],
            "age_ms": 0.0 if acted_s is None else max(0.0, 1e3 * (now_s - acted_s)),
        }
        key = {"Idempotency-Key": secrets.token_hex(12)}
        told = await self._asked("POST", f"/api/rooms/{self.room}/commands", body, key)
        if told.accepted and name == "take_control" and isinstance(told.value, int):
            self._control_token = told.value
        elif told.accepted and name == "give_control":
            self._control_token = 0
        return told

    async def stop(self) -> Told:
        """Beam off, motion off. Whoever is signed in or not; tried again at once when nobody answers."""
        told = Told(False, "no room is chosen", "press the emergency stop")
        for _ in range(STOP_TRIES if self.room else 0):
            try:
                answer = await self._stops.post(f"/api/rooms/{self.room}/stop", headers=self._headers)
                told = _told(answer)
            except httpx.HTTPError as error:
                told = Told(False, f"the console does not answer ({type(error).__name__})")
            if told.accepted:
                return told
        return Told(False, f"STOP IS NOT CONFIRMED: {told.reason}", told.hint or "press the emergency stop")

    # --- the stream -------------------------------------------------------------------------------------------------------

    def follow(self, room: str) -> None:
        """Show this room from now on."""
        if room != self.room:
            self.shown, self._control_token = Shown(), 0
        self.room = room
        if self._stream is not None:
            self._stream.cancel()
        self._stream = asyncio.create_task(self._run(room), name=f"watch-{room}")

    async def close(self) -> None:
        """Sign out, as far as the console answers within `LEAVE_S`, and let go of everything."""
        try:
            with contextlib.suppress(httpx.HTTPError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self.sign_out()
        finally:
            await self._unfollow()
            await self._http.aclose()
            await self._stops.aclose()

    async def _unfollow(self) -> None:
        task, self._stream = self._stream, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, room: str) -> None:
        pause_s = RETRY_FIRST_S
        while self._token:
            began_s = asyncio.get_running_loop().time()
            try:
                await self._listen(room)
            except websockets.ConnectionClosed as closed:
                code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (0, "the line was lost")
                self.trouble = f"the console hung up: {reason or f'closed with {code}'}"
                if code == SIGNED_OUT:
                    self._forget(reason)
            except (OSError, websockets.WebSocketException, TimeoutError, ValueError) as error:
                self.trouble = f"the console is not reached: {str(error) or type(error).__name__}"
            self.changed()
            if asyncio.get_running_loop().time() - began_s > RETRY_MAX_S:
                pause_s = RETRY_FIRST_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _listen(self, room: str) -> None:
        url = f"ws{self._url.removeprefix('http')}/api/rooms/{room}/stream"
        options: Json = {"ssl": self._tls} if self._tls is not None else {}
        async with websockets.connect(
            url, max_size=MESSAGE_BYTES_MAX, compression=None, proxy=None, open_timeout=REQUEST_S, close_timeout=1.0, **options
        ) as line:
            await line.send(json.dumps({"kind": "hello", "token": self._token, "console": self.console}))
            beating = asyncio.create_task(self._beat(line), name="watch-heartbeat")
            try:
                async for text in line:
                    self._take(json.loads(text))
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, line: websockets.ClientConnection) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._control_token:
                await line.send(json.dumps({"kind": "heartbeat", "control_token": self._control_token}))

    def _take(self, message: Json) -> None:
        kind = message.get("kind")
        self.trouble = ""
        if kind == "view":
            self.shown.view, self.shown.at_s, self.shown.linked = message["view"], asyncio.get_running_loop().time(), True
            self.shown.trouble = ""
        elif kind == "event":
            self.shown.events.append(message["event"])
        elif kind == "link":
            self.shown.linked = bool(message.get("connected"))
        elif kind == "trouble":
            self.shown.trouble = str(message.get("reason", ""))
        else:
            return
        self.changed()

    # --- requests ---------------------------------------------------------------------------------------------------------

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        verify: ssl.SSLContext | bool = self._tls if self._tls is not None else True
        limits = httpx.Limits(keepalive_expiry=KEEP_S)
        return httpx.AsyncClient(base_url=self._url, timeout=timeout_s, trust_env=False, verify=verify, limits=limits)

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}", "X-Console": self.console} if self._token else {}

    async def _asked(self, method: str, path: str, body: Any = None, more: Mapping[str, str] | None = None) -> Told:
        try:
            answer = await self._http.request(method, path, json=body, headers={**self._headers, **(more or {})})
        except httpx.ConnectError:
            return Told(False, f"no console at {self._url}", "is it started? its address is in STATE/run/console.json")
        except httpx.HTTPError as error:
            reason = f"no answer from the console ({type(error).__name__})"
            return Told(False, reason, "what became of it is not known: look at the room")
        told = _told(answer)
        if answer.status_code == httpx.codes.UNAUTHORIZED and path != "/api/login":
            self._forget(told.reason)
        return told

    def _forget(self, why: str) -> None:
        """Nobody is signed in any more."""
        if self._token:
            self.ended = why
        self._token, self._control_token, self.name, self.role = "", 0, "", ""
        self.changed()


def console_url(url: str, state: Path | None) -> str:
    """Where the console is: as said, or as it has written into the state directory. Raises ConfigError."""
    if url:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no address of a console", code=1091, hint="for example http://127.0.0.1:8080")
        return url
    path = (state or Path("run/state")) / "run" / "console.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        hint = "start `iongantry serve` with this --state, or give --url"
        raise ConfigError(f"no console has written its address to {path}", code=1092, hint=hint) from None


async def chosen_room(client: WatchClient, room: str) -> str:
    """The room that was asked for, or the only one that is served. Needs no sign-in.

    Raises:
        CommunicationError: no console answers (2071).
        CommandRejected: it is not served here, or several are and none was named (4471).
    """
    told = await client.health()
    if not told.accepted:
        raise CommunicationError(told.reason, code=2071, hint=told.hint, retryable=True)
    served = list(told.value["rooms"])
    if room in served:
        return room
    if room or len(served) != 1:
        said = f"no room {room} is served" if room else "which room?"
        raise CommandRejected(f"{said}; served: {', '.join(served) or 'none'}", code=4471, hint="give --room")
    return str(served[0])


def _told(answer: httpx.Response) -> Told:
    """An answer, an error, or whatever else came in its place."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    good = answer.status_code == httpx.codes.OK
    if isinstance(content, dict) and "accepted" in content:
        reason, hint = str(content.get("reason") or ""), str(content.get("hint") or "")
        return Told(bool(content["accepted"]), reason, hint, content.get("value"))
    if good:
        return Told(True, value=content)
    if isinstance(content, dict) and "reason" in content:
        return Told(False, str(content["reason"]), str(content.get("hint") or ""))
    return Told(False, f"the console answered with HTTP {answer.status_code}", "see the log of the console process")


def _trust(url: str, ca: Path | None) -> ssl.SSLContext | None:
    if not url.startswith("https://"):
        return None
    try:
        return ssl.create_default_context(cafile=str(ca) if ca is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca} cannot be read as certificates: {error}", code=1093, hint="a PEM file") from None
