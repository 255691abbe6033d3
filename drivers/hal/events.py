"""One event type on one bus. Event file, audit, alarms, telemetry and console are views of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drivers.hal.clock import now_ns


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        seq: counts from 1 on its bus, without gaps.
        t_ns: loop time in ns.
        source: who says it, for example ``"room.G1"``, ``"G1-delivery-unit"``.
        kind: what, in dotted lower case, for example ``"state"``, ``"grant.finished"``, ``"alarm"``.
        data: details; only JSON-able values, units in the keys.
    """

    seq: int
    t_ns: int
    source: str
    kind: str
    data: Mapping[str, Any]


Listener = Callable[[Event], None]


class EventBus:
    """Delivers each event synchronously, in order, to every listener.

    Not responsible for durability (that is the journal) and never for control: no component waits for an event to act.
    A listener must not raise; one that does is removed and the failure is itself an event.
    """

    def __init__(self) -> None:
        self._seq = 0
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; returns the function that removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def emit(self, source: str, kind: str, /, **data: Any) -> Event:
        """Number, stamp and deliver an event."""
        self._seq += 1
        event = Event(self._seq, now_ns(), source, kind, data)
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - a broken view must not stop a treatment
                self._listeners.remove(listener)
                self.emit("bus", "listener.removed", error=repr(error))
        return event
