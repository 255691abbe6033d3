"""What the status line of the interlock system tells, as words for operator and record."""

import pytest

from controller.attached import InterlockNews
from controller.console.progress import Picture
from drivers.hal.events import Event, EventBus
from interlocks.first_out import NOT_KNOWN
from interlocks.matrix import load
from simulators import clock

LIMITS = load()


def told(*shown):
    return clock.run(tell(*shown))


async def tell(code, value=0, limit=0, index=0xFFFF):
    """The events that a change of the status line leads to."""
    bus, found = EventBus(), []
    ended = InterlockNews(bus, "G1", LIMITS).attach()
    bus.subscribe(lambda event: found.append(event) if event.source == "G1-interlocks" else None)
    shown = {"first_out_value": value, "first_out_limit": limit, "first_out_input": index}
    bus.emit("G1-interlock", "interlock.status", relay_closed=False, active_trips=1, boot_id=1, first_out_code=code, **shown)
    ended()
    return found


@pytest.mark.parametrize(
    ("row", "value", "limit", "index", "words"),
    [
        ("SPOT_POSITION", 2600, 2000, 0, "spot_error_um 2600 um; limit 2000 um"),
        ("DOOR", 0, 1, 1, "door_b_closed 0; limit 1"),
        ("RING_ENCODERS", 250, 200, 0, "ring_angle_mdeg 250 mdeg; limit 200 mdeg"),
        ("PLANT_STALE", 1, 0, 0x8000, "permit_a missing, stale or of bad quality (last 1)"),
        ("LOOP_STALL", 0, 0, 0xFFFF, "internal"),
    ],
)
def test_the_first_out_is_told_with_value_limit_and_what_to_do(row, value, limit, index, words):
    (event,) = told(LIMITS.row(row).code, value, limit, index)
    assert event.kind == "interlock.trip" and event.data["id"] == row
    assert event.data["cause"] == f"{LIMITS.row(row).what}: {words}"
    line = Picture().take(event)
    assert line == f"TRIP {row}: {event.data['cause']}; {LIMITS.row(row).advice}"


@pytest.mark.parametrize(("row", "name"), [("DOOR", "door_a_closed"), ("MOTION_WELDED", "motion_permit")])
def test_a_first_out_that_is_not_known_is_told_as_such_and_accuses_nothing(row, name):
    (event,) = told(LIMITS.row(row).code, 1, 0, 0x8000)
    assert event.data["cause"] == f"not known: {name} missing, stale or of bad quality (last 1)"
    line = Picture().take(event)
    assert line == f"TRIP {row}: {event.data['cause']}; {NOT_KNOWN[1]}"


def test_a_code_that_nobody_knows_is_told_as_such():
    (event,) = told(60_000, 1, 2, 3)
    assert event.data["id"] == "code 60000" and "does not know" in event.data["cause"]


def test_the_trip_of_the_room_says_what_to_do():
    data = {
        "cause": "gantry.moved",
        "message": "the gantry moved",
        "value": "0.3 deg",
        "limit": "0.1 deg",
        "hint": "call service",
    }
    line = Picture().take(Event(seq=1, t_ns=0, source="room.G1", kind="trip", data=data))
    assert line == "TRIP gantry.moved: the gantry moved (0.3 deg; limit 0.1 deg); call service"


async def tell_each(*lines):
    """Status lines, one after another: (first-out code, active trips)."""
    bus, found = EventBus(), []
    ended = InterlockNews(bus, "G1", LIMITS).attach()
    bus.subscribe(lambda event: found.append(event) if event.source == "G1-interlocks" else None)
    shown = {"relay_closed": False, "boot_id": 1, "first_out_value": 0, "first_out_limit": 1, "first_out_input": 0}
    for code, active in lines:
        bus.emit("G1-interlock", "interlock.status", first_out_code=code, active_trips=active, **shown)
    ended()
    return [(event.kind, event.data.get("id") or event.data["cleared"][0]) for event in found]


def test_what_is_left_after_a_reset_is_told_as_left_and_not_as_a_trip_of_that_moment():
    power_up, door, estop = (LIMITS.row(row).code for row in ("POWER_UP", "DOOR", "ESTOP"))
    told = clock.run(tell_each((power_up, 1), (power_up, 3), (door, 2), (0, 0), (estop, 1)))
    assert told == [
        ("interlock.trip", "POWER_UP"),
        ("interlock.reset", "POWER_UP"),
        ("interlock.stands", "DOOR"),
        ("interlock.reset", "DOOR"),
        ("interlock.trip", "ESTOP"),
    ]


def test_a_new_first_out_beside_what_stood_is_a_trip():
    power_up, door = LIMITS.row("POWER_UP").code, LIMITS.row("DOOR").code
    told = clock.run(tell_each((power_up, 1), (door, 2)))
    assert told[-1] == ("interlock.trip", "DOOR")
