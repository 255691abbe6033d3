"""The console's own audit: who signed in and out, who was refused, who made users. Hash-chained like the room's journal.

It belongs to the console process, so that no sign-in ever writes to the disk of a treatment; what a command did stands in the
room's audit. Not responsible for judging anybody.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.record.journal import OPENED, Journal
from controller.record.store import DiskStore, ensure_directory

ENTRY = 1
KEPT = 5_000  # in memory, for questions


class PeopleLog:
    """`STATE/people.bin`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "people.bin"
        self._journal: Journal | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._writing = asyncio.Lock()

    def open(self) -> None:
        """Verify the chain, and go on with it. Raises Busy, DataError, StorageError."""
        store = DiskStore()
        ensure_directory(store, self._path.parent)
        self._journal = Journal.open(store, self._path, boot_id=os.getpid(), clock=time.monotonic_ns)
        for record in self._journal.history[-KEPT:]:
            if record.kind != OPENED:
                self._recent.append({"seq": record.seq, **record.data})

    async def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Durable when it returns; written in a thread. Raises StorageError: what it is about must not happen then."""
        if self._journal is None:
            return
        entry = {"kind": kind, "utc": datetime.now(UTC).isoformat(timespec="milliseconds"), **data}
        async with self._writing:
            seq = await asyncio.to_thread(self._journal.append, ENTRY, entry, t_ns=time.monotonic_ns())
        self._recent.append({"seq": seq, **entry})

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The newest first."""
        return list(self._recent)[: -limit - 1 : -1]

    def close(self) -> None:
        """Let go of the file."""
        if self._journal is not None:
            self._journal.close()
