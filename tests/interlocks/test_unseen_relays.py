"""A relay is accused only by what was seen of it while this system worked; what is not known is said to be not known."""

import pytest
from safety_room import LIMITS, MS, SAFE, armed, ready

from interlocks.engine import Engine
from interlocks.first_out import UNBELIEVED
from interlocks.inputs import Sample

ROWS = {"RELAY_WELDED": "permit_b", "MOTION_WELDED": "motion_permit"}
APART = {"motor_angle_mdeg": -30_500}  # of the load encoder at -30 deg: RING_ENCODERS, which withholds both permits
WELDS = {"RELAY_WELDED": "relay_welded", "MOTION_WELDED": "motion_welded"}
RELAY_MS, DEBOUNCE_MS = 100, 250


def weld(bench, row, welded=True):
    """Closed whatever is pulsed: welded, or (for a while) a room that stood still and has not seen its own time pass."""
    setattr(bench.room, WELDS[row], welded)


def of(bench, row):
    """The row's latest trip; None: it does not stand."""
    return bench.node._latest[row] if row in bench.tripped else None


def accused(bench, row):
    """Whether the row stands on what was seen of the relay."""
    trip = of(bench, row)
    return trip is not None and not trip.shown[0] & UNBELIEVED


@pytest.mark.parametrize("silence", ["the link was down", "the counter stood still"])
@pytest.mark.parametrize("lost_ms", [200, 300, 450, 2000])
@pytest.mark.parametrize("row", ROWS)
def test_the_first_reading_after_a_silence_accuses_no_relay(row, lost_ms, silence):
    bench = ready()
    weld(bench, row)
    bench.room.link_up, bench.room.counter_runs = silence != "the link was down", silence == "the link was down"
    bench.run(lost_ms)
    assert of(bench, row) is not None and not accused(bench, row), "not known is bad, and no accusation"
    bench.room.link_up = bench.room.counter_runs = True
    bench.run(90)
    weld(bench, row, False)  # its hold is over by now
    bench.run(500)
    assert row in bench.tripped and not accused(bench, row)
    assert row in bench.press(LIMITS.invalid_reset_role)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("stood_ms", [101, 149, 151, 300, 5000])
def test_a_time_in_which_this_system_stood_still_proves_nothing(row, stood_ms):
    bench = ready()
    weld(bench, row)
    bench.set(**APART)
    bench.run(60)  # seen closed since the withdrawal
    bench.room.now_ns += stood_ms * MS
    bench.step()
    bench.run(40)
    weld(bench, row, False)
    bench.run(500)
    assert row not in bench.tripped


@pytest.mark.parametrize("row", ROWS)
def test_a_time_in_which_no_answer_came_proves_nothing(row):
    bench = ready()
    weld(bench, row)
    bench.set(**APART)
    bench.run(110)
    bench.room.link_up = False
    bench.run(140)  # still believed: younger than what is stale
    assert row not in bench.tripped
    bench.room.link_up = True
    bench.run(60)
    weld(bench, row, False)
    bench.run(500)
    assert row not in bench.tripped


@pytest.mark.parametrize("row", ROWS)
def test_a_welded_relay_is_found_in_its_time_when_nothing_stalls(row):
    bench = ready()
    weld(bench, row)
    bench.set(**APART)
    since_ns = bench.room.now_ns
    while not accused(bench, row):
        bench.run(1)
        assert bench.room.now_ns - since_ns <= LIMITS.row(row).deadline_ms * MS
    assert bench.room.now_ns - since_ns >= DEBOUNCE_MS * MS
    bench.set(motor_angle_mdeg=-30_020)
    weld(bench, row, False)
    bench.run(500)
    assert row not in bench.press(LIMITS.invalid_reset_role)
    assert row in bench.press("service")


@pytest.mark.parametrize("row", ROWS)
def test_a_welded_relay_is_found_beside_silences_and_stalls_and_told_anew(row):
    """It tripped as not known; that it is welded comes later, with a record of its own and its own role."""
    bench = ready()
    weld(bench, row)
    bench.room.link_up = False
    bench.run(400)
    bench.room.link_up = True
    assert row in bench.tripped and not accused(bench, row)
    for _ in range(3):  # 180 ms of work in 540 ms
        bench.run(60)
        bench.room.now_ns += 120 * MS
        bench.step()
    bench.run(200)
    assert accused(bench, row)
    records = [record for record in bench.records if record.get("id") == row]
    assert [bool(record["shown"][0] & UNBELIEVED) for record in records] == [True, False]
    assert records[0]["cause"].startswith(f"not known: {ROWS[row]} ")
    assert records[1]["cause"] == f"{LIMITS.row(row).what}: {ROWS[row]} 1"
    weld(bench, row, False)
    bench.run(500)
    assert row not in bench.press(LIMITS.invalid_reset_role)


def test_what_is_not_known_is_said_first_and_accuses_nothing():
    bench = ready()
    bench.room.link_up = False
    bench.run(400)
    trip = of(bench, "MOTION_WELDED")
    assert trip.cause == "not known: motion_permit 1 (not valid)"
    assert "Replace" not in trip.advice and "link" in trip.advice and "computer" in trip.advice
    assert of(bench, "DOOR_CONTACTS").cause == "not known: door_a_closed 1 (not valid), door_b_closed 1 (not valid)"
    assert of(bench, "PLANT_STALE").advice == LIMITS.row("PLANT_STALE").advice, "that it is not read is what this row says"


def test_a_row_that_is_not_known_stays_bad_until_its_value_is_good():
    """Not known, then wrong, is no moment in which the cause was gone."""
    bench = armed()
    bench.room.link_up = False
    bench.run(400)
    bench.room.link_up = True
    row, lasts_ms = "STOPPER_STATE", LIMITS.row("STOPPER_STATE").debounce_ms
    bench.set(stopper_asked=1, stopper_confirmed=0)
    assert bench.node.engine._by_id[row].active
    bench.run(lasts_ms - 20)
    assert not accused(bench, row)
    assert bench.node.engine._by_id[row].active
    bench.run(40)
    assert accused(bench, row)


def test_what_may_last_for_minutes_begins_to_last_when_it_is_seen():
    """A treatment that is paused because the link was lost can be reset and go on; one that is left so cannot."""
    bench = armed()
    bench.set(permit_r=1)
    bench.run(100)
    bench.room.link_up = False
    bench.run(6000)
    assert of(bench, "LEFT_ARMED") is not None and not accused(bench, "LEFT_ARMED")
    bench.set(permit_r=0)
    bench.room.link_up = True
    bench.run(200)
    assert "LEFT_ARMED" in bench.press(LIMITS.invalid_reset_role), "nothing was found bad"
    allowed_ms = LIMITS.row("LEFT_ARMED").debounce_ms
    bench.run(round(allowed_ms) - 500)
    assert of(bench, "LEFT_ARMED") is None
    bench.run(1000)
    assert accused(bench, "LEFT_ARMED")


def test_a_cause_of_this_system_itself_is_known():
    bench = ready()
    bench.room.now_ns += 400 * MS
    bench.step()
    row = LIMITS.row("LOOP_STALL")
    trip = of(bench, row.id)
    assert (trip.cause, trip.advice) == (f"{row.what}: internal", row.advice)


def test_what_is_known_by_now_is_decided_on_and_shown_at_once():
    engine = Engine(LIMITS)
    samples = {name: Sample(value, True, 0, 0) for name, value in SAFE.items()}
    engine.step(0, samples)
    engine.clear(["POWER_UP"])
    assert engine.step(MS, samples)[0].permit
    decision, _ = engine.step(2 * MS, {"area_dose_rate": Sample(60_000, False, 2 * MS, 0)})
    assert (decision.tripped, decision.first_out.what) == (("AREA_MONITOR",), "not known")
    decision, _ = engine.step(3 * MS, {"area_dose_rate": Sample(60_000, True, 3 * MS, 0)})
    assert decision.first_out.what == LIMITS.row("AREA_MONITOR").what
    assert decision.first_out.shown == (0, 60_000, 2500) and decision.new == (decision.first_out,)
