"""What a room shows, live, over a WebSocket: the room's own bytes, the same for every client.

A client signs in with its first message. One that does not keep up gets the newest view and is told how many lines it lost; one
that reads nothing at all is closed. Heartbeats of the commanding console go on to the room. Not responsible for commands
(`api_rooms`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from controller.console.api_models import ConsoleName
from controller.console.hub import Hub
from controller.console.limits import Buckets
from controller.console.outbox import Outbox
from controller.console.refused import Refused
from controller.console.room_link import ROOM_GONE, RoomLink, trouble_line
from controller.console.tokens import Session

HELLO_S = 5.0
STUCK_S = 10.0  # a client that takes nothing for so long is closed; assumed
STREAMS_MAX, STREAMS_OF_ONE_MAX = 100, 8
MESSAGE_CHARS_MAX = 4_096
MESSAGES_PER_S, MESSAGES_BURST = 30.0, 60.0  # heartbeats come three times a second
LINES_MAX, BYTES_MAX = 1_000, 8 * 1024 * 1024
CHECK_S = 1.0
NOT_SIGNED_IN, NO_ROOM, TOO_SLOW, TOO_MANY, NOT_OURS = 4401, 4404, 4408, 4429, 4400


class _Hello(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    kind: str = Field(pattern="^hello$")
    token: str = Field(min_length=1, max_length=128, repr=False)
    console: ConsoleName


class _Closed(Exception):
    """The stream ends, with a code and words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


async def stream(websocket: WebSocket, hub: Hub, room: str) -> None:
    """Serve one client until it leaves, its sign-in ends, or it does not read."""
    await websocket.accept()
    try:
        link = hub.links.get(room)
        if link is None:
            raise _Closed(NO_ROOM, f"rooms: {', '.join(hub.links)}")
        if hub.streams.total() >= STREAMS_MAX:
            raise _Closed(TOO_MANY, f"{STREAMS_MAX} clients listen already")
        hub.streams[room] += 1
        try:
            await _serve(websocket, hub, link)
        finally:
            hub.streams[room] -= 1
    except _Closed as closed:
        with contextlib.suppress(Exception):  # whoever is gone needs no reason
            async with asyncio.timeout(CHECK_S):
                await websocket.close(closed.code, closed.reason[:120])
    except WebSocketDisconnect:
        pass


async def _serve(websocket: WebSocket, hub: Hub, link: RoomLink) -> None:
    session = await _signed_in(websocket, hub)
    if session.streams >= STREAMS_OF_ONE_MAX:
        raise _Closed(TOO_MANY, f"{STREAMS_OF_ONE_MAX} streams of this sign-in are open")
    outbox = Outbox(LINES_MAX, BYTES_MAX)
    outbox.put(_line(kind="welcome", name=session.name, role=session.role.value, console=session.console))
    if link.connected:
        outbox.put(_line(**link.hello))
        for line in link.spots_lines:
            outbox.put(line)
        if link.last_line is not None:
            outbox.put_view(link.last_line)
    else:
        outbox.put(_line(kind="link", connected=False))
        outbox.put(trouble_line(ROOM_GONE))

    def pass_on(kind: str, line: bytes) -> None:
        if kind == "view":
            outbox.put_view(line)
        else:
            outbox.put(line)

    forget = link.subscribe(pass_on)
    session.streams += 1
    tasks = [
        asyncio.create_task(_send(websocket, outbox), name="stream-send"),
        asyncio.create_task(_receive(websocket, hub, link, session), name="stream-receive"),
        asyncio.create_task(_while_signed_in(hub, session), name="stream-session"),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        forget()
        session.streams -= 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _signed_in(websocket: WebSocket, hub: Hub) -> Session:
    try:
        async with asyncio.timeout(HELLO_S):
            text = await websocket.receive_text()
    except TimeoutError:
        raise _Closed(TOO_SLOW, f"no hello within {HELLO_S:g} s") from None
    except KeyError:
        raise _Closed(NOT_OURS, "messages are text") from None
    try:
        hello = _Hello.model_validate_json(text[:MESSAGE_CHARS_MAX])
        peer = websocket.client.host if websocket.client is not None else "?"
        return hub.tokens.find(hello.token, hello.console, peer)
    except ValidationError:
        raise _Closed(NOT_OURS, 'expected {"kind":"hello","token":TOKEN,"console":NAME}') from None
    except Refused as refused:
        raise _Closed(NOT_SIGNED_IN, refused.reason) from None


async def _send(websocket: WebSocket, outbox: Outbox) -> None:
    while True:
        await outbox.wait()
        for line in outbox.take():
            try:
                async with asyncio.timeout(STUCK_S):
                    await websocket.send_text(line.decode())
            except TimeoutError:
                raise _Closed(TOO_SLOW, f"nothing was read for {STUCK_S:g} s") from None


async def _receive(websocket: WebSocket, hub: Hub, link: RoomLink, session: Session) -> None:
    bucket = Buckets(MESSAGES_PER_S, MESSAGES_BURST, asyncio.get_running_loop().time)
    while True:
        try:
            text = await websocket.receive_text()
        except KeyError:
            raise _Closed(NOT_OURS, "messages are text") from None
        if bucket.take("") > 0.0:
            raise _Closed(TOO_MANY, f"more than {MESSAGES_PER_S:g} messages a second")
        message = _object(text)
        if message.get("kind") != "heartbeat":
            raise _Closed(NOT_OURS, "after hello a client sends heartbeats only; commands are POSTed")
        given = message.get("control_token", session.control_tokens.get(link.room, 0))
        if not isinstance(given, int):
            raise _Closed(NOT_OURS, "control_token is a whole number")
        if hub.tokens.alive(session) and given:
            session.used_s = asyncio.get_running_loop().time()  # somebody commands: the sign-in is in use
            link.heartbeat(session.console, given)


async def _while_signed_in(hub: Hub, session: Session) -> None:
    ended = asyncio.Event()
    forget = session.when_ended(ended.set)
    try:
        while hub.tokens.alive(session):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), CHECK_S)
    finally:
        forget()
    raise _Closed(NOT_SIGNED_IN, session.ended)


def _object(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text) if len(text) <= MESSAGE_CHARS_MAX else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _Closed(NOT_OURS, "a message is a JSON object")
    return message


def _line(**message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()
