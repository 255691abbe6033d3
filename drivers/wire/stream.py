"""The contract of a byte stream: a serial line, a TCP connection, or the memory twin of either.

Drivers take a `Stream` and know nothing else of how bytes travel. The promises (docs/wire-semantics.md, S1 to S8) are tested on
every implementation by one suite. Not responsible for frames, answers or retries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class Stream(Protocol):
    """Bytes in order, in both directions, in pieces of any size."""

    @property
    def name(self) -> str:
        """Endpoint, for messages."""
        ...

    async def read(self, n: int = 4096, timeout_s: float | None = None) -> bytes:
        """Between 1 and `n` bytes as soon as any are there; ``b""`` once the other side is gone.

        Raises:
            TimeoutError: nothing came within `timeout_s` seconds; the stream stays usable.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Hand bytes to the line. Returning does not mean that they arrived.

        Raises:
            ConnectionError: the stream is closed or cut.
        """
        ...

    def discard_input(self) -> int:
        """Throw away what has arrived unread; returns how many bytes."""
        ...

    async def close(self) -> None:
        """Let go of the line; a second close does nothing."""
        ...


# Opens a line anew; raises ConnectionError (an OSError) when nobody is there.
StreamOpener = Callable[[], Awaitable[Stream]]
