"""What a room's console shows of the interlock system: what stands, what was first, who resets it, and the bypasses.

Made from what the interlock system tells of itself, for display alone. Where that is not known (`Standing` has a reason in its
place) only the first-out of its status line is known to stand, with the bus and the matrix for its words. Not responsible for
asking (`controller.interlock_standing`), nor for resetting (`servicing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controller.console.views import BypassView, InterlocksView, TripView
from controller.room.causes import Cause
from controller.surroundings import InterlockRow, Standing, StandingRow, Unheard
from drivers.hal.capabilities import InterlockStatus
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns
from drivers.hal.events import Event

KEPT = 64  # trips of an episode; assumed
UNBELIEVED, NOTHING = 0x8000, 0xFFFF  # docs/wires.md, node 2: index of the input that shows a first-out
KEY = "key"
ROLE = "needs the role"  # a reason of the interlock system that is told in other words: who resets it
ENDED_NS = 100 * NS_PER_MS  # the interlock system tells a bypass until its next step
ANOTHER = "another interlock system than that of this room answers at the socket"


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
        told: what the interlock system told last, or why that is not known.
    """

    def __init__(
        self,
        rows: Mapping[str, InterlockRow],
        status: Callable[[], InterlockStatus],
        told: Callable[[], Standing | str],
    ) -> None:
        self.bypasses: dict[str, Bypassed] = {}
        self._rows = rows
        self._codes = {row.code: row for row in rows.values()}
        self._status = status
        self._told = told
        self._trips: dict[str, TripView] = {}  # of the bus
        self._refused: dict[str, str] = {}  # why the last reset left a row as it is
        self._ended_ns: dict[str, int] = {}  # when bypasses were ended here

    def take(self, event: Event) -> None:
        """Fold one event in."""
        if event.kind in ("interlock.trip", "interlock.stands"):
            self._trip(event)
        elif event.kind == "interlock.reset":
            for name in event.data.get("cleared", ()):
                self._trips.pop(str(name), None)
            self._refused = {str(name): str(why) for name, why in event.data.get("refused", ()) if not why.startswith(ROLE)}

    def reset_words(self, before: Sequence[str]) -> str:
        """What a reset has cleared of these ids, what still stands, and who can reset that; for people and the audit."""
        stands = self.standing()
        left = {trip.id for trip in stands}
        said = [
            f"cleared {', '.join(gone)}" if (gone := [name for name in before if name not in left]) else "nothing was cleared"
        ]
        if stands:
            said.append(f"still there: {', '.join(self._why_it_stands(trip) for trip in stands)}")
        return "; ".join(said)

    def _why_it_stands(self, trip: TripView) -> str:
        role = "the key switch" if trip.reset_role == KEY else trip.reset_role
        who = f"reset by: {role}" if role else "goes by itself with its cause"
        why = self._refused.get(trip.id, "")
        return f"{trip.id} ({why}; {who})" if why else f"{trip.id} ({who})"

    def standing(self) -> list[TripView]:
        """What stands now, first-out first."""
        code, told = self._status().first_out_code, self._known()
        found = self._of_the_wire()
        if not isinstance(told, str):
            rows = [self._standing_row(row) for row in self._rows_of(told)]
            found = [*rows, *(trip for trip in found if trip.code == code and all(row.id != trip.id for row in rows))]
        found.sort(key=lambda trip: (trip.code != code, not trip.first_out, trip.t_ns))
        if not found or found[0].code != code:
            return found
        # What is on top is the first-out, and no other is: one that was reset leaves the place to the oldest that is left.
        return [trip.model_copy(update={"first_out": place == 0}) for place, trip in enumerate(found)]

    def roles(self) -> dict[str, list[str]]:
        """Who may reset what stands: ids by role."""
        by_role: dict[str, list[str]] = {}
        for trip in self.standing():
            if trip.reset_role:
                by_role.setdefault(trip.reset_role, []).append(trip.id)
        return by_role

    def silent(self) -> str:
        """Why, in words, where the interlock system is asked and does not answer; empty where it does, or is not asked."""
        told = self._told()
        return str(told) if isinstance(told, Unheard) else ""

    def another(self) -> str:
        """In words, where another room's interlock system answers; empty otherwise."""
        return ANOTHER if self._known() == ANOTHER else ""

    def active_bypasses(self) -> list[Bypassed]:
        """Those of this console that were approved and have not run out; the others are forgotten."""
        at_ns = now_ns()
        for name in [b.interlock for b in self.bypasses.values() if b.approver and b.until_ns <= at_ns]:
            del self.bypasses[name]
        return [bypass for bypass in self.bypasses.values() if bypass.approver]

    def shown_bypasses(self) -> list[Bypassed]:
        """Asked for, active, and those that the interlock system holds from before this room's process began."""
        self.active_bypasses()
        told, found = self._known(), dict(self.bypasses)
        if isinstance(told, str):
            return list(found.values())
        for held in told.bypasses:
            ended_ns = self._ended_ns.get(held.id)
            if held.until_ns > now_ns() and (ended_ns is None or told.t_ns > ended_ns + ENDED_NS):
                found.setdefault(held.id, Bypassed(held.id, held.owner, held.reason, 0.0, held.approver, held.until_ns))
        return list(found.values())

    def forget_bypass(self, interlock: str) -> None:
        """It was ended, or the request withdrawn."""
        self.bypasses.pop(interlock, None)
        self._ended_ns[interlock] = now_ns()

    def view(self, causes: Sequence[Cause]) -> InterlocksView:
        """Everything of it."""
        status, told, trips, at_ns = self._status(), self._known(), self.standing(), now_ns()
        return InterlocksView(
            relay_closed=status.relay_closed,
            active_trips=status.active_trips,
            first_out=next((trip for trip in trips if trip.code == status.first_out_code), None),
            trips=trips,
            rest_unknown=str(told) if isinstance(told, str) else "",
            silent=bool(self.silent()),
            withheld=[] if isinstance(told, str) else list(told.withheld),
            proof_age_s=None if isinstance(told, str) else told.proof_age_s,
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
            bypasses=[bypass.view(at_ns) for bypass in self.shown_bypasses()],
        )

    # --- what is told -----------------------------------------------------------------------------------------------------

    def _known(self) -> Standing | str:
        """Of this room's interlock system: who answers at the socket is who writes the status line."""
        told, status = self._told(), self._status()
        return ANOTHER if not isinstance(told, str) and status.boot_id not in (0, told.boot_id) else told

    def _rows_of(self, told: Standing) -> tuple[StandingRow, ...]:
        """A status line that is newer, and shows nothing, has seen the reset."""
        status = self._status()
        return told.rows if status.active_trips or told.t_ns >= status.t_ns else ()

    def _standing_row(self, told: StandingRow) -> TripView:
        row = self._rows.get(told.id) or _unknown_row(told.id, told.code, told.advice)
        believed = told.shown_input == NOTHING or not told.shown_input & UNBELIEVED
        role = told.resettable_by or (row.reset_role if believed else row.invalid_reset_role)
        return _view(row, told.cause, told.latched, role, first_out=told.first_out, t_ns=told.since_ns, advice=told.advice)

    # --- what the wire and the bus show -----------------------------------------------------------------------------------

    def _of_the_wire(self) -> list[TripView]:
        status = self._status()
        code = status.first_out_code
        if not status.active_trips:
            self._trips.clear()
        elif code and (row := self._codes.get(code)) is not None and row.id not in self._trips:
            role = self._role(row, {})
            self._trips[row.id] = _view(row, "", row.latches, role, first_out=True, t_ns=status.t_ns)
        return list(self._trips.values())

    def _trip(self, event: Event) -> None:
        name = str(event.data["id"])
        row = self._rows.get(name)
        if row is None:
            row = _unknown_row(name, int(event.data.get("code", 0)), str(event.data.get("advice", "")))
        cause, first_out = str(event.data.get("cause", "")), bool(event.data.get("first_out", False))
        at_ns = event.t_ns if event.kind == "interlock.trip" else 0  # when it tripped is not on the wire
        role, advice = self._role(row, event.data), str(event.data.get("advice", ""))
        self._trips[name] = _view(row, cause, row.latches, role, first_out=first_out, t_ns=at_ns, advice=advice)
        while len(self._trips) > KEPT:
            del self._trips[next(iter(self._trips))]

    def _role(self, row: InterlockRow, data: Mapping[str, object]) -> str:
        """Another one resets what tripped on a value than what tripped on an input that is missing or stale."""
        shown, status, index = data.get("shown"), self._status(), NOTHING
        if isinstance(shown, list | tuple) and shown:
            index = int(shown[0])
        elif status.first_out_code == row.code:
            index = status.first_out_input
        return row.reset_role if index == NOTHING or not index & UNBELIEVED else row.invalid_reset_role


def _unknown_row(name: str, code: int, advice: str) -> InterlockRow:
    """One that this program's matrix does not have."""
    return InterlockRow(name, code, "", advice, False, "", "", False, 0.0)


def _named(limit: str, values: str) -> str:
    """A list of limits by the names of the inputs they are for: "[1, 2, 1]" says nothing to anybody."""
    names = [value.split()[0] for value in values.split(", ") if value]
    numbers = limit.removeprefix("[").removesuffix("]").split(", ")
    if not (limit.startswith("[") and limit.endswith("]") and len(names) == len(numbers)):
        return limit
    return ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))


def _view(row: InterlockRow, cause: str, latched: bool, role: str, *, first_out: bool, t_ns: int, advice: str = "") -> TripView:
    """The interlock system's own words where it has said them: what is only not known accuses nobody."""
    what, _, numbers = (cause or row.what).partition(": ")
    value, _, limit = numbers.partition("; limit ")
    return TripView(
        id=row.id,
        code=row.code,
        cause=what,
        value=value,
        limit=_named(limit, value),
        advice=advice or row.advice,
        reset_role=role if latched else "",
        latched=latched,
        first_out=first_out,
        t_ns=t_ns,
        source="interlock system",
    )
