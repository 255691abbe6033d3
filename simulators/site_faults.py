"""The faults that are planted in a running plant: plant one at its time, tell which wait and which act, take one away.

Not responsible for what a fault breaks (`faults`) nor for how it is repaired (`fault_repair`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulators.fault_repair import MOMENTARY, CannotRepair, repair
from simulators.faults import CATALOGUE, TimedFault, inject, parse_fault
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.plant.room import RoomPlant
from simulators.refusal import NOT_NOW, UNKNOWN, WRONG, Refusal

WAITING, ACTING, OVER = "waiting", "acting", "over"


@dataclass(slots=True, eq=False)
class _Planted:
    timed: TimedFault
    room: str
    state: str = WAITING
    struck_ns: int | None = None


def tried(facility: str, room: str, spec: str) -> TimedFault:
    """A fault as asked for, tried on a spare plant: takes 20 ms and touches nothing that runs.

    Raises:
        Refusal: unknown, badly written, or nothing of the kind can break in this room.
    """
    try:
        timed = parse_fault(spec)
        spare = FacilityPlant.shipped(Kernel(0), facility)
        timed.fault.plant(spare, spare.rooms[room], timed.value)
    except (ValueError, IndexError, OverflowError) as error:
        raise Refusal(f"fault {spec!r} cannot be planted in {room}: {error}", WRONG) from None
    return timed


class FaultBook:
    """Faults of one plant.

    Args:
        plant: to break.
        sync: advances the plant to now.
        tell: told in words what struck and what was taken away.
    """

    def __init__(self, plant: FacilityPlant, sync: Callable[[], None], tell: Callable[[str], None]) -> None:
        self._plant = plant
        self._sync = sync
        self._tell = tell
        self._entries: list[_Planted] = []

    def plant(self, timed: TimedFault, room: str) -> dict[str, Any]:
        """Plant a fault at its time. Raises Refusal when it waits or acts there already."""
        name = timed.fault.name
        if self._find(name, room) is not None:
            raise Refusal(f"fault {name} is planted in {room} already: clear it first", NOT_NOW)
        entry = _Planted(timed, room)
        self._entries.append(entry)
        self._sync()
        guarded = dataclasses.replace(timed.fault, plant=self._only_if_wanted(entry))
        inject(self._plant, self._plant.rooms[room], [dataclasses.replace(timed, fault=guarded)], lambda _timed: None)
        self._sync()
        return self._view(entry)

    def clear(self, name: str, room: str) -> dict[str, Any]:
        """Take a fault away, or keep one that waits from striking.

        Raises:
            Refusal: no such fault is planted, or it cannot be undone.
        """
        if name not in CATALOGUE:
            raise Refusal(f"fault {name!r} is unknown; `iongantry faults` lists them", UNKNOWN)
        entry = self._find(name, room)
        if entry is None:
            raise Refusal(_cannot(name) or f"fault {name} is not planted in {room}", NOT_NOW if name in MOMENTARY else UNKNOWN)
        if entry.state == ACTING:
            self._sync()
            try:
                repair(self._plant, self._plant.rooms[room], name)
            except CannotRepair as error:
                raise Refusal(str(error), NOT_NOW) from None
            self._sync()
        entry.state = OVER
        self._entries.remove(entry)
        self._tell(f"fault {name} in {room}: cleared")
        return self._view(entry)

    def views(self) -> list[dict[str, Any]]:
        """All that wait, act, or were one event, in the order of their planting."""
        return [self._view(entry) for entry in self._entries]

    def _find(self, name: str, room: str) -> _Planted | None:
        for entry in self._entries:
            if entry.timed.fault.name == name and entry.room == room and entry.state != OVER:
                return entry
        return None

    def _only_if_wanted(self, entry: _Planted) -> Callable[[FacilityPlant, RoomPlant, float], None]:
        def strike(plant: FacilityPlant, room: RoomPlant, value: float) -> None:
            if entry.state != WAITING:
                return
            try:
                entry.timed.fault.plant(plant, room, value)
            except (ValueError, IndexError, OverflowError) as error:  # not in the state in which the plant is now
                entry.state = OVER
                self._tell(f"fault {entry.timed.fault.name} in {entry.room}: cannot be planted now: {error}")
                return
            entry.state = OVER if entry.timed.fault.name in MOMENTARY else ACTING
            entry.struck_ns = plant.kernel.now_ns
            self._tell(f"fault {entry.timed.fault.name} in {entry.room}: {entry.timed.fault.does}")

        return strike

    @staticmethod
    def _view(entry: _Planted) -> dict[str, Any]:
        fault = entry.timed.fault
        return {
            "name": fault.name,
            "room": entry.room,
            "spec": entry.timed.text or fault.name,
            "value": entry.timed.value if fault.unit else None,
            "does": fault.does,
            "state": entry.state,
            "struck_ns": entry.struck_ns,
        }


def _cannot(name: str) -> str:
    return f"fault {name} cannot be cleared: {MOMENTARY[name]}" if name in MOMENTARY else ""
