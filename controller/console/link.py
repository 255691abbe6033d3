"""The room's end of the line to its consoles: a Unix socket with JSON lines, one object a line.

Everything that is shown is encoded once and handed to whoever listens; a console that does not read loses telemetry and is hung
up in the end, and never makes the room wait. Commands are handed to the desk with their true age: on the way they grow older by
the clock of the computer, which both processes share. Not responsible for what a command does or who may give it (the desk),
nor for people and their sign-in (the console process).

Lines to the console (`kind`): `hello`, `view`, `event`, `spots`, `lost`, `trouble`, `answer`.
Lines from it: `command`, `heartbeat`, `ask`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json, to_jsonable_python

from controller.commands import Actor, Answer, Command
from controller.console.outbox import Outbox
from controller.console.views import AnswerView, EventView, RoomView, SpotsView
from controller.roles import Role
from drivers.hal.clock import NS_PER_MS
from drivers.hal.errors import BeamlineError, ConfigError

LINE_BYTES_MAX = 4 * 1024 * 1024
PERIOD_S = 0.1  # design: a view 10 times a second
PATIENCE_S = 5.0  # a console that takes nothing for so long is hung up; assumed
CLIENTS_MAX = 16  # one console process is the rule; assumed
WAITING_MAX = 64  # commands and questions of one console under way; assumed
HEARTBEAT_AGE_MAX_NS = 500 * NS_PER_MS  # half of what a console may be silent: an old sign of life is none
PATH_BYTES_MAX = 107  # unix(7): sun_path
BUFFER_BYTES = 256 * 1024
CLOSE_S = 1.0


class RoomDesk(Protocol):
    """What a room is to its consoles."""

    def hello(self) -> Mapping[str, Any]:
        """`room`, `facility`, `boot_id`."""

    def view(self) -> RoomView:
        """Everything, now."""

    async def submit(self, command: Command) -> Answer:
        """See `CommandDesk.submit`."""

    def heartbeat(self, console: str, token: int) -> bool:
        """See `CommandDesk.heartbeat`."""

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        """A question that changes nothing; a JSON-able answer. Raises BeamlineError."""

    def spots(self) -> Sequence[SpotsView]:
        """Layers of the current beam, for a console that has just come."""


class CommandLine(BaseModel):
    """A command on the line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=64)
    arguments: dict[str, Any]
    actor: str = Field(min_length=1, max_length=128)
    role: Role
    console: str = Field(min_length=1, max_length=128)
    token: int
    boot_id: int
    sequence: int
    age_ns: int = Field(ge=0)


class FromConsole(BaseModel):
    """A line from a console."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    sent_ns: int
    id: int = 0
    command: CommandLine | None = None
    console: str = Field(default="", max_length=128)
    token: int = 0
    what: str = Field(default="", max_length=64)
    arguments: dict[str, Any] = Field(default_factory=dict)


class LinkServer:
    """One per room.

    Args:
        path: of the socket (0600, its directory is made 0700).
        desk: the room.
        speed: seconds of this loop per second of a wall clock; the console lives by the latter.
        clock_ns: the computer's monotonic clock, the same in every process of it.
    """

    def __init__(
        self, path: Path, desk: RoomDesk, *, speed: float = 1.0, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.path = path
        self._desk = desk
        self._speed = speed
        self._clock_ns = clock_ns
        self._server: asyncio.Server | None = None
        self._views: asyncio.Task[None] | None = None
        self._clients: dict[_Client, asyncio.Task[None]] = {}
        self._inode = 0
        self._closed = False

    @property
    def consoles(self) -> int:
        """How many listen."""
        return len(self._clients)

    async def start(self) -> None:
        """Listen. Raises ConfigError: the path does not do, or another process answers there."""
        if len(os.fsencode(self.path)) > PATH_BYTES_MAX:
            message = (
                f"the path of the room's socket has {len(os.fsencode(self.path))} bytes, the system takes {PATH_BYTES_MAX}"
            )
            raise ConfigError(f"{message}: {self.path}", code=1061, hint="choose a state directory with a shorter path")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.parent.chmod(0o700)
            await self._clear_the_way()
            self._server = await asyncio.start_unix_server(self._connected, self.path, limit=LINE_BYTES_MAX)
            self.path.chmod(0o600)
            self._inode = self.path.stat().st_ino
        except OSError as error:
            hint = "is the state directory yours, on a local disk?"
            raise ConfigError(f"cannot listen at {self.path}: {error.strerror or error}", code=1062, hint=hint) from error
        self._views = asyncio.create_task(self._tell_views(), name="link-views")

    async def close(self) -> None:
        """Hang up; commands under way get a moment to end."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        clients = tuple(self._clients)
        for client in clients:
            await client.settle(CLOSE_S * self._speed)
        tasks = [*self._clients.values(), *([self._views] if self._views is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            client.hang_up()
        await asyncio.sleep(0)  # the loop closes what was hung up
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:  # never a successor's
                self.path.unlink()

    def publish_event(self, event: EventView) -> None:
        """To every console. Never waits."""
        self._publish(b'{"kind":"event","event":' + to_json(event, fallback=str) + b"}")

    def publish_spots(self, spots: SpotsView) -> None:
        """To every console. Never waits."""
        self._publish(_spots_line(spots))

    def _publish(self, line: bytes) -> None:
        for client in self._clients:
            client.outbox.put(line)

    async def _clear_the_way(self) -> None:
        """Remove the socket of a process that is gone; one that answers stays."""
        try:
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise ConfigError(f"{self.path} is there and no socket", code=1063, hint="move it away")
        except FileNotFoundError:
            return
        try:
            _reader, writer = await asyncio.open_unix_connection(self.path)
        except ConnectionRefusedError:
            self.path.unlink()
            return
        writer.close()
        hint = "end it first: one room, one process"
        raise ConfigError(f"another process serves this room at {self.path}", code=1064, hint=hint)

    async def _tell_views(self) -> None:
        """The same bytes to everybody; what goes wrong is told and tried again."""
        while True:
            await asyncio.sleep(PERIOD_S * self._speed)
            if not self._clients:
                continue
            line, good = self._view_line()
            for client in self._clients:
                if good:
                    client.outbox.put_view(line)
                else:
                    client.outbox.put(line)

    def _view_line(self) -> tuple[bytes, bool]:
        try:
            return b'{"kind":"view","view":' + self._desk.view().model_dump_json(fallback=str).encode() + b"}", True
        except Exception as error:  # noqa: BLE001 - told; a view that cannot be made must not end the room
            return to_json(
                {"kind": "trouble", "reason": f"the room cannot show itself: {type(error).__name__}: {error}"}
            ), False

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS_MAX or self._closed:
            writer.transport.abort()
            return
        client = _Client(self._desk, reader, writer, PATIENCE_S * self._speed, self._clock_ns)
        client.outbox.put_answer(to_json({"kind": "hello", **self._desk.hello()}))
        for spots in self._desk.spots():
            client.outbox.put(_spots_line(spots))
        line, good = self._view_line()
        (client.outbox.put_view if good else client.outbox.put)(line)
        task = self._clients[client] = asyncio.create_task(client.serve(), name="link-client")
        task.add_done_callback(lambda _task: self._clients.pop(client, None))


class _Client:
    """One console process."""

    def __init__(
        self,
        desk: RoomDesk,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        patience_s: float,
        clock_ns: Callable[[], int],
    ) -> None:
        self.outbox = Outbox()
        self._desk = desk
        self._reader = reader
        self._writer = writer
        self._patience_s = patience_s
        self._clock_ns = clock_ns
        self._under_way: set[asyncio.Task[None]] = set()
        # Little is left to the system's own buffer: what waits there can no longer be replaced by something newer.
        writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        if (sock := writer.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    async def serve(self) -> None:
        """Until it hangs up, says something that is no line of ours, or does not read."""
        sending = asyncio.create_task(self._send(), name="link-send")
        reading = asyncio.create_task(self._read(), name="link-read")
        try:
            await asyncio.wait((sending, reading), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, reading):
                task.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)
            self.hang_up()

    def hang_up(self) -> None:
        """At once, whatever it has not read."""
        self._writer.transport.abort()

    async def settle(self, limit_s: float) -> None:
        """Let commands under way end, then no longer."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=limit_s)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _send(self) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            while True:
                await self.outbox.wait()
                for line in self.outbox.take():
                    self._writer.write(line + b"\n")
                    async with asyncio.timeout(self._patience_s):
                        await self._writer.drain()

    async def _read(self) -> None:
        """Half a line at the end was never said: it is not obeyed."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValidationError):
            while True:
                line = await self._reader.readuntil(b"\n")
                if not self._take(FromConsole.model_validate_json(line)):
                    return

    def _take(self, message: FromConsole) -> bool:
        """False when this is nothing a console of ours says."""
        on_the_way_ns = max(0, self._clock_ns() - message.sent_ns)
        if message.kind == "heartbeat":
            if on_the_way_ns <= HEARTBEAT_AGE_MAX_NS:
                self._desk.heartbeat(message.console, message.token)
            return True
        if message.kind == "command" and message.command is not None:
            said = message.command
            command = Command(
                said.name,
                said.arguments,
                Actor(said.actor, said.role),
                said.console,
                said.token,
                said.boot_id,
                said.sequence,
                said.age_ns + on_the_way_ns,
            )
            self._start(message.id, self._desk.submit(command), never_busy=said.name == "stop")
            return True
        if message.kind == "ask":
            self._start(message.id, self._ask(message.what, message.arguments))
            return True
        return False

    async def _ask(self, what: str, arguments: Mapping[str, Any]) -> Answer:
        try:
            return Answer(True, await self._desk.ask(what, arguments))
        except BeamlineError as error:
            return Answer(False, rejection=error)

    def _start(self, number: int, work: Coroutine[Any, Any, Answer], *, never_busy: bool = False) -> None:
        if len(self._under_way) >= WAITING_MAX and not never_busy:
            work.close()
            reason = f"{WAITING_MAX} commands wait already"
            self._answer(number, AnswerView(accepted=False, code=4491, reason=reason, hint="wait for their answers"))
            return
        task = asyncio.create_task(self._finish(number, work), name="link-answer")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _finish(self, number: int, work: Coroutine[Any, Any, Answer]) -> None:
        try:
            answer = answer_view(await work)
        except Exception as error:  # noqa: BLE001 - named to the one who asked; the room goes on
            reason = f"fault of the program: {type(error).__name__}: {error}"
            answer = AnswerView(accepted=False, code=4492, reason=reason, hint="look at the room, then report this")
        self._answer(number, answer)

    def _answer(self, number: int, answer: AnswerView) -> None:
        line = _answer_line(number, answer)
        if len(line) >= LINE_BYTES_MAX:
            reason = f"the answer has {len(line)} bytes, a line takes {LINE_BYTES_MAX}"
            line = _answer_line(number, AnswerView(accepted=False, code=4493, reason=reason, hint="ask for less"))
        if not self.outbox.put_answer(line):
            self.hang_up()


def answer_view(answer: Answer) -> AnswerView:
    """As told to a client."""
    rejection = answer.rejection
    return AnswerView(
        accepted=answer.accepted,
        value=to_jsonable_python(answer.value, fallback=str),
        code=rejection.code if rejection is not None else None,
        reason=rejection.message if rejection is not None else "",
        hint=rejection.hint if rejection is not None else "",
        repeated=answer.repeated,
    )


def _spots_line(spots: SpotsView) -> bytes:
    return b'{"kind":"spots","spots":' + spots.model_dump_json().encode() + b"}"


def _answer_line(number: int, answer: AnswerView) -> bytes:
    return json.dumps({"kind": "answer", "id": number, "answer": json.loads(answer.model_dump_json())}).encode()
