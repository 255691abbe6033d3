"""Listens to the event bus during a fraction and keeps what the outputs need: states, holds, motion, trips, and all events.

A view, never a participant. Not responsible for dose (that comes from the unit's results).
"""

from __future__ import annotations

from dataclasses import replace

from controller.record.outcome import Interlock, Span
from drivers.hal.events import Event, EventBus

HELD = "irradiating.held"
CLEAR = ("standby", "ready.armed", "irradiating.beam_on")  # states in which nothing stands tripped
BOOT = "POWER_UP"


class History:
    """Everything that was said on a bus.

    Attributes:
        events: all of them, in order.
    """

    def __init__(self, bus: EventBus) -> None:
        self.events: list[Event] = []
        self.close = bus.subscribe(self.events.append)  # what ends the listening

    def states(self, end_ns: int) -> tuple[Span, ...]:
        """Room states as spans, the last one up to `end_ns`."""
        changes = [(e.t_ns, str(e.data["state"])) for e in self.events if e.kind == "room.state"]
        ends = [*(t_ns for t_ns, _ in changes[1:]), end_ns][: len(changes)]
        return tuple(Span(start, end, state) for (start, state), end in zip(changes, ends, strict=True))

    def holds(self, end_ns: int) -> tuple[Span, ...]:
        """Spans in which the beam was held, with the reason."""
        why = {e.t_ns: str(e.data.get("why", "held")) for e in self.events if e.kind == "room.state"}
        return tuple(Span(s.t_start_ns, s.t_end_ns, why[s.t_start_ns]) for s in self.states(end_ns) if s.label == HELD)

    def motion(self) -> tuple[tuple[int, float], ...]:
        """Gantry angle as it was told, (t_ns, deg)."""
        return tuple((e.t_ns, float(e.data["angle_deg"])) for e in self.events if e.kind == "gantry.angle")

    def interlocks(self) -> tuple[Interlock, ...]:
        """Trips of room and interlock system, and findings on slices, in order of time; the first of an episode is first-out.

        An episode ends when the room resumes, starts anew or is free again, and, before anything tripped the room, when the
        interlock system says that its own next trip is a first-out.
        """
        found: list[Interlock] = []
        roots: dict[str, int] = {}  # index of the latest trip of each row of the interlock system
        tripped = started = False
        for e in self.events:
            if e.kind == "room.state" and e.data["state"] in CLEAR:
                tripped = False
            elif e.kind == "trip":
                found.append(_of_room(e, first_out=not tripped))
                tripped = True
            elif e.kind == "finding":
                name, advice = f"slice.{e.data['code']}", f"{e.data['message']}; {e.data['hint']}"
                found.append(Interlock(e.t_ns, name, advice, e.source, first_out=not tripped))
                tripped = True
            elif e.kind == "interlock.trip":
                if e.data["id"] == BOOT and not started:  # every interlock system starts tripped: no cause of anything
                    started = True
                    continue
                roots[str(e.data["id"])] = len(found)
                found.append(_of_interlocks(e, first_out=bool(e.data["first_out"]) and not tripped))
                tripped = tripped or bool(e.data["first_out"])
            elif e.kind == "interlock.reset":
                for name in e.data["cleared"]:
                    if name in roots:
                        index = roots.pop(name)
                        found[index] = replace(found[index], resolution="reset", resolved_by=str(e.data["role"]))
        return tuple(found)


def _of_room(e: Event, *, first_out: bool) -> Interlock:
    d = e.data
    numbers = f" ({d['value']}; limit {d['limit']})" if d.get("limit") else f" ({d['value']})" if d.get("value") else ""
    advice = f"; {d['hint']}" if d.get("hint") else ""
    return Interlock(e.t_ns, str(d["cause"]), f"{d['message']}{numbers}{advice}", str(d.get("device", "")), first_out)


def _of_interlocks(e: Event, *, first_out: bool) -> Interlock:
    return Interlock(e.t_ns, str(e.data["id"]), f"{e.data['cause']}; {e.data['advice']}", e.source, first_out)
