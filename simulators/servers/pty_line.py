"""A pty that takes the time of a serial line: 11 bits per byte at its baud rate, one direction at a time.

A pty itself carries bytes in microseconds whatever its baud rate, so the time is modelled at this end, by the loop's clock.
Clients open the path as they would a tty; they may come and go. Not responsible for what the bytes mean.
"""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Callable
from pathlib import Path

BITS_PER_BYTE = 11  # start, 8 data, parity, stop: Modbus over Serial Line V1.02, section 2.5.1
FRAME_BYTES = 256  # the longest Modbus frame on a serial line; more than that travels in pieces
QUEUE_BYTES = 65536  # what may wait to be sent; more is lost
BACKLOG_BYTES = 1024  # what may be under way to us before we stop taking more from the pty


class PtyLine:
    """One end of a modelled serial line; the other end is the path.

    Args:
        arrived: called with bytes whose last bit has arrived here.
        baud: bits per second; None takes no time.
        link: a stable name for the pty, as a symbolic link; it is made by `open` and removed by `close`. None: the pty's own
            name is used, and changes with each opening.

    Attributes:
        overruns: bytes that were lost since the start because nobody at the other end took them.
    """

    def __init__(self, arrived: Callable[[bytes], None], baud: int | None = None, link: Path | None = None) -> None:
        self.overruns = 0
        self._arrived = arrived
        self._s_per_byte = BITS_PER_BYTE / baud if baud else 0.0
        self._link = link
        self._path: Path | None = None
        self._ours = self._kept = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free_at_s = 0.0
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def path(self) -> Path:
        """What clients open. Raises RuntimeError while there is none."""
        if self._path is None:
            raise RuntimeError("the pty is not open")
        return self._path

    @property
    def is_open(self) -> bool:
        """Whether clients can open it."""
        return self._loop is not None

    def open(self) -> None:
        """Make the pty, without echo and without line editing. Raises OSError when the system has none left."""
        if self.is_open:
            return
        self._loop = asyncio.get_running_loop()
        # The clients' end is kept open too: without it every client that leaves would end the line with an error.
        self._ours, self._kept = os.openpty()
        tty.setraw(self._kept)
        os.set_blocking(self._ours, False)
        self._path = Path(os.ttyname(self._kept))
        if self._link is not None:
            fresh = self._link.with_name(f".{self._link.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(self._path)
            fresh.replace(self._link)
            self._path = self._link
        self._free_at_s = self._loop.time()
        self._loop.add_reader(self._ours, self._readable)

    def close(self) -> None:
        """Let the pty disappear; whoever has it open sees the line lost, and what is under way is lost with it."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.remove_reader(self._ours)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        os.close(self._ours)
        os.close(self._kept)
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        self._path = None

    def send(self, data: bytes) -> None:
        """Put bytes on the line; a frame can be read at the other end when its last bit has passed."""
        if self._loop is None:
            return
        queue_s = QUEUE_BYTES * self._s_per_byte
        for start in range(0, len(data), FRAME_BYTES):
            piece = data[start : start + FRAME_BYTES]
            if self._free_at_s - self._loop.time() > queue_s:
                self.overruns += len(piece)
                continue
            if self._s_per_byte:
                self._at(self._pass(len(piece)), self._deliver, piece)
            else:
                self._deliver(piece)

    def _readable(self) -> None:
        try:
            data = os.read(self._ours, FRAME_BYTES)
        except OSError:  # taken by an earlier call, or the client has just left
            return
        loop = self._loop
        if loop is None or not data:
            return
        if not self._s_per_byte:
            self._arrived(data)
            return
        due_s = self._pass(len(data))
        self._at(due_s, self._arrived, data)
        if due_s - loop.time() > BACKLOG_BYTES * self._s_per_byte:  # a flood waits in the client, as on a real line
            loop.remove_reader(self._ours)
            self._at(due_s - FRAME_BYTES * self._s_per_byte, self._listen)

    def _listen(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self._ours, self._readable)

    def _pass(self, count: int) -> float:
        """Occupy the line for `count` bytes; when the last of them has passed."""
        now_s = asyncio.get_running_loop().time()
        self._free_at_s = max(now_s, self._free_at_s) + count * self._s_per_byte
        return self._free_at_s

    def _deliver(self, data: bytes) -> None:
        try:
            taken = os.write(self._ours, data)
        except BlockingIOError:
            taken = 0
        self.overruns += len(data) - taken

    def _at(self, due_s: float, function: Callable[..., None], *args: object) -> None:
        if self._loop is None:
            return
        timer: asyncio.TimerHandle

        def run() -> None:
            self._timers.discard(timer)
            function(*args)

        timer = self._loop.call_at(due_s, run)
        self._timers.add(timer)
