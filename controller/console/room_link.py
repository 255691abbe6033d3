"""The console's end of the line to a room: finds the room's process again when it is lost, matches answers to what was asked.

A command is sent now or not at all: nothing waits for a line that is down, and after a loss it is said that the outcome is not
known. Stop alone tries a line of its own when this one is down. Not responsible for who may command what, nor for encoding what
a room shows: those bytes are passed on as they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from controller.console.link import LINE_BYTES_MAX, FromConsole
from controller.console.views import AnswerView
from drivers.hal.errors import CommunicationError, DataError

RETRY_FIRST_S, RETRY_MAX_S = 0.05, 2.0
HELLO_S = 5.0
SILENT_S = 5.0  # a room shows itself ten times a second: so long a silence is a line that is dead
QUIET_S = 1.0  # as the page judges: then the view is old, and whoever shows it should say whose fault that is
ROOM_GONE = "the room's process is not there; the console is"
ROOM_QUIET = "the room's process says nothing; the console is there"
ANSWER_S = 20.0  # a self-test takes seconds; assumed
STOP_S = 2.0
BUFFER_BYTES_MAX = 1024 * 1024  # what may wait to be sent to a room that does not read
LAYERS_MAX = 400  # of one beam; more than any plan has

Listener = Callable[[str, bytes], None]
_KIND = re.compile(rb'\{"kind": ?"([a-z]+)"')
_VIEW_HEAD, _VIEW_TAIL = b'{"kind":"view","view":', b"}"
_ANSWER = TypeAdapter(AnswerView)


class RoomLink:
    """One per room.

    Args:
        room: name, for messages until the room has said hello.
        path: of the room's socket.
        clock_ns: the computer's monotonic clock, the same in every process of it.
    """

    def __init__(self, room: str, path: Path, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.room = room
        self.path = path
        self.hello: dict[str, Any] = {}
        self.last_line: bytes | None = None
        self.losses = 0
        self.boots_seen = 0
        self._clock_ns = clock_ns
        self._view_at_s = self._heard_at_s = 0.0
        self._writer: asyncio.StreamWriter | None = None
        self._listeners: list[Listener] = []
        self._waiting: dict[int, asyncio.Future[AnswerView]] = {}
        self._last_id = 0
        self._layers: dict[tuple[int, int, int], bytes] = {}
        self._running: asyncio.Task[None] | None = None
        self._up = asyncio.Event()

    # --- what is known ----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the room has said hello on this line."""
        return self._up.is_set()

    @property
    def boot_id(self) -> int:
        """Of the room's process, as it said last; 0 before."""
        return int(self.hello.get("boot_id", 0))

    @property
    def last_view(self) -> bytes | None:
        """The last `RoomView`, JSON, as the room encoded it; None before the first."""
        return None if self.last_line is None else self.last_line[len(_VIEW_HEAD) : -len(_VIEW_TAIL)]

    @property
    def view_age_s(self) -> float | None:
        """Since the last view, s of the wall clock."""
        return None if self.last_line is None else asyncio.get_running_loop().time() - self._view_at_s

    @property
    def spots_lines(self) -> list[bytes]:
        """The layers of the current beam, for a client that has just come."""
        return list(self._layers.values())

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """`listener(kind, line)` for every line but answers; kinds `link` and `trouble` when the line is lost, `trouble` when
        nothing comes on it. Returns the removal."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    # --- life -------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to look for the room; returns at once."""
        self._running = asyncio.create_task(self._run(), name=f"link-{self.room}")

    async def wait_connected(self, limit_s: float) -> bool:
        """Whether the room is there within `limit_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._up.wait(), limit_s)
        return self.connected

    async def close(self) -> None:
        """Hang up for good."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self.path, limit=LINE_BYTES_MAX + 1)
            except OSError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                continue
            try:
                await self._listen(reader, writer)
            except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass  # gone, silent, or it talks what no room of ours talks: hang up, come again
            finally:
                greeted = self.connected
                self._lost()
                writer.transport.abort()
            pause_s = RETRY_FIRST_S if greeted else min(2 * pause_s, RETRY_MAX_S)
            await asyncio.sleep(pause_s)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HELLO_S):
            kind, line = _parted(await reader.readuntil(b"\n"))
        if kind != "hello":
            raise ValueError("a room says hello first")
        hello = json.loads(line)
        if not isinstance(hello.get("boot_id"), int):
            raise ValueError("a room says which boot it is")
        if hello["boot_id"] != self.boot_id:
            self.boots_seen += 1
            self.last_line = None
        self.hello = hello
        self.room = str(hello.get("room", self.room))
        self._layers.clear()
        self._writer = writer
        self._up.set()
        self._tell(kind, line)
        self._heard_at_s = asyncio.get_running_loop().time()
        noticing = asyncio.create_task(self._notice_silence(), name=f"silence-{self.room}")
        try:
            await self._take_lines(reader)
        finally:
            noticing.cancel()
            await asyncio.gather(noticing, return_exceptions=True)

    async def _notice_silence(self) -> None:
        """Say once that nothing comes; the next view takes it back."""
        told = False
        while True:
            await asyncio.sleep(QUIET_S / 4)
            quiet = asyncio.get_running_loop().time() - self._heard_at_s > QUIET_S
            if quiet and not told:
                self._tell("trouble", trouble_line(ROOM_QUIET))
            told = quiet

    async def _take_lines(self, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(SILENT_S):
                raw = await reader.readuntil(b"\n")
            self._heard_at_s = asyncio.get_running_loop().time()
            kind, line = _parted(raw)
            if kind == "answer":
                self._answered(line)
                continue
            if kind == "view":
                if not line.startswith(_VIEW_HEAD):
                    raise ValueError("no view of ours")
                self.last_line = line
                self._view_at_s = asyncio.get_running_loop().time()
            elif kind == "spots":
                self._keep_layer(line)
            self._tell(kind, line)

    def _lost(self) -> None:
        if not self.connected:
            return
        self.losses += 1
        self._up.clear()
        self._writer = None
        for promise in self._waiting.values():
            if not promise.done():
                promise.set_exception(self._unknown("the line to the room was lost before it answered"))
        self._waiting.clear()
        self._tell("link", b'{"kind":"link","connected":false}')
        self._tell("trouble", trouble_line(ROOM_GONE))

    def _tell(self, kind: str, line: bytes) -> None:
        for listener in tuple(self._listeners):
            listener(kind, line)

    def _keep_layer(self, line: bytes) -> None:
        spots = json.loads(line)["spots"]
        beam = int(spots["beam_number"])
        if self._layers and next(iter(self._layers))[0] != beam:
            self._layers.clear()
        self._layers[(beam, int(spots["layer_index"]), int(spots["painting"]))] = line
        while len(self._layers) > LAYERS_MAX:
            del self._layers[next(iter(self._layers))]

    def _answered(self, line: bytes) -> None:
        message = json.loads(line)
        promise = self._waiting.pop(int(message["id"]), None)
        if promise is None or promise.done():
            return  # it came too late: whoever asked was told so
        promise.set_result(_ANSWER.validate_python(message["answer"]))

    # --- what is said -----------------------------------------------------------------------------------------------------

    async def submit(self, command: Mapping[str, Any], limit_s: float = ANSWER_S) -> AnswerView:
        """Send a command and wait for its answer.

        Args:
            command: name, arguments, actor, role, console, token, boot_id, sequence, age_ns (until now).
            limit_s: for the answer.

        Raises:
            CommunicationError: no line (nothing was sent), or the answer did not come (the outcome is not known).
            DataError: it cannot be said on this line (nothing was sent).
        """
        return await self._exchange({"kind": "command", "command": dict(command)}, limit_s)

    async def ask(self, what: str, arguments: Mapping[str, Any] | None = None, limit_s: float = ANSWER_S) -> AnswerView:
        """A question that changes nothing. Raises CommunicationError."""
        return await self._exchange({"kind": "ask", "what": what, "arguments": dict(arguments or {})}, limit_s)

    async def stop(self, command: Mapping[str, Any]) -> AnswerView:
        """Stop, on a line of its own when this one is down. Raises CommunicationError: the room's process is not there."""
        if self.connected:
            with contextlib.suppress(CommunicationError):
                return await self.submit(command, STOP_S)
        message = self._line({"kind": "command", "command": dict(command)}, 0)
        try:
            async with asyncio.timeout(STOP_S):
                reader, writer = await asyncio.open_unix_connection(self.path, limit=LINE_BYTES_MAX + 1)
                try:
                    writer.write(message)
                    while True:
                        kind, line = _parted(await reader.readuntil(b"\n"))
                        if kind == "answer":
                            return _ANSWER.validate_python(json.loads(line)["answer"])
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            hint = "press the stop button of the room: it needs no program"
            why = "the room's process did not take the stop"
            raise CommunicationError(why, code=2062, device=self.room, hint=hint) from error

    def heartbeat(self, console: str, token: int) -> None:
        """A sign of life of the commanding console; lost when there is no line."""
        self._write({"kind": "heartbeat", "console": console, "token": token}, 0)

    async def _exchange(self, message: dict[str, Any], limit_s: float) -> AnswerView:
        self._last_id += 1
        number = self._last_id
        promise: asyncio.Future[AnswerView] = asyncio.get_running_loop().create_future()
        try:
            FromConsole.model_validate_json(self._line(message, number))  # the room hangs up at what it cannot read
        except ValidationError as error:
            why = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors(include_input=False))
            raise DataError(f"this cannot be sent to the room: {why}", code=5061, device=self.room) from None
        if not self._write(message, number):
            hint = "it may be starting; what moves and beams is safe without it. Try again"
            raise CommunicationError(
                "the room's process is not reached: nothing was sent", code=2061, device=self.room, hint=hint, retryable=True
            )
        self._waiting[number] = promise
        try:
            async with asyncio.timeout(limit_s):
                return await promise
        except TimeoutError:
            raise self._unknown(f"the room did not answer within {limit_s:g} s") from None
        except ValidationError:
            raise self._unknown("the room's answer could not be read") from None
        finally:
            self._waiting.pop(number, None)

    def _unknown(self, why: str) -> CommunicationError:
        hint = "look at the room: it is not known whether this was done"
        return CommunicationError(why, code=2063, device=self.room, hint=hint)

    def _line(self, message: Mapping[str, Any], number: int) -> bytes:
        return json.dumps({**message, "id": number, "sent_ns": self._clock_ns()}, separators=(",", ":")).encode() + b"\n"

    def _write(self, message: Mapping[str, Any], number: int) -> bool:
        writer = self._writer
        if writer is None or writer.transport.is_closing() or writer.transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            return False
        line = self._line(message, number)
        if len(line) > LINE_BYTES_MAX:
            return False
        writer.write(line)
        return True


def trouble_line(reason: str) -> bytes:
    """Why a room is not shown, as the room itself would say it."""
    return json.dumps({"kind": "trouble", "reason": reason}, separators=(",", ":")).encode()


def _parted(raw: bytes) -> tuple[str, bytes]:
    """Kind and line. The kind is read without parsing the whole: a room writes it first."""
    found = _KIND.match(raw)
    if found is None:
        raise ValueError("no line of a room")
    return found[1].decode(), raw[:-1]
