"""Bytes that have arrived, and the one reader who waits for them: what every kind of stream does alike.

Not responsible for where bytes come from, nor for whether more may come.
"""

from __future__ import annotations

import asyncio


class Inbox:
    """What arrived and was not read yet.

    Args:
        name: of the stream, for messages.

    Attributes:
        data: the bytes, oldest first.
    """

    __slots__ = ("_name", "_reader", "data")

    def __init__(self, name: str) -> None:
        self._name = name
        self._reader: asyncio.Future[None] | None = None
        self.data = bytearray()

    def put(self, data: bytes) -> None:
        """Bytes arrive."""
        self.data += data
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again: bytes are there, or will not come."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until woken, or for `timeout_s` seconds. Raises RuntimeError when somebody waits already."""
        if self._reader is not None:
            raise RuntimeError(f"{self._name}: two readers on one stream")
        loop = asyncio.get_running_loop()
        future = self._reader = loop.create_future()
        timer = loop.call_later(max(timeout_s, 0.0), self.wake) if timeout_s is not None else None
        try:
            await future
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    def take(self, n: int) -> bytes:
        """At most `n` bytes, which are no longer here."""
        data = bytes(self.data[:n])
        del self.data[:n]
        return data

    def clear(self) -> int:
        """Throw everything away; how many bytes that were."""
        count = len(self.data)
        self.data.clear()
        return count
