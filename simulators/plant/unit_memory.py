"""What a delivery unit remembers: results of its last grants, 64-bit totals, and the dose memory that survives a power
loss.

The dose memory (latch) holds the boot id and grant it belongs to, the last finished row, the counts of the row that
was open, and the totals. Not responsible for what happened; it is told.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulators.plant.grants import PIECE, Int32s, encode_latch, encode_results
from simulators.plant.unit_terms import Flag

GRANTS_KEPT = 3


class UnitMemory:
    """Memory of one unit.

    Attributes:
        last_grant_id: last accepted; survives a power loss, so that an id is never taken twice.
        total1, total2: counts since the memory began.
        rows_finished: of the last grant.
    """

    def __init__(self, boot_id: int) -> None:
        self.last_grant_id = 0
        self.total1 = 0
        self.total2 = 0
        self.rows_finished = 0
        self._boot_id = boot_id
        self._row1 = 0
        self._row2 = 0
        self._results: dict[int, list[NDArray[np.void]]] = {}

    def open_grant(self, grant_id: int, boot_id: int) -> None:
        """A grant was accepted."""
        self._boot_id = boot_id
        self.last_grant_id = grant_id
        self.rows_finished = self._row1 = self._row2 = 0
        self._results[grant_id] = []
        while len(self._results) > GRANTS_KEPT:
            del self._results[next(iter(self._results))]

    def add(self, counts1: int, counts2: int) -> None:
        """Counts that belong to no grant."""
        self.total1 += counts1
        self.total2 += counts2

    def record(self, pieces: NDArray[np.void]) -> None:
        """Pieces of the open grant, in order of time."""
        if not pieces.size:
            return
        self._results[self.last_grant_id].append(pieces)
        self.add(int(pieces["counts1"].sum()), int(pieces["counts2"].sum()))
        self.rows_finished += int(np.count_nonzero(pieces["flags"] & Flag.ROW_ENDED))
        last = pieces[-1]
        if last["flags"] & Flag.ROW_ENDED:
            self._row1 = self._row2 = 0
        else:
            carry = pieces.size == 1
            self._row1 = int(last["counts1"]) + (self._row1 if carry else 0)
            self._row2 = int(last["counts2"]) + (self._row2 if carry else 0)

    def lose_power(self) -> None:
        """Forget what is not battery-backed: the results."""
        self._results.clear()

    @property
    def held(self) -> tuple[int, int]:
        """First and last grant whose results are held; zeros when none."""
        return (min(self._results), max(self._results)) if self._results else (0, 0)

    def pieces(self, grant_id: int) -> NDArray[np.void]:
        """All pieces of a grant so far; empty when it is not held."""
        parts = self._results.get(grant_id, [])
        return np.concatenate(parts) if parts else np.empty(0, dtype=PIECE)

    def answer(self, boot_id: int, grant_id: int, first: int) -> Int32s:
        """One result message."""
        return encode_results(boot_id, grant_id, max(first, 0), self.pieces(grant_id))

    def latch(self) -> Int32s:
        """The dose memory as words."""
        return encode_latch(
            self._boot_id, self.last_grant_id, self.rows_finished - 1, self._row1, self._row2, self.total1, self.total2
        )
