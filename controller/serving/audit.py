"""The audit of a room: every command and what became of it, in a chain of records that nobody can change unseen.

What is accepted is durable before it is executed. A stop, refusals, outcomes and the repetitions of a held button are written a
moment later, many in one record: nothing comes before a stop, and a flood of refusals must not cost the room its time. Not
responsible for judging (`controller.commands`), nor for sign-ins (the console's own log).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.record.canonical import lenient_bytes
from controller.record.journal import OPENED, Journal, Record
from controller.record.store import Busy, StorageError, Store
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError

FILE = "audit.bin"
ENTRY, LATER = 1, 2  # kinds of record: one entry that was durable before its command, and entries written afterwards
WAITING_MAX = 2000  # entries not yet written; assumed: more are counted and not kept
WRITE_S = 0.25  # loop time between two records of entries that could wait
HELD_NS = NS_PER_S  # a jog that follows one so soon is the same button, still held
ARGUMENTS_BYTES_MAX = 2000
KEPT = 5000  # entries in memory, for questions
LIMIT_MAX = 1000
REPEATED = "jog"


class Audit:
    """`STATE/audit.bin`, written by one process; a room that finds it in another's hands has `audit-ROOM.bin` from then on.

    Args:
        store: where.
        directory: the facility's state.
        room, boot_id: of this process.
    """

    def __init__(self, store: Store, directory: Path, room: str, boot_id: int) -> None:
        self._store = store
        self._path = directory / FILE
        self._room = room
        self._boot_id = boot_id
        self._journal: Journal | None = None
        self._waiting: deque[dict[str, Any]] = deque()
        self._left_out = 0
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._held_ns = -HELD_NS
        self.refused: Callable[[str], None] = lambda _why: None  # told in words when the disk takes nothing

    def open(self) -> None:
        """Verify the chain and go on with it. Raises Busy, DataError, StorageError."""
        own, about = self._path.with_name(f"audit-{self._room}.bin"), {"room": self._room}
        if self._store.exists(own):
            self._path = own
        try:
            self._journal = Journal.open(self._store, self._path, boot_id=self._boot_id, identity=about)
        except Busy:
            if self._path == own:
                raise
            self._path = own
            self._journal = Journal.open(self._store, own, boot_id=self._boot_id, identity=about)
        if not self._kept:
            for record in self._journal.history:
                self._kept.extend(_entries(record))
        head = self._journal.head
        self._kept.append({"seq": head.seq, "kind": "opened", "t_ns": now_ns(), "boot_id": self._boot_id})

    def close(self) -> None:
        """Write what waits, and close."""
        with contextlib.suppress(BeamlineError):  # the disk refuses: what is lost are refusals and outcomes
            self.write()
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """The desk's journal: see `CommandDesk`.

        Raises:
            StorageError: a command that has to be durable first is not.
        """
        entry = self._entry(kind, data)
        if kind != "command" or data["name"] == "stop" or self._is_held(str(data["name"])):
            self._wait(entry)
            return
        seq = self._append(ENTRY, entry)
        self._kept.append({"seq": seq, **entry})

    def write(self) -> None:
        """Make durable what waits. Raises StorageError; it waits on then."""
        if not self._waiting:
            return
        entries = list(self._waiting)
        seq = self._append(LATER, {"entries": entries, "left_out": self._left_out})
        self._left_out = 0
        for entry in entries:
            self._waiting.popleft()
            self._kept.append({"seq": seq, **entry})

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_S)
            try:
                self.write()
            except BeamlineError:
                continue  # a command that has to be durable says so to the one who gave it

    def query(self, from_seq: int = 0, limit: int = 100, actor: str = "", name: str = "") -> list[dict[str, Any]]:
        """Entries from a record on, oldest first; without `from_seq` the latest. What is not kept comes from the file."""
        limit = max(1, min(int(limit), LIMIT_MAX))
        kept: Iterator[dict[str, Any]] | deque[dict[str, Any]] = self._kept
        if from_seq and self._kept and from_seq < self._kept[0]["seq"] and self._journal is not None:
            kept = (entry for record in self._journal.records() for entry in _entries(record))
        found = [
            entry
            for entry in kept
            if entry["seq"] >= from_seq
            and (not actor or entry.get("actor") == actor)
            and (not name or entry.get("name") == name)
        ]
        return found[:limit] if from_seq else found[-limit:]

    def _entry(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"kind": kind, "utc": datetime.now(UTC).isoformat(timespec="milliseconds"), "t_ns": now_ns(), **data}

    def _is_held(self, name: str) -> bool:
        if name != REPEATED:
            return False
        before, self._held_ns = self._held_ns, now_ns()
        return self._held_ns - before < HELD_NS

    def _wait(self, entry: dict[str, Any]) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._left_out += 1
            return
        said = lenient_bytes(entry.get("arguments", {}))  # of a client that was refused: anything at all
        entry["arguments"] = json.loads(said) if len(said) <= ARGUMENTS_BYTES_MAX else {"left_out_bytes": len(said)}
        self._waiting.append(entry)

    def _append(self, kind: int, data: Mapping[str, Any]) -> int:
        """One durable record. After a disk that refused the file is opened anew: a torn end is cut, and the chain goes on."""
        if self._journal is None:
            self.open()
        if self._journal is None:
            raise StorageError("the audit is not open", code=3103, hint="see the disk")
        try:
            return self._journal.append(kind, data)
        except StorageError as error:
            self._journal.close()
            self._journal = None
            self.refused(error.message)
            raise


def _entries(record: Record) -> Iterator[dict[str, Any]]:
    if record.kind == OPENED:
        yield {"seq": record.seq, "kind": "opened", "t_ns": record.t_ns, "boot_id": record.boot_id}
    elif record.kind == ENTRY:
        yield {"seq": record.seq, **record.data}
    elif record.kind == LATER:
        for entry in record.data["entries"]:
            yield {"seq": record.seq, **entry}
