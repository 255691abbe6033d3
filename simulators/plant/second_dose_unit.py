"""The second dose unit of a room: monitor 2 with electronics, ceilings and trip of its own.

It knows neither plan nor grant: only its own counts, a ceiling for the field, one for any single spot (a strobe from
the scanner tells it when a spot begins), its high voltage and whether its samples are fresh. A trip opens its line in
the chain (`dose2_ok`), and without power the line is open. A trip of voltage, samples or self-test is cleared by a self-test
that passes; one of a ceiling says that dose was given and stands, also without power, until a person acknowledges it.
Beam then needs a field with new ceilings.

Not responsible for monitor 1, positions or rates (delivery unit).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from simulators.plant.chambers import Monitor
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.truth import SecondUnitTruth

Int64s = NDArray[np.int64]

HV_NS = 1_000_000  # supervision of the voltage; assumed
FRESH_NS = 2_000_000  # frozen samples are noticed after; assumed
SELF_TEST_NS = 300_000_000  # charge injected into both channels; assumed
SELF_TEST_REL = 0.02
NEVER_S = 2**31 - 1


class Watch(IntEnum):
    """State on the wire."""

    IDLE = 0
    WATCHING = 1
    TRIPPED = 2


class Trip(IntEnum):
    """Trip reasons on the wire."""

    NONE = 0
    FIELD = 1
    SPOT = 2
    HIGH_VOLTAGE = 3
    STALE = 4
    NO_CEILING = 5
    SELF_TEST = 6


CEILINGS = (Trip.FIELD, Trip.SPOT)


class SecondDoseUnitPlant:
    """Monitor 2 and its watch.

    Attributes:
        monitor: the chamber, with its faults.
        powered: whether it has power.
        boot_id, state, trip, tripped_row: as shown.
        total: counts of the field.
    """

    def __init__(self, kernel: Kernel, room: str, truth: SecondUnitTruth, monitor: Monitor, ok: Line) -> None:
        self.identity = truth.identity
        self.monitor = monitor
        self.boot_id = truth.boot_id
        self.powered = True
        self.state = Watch.IDLE
        self.trip = Trip.NONE
        self.tripped_row = -1
        self.on_field: Callable[[], None] = lambda: None  # hard-wired: zeroes the field counters of both units
        self.other_healthy: Callable[[], bool] = lambda: True  # test pulse into monitor 1
        self._kernel = kernel
        self._room = room
        self._reaction_ns = round(truth.reaction_us * 1e3)
        self._ok = ok
        self._total = 0
        self._flying: Callable[[], float] = lambda: 0.0
        self._field_max = 0
        self._spot_max = 0
        self._spot_row = -1
        self._spot_counts = 0
        self._tested_ns: int | None = None
        self._testing = False
        self._test_failed = False
        self._pending: Timer | None = None
        self._watchers: list[Callable[[], None]] = []
        monitor.watch(self._supervise)
        ok.set(True)

    # --- what is seen -------------------------------------------------------------------------------------------

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call on every change of state, of power included."""
        self._watchers.append(watcher)

    @property
    def total(self) -> int:
        """Counts of the field, those of a running stretch included."""
        return self._total + int(self._flying())

    @property
    def ceilings(self) -> tuple[int, int] | None:
        """Ceilings of field and spot, counts of monitor 2; None while none are loaded, or there is no power to hold them."""
        loaded = self.powered and self.state is not Watch.IDLE and self._field_max > 0
        return (self._field_max, self._spot_max) if loaded else None

    @property
    def self_test_age_s(self) -> int:
        """Whole seconds since the last self-test, passed or not; the largest int32 when there was none since power-up."""
        return NEVER_S if self._tested_ns is None else (self._kernel.now_ns - self._tested_ns) // 1_000_000_000

    # --- commands -----------------------------------------------------------------------------------------------

    def start_field(self, boot_id: int, field_max: int, spot_max: int) -> None:
        """Load ceilings and begin a field: the total becomes 0. A tripped unit stays tripped and takes none.

        Raises:
            ValueError: another boot id, or a ceiling that is not above 0.
        """
        if boot_id != self.boot_id:
            raise ValueError(f"boot id {boot_id}, the unit's is {self.boot_id}")
        if field_max <= 0 or spot_max <= 0:
            raise ValueError(f"ceilings {field_max} and {spot_max}: both must be above 0")
        if self.state is Watch.TRIPPED or not self.powered:
            return
        self._field_max, self._spot_max = field_max, spot_max
        self._total = 0
        self._spot_row, self._spot_counts = -1, 0
        self.state = Watch.WATCHING
        self.on_field()
        self._tell()

    def self_test(self) -> None:
        """Inject charge into both channels; takes 0.3 s. Failing makes a trip; passing clears one, unless a ceiling made it."""
        if not self._testing and self.powered:
            self._testing = True
            boot_id = self.boot_id
            self._kernel.after(SELF_TEST_NS, lambda _t: self._tested() if boot_id == self.boot_id and self.powered else None)

    def acknowledge(self, boot_id: int) -> None:
        """A person has accounted for what a ceiling trip let through: it is cleared, unless the last self-test failed.

        There are no ceilings afterwards: counts before the next field trip the unit again.
        """
        if not self.powered or boot_id != self.boot_id or self.state is not Watch.TRIPPED or self.trip not in CEILINGS:
            return
        if self._test_failed or not self.monitor.hv_good or not self.monitor.fresh:
            self.trip = Trip.SELF_TEST
        else:
            self._clear()
        self._tell()

    def power_cycle(self, off_s: float = 0.5) -> None:
        """Lose power for a while: the line is open; then a new boot id, no ceilings, no self-test. A trip stands."""
        if not self.powered:
            return
        self.powered = False
        self._tell()
        self._ok.set(False)
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        self._kernel.after(round(off_s * 1e9), self._power_up)

    # --- for the delivery unit's timeline -----------------------------------------------------------------------

    def begin(self, row: Int64s, t_start_ns: Int64s, t_end_ns: Int64s, counts2: Int64s, flying: Callable[[], float]) -> None:
        """A stretch of beam begins whose counts of monitor 2 will be these (per row): set the trip, if it holds one.

        `flying` answers the counts of the stretch until now.
        """
        if not self.powered:
            return
        self._flying = flying
        found = self._ceiling_crossed(row, t_start_ns, t_end_ns, counts2)
        if found is not None:
            t_ns, reason, at_row = found
            self._pending = self._kernel.at(t_ns + self._reaction_ns, lambda _t: self._trip(reason, at_row))

    def end(self, row: Int64s, counts2: Int64s) -> None:
        """The stretch is over; these counts were really collected."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        self._flying = lambda: 0.0
        if self.powered:  # without power nothing is counted
            self._total += int(counts2.sum())
        if row.size:
            last = int(row[-1])
            same = int(counts2[-1]) + (self._spot_counts if last == self._spot_row and row.size == 1 else 0)
            self._spot_row, self._spot_counts = last, same

    def add_stray(self, counts2: int) -> None:
        """Counts that belong to no spot."""
        self._total += counts2 if self.powered else 0

    def strobe(self) -> None:
        """A new list of spots begins: its rows are other spots than those before."""
        self._spot_row, self._spot_counts = -1, 0

    # --- inside -------------------------------------------------------------------------------------------------

    def _ceiling_crossed(self, row: Int64s, t_start: Int64s, t_end: Int64s, counts2: Int64s) -> tuple[int, Trip, int] | None:
        """Instant, reason and row at which a ceiling is crossed first."""
        if self.state is Watch.IDLE:
            first = np.flatnonzero(counts2 > 0)
            return (int(t_start[first[0]]), Trip.NO_CEILING, int(row[first[0]])) if first.size else None
        found: list[tuple[int, Trip, int]] = []
        carried = np.where((np.arange(row.size) == 0) & (row == self._spot_row), self._spot_counts, 0)
        before = self._total + np.cumsum(counts2) - counts2
        for start, ceiling, reason in ((before, self._field_max, Trip.FIELD), (carried, self._spot_max, Trip.SPOT)):
            over = np.flatnonzero(start + counts2 > ceiling)
            if over.size:
                k = int(over[0])
                part = max(0.0, (ceiling - int(start[k])) / max(int(counts2[k]), 1))
                found.append((int(t_start[k]) + int(part * (int(t_end[k]) - int(t_start[k]))), reason, int(row[k])))
        return min(found, key=lambda f: f[0], default=None)

    def _power_up(self, _t_ns: int) -> None:
        self.boot_id += 1
        self.powered = True
        self._tested_ns = None
        self._testing = False
        self._total = 0
        if self.state is not Watch.TRIPPED:
            self.state = Watch.IDLE
            self._ok.set(True)
        self._supervise()  # tells, too

    def _clear(self) -> None:
        """No trip any more, and no ceilings."""
        self.state, self.trip, self.tripped_row = Watch.IDLE, Trip.NONE, -1
        self._ok.set(True)

    def _supervise(self) -> None:
        if not self.powered:
            return
        if not self.monitor.hv_good:
            self._kernel.after(HV_NS, lambda _t: self._trip(Trip.HIGH_VOLTAGE, -1) if not self.monitor.hv_good else None)
        if not self.monitor.fresh:
            self._kernel.after(FRESH_NS, lambda _t: self._trip(Trip.STALE, -1) if not self.monitor.fresh else None)
        self._tell()

    def _tested(self) -> None:
        self._testing = False
        self._tested_ns = self._kernel.now_ns
        self._test_failed = not (self.monitor.healthy(SELF_TEST_REL) and self.other_healthy())
        if self._test_failed:
            self._trip(Trip.SELF_TEST, -1)
        elif self.state is Watch.TRIPPED and self.trip not in CEILINGS:
            self._clear()
        self._tell()

    def _trip(self, reason: Trip, row: int) -> None:
        self._pending = None
        if self.state is Watch.TRIPPED or not self.powered:
            return
        self.state, self.trip, self.tripped_row = Watch.TRIPPED, reason, row
        self._kernel.emit(f"{self._room}-dose-unit-2", "trip", room=self._room, element="dose 2", cause=reason.name, row=row)
        self._ok.set(False)
        self._tell()

    def _tell(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()
