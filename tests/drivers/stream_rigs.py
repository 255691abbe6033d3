"""The byte streams of the suite of promises: the memory line, a pty with modelled line time, TCP on loopback.

Real ones run on a real loop, with real descriptors, and prove at their end that none is left.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from drivers.wire.memory import MemoryLine
from drivers.wire.serial_stream import serial_opener
from drivers.wire.stream import Stream
from drivers.wire.tcp_stream import settle, tcp_opener
from drivers.wire.transport_stream import TransportStream
from simulators import clock
from simulators.servers.pty_line import PtyLine

STALL_S = 0.2


class StreamRig(Protocol):
    """One line with both its ends.

    Attributes:
        baud: bits per second of the line, None when it takes no time of its own.
        slack_s: what the operating system may add to a time.
    """

    baud: int | None
    slack_s: float

    @property
    def server(self) -> Stream: ...

    def run(self, main: Coroutine[Any, Any, None]) -> None: ...

    async def open(self) -> Stream: ...

    async def lose(self) -> None: ...

    async def find(self) -> None: ...

    def hold(self) -> None: ...


class MemoryStreamRig:
    """A memory line; `pieces` cuts every write at random places."""

    baud: int | None = 19200
    slack_s = 0.01

    def __init__(self, *, pieces: bool = False) -> None:
        self._line = MemoryLine("rig", baud=self.baud, pieces=random.Random(7) if pieces else None)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine, with callbacks of one instant shuffled."""
        clock.run(main, schedule_seed=3)

    async def open(self) -> Stream:
        """The client's end, opened anew."""
        return await self._line.connect()

    @property
    def server(self) -> Stream:
        """The other end."""
        return self._line.server

    async def lose(self) -> None:
        """Cut the line."""
        self._line.cut()

    async def find(self) -> None:
        """Restore the line."""
        self._line.restore()

    def hold(self) -> None:
        """The other end takes nothing from now on: it does so only when it is read."""


class _RealRig:
    """Runs a test on a real loop and counts descriptors and tasks that it leaves."""

    slack_s = 0.25  # a busy machine stalls for tens of milliseconds

    def __init__(self) -> None:
        self._clients: list[Stream] = []

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine against the wall clock."""

        async def whole() -> None:
            await self.find()
            before = descriptors() - self.own_descriptors
            try:
                await main
            finally:
                for client in self._clients:
                    await client.close()
                await self.lose()
                self.tidy()
            assert descriptors() <= before
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(whole())

    own_descriptors = 0

    async def find(self) -> None:
        raise NotImplementedError

    async def lose(self) -> None:
        raise NotImplementedError

    def tidy(self) -> None:
        """Remove what is left on disk."""


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone


class _PtyEnd(asyncio.Transport):
    """What a `TransportStream` needs of the modelled end of a pty. A serial line takes all that is sent, in its time."""

    def __init__(self, line: PtyLine) -> None:
        super().__init__()
        self._line = line

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self._line.send(data)

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class PtyStreamRig(_RealRig):
    """A pty whose far end models the time of the line."""

    baud: int | None = 19200
    own_descriptors = 2  # both ends of the pty

    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory(prefix="rig-")
        self._line = PtyLine(self._arrived, self.baud, Path(self._directory.name) / "line")
        self._server: TransportStream | None = None

    def _arrived(self, data: bytes) -> None:
        self.server.data_received(data)

    @property
    def server(self) -> TransportStream:
        """The other end."""
        if self._server is None:
            raise RuntimeError("the line is lost")
        return self._server

    async def open(self) -> Stream:
        """The client's end, opened anew."""
        path = Path(self._directory.name) / "line"
        client = await serial_opener(str(path), self.baud or 19200, stall_s=STALL_S)()
        self._clients.append(client)
        return client

    async def lose(self) -> None:
        """The adapter is pulled out."""
        self._line.close()

    async def find(self) -> None:
        """It is plugged in again, under the same name."""
        self._line.open()
        self._server = TransportStream("far end")
        self._server.connection_made(_PtyEnd(self._line))

    def tidy(self) -> None:
        """Remove the directory of the line's name."""
        self._directory.cleanup()

    def hold(self) -> None:
        """The other end is frozen and takes nothing from now on."""
        asyncio.get_running_loop().remove_reader(self._line._ours)


class TcpStreamRig(_RealRig):
    """TCP on loopback; the other end is a stream like ours."""

    baud: int | None = None
    own_descriptors = 1  # the listening socket

    def __init__(self) -> None:
        super().__init__()
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._accepted: asyncio.Queue[TransportStream] = asyncio.Queue()
        self._server: TransportStream | None = None

    @property
    def server(self) -> TransportStream:
        """The end that was accepted last."""
        if self._server is None:
            raise RuntimeError("nobody has connected")
        return self._server

    async def open(self) -> Stream:
        """A new connection."""
        client = await tcp_opener("127.0.0.1", self._port, stall_s=STALL_S)()
        self._clients.append(client)
        self._server = await self._accepted.get()
        return client

    async def lose(self) -> None:
        """The server dies."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if self._server is not None:
            await self._server.close()
        if listener is not None:
            await listener.wait_closed()

    async def find(self) -> None:
        """It is started again on the same port."""
        rig = self

        class Accepted(TransportStream):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                settle(transport)
                rig._accepted.put_nowait(self)

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Accepted("far end", STALL_S), "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    def hold(self) -> None:
        """The other end takes nothing from now on: it does so only when it is read."""


STREAMS: dict[str, Callable[[], StreamRig]] = {
    "memory": MemoryStreamRig,
    "memory in pieces": lambda: MemoryStreamRig(pieces=True),
    "pty": PtyStreamRig,
    "tcp": TcpStreamRig,
}
