"""What a delivery unit has been granted in a field: limits it was given, less what ended grants left undelivered.

Plain read-outs for the interlock system (docs/wires.md, registers 38 to 51 of the room safety node). A grant counts in full
from the moment it is accepted until it ends, then with what it gave. Not responsible for accepting grants.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulators.plant.grants import GrantMessage


@dataclass(frozen=True, slots=True)
class Granted:
    """Counts of monitor 1 that field and layer can have at most; the largest row; where the latest grant belongs (0: none)."""

    field1: int = 0
    row1: int = 0
    layer: int = 0  # counted from 1
    layer1: int = 0
    plan_hash: int = 0
    beam: int = 0


class GrantedTotals:
    """Keeps the totals of one field."""

    def __init__(self) -> None:
        self.begin_field()

    def begin_field(self) -> None:
        """A field begins: everything is zero."""
        self._field1 = self._row1 = self._open1 = 0
        self._layers1: dict[int, int] = {}
        self._latest: GrantMessage | None = None

    def accept(self, grant: GrantMessage) -> None:
        """A grant was accepted: all of it may come."""
        self._latest = grant
        self._open1 = int(grant.counts1_max.sum())
        self._row1 = max(self._row1, int(grant.counts1_max.max(initial=0)))

    def end(self, given1: int) -> None:
        """The open grant is over and gave so many counts."""
        if self._latest is None:
            return
        self._field1 += given1
        layer = self._latest.layer
        self._layers1[layer] = self._layers1.get(layer, 0) + given1
        self._open1 = 0

    def shown(self) -> Granted:
        """The totals now."""
        latest = self._latest
        if latest is None:
            return Granted(self._field1, self._row1)
        return Granted(
            self._field1 + self._open1,
            self._row1,
            latest.layer + 1,
            self._layers1.get(latest.layer, 0) + self._open1,
            latest.plan_hash,
            latest.beam,
        )
