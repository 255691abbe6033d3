"""What must be true of access to a room: nobody is locked in with beam possible, and every search is a fresh one."""

import pytest

from simulators.plant.access import Access, DoorFault, SearchState
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth

NS = 1_000_000_000
TRUTH = MotionTruth.load("asan").rooms["G1"].access


class Room:
    def __init__(self):
        self.kernel = Kernel(1)
        self.access = Access(self.kernel, "G1", TRUTH)
        self.events = []
        self.kernel.observe(self.events.append)

    def wait(self, seconds):
        self.kernel.advance_to(self.kernel.now_ns + round(seconds * NS))

    def search(self):
        self.access.enter("operator")
        for button in TRUTH.search_buttons:
            self.wait(5.0)
            self.access.press_search(button)
        self.wait(3.0)
        self.access.leave("operator")

    def secure(self):
        self.search()
        self.access.close_door()
        self.wait(TRUTH.warning_s + 0.1)

    @property
    def lines(self):
        return self.access.door_ok.value, self.access.search_ok.value, self.access.clear.value


def test_a_full_search_secures_the_room_after_the_warning_only():
    room = Room()
    room.search()
    room.access.close_door()
    assert room.access.lamp_lit
    room.wait(TRUTH.warning_s - 0.01)
    assert room.lines == (True, False, False)
    room.wait(0.02)
    assert room.lines == (True, True, True)
    secured = room.kernel.now_ns
    assert secured - room.access.lamp_lit_ns >= 3 * NS


def test_opening_the_door_voids_the_search_at_once_and_closing_it_does_not_restore_it():
    room = Room()
    room.secure()
    room.access.open_door()
    assert room.lines == (False, False, False)
    assert not room.access.lamp_lit
    room.access.close_door()
    room.wait(60.0)
    assert room.lines == (True, False, False)


def test_a_door_opened_and_shut_again_during_the_warning_costs_the_search():
    room = Room()
    room.search()
    room.access.close_door()
    room.wait(1.0)
    room.access.open_door()
    room.access.close_door()
    assert not room.access.lamp_lit
    room.wait(10.0)
    assert room.lines == (True, False, False)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (0, 1), (2,)])
def test_a_search_out_of_order_or_unfinished_secures_nothing(order):
    room = Room()
    room.access.enter("operator")
    for i in order:
        room.access.press_search(TRUTH.search_buttons[i])
    room.access.leave("operator")
    room.access.close_door()
    room.wait(30.0)
    assert room.access.state is SearchState.FREE
    assert not room.access.search_ok.value


def test_a_search_that_takes_too_long_or_leaves_the_door_open_is_void():
    slow = Room()
    slow.access.enter("operator")
    slow.access.press_search(TRUTH.search_buttons[0])
    slow.wait(TRUTH.search_time_s + 1.0)
    assert slow.access.state is SearchState.FREE
    late = Room()
    late.search()
    late.wait(TRUTH.leave_time_s + 1.0)
    late.access.close_door()
    late.wait(10.0)
    assert not late.access.search_ok.value


def test_someone_who_comes_in_after_the_search_voids_it():
    room = Room()
    room.search()
    room.access.enter("visitor")
    room.access.close_door()
    room.wait(10.0)
    assert not room.access.search_ok.value
    assert room.access.people_inside == ("visitor",)


def test_a_welded_door_contact_does_not_hide_an_open_door():
    room = Room()
    room.secure()
    room.access.set_door_fault(DoorFault.A_WELDED)
    room.access.open_door()
    room.wait(0.006)
    assert room.access.contact_a and not room.access.contact_b
    assert not room.access.door_ok.value and not room.access.search_ok.value


def test_a_bouncing_contact_costs_the_search():
    room = Room()
    room.secure()
    room.access.bounce_door(0.02)
    assert room.lines == (False, False, False)
    room.wait(1.0)
    assert room.lines == (True, False, False)


def test_an_estop_stays_open_until_released_and_reset():
    room = Room()
    room.access.press_estop("maze")
    room.access.press_estop("console")
    assert not room.access.estop_ok.value
    room.access.release_estop("maze")
    assert not room.access.reset_estop()
    room.access.release_estop("console")
    assert not room.access.estop_ok.value
    assert room.access.reset_estop()
    assert room.access.estop_ok.value


def test_nobody_walks_through_a_closed_door():
    room = Room()
    room.secure()
    with pytest.raises(ValueError, match="door is closed"):
        room.access.enter("visitor")
    with pytest.raises(ValueError, match="cannot leave"):
        room.access.leave("operator")
    with pytest.raises(ValueError, match="no E-stop"):
        room.access.press_estop("roof")


def test_truth_tells_of_door_search_and_people():
    room = Room()
    room.secure()
    told = [(e.kind, e.data.get("state", e.data.get("closed", e.data.get("inside")))) for e in room.events]
    assert told == [("person", 1), ("search", "searching"), ("person", 0), ("door", True), ("search", "secured")]
