"""`events.jsonl`: the event bus on disk, one canonical JSON object per line, in order.

A view: it decides nothing and holds nothing back; what must survive a power cut is in the journal. Lines are gathered and
written in blocks, so that listening costs microseconds. Not responsible for durability.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from controller.record.canonical import lenient_bytes
from drivers.hal.events import Event, EventBus

BLOCK_BYTES = 1 << 16


def event_line(event: Event) -> bytes:
    """One line, with its newline: keys data, kind, seq, source, t_ns; times in integer ns."""
    value = {"seq": event.seq, "t_ns": event.t_ns, "source": event.source, "kind": event.kind, "data": event.data}
    return lenient_bytes(value) + b"\n"


class EventFile:
    """Listens to a bus from construction until `close`. A context manager.

    Args:
        bus: what to listen to.
        path: the file; what was there is replaced.

    Raises:
        OSError: the file cannot be opened. A later failure removes it from the bus, which says so in an event.
    """

    def __init__(self, bus: EventBus, path: Path):
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._lines: list[bytes] = []
        self._size = 0
        self._remove: Callable[[], object] = bus.subscribe(self._take)

    def _take(self, event: Event) -> None:
        line = event_line(event)
        self._lines.append(line)
        self._size += len(line)
        if self._size >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system. Raises OSError."""
        lines, self._lines, self._size = self._lines, [], 0
        if lines:
            self._file.write(b"".join(lines))

    def close(self) -> None:
        """Stop listening, write the rest. Closing twice does nothing."""
        if self._file.closed:
            return
        self._remove()
        try:
            self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
