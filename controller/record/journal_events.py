"""What the bus says that belongs into the journal: trips, as they happen, beside the grants that they ended.

The trips of the room, of the interlock system and findings on slices. Each is durable before the loop goes on: the request line
was dropped before anything was told, so nobody waits for the disk but the room. Not responsible for which trip was the first
(`history`), nor for what was granted and given (`delivery`).
"""

from __future__ import annotations

from types import TracebackType

from controller.record.entries import write_interlock
from controller.record.journal import Journal
from drivers.hal.events import Event, EventBus

BOOT = "POWER_UP"  # every interlock system starts tripped: no cause of anything


class TripJournal:
    """Writes INTERLOCK for every trip that is told while it is entered.

    A disk that refuses is not told from here: the bus removes this listener and says so, and the journal takes no grant either.
    """

    def __init__(self, bus: EventBus, journal: Journal) -> None:
        self._bus = bus
        self._journal = journal

    def __enter__(self) -> TripJournal:
        self._remove = self._bus.subscribe(self._take)
        return self

    def __exit__(self, *_exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._remove()

    def _take(self, event: Event) -> None:
        d = event.data
        match event.kind:
            case "trip":
                name, device, words = d["cause"], d.get("device", ""), [d["message"], d.get("value"), d.get("limit")]
            case "interlock.trip" if d["id"] != BOOT:
                name, device, words = d["id"], "", [d["cause"]]
            case "finding":
                name, device, words = f"slice.{d['code']}", "", [d["message"]]
            case _:
                return
        write_interlock(
            self._journal,
            str(name),
            "; ".join(str(word) for word in words if word),
            source=event.source,
            device=str(device),
            t_ns=event.t_ns,
        )
