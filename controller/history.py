"""Listens to the event bus during a fraction and keeps what the outputs need: states, holds, motion, trips, and all events.

A view, never a participant. Not responsible for dose (that comes from the unit's results).
"""

from __future__ import annotations

from controller.record.outcome import Interlock, Span
from drivers.hal.events import Event, EventBus

HELD = "irradiating.held"


class History:
    """Everything that was said on a bus.

    Attributes:
        events: all of them, in order.
    """

    def __init__(self, bus: EventBus) -> None:
        self.events: list[Event] = []
        bus.subscribe(self.events.append)

    def states(self, end_ns: int) -> tuple[Span, ...]:
        """Room states as spans, the last one up to `end_ns`."""
        changes = [(e.t_ns, str(e.data["state"])) for e in self.events if e.kind == "room.state"]
        ends = [t_ns for t_ns, _ in changes[1:]] + [end_ns]
        return tuple(Span(start, end, state) for (start, state), end in zip(changes, ends, strict=True))

    def holds(self, end_ns: int) -> tuple[Span, ...]:
        """Spans in which the beam was held, with the reason."""
        why = {e.t_ns: str(e.data.get("why", "held")) for e in self.events if e.kind == "room.state"}
        return tuple(Span(s.t_start_ns, s.t_end_ns, why[s.t_start_ns]) for s in self.states(end_ns) if s.label == HELD)

    def motion(self) -> tuple[tuple[int, float], ...]:
        """Gantry angle as it was told, (t_ns, deg)."""
        return tuple((e.t_ns, float(e.data["angle_deg"])) for e in self.events if e.kind == "gantry.angle")

    def interlocks(self) -> tuple[Interlock, ...]:
        """Trips and findings, first-out first."""
        trips = [e for e in self.events if e.kind == "trip"]
        return tuple(
            Interlock(
                t_ns=e.t_ns,
                name=str(e.data["cause"]),
                description=" ".join(str(e.data[k]) for k in ("message", "value", "limit", "hint") if e.data.get(k)),
                device=str(e.data.get("device", "")),
                first_out=i == 0,
            )
            for i, e in enumerate(trips)
        )
