"""Access to one room: door, search buttons in their order, warning lamp, people, E-stop buttons, mode key.

The search follows the practice of accelerator halls: press the buttons in order within a time, leave, close the door before
the leave time is over; lamp and horn warn for some seconds; then the room is secured. A wrong order, a late door or any
re-entry makes the room free, and the search begins anew. E-stop is two-stage: the button latches, and after it was pulled
out the loop stays open until the local reset. Not responsible for beam (`safety_chain`) or motion (`gantry`, `couch`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum

from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.motion_truth import AccessTruth

NS_PER_S = 1_000_000_000


class SearchState(IntEnum):
    """How far the search has come; the values travel on the wire."""

    FREE = 0
    SEARCHING = 1
    SECURED = 2


class DoorFault(Enum):
    """How a door contact may fail."""

    NONE = "none"
    A_WELDED = "contact a welded closed"
    B_WELDED = "contact b welded closed"
    A_OPEN = "contact a stuck open"


class Access:
    """The plant's side of one room's access system; people press its buttons.

    Args:
        kernel: plant time, truth events.
        room: name of the room.
        truth: buttons and times.

    Attributes:
        door_closed: physically.
        state: of the search.
        lamp_lit: the warning lamp.
        service_key: the mode key stands on service.
        door_ok, search_ok, estop_ok: lines to the safety chain.
        clear: line, True while the room is secured: nobody inside, motion at full speed allowed.
    """

    def __init__(self, kernel: Kernel, room: str, truth: AccessTruth) -> None:
        self.kernel = kernel
        self.room = room
        self.truth = truth
        self.device = f"{room}-access"
        self.door_closed = False
        self.contact_a = False
        self.contact_b = False
        self.state = SearchState.FREE
        self.lamp_lit = False
        self.lamp_lit_ns = 0
        self.service_key = False
        self.door_ok = Line(kernel, f"{room}.door")
        self.search_ok = Line(kernel, f"{room}.search")
        self.estop_ok = Line(kernel, f"{room}.estop", True)
        self.clear = Line(kernel, f"{room}.clear")
        self._people: dict[str, None] = {}
        self._pressed = 0
        self._timer: Timer | None = None
        self._contact_timer: Timer | None = None
        self._estops: set[str] = set()
        self._door_fault = DoorFault.NONE

    @property
    def people_inside(self) -> tuple[str, ...]:
        """Staff in the room, in order of arrival; the patient is not counted."""
        return tuple(self._people)

    # --- people and door ------------------------------------------------------------------------------------------

    def enter(self, person: str) -> None:
        """Someone walks in. ValueError when the door is closed: nobody walks through it."""
        if self.door_closed:
            raise ValueError(f"{self.room}: {person} cannot enter, the door is closed")
        self._people[person] = None
        self._tell_people(person)
        if self.state is not SearchState.FREE:
            self._void("someone entered")

    def leave(self, person: str) -> None:
        """Someone walks out. ValueError when the door is closed or the person is not inside."""
        if self.door_closed or person not in self._people:
            raise ValueError(f"{self.room}: {person} cannot leave: door closed {self.door_closed}, inside {self.people_inside}")
        del self._people[person]
        self._tell_people(person)

    def open_door(self) -> None:
        """Open the door; a search that was complete, or on its way, is void."""
        if not self.door_closed:
            return
        self.door_closed = False
        self.kernel.emit(self.device, "door", room=self.room, closed=False)
        self._void("door opened")
        self._read_contacts()

    def close_door(self) -> None:
        """Close the door; after a finished search the warning begins."""
        if self.door_closed:
            return
        self.door_closed = True
        self.kernel.emit(self.device, "door", room=self.room, closed=True)
        self._read_contacts()
        if self.state is SearchState.SEARCHING:
            if self._pressed < len(self.truth.search_buttons):
                self._void("door closed before the search was finished")
            else:
                self.lamp_lit = True
                self.lamp_lit_ns = self.kernel.now_ns
                self._wait(self.truth.warning_s, self._secure)

    # --- search ---------------------------------------------------------------------------------------------------

    def press_search(self, button: str) -> None:
        """Press a search button inside the room. ValueError for a button that does not exist."""
        order = self.truth.search_buttons
        if button not in order:
            raise ValueError(f"{self.room}: no search button {button!r}; there are {', '.join(order)}")
        if self.door_closed or self.state is SearchState.SECURED:
            return
        if button != order[self._pressed % len(order)] or self._pressed == len(order):
            self._void(f"{button} out of order")
            return
        self._pressed += 1
        if self._pressed == 1:
            self._enter(SearchState.SEARCHING, "first button")
            self._wait(self.truth.search_time_s, lambda: self._void("search took too long"))
        if self._pressed == len(order):
            self._wait(self.truth.leave_time_s, lambda: self._void("door was not closed in time"))

    # --- E-stop and key -------------------------------------------------------------------------------------------

    def press_estop(self, button: str) -> None:
        """Press an E-stop button; it latches. ValueError for a button that does not exist."""
        if button not in self.truth.estop_buttons:
            raise ValueError(f"{self.room}: no E-stop {button!r}; there are {', '.join(self.truth.estop_buttons)}")
        self._estops.add(button)
        self.estop_ok.set(False)

    def release_estop(self, button: str) -> None:
        """Pull a button out again; the loop stays open until `reset_estop`."""
        self._estops.discard(button)

    def reset_estop(self) -> bool:
        """Turn the local reset; True when the loop closes, False while a button is still in."""
        if self._estops:
            return False
        self.estop_ok.set(True)
        return True

    def turn_key(self, service: bool) -> None:
        """Turn the mode key."""
        self.service_key = service

    # --- faults ---------------------------------------------------------------------------------------------------

    def set_door_fault(self, fault: DoorFault) -> None:
        """Plant a fault in a door contact, or take it away."""
        self._door_fault = fault
        self._read_contacts()

    def bounce_door(self, seconds: float) -> None:
        """The closed door's contact opens for a moment, as a worn latch lets it."""
        if self.door_closed and self._door_fault is DoorFault.NONE:
            self.set_door_fault(DoorFault.A_OPEN)
            self.kernel.after(round(seconds * NS_PER_S), lambda _t: self.set_door_fault(DoorFault.NONE))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _read_contacts(self) -> None:
        """Contact a follows the door at once, contact b a little later; the door line needs both."""
        fault = self._door_fault
        self.contact_a = (self.door_closed or fault is DoorFault.A_WELDED) and fault is not DoorFault.A_OPEN
        if self._contact_timer is not None:
            self._contact_timer.cancel()
        self._contact_timer = self.kernel.after(
            round(self.truth.door_contact_b_delay_s * NS_PER_S), lambda _t: self._read_contact_b()
        )
        self._drive_door_line()

    def _read_contact_b(self) -> None:
        self._contact_timer = None
        self.contact_b = self.door_closed or self._door_fault is DoorFault.B_WELDED
        self._drive_door_line()

    def _drive_door_line(self) -> None:
        closed = self.contact_a and self.contact_b
        self.door_ok.set(closed)
        if not closed and self.state is SearchState.SECURED:
            self._void("door contact opened")

    def _secure(self) -> None:
        if not (self.contact_a and self.contact_b):
            self._void("door contacts disagree")
            return
        self._enter(SearchState.SECURED, "warned")
        self.search_ok.set(True)
        self.clear.set(True)

    def _void(self, why: str) -> None:
        """Make the room free; whatever was searched counts no longer."""
        self._cancel()
        self._pressed = 0
        self.lamp_lit = False
        self.clear.set(False)
        self.search_ok.set(False)
        if self.state is not SearchState.FREE:
            self._enter(SearchState.FREE, why)

    def _enter(self, state: SearchState, why: str) -> None:
        self.state = state
        self.kernel.emit(self.device, "search", room=self.room, state=state.name.lower(), why=why)

    def _tell_people(self, person: str) -> None:
        self.kernel.emit(self.device, "person", room=self.room, inside=len(self._people), person=person)

    def _wait(self, seconds: float, action: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self.kernel.after(round(seconds * NS_PER_S), lambda _t: action())

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
