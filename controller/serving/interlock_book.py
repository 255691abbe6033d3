"""What a room's console shows of the interlock system: what stands, what was first, who resets it, and the bypasses.

Made from the bus, from the interlock system's status line and its matrix. Where only the first-out crosses the wire, only that
is known to stand. Not responsible for resetting (`servicing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controller.console.views import BypassView, InterlocksView, TripView
from controller.room.causes import Cause
from controller.surroundings import InterlockRow
from drivers.hal.capabilities import InterlockStatus
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.events import Event

KEPT = 64  # trips of an episode; assumed
UNBELIEVED, NOTHING = 0x8000, 0xFFFF  # docs/wires.md, node 2: index of the input that shows a first-out
KEY = "key"


@dataclass(slots=True)
class Bypassed:
    """A bypass that is asked for, or active until `until_ns` (loop time)."""

    interlock: str
    owner: str
    reason: str
    duration_s: float
    approver: str = ""
    until_ns: int = 0

    def view(self, at_ns: int) -> BypassView:
        """As shown."""
        left_s = max(0.0, (self.until_ns - at_ns) / NS_PER_S) if self.approver else self.duration_s
        return BypassView(
            interlock=self.interlock, owner=self.owner, approver=self.approver, reason=self.reason, remaining_s=round(left_s, 1)
        )


class InterlockBook:
    """One per room.

    Args:
        rows: the matrix.
        status: the status line, as last read.
        tripped: ids that stand now; None where that cannot be seen.
    """

    def __init__(
        self,
        rows: Mapping[str, InterlockRow],
        status: Callable[[], InterlockStatus],
        tripped: Callable[[], tuple[str, ...] | None],
    ) -> None:
        self.bypasses: dict[str, Bypassed] = {}
        self._rows = rows
        self._codes = {row.code: row for row in rows.values()}
        self._status = status
        self._tripped = tripped
        self._trips: dict[str, TripView] = {}

    def take(self, event: Event) -> None:
        """Fold one event in."""
        if event.kind == "interlock.trip":
            self._trip(event)
        elif event.kind == "interlock.reset":
            for name in event.data.get("cleared", ()):
                self._trips.pop(str(name), None)

    def standing(self) -> list[TripView]:
        """What stands now, first-out first."""
        status, names = self._status(), self._tripped()
        code = status.first_out_code
        if names is not None:
            for name in [n for n in self._trips if n not in names]:
                del self._trips[name]
            for name in names:
                if name not in self._trips and name in self._rows:
                    self._trips[name] = self._view(self._rows[name], "", {}, event_t_ns=status.t_ns)
        elif not status.active_trips:
            self._trips.clear()
        elif code and (row := self._codes.get(code)) is not None and row.id not in self._trips:
            self._trips[row.id] = self._view(row, "", {"first_out": True}, event_t_ns=status.t_ns)
        return sorted(self._trips.values(), key=lambda trip: (trip.code != code, not trip.first_out, trip.t_ns))

    def roles(self) -> dict[str, list[str]]:
        """Who may reset what stands: ids by role."""
        by_role: dict[str, list[str]] = {}
        for trip in self.standing():
            if trip.reset_role:
                by_role.setdefault(trip.reset_role, []).append(trip.id)
        return by_role

    def active_bypasses(self) -> list[Bypassed]:
        """Those that were approved and have not run out; the others are forgotten."""
        at_ns = now_ns()
        for name in [b.interlock for b in self.bypasses.values() if b.approver and b.until_ns <= at_ns]:
            del self.bypasses[name]
        return [bypass for bypass in self.bypasses.values() if bypass.approver]

    def view(self, causes: Sequence[Cause]) -> InterlocksView:
        """Everything of it."""
        status, trips, at_ns = self._status(), self.standing(), now_ns()
        self.active_bypasses()
        return InterlocksView(
            relay_closed=status.relay_closed,
            active_trips=status.active_trips,
            first_out=next((trip for trip in trips if trip.code == status.first_out_code), None),
            trips=trips,
            room_causes=[
                TripView(
                    id=cause.name,
                    cause=cause.message,
                    value=cause.value,
                    limit=cause.limit,
                    advice=cause.hint,
                    first_out=index == 0,
                    t_ns=cause.t_ns,
                    source=cause.device,
                )
                for index, cause in enumerate(causes)
            ],
            bypasses=[bypass.view(at_ns) for bypass in self.bypasses.values()],
        )

    def _trip(self, event: Event) -> None:
        name = str(event.data["id"])
        row = self._rows.get(name)
        if row is None:
            code, advice = int(event.data.get("code", 0)), str(event.data.get("advice", ""))
            row = InterlockRow(name, code, "", advice, False, "", "", False, 0.0)
        self._trips[name] = self._view(row, str(event.data.get("cause", "")), event.data, event_t_ns=event.t_ns)
        while len(self._trips) > KEPT:
            del self._trips[next(iter(self._trips))]

    def _view(self, row: InterlockRow, cause: str, data: Mapping[str, object], *, event_t_ns: int) -> TripView:
        what, _, numbers = (cause or row.what).partition(": ")
        value, _, limit = numbers.partition("; limit ")
        role = row.reset_role if self._on_a_value(row, data) else row.invalid_reset_role
        return TripView(
            id=row.id,
            code=row.code,
            cause=row.what or what,
            value=value,
            limit=limit,
            advice=row.advice,
            reset_role=role if row.latches else "",
            latched=row.latches,
            first_out=bool(data.get("first_out", False)),
            t_ns=event_t_ns,
            source="interlock system",
        )

    def _on_a_value(self, row: InterlockRow, data: Mapping[str, object]) -> bool:
        """Whether it tripped on a value that was believed, and not on an input that is missing or stale."""
        shown = data.get("shown")
        status = self._status()
        if isinstance(shown, list | tuple) and shown:
            index = int(shown[0])
        elif status.first_out_code == row.code:
            index = status.first_out_input
        else:
            return True
        return index == NOTHING or not index & UNBELIEVED
