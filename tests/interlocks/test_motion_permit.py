"""The motion permit: a pulse of its own, withheld by the rows that ask for motion to stop and by no other, key or no key."""

import itertools

import pytest
from oracle import SOFTWARE
from safety_room import LIMITS, MS, Bench, armed, ready

from interlocks.daemon import latched_before
from interlocks.matrix import SHIPPED, parse
from interlocks.permit import PULSE_REGISTER, PULSES_SPAN

STOPS = ("MOTION_STOP", "EMERGENCY")
ASKING = {name for name, row in SOFTWARE.items() if {*STOPS, "INHIBIT_MOTION"} & set(row["reaction"]["action"])}
APART = {"motor_angle_mdeg": -30_500}  # of the load encoder at -30 deg: RING_ENCODERS


def code(row):
    return SOFTWARE[row]["sort"]["code"]


def booted(**values):
    """A daemon that has just started; nobody has turned the key."""
    bench = Bench(**values)
    bench.step()
    bench.run(200)
    return bench


def test_who_has_just_started_withholds_beam_and_gives_motion():
    bench = booted()
    assert bench.tripped == ("POWER_UP",)
    assert not bench.room.relay_closed()
    assert bench.room.motion_possible()
    assert bench.room.motion_code == 0


def test_an_open_room_may_be_positioned_in():
    bench = booted(door_a_closed=0, door_b_closed=0, search_complete=0, search_state=0, chain_door_search=0)
    bench.press("key")
    bench.run(300)
    assert not bench.permit
    assert bench.room.motion_possible()


def test_nothing_may_move_before_the_room_was_seen():
    bench = Bench()
    bench.room.link_up = False
    bench.step()
    bench.run(500)
    assert bench.room.motion_pulse == 0
    assert not bench.room.motion_possible()
    bench.room.link_up, bench.room.counter_runs = True, False
    bench.run(500)
    assert not bench.room.motion_possible(), "a room whose counter stands is not seen"


def test_a_new_process_gives_no_pulse_by_its_first_write():
    bench = booted(**APART)
    bench.room.motion_pulse, bench.room.motion_pulsed_ns = 4711, -(10**12)
    bench.start()
    bench.step()
    bench.run(200)
    assert bench.room.motion_pulse == 4711
    assert not bench.room.motion_possible()


def test_the_two_pulses_are_followed_each_by_itself():
    bench = ready()
    assert bench.room.relay_closed() and bench.room.motion_possible()
    bench.room.pulse, bench.room.motion_pulse = 100, 60_000
    bench.start()
    bench.step()
    bench.room.pulsed_ns = -(10**12)
    bench.run(300)
    assert not bench.room.relay_closed(), "a new process boots tripped"
    assert bench.room.motion_possible()
    assert (PULSE_REGISTER, PULSES_SPAN) == (16, 10)


@pytest.mark.parametrize("row", sorted(SOFTWARE))
def test_the_rows_that_ask_for_it_withhold_motion_and_no_other(row):
    """The truth tables show this for each combination; here that no row is forgotten in the file."""
    actions = {action.name for action in LIMITS.row(row).actions}
    assert bool(actions & {*STOPS, "INHIBIT_MOTION"}) == (row in ASKING)
    never = ("POWER_UP", "BYPASS_ACTIVE", "PROOF_TEST", "REQUEST_UNARMED", "BEAM_UNREQUESTED", "AREA_MONITOR", "STOPPER_STATE")
    assert row not in ASKING or row not in never
    assert row in ASKING or row not in ("ESTOP", "COLLISION", "RING_ENCODERS", "RING_SPEED", "RING_DRIFT", "COUCH_MOVED")


def test_a_ring_whose_encoders_part_is_stopped_within_its_time_and_says_by_which_row():
    bench = ready()
    bench.room.values.update(APART)
    since_ns = bench.room.now_ns
    while bench.room.motion_possible():
        bench.run(5)
        assert bench.room.now_ns - since_ns <= 160 * MS, "a poll, and the time of the relay"
    assert bench.room.motion_code == code("RING_ENCODERS")
    assert not bench.permit


def test_a_stop_lasts_until_the_right_person_has_looked():
    bench = ready()
    bench.set(**APART)
    bench.run(200)
    bench.set(motor_angle_mdeg=-30_020)
    bench.run(500)
    assert not bench.room.motion_possible(), "encoders that agree again are no reason to go on"
    for role in ("operator", "physicist", "key"):
        bench.press(role)
        bench.run(100)
        assert not bench.room.motion_possible()
    assert bench.press("service") == ("RING_ENCODERS",)
    bench.run(100)
    assert bench.room.motion_possible()
    assert bench.room.motion_code == 0


def test_an_inhibition_ends_with_its_cause_so_that_people_get_out():
    bench = armed()
    bench.set(door_a_closed=0, door_b_closed=0)
    bench.run(200)
    assert not bench.room.motion_possible()
    assert bench.room.motion_code == code("DOOR")
    bench.set(armed=0)
    bench.run(200)
    assert "DOOR" in bench.tripped, "beam waits for a search and a reset"
    assert not bench.permit
    assert bench.room.motion_possible(), "the couch brings the patient out"


def test_a_row_that_is_bypassed_stops_nothing_once_it_was_reset():
    bench = booted(service_mode=1)
    bench.set(collision_free=0, chain_collision=0)
    bench.press("key")
    bench.run(200)
    assert not bench.room.motion_possible()
    bench.node.bypass(bench.room.now_ns, "COLLISION", "Ada", "Bo", "moving away", 60_000.0)
    bench.run(100)
    assert not bench.room.motion_possible(), "it was not looked at yet"
    assert bench.press("service") == ("COLLISION",)
    bench.run(100)
    assert bench.room.motion_possible()
    bench.set(service_mode=0)
    bench.run(200)
    assert not bench.room.motion_possible()


def test_a_hung_a_dead_and_a_deaf_system_withhold_motion_by_itself():
    for silence in ("hung", "deaf"):
        bench = ready()
        began_ns = bench.room.now_ns
        if silence == "deaf":
            bench.room.link_up = False
            bench.run(100)
        else:
            bench.room.now_ns += 100 * MS
        assert not bench.room.motion_possible()
        assert bench.room.now_ns - began_ns <= 100 * MS


def test_every_trip_that_stops_motion_is_found_by_the_next_step_even_when_something_else_had_tripped():
    """Motion follows its own rows: beam that is withheld already hides nothing."""
    bench = booted()
    assert not bench.permit
    bench.set(**APART)
    assert bench.node.decision.motion_code == code("RING_ENCODERS")
    bench.set(estop_healthy=0, chain_estop=0)
    assert bench.node.decision.motion_code == code("ESTOP"), "the first in the file"


def test_a_welded_motion_relay_is_found_and_holds_beam_off():
    bench = ready()
    bench.room.motion_welded = True
    bench.run(400)
    assert not bench.tripped, "closed while motion is permitted"
    bench.set(**APART)
    bench.run(200)
    assert "MOTION_WELDED" not in bench.tripped
    bench.run(200)
    assert "MOTION_WELDED" in bench.tripped
    bench.set(motor_angle_mdeg=-30_020)
    for role in ("operator", "service"):
        bench.press(role)
    assert "MOTION_WELDED" in bench.tripped, "its cause is there: the relay is closed"
    assert not bench.permit


def test_a_motion_relay_that_follows_is_no_fault():
    bench = ready()
    for apart in itertools.islice(itertools.cycle((APART, {"motor_angle_mdeg": -30_020})), 6):
        bench.set(**apart)
        bench.run(400)
        bench.press("service")
        bench.run(400)
    assert not bench.tripped


def test_the_permit_of_beam_is_what_it_was():
    """Beam is given and withheld as if there were no motion permit; and the other way round."""
    bench = armed(beam=True)
    bench.set(flow_a_permille=0, flow_b_permille=0)
    bench.run(200)
    assert not bench.room.relay_closed()
    assert bench.room.motion_possible(), "cooling has nothing to do with motion"


def test_a_row_that_latches_later_on_a_value_is_in_the_journal(tmp_path):
    """Missing inputs trip and do not latch before the key is turned; the row then latches on a value, which is told anew."""
    bench = Bench(estop_healthy=0, chain_estop=0)
    bench.room.counter_runs = bench.room.link_up = False
    bench.step()
    bench.run(300)
    assert "ESTOP" in bench.tripped
    assert "ESTOP" not in bench.node.engine.latched()
    bench.room.counter_runs = bench.room.link_up = True
    bench.run(100)
    assert "ESTOP" in bench.node.engine.latched()
    told = [record["what"] for record in bench.records if record.get("id") == "ESTOP"]
    assert told == ["not known", LIMITS.row("ESTOP").what]
    kept = next(record["latched"] for record in reversed(bench.records) if "latched" in record)
    assert "ESTOP" in kept
    lines = "".join(f'{{"kind": "{r["kind"]}", "latched": {list(r["latched"])!r}}}\n' for r in bench.records).replace("'", '"')
    journal = tmp_path / "journal.jsonl"
    journal.write_text(lines, encoding="utf-8")
    assert "ESTOP" in latched_before(journal, LIMITS)


def test_a_row_that_latches_without_a_new_trip_is_in_the_journal():
    """Not believed for a moment before the key was turned, and held bad when it is: it latches by that alone."""
    text = SHIPPED.read_text(encoding="utf-8")
    head, estop = text.split("[interlock.ESTOP]")
    limits = parse(
        f"{head}[interlock.ESTOP]{estop.replace('deadline_ms = 50 }', 'deadline_ms = 50, hold_ms = 2000 }', 1)}".encode()
    )
    bench = Bench(limits)
    bench.step()
    bench.room.link_up = False
    bench.run(300)
    bench.room.link_up = True
    bench.run(100)
    assert "ESTOP" in bench.tripped and bench.node.engine.latched() == ("POWER_UP",)
    assert bench.press("key") == ("POWER_UP",)
    bench.run(100)
    assert bench.node.engine.latched() == ("ESTOP",)
    kept = next(record["latched"] for record in reversed(bench.records) if "latched" in record)
    assert kept == ("ESTOP",)


def test_what_latches_is_written_once():
    bench = ready()
    bench.set(**APART)
    bench.run(500)
    latches = [record for record in bench.records if record["kind"] == "latch"]
    assert latches == [], "the trip said it"
    bench.set(motor_angle_mdeg=-30_020)
    bench.press("service")
    bench.run(200)
    assert bench.records[-1]["kind"] == "reset"


@pytest.mark.parametrize("back_s", [1, 3600])
def test_a_clock_set_back_begins_a_debounce_again_and_no_more(back_s):
    """The contacts of the door disagree (500 ms); the clock goes back in the middle. The row still trips 500 ms later."""
    bench = ready()
    bench.set(door_a_closed=0)
    bench.run(300)
    row = bench.node.engine._by_id["DOOR_CONTACTS"]
    assert not row.tripped
    set_ns = back_s * 1000 * MS
    step = bench.node.step
    bench.node.step = lambda now_ns: step(now_ns - set_ns) + set_ns
    bench.wake_ns = bench.room.now_ns + 50 * MS  # by then the counter of the room has gone on: everything is believed
    bench.run(700)
    assert row.tripped


def test_a_heartbeat_that_stands_is_found_although_the_clock_was_set_back():
    bench = armed()
    bench.room.controller_lives = False
    bench.run(100)
    step = bench.node.step
    bench.node.step = lambda now_ns: step(now_ns - 3600 * 1000 * MS) + 3600 * 1000 * MS
    bench.wake_ns = bench.room.now_ns + 50 * MS
    bench.run(400)
    assert "CONTROLLER_HEARTBEAT" in bench.tripped
