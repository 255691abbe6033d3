"""Whether the disk of a room's state takes what has to be durable: an alarm from the first refusal until a write succeeds.

What was refused says nothing of now: after a refusal a file is written, synced and removed again, and once more, until that
works. A session whose journal or ledger was refused something gets no more beam, and what it had claimed stays barred until it
is reconciled (`controller.record`); the next one opens its own files and begins only when they are durable. So nothing here
gives or bars dose: it says why a load would fail, before it is tried. Not responsible for what is written.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from controller.record.store import StorageError, Store, storage_error
from drivers.hal.events import Event, EventBus

REFUSED = "error.3101"  # cause of a trip: what `controller.record.store` says of a disk
PROBE = ".disk-probe"
PROBE_BYTES = 65_536  # about the largest record of a grant; a few bytes may fit where nothing else does
LOOK_S = 2.0  # assumed


class DiskWatch:
    """One per room.

    Args:
        store: of the state.
        directory: where sessions are recorded.
        source, bus: of what is told.
    """

    def __init__(self, store: Store, directory: Path, source: str, bus: EventBus) -> None:
        self._store = store
        self._path = directory / PROBE
        self._source = source
        self._bus = bus
        self._asked = asyncio.Event()
        self._trying = asyncio.Lock()
        self.refuses = ""  # why, in words; empty: nothing is known against it

    def take(self, event: Event) -> None:
        """Fold one event in: a treatment that the disk ended, or did not let begin."""
        if event.kind == "trip" and event.data.get("cause") == REFUSED:
            self.refused(str(event.data.get("message") or event.data.get("cause")))
        elif event.kind == "program.exception" and str(event.data.get("error", "")).startswith(StorageError.__name__):
            self.refused(str(event.data["error"]))

    def refused(self, why: str) -> None:
        """Something that had to be durable was refused."""
        if not self.refuses:
            self.refuses = why
            self._bus.emit(self._source, "disk.refuses", error=why)
        self._asked.set()

    def obstacles(self) -> list[str]:
        """Why nothing may be loaded now."""
        return [f"the disk refuses what has to be durable: {self.refuses}; free space, or check it"] if self.refuses else []

    async def run(self) -> None:
        """After a refusal: try until a write succeeds, and say so."""
        while True:
            await self._asked.wait()
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Try now, where something was refused."""
        if not self.refuses:
            return
        async with self._trying:
            try:
                await asyncio.to_thread(self._try)
            except StorageError as error:
                self.refuses = error.message
            else:
                self._asked.clear()
                if self.refuses:
                    self.refuses = ""
                    self._bus.emit(self._source, "disk.takes")

    def _try(self) -> None:
        """Write, sync and remove. Raises StorageError."""
        try:
            file = self._store.open(self._path, empty=True)
            try:
                file.write(os.urandom(PROBE_BYTES))  # what is all zeros a disk may keep in no space
                file.sync()
            finally:
                file.close()
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error("write", self._path, error) from error
