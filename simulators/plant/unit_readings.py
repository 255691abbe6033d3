"""What a delivery unit shows of itself between its events: counts, rows and errors of a running stretch included.

Only readings; `delivery_unit` does everything else.
"""

from __future__ import annotations

from simulators.plant.grants import GrantMessage
from simulators.plant.kernel import Kernel
from simulators.plant.unit_granted import Granted, GrantedTotals
from simulators.plant.unit_memory import UnitMemory
from simulators.plant.unit_run import Run


class UnitReadings:
    """The readable side of a unit; its owner keeps these attributes up to date."""

    memory: UnitMemory
    _kernel: Kernel
    _granted: GrantedTotals
    _open: GrantMessage | None
    _run: Run | None
    _next_row: int
    _field1: int
    _worst_mm: float
    _signal_permille: int

    @property
    def open_grant(self) -> GrantMessage | None:
        """The grant that is open, if any."""
        return self._open

    @property
    def delivering(self) -> bool:
        """Whether beam is being taken for this room."""
        return self._run is not None

    def counts(self) -> tuple[int, int]:
        """Totals of monitors 1 and 2 since the memory began, running stretch included; 64-bit."""
        _rows, c1, c2, _ions = self._flying()
        return self.memory.total1 + c1, self.memory.total2 + c2

    def field_counts1(self) -> int:
        """Counts of monitor 1 in this field (since the second unit's ceilings were loaded)."""
        return self._field1 + self._flying()[1]

    def granted(self) -> Granted:
        """What may come in this field by its grants."""
        return self._granted.shown()

    def rows_finished(self) -> int:
        """Rows of the open (or last) grant that are finished."""
        return self.memory.rows_finished + self._flying()[0]

    def open_row(self) -> int:
        """Row in progress."""
        return self._next_row + self._flying()[0]

    def position_error_um(self) -> int:
        """Largest measured position error of the open (or last) grant."""
        worst = self._worst_mm
        if self._run is not None and (done := self._run.running.at(self._kernel.now_ns)[0]):
            worst = max(worst, float(self._run.running.worst_mm[done - 1]))
        return round(worst * 1e3)

    def signal_permille(self) -> int:
        """Charge per ion that monitor 1 sees over what the map leads to expect, since the last beam; 1000 before."""
        return self._signal_permille

    def _flying(self) -> tuple[int, int, int, float]:
        """Rows finished, counts 1, counts 2 and ions of the running stretch until now."""
        if self._run is None:
            return 0, 0, 0, 0.0
        return self._run.running.at(self._kernel.now_ns)
