"""Beside the first-out code the status line shows the value that tripped it, what is allowed, and which input it was."""

import pytest
from safety_room import LIMITS, armed, ready

UNBELIEVED, NO_INPUT = 0x8000, 0xFFFF


def signed(high, low):
    value = high << 16 | low
    return value - (1 << 32) if value >> 31 else value


def shown(bench):
    """(code, value, limit, input) as the relay node would show them."""
    words = bench.room.evidence
    assert len(words) == 5 and all(0 <= word <= 0xFFFF for word in words)
    return bench.room.first_out_code, signed(*words[0:2]), signed(*words[2:4]), words[4]


@pytest.mark.parametrize(
    ("row", "change", "expected"),
    [
        ("SPOT_POSITION", {"spot_error_um": -2600}, (-2600, 2000, 0)),
        ("DOOR", {"door_b_closed": 0}, (0, 1, 1)),
        ("SEARCH", {"search_state": 1}, (1, 2, 1)),
        ("RING_ENCODERS", {"motor_angle_mdeg": -30_300}, (300, 200, 0)),
        ("RING_DRIFT", {"ring_angle_mdeg": -29_850, "motor_angle_mdeg": -29_850}, (150, 100, 0)),
        ("SPECIES_SIGNAL", {"signal_per_ion_permille": 700}, (700, 850, 0)),
        ("SPECIES_SIGNAL", {"signal_per_ion_permille": 1300}, (1300, 1150, 0)),
        ("MONITOR_HEALTH", {"monitor2_fresh": 0}, (0, 1, 3)),
        ("MONITORS_DIFFER", {"counts1": 123_456_790_012}, (1000, 50, 0)),
    ],
)
def test_a_value_that_trips_is_shown_with_its_limit(row, change, expected):
    bench = armed(beam=True)
    bench.set(**change)
    bench.run(120)
    bench.step()
    assert bench.node.trips[-1].id == row or row in [trip.id for trip in bench.node.trips]
    code, *rest = shown(bench)
    assert (code, tuple(rest)) == (LIMITS.row(row).code, expected)


def test_a_counter_that_stands_still_names_the_input_that_is_not_believed():
    bench = ready()
    bench.room.counter_runs = False
    bench.run(300)
    code, _, limit, index = shown(bench)
    assert bench.node.decision.first_out.code == code
    assert index & UNBELIEVED and index != NO_INPUT and limit == 0


def test_a_cause_of_its_own_has_no_input_and_nothing_tripped_shows_nothing():
    bench = ready()
    assert shown(bench) == (0, 0, 0, NO_INPUT)
    bench.room.now_ns += 400_000_000
    bench.step()
    assert shown(bench) == (LIMITS.row("LOOP_STALL").code, 0, 0, NO_INPUT)


def test_a_controller_that_stands_still_is_shown_with_the_time_allowed():
    bench = armed()
    bench.room.controller_lives = False
    bench.run(300)
    assert shown(bench) == (LIMITS.row("CONTROLLER_HEARTBEAT").code, 200, 200, 0)
