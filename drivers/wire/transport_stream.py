"""What a serial line and a TCP connection share: a `Stream` on top of an asyncio transport, bounded in both directions.

Input that nobody reads stops the transport at `INPUT_HIGH`, so that a flood fills the other side's buffers and not our memory.
Output that does not move for `stall_s` ends the line, so that nothing written long ago arrives when the other side wakes up.
Not responsible for opening (`serial_stream`, `tcp_stream`) or for frames.
"""

from __future__ import annotations

import asyncio
from typing import cast

from drivers.wire.inbox import Inbox

INPUT_HIGH = 65536  # bytes unread at which the transport is paused; a Modbus answer has at most 260
INPUT_LOW = 16384
OUTPUT_HIGH = 16384  # bytes not yet taken by the operating system from which on a write waits
STALL_S = 1.0  # assumed: no byte leaves for so long, and the line counts as lost
CLOSE_S = 2.0  # assumed: longest wait until the operating system has let go of a line


class TransportStream(asyncio.Protocol):
    """One end of a line; fulfils `drivers.wire.stream.Stream`. Made by an opener, usable once its transport has said so.

    Args:
        name: endpoint, for messages.
        stall_s: how long a write waits while nothing leaves, loop seconds.
    """

    def __init__(self, name: str, stall_s: float = STALL_S) -> None:
        self.name = name
        self._stall_s = stall_s
        self._inbox = Inbox(name)
        self._transport: asyncio.Transport | None = None
        self._room: asyncio.Future[None] | None = None  # set while the transport takes no more
        self._held = False  # whether the transport is paused
        self._aborted = False
        self._why: str | None = None  # why the line can no longer be used
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The line is open."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=OUTPUT_HIGH)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._inbox.put(data)
        if len(self._inbox.data) >= INPUT_HIGH and not self._held and self._transport is not None:
            self._held = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """There is room again."""
        room, self._room = self._room, None
        _resolve(room)

    def connection_lost(self, error: Exception | None) -> None:
        """The line is gone, by our doing or not; the operating system has let go of it."""
        self._end(str(error) if error is not None else "the other side closed the line")
        _resolve(self._gone)

    # --- what drivers call

    async def read(self, n: int = 4096, timeout_s: float | None = None) -> bytes:
        """Between 1 and `n` bytes; ``b""`` when the other side is gone; TimeoutError after `timeout_s` seconds of nothing."""
        inbox = self._inbox
        if not inbox.data and self._why is None:
            await inbox.wait(timeout_s)
        if inbox.data:
            data = inbox.take(n)
            if self._held:
                self._let_go()
            return data
        if self._why is not None:
            return b""
        raise TimeoutError(f"{self.name}: nothing within {timeout_s} s")

    async def write(self, data: bytes) -> None:
        """Hand bytes to the operating system; waits only while its buffers are full.

        Raises:
            ConnectionError: the line is closed or lost, or nothing has left it for `stall_s`; it is closed then.
        """
        transport = self._usable()
        if self._room is not None:
            await self._wait_for_room()
            transport = self._usable()
        transport.write(data)
        if transport.is_closing():  # found out only now: a tty that was pulled out says nothing by itself
            self._end("nobody is there any more")
        self._usable()

    def discard_input(self) -> int:
        """Throw away what has arrived unread; returns how many bytes."""
        count = self._inbox.clear()
        if count and self._held:
            self._let_go()
        return count

    async def close(self) -> None:
        """Let go of the line at once; what the operating system has not taken is dropped. A second close does nothing."""
        self.cut("the line is closed")
        self._inbox.clear()
        if not self._gone.done():
            await asyncio.wait([self._gone], timeout=CLOSE_S)

    def cut(self, why: str) -> None:
        """End the line now, saying why; `close` waits until it is gone."""
        self._end(why)
        transport = self._transport
        # A serial transport that has begun to close by itself must not be told again, unless it waits for bytes to leave.
        if transport is not None and not self._aborted and (not transport.is_closing() or transport.get_write_buffer_size()):
            self._aborted = True
            transport.abort()

    def _end(self, why: str) -> None:
        if self._why is None:
            self._why = why
        self._inbox.wake()
        _resolve(self._room)

    def _usable(self) -> asyncio.Transport:
        if self._why is not None or self._transport is None:
            raise ConnectionResetError(self._why or "the line is not open yet")
        return self._transport

    def _let_go(self) -> None:
        if len(self._inbox.data) <= INPUT_LOW and self._why is None and self._transport is not None:
            self._held = False
            self._transport.resume_reading()

    async def _wait_for_room(self) -> None:
        """Wait while bytes leave; a line on which none does is ended."""
        transport = self._usable()
        while (room := self._room) is not None and self._why is None:
            waiting = transport.get_write_buffer_size()
            await asyncio.wait([room], timeout=self._stall_s)
            if not room.done() and transport.get_write_buffer_size() >= waiting:
                self.cut(f"nothing has left the line for {self._stall_s:g} s: the other side does not read")


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
