"""What the disk holds of a journal, read back by itself: which grants are durable, what is done, what may still be open.

Follows the file as it grows; where the disk tells its platter from its cache (a memory store does), it reads the platter. For
whoever must judge the record from outside (the simulated plant's invariants): it shares the file with the journal's writer
and nothing of its memory. Not responsible for recovery (`reconcile`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from controller.record.entries import Kind, read_done, read_grant
from controller.record.journal import Anchor, scan
from controller.record.store import Store

# What a grant may give beyond its counts: a reaction quantum (200 us of beam), and when the first element does not stop the
# beam what flows until the next one has: 500 us and 200 us (hardware rows of the interlocks' limits).
CUTOFF_QUANTA = 4


@runtime_checkable
class Platter(Protocol):
    """A store that knows what a power cut would leave."""

    def read_durable(self, path: Path, start: int = 0) -> bytes: ...


class JournalProbe:
    """Reads a journal file as far as it is sound.

    Args:
        store: where the file is.
        path: the file.
    """

    def __init__(self, store: Store, path: Path) -> None:
        self._read = store.read_durable if isinstance(store, Platter) else store.read
        self._path = path
        self._offset = 0
        self._anchor: Anchor | None = None
        self._grants: dict[tuple[int, int], int] = {}  # most counts of monitor 1, by (unit boot id, grant id)
        self._open: dict[int, int] = {}
        self._done = 0

    def granted(self, boot_id: int, grant_id: int) -> bool:
        """Whether the grant is durable."""
        if (boot_id, grant_id) not in self._grants:
            self._follow()
        return (boot_id, grant_id) in self._grants

    def done_counts1(self) -> int:
        """Counts of monitor 1 in durable DONE records."""
        self._follow()
        return self._done

    def open_counts1(self) -> int:
        """Most counts that durable grants without a DONE may have delivered, the reaction included."""
        self._follow()
        return sum(self._open.values())

    def _follow(self) -> None:
        try:
            data = self._read(self._path, self._offset)
        except FileNotFoundError:
            return
        if not data:
            return
        found = scan(data, str(self._path), after=self._anchor)
        for record in found.records:
            self._anchor = Anchor(record.seq, record.sha256)
            if record.kind == Kind.GRANT:
                grant = read_grant(record)
                most = int(grant.counts1_max.sum()) + CUTOFF_QUANTA * grant.quantum_counts
                self._grants[grant.unit_boot_id, grant.grant_id] = most
                self._open[grant.grant_id] = most
            elif record.kind == Kind.DONE:
                done = read_done(record)
                self._done += int(done.pieces["counts1"].sum())
                self._open.pop(done.grant_id, None)
        self._offset += found.good_bytes
