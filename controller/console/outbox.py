"""What waits to be sent to one reader that may be slow: the newest view, and a bounded line of everything else.

A reader that does not keep up loses views (the next one has it all), then events (it is told how many), never answers; whoever
writes never waits. Not responsible for sending (`link`, `stream`).
"""

from __future__ import annotations

import asyncio
import json
from collections import deque

LINES_MAX = 2_000
BYTES_MAX = 16 * 1024 * 1024


class Outbox:
    """One reader's.

    Args:
        lines_max, bytes_max: of what may wait besides the view; whichever comes first.
    """

    def __init__(self, lines_max: int = LINES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._lines: deque[tuple[bytes, bool]] = deque()
        self._lines_max = lines_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._view: bytes | None = None
        self._untold = 0
        self._wake = asyncio.Event()
        self.lost = 0
        self.views_replaced = 0

    def put_view(self, line: bytes) -> None:
        """The newest view; one that still waits is not sent any more."""
        self.views_replaced += self._view is not None
        self._view = line
        self._wake.set()

    def put(self, line: bytes) -> None:
        """An event, a layer of spots: the oldest of them make room, and are counted."""
        self._append(line, True)
        while self._full and self._drop_oldest():
            pass

    def put_answer(self, line: bytes) -> bool:
        """What somebody waits for. False when even without any event it has no place: that reader is beyond help."""
        self._append(line, False)
        while self._full:
            if not self._drop_oldest():
                return False
        return True

    async def wait(self) -> None:
        """Until there is something to send."""
        await self._wake.wait()

    def take(self) -> list[bytes]:
        """Everything that waits, in order, the view last; first of all a line that says what was lost."""
        self._wake.clear()
        lines = [line for line, _droppable in self._lines]
        if self._untold:
            lines.insert(0, json.dumps({"kind": "lost", "lines": self._untold}, separators=(",", ":")).encode())
            self._untold = 0
        self._lines.clear()
        self._bytes = 0
        if self._view is not None:
            lines.append(self._view)
            self._view = None
        return lines

    @property
    def _full(self) -> bool:
        return len(self._lines) > self._lines_max or self._bytes > self._bytes_max

    def _append(self, line: bytes, droppable: bool) -> None:
        self._lines.append((line, droppable))
        self._bytes += len(line)
        self._wake.set()

    def _drop_oldest(self) -> bool:
        for index, (line, droppable) in enumerate(self._lines):
            if droppable:
                del self._lines[index]
                self._bytes -= len(line)
                self.lost += 1
                self._untold += 1
                return True
        return False
