"""Memory twin of a serial line or TCP connection: two ends, one latency, one baud rate, bytes in order.

The line exists as long as the world does; the client's end may be cut, restored and opened again. Not responsible for frames.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable

from drivers.wire.inbox import Inbox
from drivers.wire.memory.fifo import Fifo

LATENCY_S = 0.00025  # assumed: half of a measured loopback round trip between two processes with its scheduling
UNREAD_MAX = 65536  # bytes under way to an end and unread there, from which on a write to it waits
STALL_S = 1.0  # as on the real streams: a line on which nothing moves for so long counts as lost
BITS_PER_BYTE = 11  # start, 8 data, parity, stop: Modbus over Serial Line V1.02, section 2.5.1


class MemoryStream:
    """One end of a `MemoryLine`; fulfils `drivers.wire.stream.Stream`."""

    __slots__ = ("_inbox", "_line", "_open", "_respond", "_room", "coming", "name", "peer")

    def __init__(self, line: MemoryLine, name: str) -> None:
        self.name = name
        self.peer: MemoryStream = self
        self._line = line
        self._open = True
        self._inbox = Inbox(name)
        self._respond: Callable[[bytes], Iterable[bytes]] | None = None
        self._room: asyncio.Future[None] | None = None  # while a write waits until the peer has read
        self.coming = 0  # bytes under way to this end

    def serve(self, respond: Callable[[bytes], Iterable[bytes]]) -> None:
        """From now on write here what `respond` answers to whatever arrives, in the instant in which it does.

        A server without a task of its own. One that raises answers no more, as a task would.
        """
        self._respond = respond

    async def read(self, n: int = 4096, timeout_s: float | None = None) -> bytes:
        """Between 1 and `n` bytes; ``b""`` when the other side is gone; TimeoutError after `timeout_s` seconds of nothing."""
        inbox = self._inbox
        if not inbox.data and self._open:
            await inbox.wait(timeout_s)
        if inbox.data:
            data = inbox.take(n)
            if self.peer._room is not None:
                _resolve(self.peer._room)
            return data
        if not self._open:
            return b""
        raise TimeoutError(f"{self.name}: nothing within {timeout_s} s")

    async def write(self, data: bytes) -> None:
        """Put bytes on the line; ConnectionError when it is closed or cut, or the other side has not read for `STALL_S`."""
        if self._unread() > UNREAD_MAX:
            await self._wait_for_room()
        if not self._open:
            raise ConnectionResetError(f"{self.name}: the line is closed")
        if data:
            self._line.carry(self, data)

    def discard_input(self) -> int:
        """Throw away what has arrived unread; returns how many bytes."""
        return self._inbox.clear()

    async def close(self) -> None:
        """Let go of this end. The other end hears nothing more."""
        self.shut()

    @property
    def is_open(self) -> bool:
        """Whether this end can be read and written."""
        return self._open

    def shut(self) -> None:
        """Close this end at once: a pending read returns ``b""``."""
        self._open = False
        self._inbox.clear()
        self._inbox.wake()
        _resolve(self._room)

    def reopen(self) -> None:
        """Use this end anew, with nothing left over from before."""
        self._inbox.clear()
        self._open = True

    def _unread(self) -> int:
        """Bytes on their way to the other end, and unread there."""
        return self.peer.coming + len(self.peer._inbox.data)

    async def _wait_for_room(self) -> None:
        """Wait while the other side reads; a line on which nothing moves is closed at this end."""
        loop = asyncio.get_running_loop()
        while self._open and (waiting := self._unread()) > UNREAD_MAX:
            room = self._room = loop.create_future()
            timer = loop.call_later(STALL_S, _resolve, room)
            try:
                await room
            finally:
                timer.cancel()
                self._room = None
            if self._unread() >= waiting:
                self.shut()

    def arrive(self, data: bytes) -> None:
        """Bytes reach this end."""
        if not self._open:
            return
        if self._respond is None:
            self._inbox.put(data)
            return
        respond, self._respond = self._respond, None
        for reply in respond(data):
            self._line.carry(self, reply)
        self._respond = respond


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class MemoryLine:
    """A line with a client's end and a server's end.

    Args:
        name: endpoint, for messages.
        latency_s: one way, on top of the time on the wire.
        baud: bits per second of a half-duplex serial line, shared by both directions; None takes no time on the wire.
        pieces: when given, what is written arrives in pieces cut at random places by this generator.

    Attributes:
        disturb: when set, called as ``disturb(data, to_server)`` for every write; what it returns travels instead
            (``b""``: lost).
        bytes_carried: bytes written by both ends since the start.
    """

    def __init__(
        self,
        name: str,
        *,
        latency_s: float = LATENCY_S,
        baud: int | None = None,
        pieces: random.Random | None = None,
    ) -> None:
        self.name = name
        self.client = MemoryStream(self, name)
        self.server = MemoryStream(self, f"{name}:server")
        self.client.peer, self.server.peer = self.server, self.client
        self.disturb: Callable[[bytes, bool], bytes] | None = None
        self.bytes_carried = 0
        self._latency_s = latency_s
        self._s_per_byte = BITS_PER_BYTE / baud if baud else 0.0
        self._pieces = pieces
        self._free_at_s = 0.0
        self._ways = {True: Fifo(), False: Fifo()}
        self._cut = False
        self._epoch = 0

    async def connect(self) -> MemoryStream:
        """Open the client's end (anew); ConnectionError while the line is cut. A `drivers.wire.stream.StreamOpener`."""
        if self._cut:
            raise ConnectionRefusedError(f"{self.name}: nobody answers")
        self._epoch += 1
        self.server.discard_input()
        self.client.reopen()
        return self.client

    def cut(self) -> None:
        """Lose the line: what is under way is lost, the client's end closes, opening fails; the server's end hears nothing."""
        self._cut = True
        self._epoch += 1
        self.client.shut()

    def restore(self) -> None:
        """Let the client open the line again."""
        self._cut = False

    def carry(self, source: MemoryStream, data: bytes) -> None:
        """Bytes leave one end; they reach the other when their last bit and the latency have passed."""
        to_server = source is self.client
        if self.disturb is not None:
            data = self.disturb(data, to_server)
        if self._cut or not data:
            return
        self.bytes_carried += len(data)
        way = self._ways[to_server]
        (self.server if to_server else self.client).coming += len(data)
        start_s = now_s = asyncio.get_running_loop().time()
        if self._s_per_byte:
            start_s = max(now_s, self._free_at_s)
            self._free_at_s = start_s + len(data) * self._s_per_byte
        end = self.server if to_server else self.client
        if self._pieces is None:
            way.call_at(start_s + len(data) * self._s_per_byte + self._latency_s, self._deliver, end, data, self._epoch)
            return
        edges = sorted({0, len(data), *(self._pieces.randint(0, len(data)) for _ in range(2))})
        for a, b in itertools.pairwise(edges):
            due_s = start_s + b * max(self._s_per_byte, 1e-6) + self._latency_s
            way.call_at(due_s, self._deliver, end, data[a:b], self._epoch)

    def _deliver(self, end: MemoryStream, data: bytes, epoch: int) -> None:
        end.coming -= len(data)
        if epoch == self._epoch:
            end.arrive(data)


def memory_stream_pair(
    name: str = "memory",
    *,
    latency_s: float = LATENCY_S,
    baud: int | None = None,
    pieces: random.Random | None = None,
) -> tuple[MemoryStream, MemoryStream]:
    """The two ends (client, server) of a new line; see `MemoryLine`."""
    line = MemoryLine(name, latency_s=latency_s, baud=baud, pieces=pieces)
    return line.client, line.server
