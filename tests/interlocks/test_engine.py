"""What must be true of the permit: it is withheld from the start, by every cause, until the right person resets."""

import pytest
from safety_room import CARBON, LIMITS, MS, SAFE, Bench, armed, ready

from interlocks.bypass import BypassRefused
from interlocks.engine import Engine
from interlocks.inputs import Sample
from interlocks.matrix import SHIPPED, Action, parse

HOUR_MS = 3_600_000.0


def test_starts_tripped_and_gives_no_permit_until_the_key_is_turned():
    bench = Bench()
    bench.step()
    bench.run(1000)
    assert bench.tripped == ("POWER_UP",)
    assert not bench.permit
    assert not bench.room.relay_closed()
    for role in ("operator", "physicist", "service"):
        assert bench.press(role) == ()
    assert not bench.permit
    assert bench.press("key") == ("POWER_UP",)
    assert bench.permit
    assert bench.room.relay_closed()


def test_a_clean_armed_treatment_with_beam_trips_nothing():
    bench = armed(beam=True)
    for k in range(400):
        gained = 700 if bench.room.values["beam_present"] else 0
        bench.room.values.update(
            counts1=bench.room.values["counts1"] + gained,
            counts2=bench.room.values["counts2"] + max(0, gained - k % 7),
            ring_angle_mdeg=-30_000 + k % 9,
            beam_present=int(k % 20 < 15),
            magnet_deviation_ppm=20 if k % 20 < 15 else -300_000,  # ramps to the next energy between layers
        )
        bench.run(50)
        assert bench.tripped == ()
        assert bench.permit
    bench.set(armed=0, permit_r=0, beam_present=0)
    bench.run(500)
    bench.set(door_a_closed=0, door_b_closed=0, search_complete=0, search_state=0, chain_door_search=0, permit_a=0)
    for k in range(100):  # the patient is fetched, the gantry turns
        bench.set(ring_angle_mdeg=-30_000 + 150 * k, motor_angle_mdeg=-30_010 + 150 * k, standstill=0, chain_standstill=0)
        bench.run(49)
        assert not bench.permit
        assert bench.tripped == ()
    assert [trip.id for trip in bench.node.trips] == ["POWER_UP"]


@pytest.mark.parametrize("contact", ["door_a_closed", "door_b_closed"])
def test_an_open_door_withholds_unarmed_and_trips_armed(contact):
    bench = ready()
    bench.set(**{contact: 0})
    assert not bench.permit
    assert bench.tripped == ()
    assert bench.withheld == ("DOOR",)
    assert bench.room.first_out_code == 0
    bench.set(**{contact: 1})
    assert bench.permit
    bench.set(armed=1)
    bench.set(**{contact: 0})
    assert bench.tripped == ("DOOR",)
    assert bench.room.first_out_code == LIMITS.row("DOOR").code
    bench.set(**{contact: 1})
    bench.run(1000)
    assert bench.tripped == ("DOOR",), "a trip stays after the door is closed again"
    assert not bench.room.relay_closed()


def test_a_latched_trip_is_reset_only_by_its_role_when_its_cause_is_gone():
    bench = armed()
    bench.set(ring_angle_mdeg=-29_700, motor_angle_mdeg=-29_700)
    assert set(bench.tripped) == {"RING_ANGLE", "RING_DRIFT"}
    assert bench.press("operator") == (), "the cause is still there"
    bench.set(ring_angle_mdeg=-30_000, motor_angle_mdeg=-30_000)
    bench.run(300)
    assert bench.press("physicist") == ()
    assert bench.press("operator") == ("RING_ANGLE",)
    assert not bench.permit
    assert bench.press("service") == ("RING_DRIFT",)
    assert bench.permit


def test_a_door_opened_while_armed_cannot_be_reset_while_it_is_open_and_disarmed():
    bench = armed()
    bench.set(door_a_closed=0, door_b_closed=0)
    bench.set(armed=0)
    bench.run(700)
    assert bench.press("operator") == ()
    bench.set(door_a_closed=1, door_b_closed=1)
    assert bench.press("operator") == ("DOOR",)


def test_a_held_button_does_not_reset_and_one_pressed_before_the_trip_neither():
    bench = armed()
    bench.node.reset(bench.room.now_ns, "operator", True)
    bench.set(door_a_closed=0)
    bench.set(door_a_closed=1)
    bench.run(50)
    assert bench.tripped == ("DOOR",), "held down"
    bench.node.reset(bench.room.now_ns, "operator", True)  # contact bounce of a held button
    refused = bench.node.reset(bench.room.now_ns, "operator", False)
    assert refused.cleared == ()
    assert "press again" in dict(refused.refused)["DOOR"]
    assert bench.node.reset(bench.room.now_ns, "operator", False).cleared == (), "a release alone is no edge"
    assert bench.press("operator") == ("DOOR",)


def test_a_button_pressed_between_two_occurrences_of_a_cause_does_not_clear_the_second():
    bench = armed()
    bench.set(door_a_closed=0)
    bench.set(door_a_closed=1)
    bench.room.now_ns += MS
    bench.node.reset(bench.room.now_ns, "operator", True)
    bench.set(door_a_closed=0)
    bench.set(door_a_closed=1)
    assert bench.node.reset(bench.room.now_ns, "operator", False).cleared == ()


def test_a_difference_hidden_by_an_older_one_trips_when_that_has_left_the_window_though_nothing_new_is_counted():
    bench = armed()
    c1, c2 = bench.room.values["counts1"], bench.room.values["counts2"]
    bench.run(1000)
    bench.set(counts1=c1 + 100, counts2=c2 + 82)
    bench.run(200)
    bench.set(counts1=c1 + 200, counts2=c2 + 218)
    assert bench.tripped == ()
    bench.run(290)
    assert bench.tripped == ()
    bench.run(20)
    assert bench.tripped == ("MONITORS_DIFFER",)


def test_no_reset_while_the_controller_requests_beam_so_that_a_reset_never_starts_it():
    bench = armed(beam=True)
    assert bench.room.beam_possible()
    bench.set(door_a_closed=0)
    bench.run(200)
    bench.set(door_a_closed=1, beam_present=0)
    assert bench.press("operator") == ()
    assert not bench.room.beam_possible()
    bench.set(permit_r=0, armed=0)
    assert bench.press("operator") == ("DOOR",)
    assert bench.permit
    assert not bench.room.beam_possible()


def test_the_journal_is_written_before_a_latch_is_cleared():
    bench = armed()
    bench.set(door_a_closed=0)
    bench.set(door_a_closed=1)

    def full(record):
        raise OSError("no space left on device")

    bench.node._journal = full
    bench.node.reset(bench.room.now_ns + 1, "operator", True)
    with pytest.raises(OSError, match="no space"):
        bench.node.reset(bench.room.now_ns + 2, "operator", False)
    bench.run(50)
    assert bench.tripped == ("DOOR",)


def test_beam_cannot_be_requested_around_the_armed_rows():
    bench = ready()
    bench.set(ring_angle_mdeg=0, motor_angle_mdeg=0)  # not the preset angle; nothing is armed, so that is no trip
    bench.run(500)
    assert bench.permit
    bench.set(permit_r=1)
    assert not bench.permit
    assert bench.withheld == ("REQUEST_UNARMED",)
    bench.run(200)
    assert not bench.room.beam_possible()


def test_lost_request_pulse_trips_when_the_controller_does_not_disarm():
    text = SHIPPED.read_text(encoding="utf-8").replace(
        "debounce_ms = 310000, deadline_ms = 310100", "debounce_ms = 3100, deadline_ms = 3200"
    )
    bench = armed(parse(text.encode()), beam=True)  # a hundredth of the time
    bench.set(permit_r=0, beam_present=0)
    bench.run(3000)
    assert bench.tripped == (), "a pause may last so long"
    bench.set(armed=0)
    bench.run(1000)
    assert bench.tripped == (), "a controller that ends by itself disarms in time"
    bench.set(armed=1)
    bench.run(5000)
    assert bench.tripped == (), "armed, beam not yet asked for"
    bench.set(permit_r=1)
    bench.run(100)
    bench.set(permit_r=0)
    bench.run(3150)
    assert bench.tripped == ("LEFT_ARMED",)


def test_a_controller_that_stands_still_while_armed_is_noticed_and_its_last_beat_forgiven():
    bench = ready()
    bench.room.controller_lives = False
    bench.run(1000)
    assert bench.permit, "nobody has to live while nothing is armed"
    bench.room.controller_lives = True
    bench.set(armed=1)
    for _ in range(20):  # 100 ms of standstill are forgiven, again and again
        bench.room.controller_lives = False
        bench.run(100)
        bench.room.controller_lives = True
        bench.run(100)
    assert bench.permit
    bench.room.controller_lives = False
    bench.run(251)
    assert bench.tripped == ("CONTROLLER_HEARTBEAT",)
    assert bench.node.trips[-1].first_out
    bench.room.controller_lives = True
    bench.run(500)
    assert not bench.permit, "that it is back is no reset"
    assert bench.press("key") == ()
    assert bench.press("operator") == ("CONTROLLER_HEARTBEAT",)
    assert bench.permit


def test_a_ring_that_turns_too_fast_is_stopped_and_another_port_is_no_turn():
    bench = ready()
    bench.set(ring_angle_mdeg=90_000, motor_angle_mdeg=90_000)  # a fixed room: the route leads to its other port
    bench.run(1000)
    assert bench.permit
    bench.set(standstill=0, chain_standstill=0)
    for k in range(100):
        bench.set(ring_angle_mdeg=90_000 + 150 * k, motor_angle_mdeg=90_000 + 150 * k)
        bench.run(49)
    assert bench.tripped == ()
    for k in range(8):
        bench.set(ring_angle_mdeg=105_000 + 200 * k, motor_angle_mdeg=105_000 + 200 * k)
        bench.run(49)
    assert bench.tripped == ("RING_SPEED",)
    assert Action.MOTION_STOP in bench.node.decision.actions


@pytest.mark.parametrize("how", ["counter stands still", "link is down", "another node answers", "half an answer"])
def test_a_node_that_does_not_live_is_a_trip(how):
    bench = armed(beam=True)
    read = bench.node._read_image
    if how == "counter stands still":
        bench.room.counter_runs = False
    elif how == "link is down":
        bench.room.link_up = False
    elif how == "another node answers":
        bench.node._read_image = lambda: [7, 7, *list(read())[2:]]
    else:
        bench.node._read_image = lambda: list(read())[:60]
    start_ns = bench.room.now_ns
    while bench.permit and bench.room.now_ns < start_ns + 1000 * MS:
        bench.run(10)
    assert bench.room.now_ns - start_ns <= LIMITS.row("PLANT_STALE").deadline_ms * MS
    assert bench.tripped[0] == "PLANT_STALE"
    assert bench.node.decision.first_out.id == "PLANT_STALE"
    bench.run(110)
    assert not bench.room.relay_closed()
    bench.room.counter_runs = bench.room.link_up = True
    bench.node._read_image = read
    bench.set(permit_r=0, armed=0, beam_present=0)
    bench.run(1000)
    assert "PLANT_STALE" in bench.tripped, "latched"
    assert bench.press("operator"), "what latched on invalid inputs alone needs no physicist"
    assert bench.permit


def test_what_latched_on_a_value_keeps_its_role_even_if_the_link_was_lost_too():
    bench = armed(beam=True)
    bench.set(spot_error_um=2500)
    bench.room.link_up = False
    bench.run(300)
    bench.room.link_up = True
    bench.set(spot_error_um=100, permit_r=0, armed=0, beam_present=0)
    bench.run(200)
    assert "SPOT_POSITION" not in bench.press("operator")
    assert bench.tripped == ("SPOT_POSITION",)
    assert bench.press("physicist") == ("SPOT_POSITION",)


def test_a_counter_that_runs_backwards_is_a_node_that_restarted():
    bench = armed()
    read = bench.node._read_image
    bench.node._read_image = lambda: [*read()[:8], 0, *read()[9:]]
    bench.run(50)
    assert "PLANT_STALE" in bench.tripped


def test_a_stalled_loop_trips_itself():
    bench = armed(beam=True)
    bench.room.now_ns += 151 * MS
    bench.step()
    assert bench.tripped == ("LOOP_STALL",)
    bench.set(permit_r=0, armed=0, beam_present=0)
    assert bench.press("operator") == ("LOOP_STALL",)


def test_a_sample_from_the_future_is_not_believed():
    engine = Engine(LIMITS)
    samples = {name: Sample(value, True, 0, 0) for name, value in SAFE.items()}
    engine.step(0, samples)
    engine.clear(["POWER_UP"])
    assert engine.step(MS, samples)[0].permit
    decision, _ = engine.step(2 * MS, {"estop_healthy": samples["estop_healthy"]._replace(t_ns=3 * MS)})
    assert decision.tripped == ("ESTOP",)


def test_time_that_falls_is_a_stall():
    bench = armed()
    bench.room.now_ns -= 5 * MS
    bench.step()
    assert "LOOP_STALL" in bench.tripped


def test_first_out_is_the_first_and_what_follows_is_consequential():
    bench = armed(beam=True)
    bench.set(chain_quench=0, permit_a=0)
    bench.run(100)
    bench.set(door_a_closed=0)
    trips = bench.node.trips[1:]
    assert [trip.id for trip in trips] == ["CHAIN_QUENCH", "PERMIT_A", "DOOR"]
    assert [trip.first_out for trip in trips] == [True, False, False]
    assert [trip.seq for trip in trips] == [2, 3, 4]
    assert bench.room.first_out_code == LIMITS.row("CHAIN_QUENCH").code
    assert bench.room.active_trips == 3
    assert "quench" in trips[0].cause
    assert trips[0].advice


def test_a_cause_found_before_the_key_is_turned_is_a_first_out_of_its_own_and_shown_after_it():
    bench = Bench()
    bench.step()
    bench.run(100)
    bench.set(motor_angle_mdeg=-29_000)
    assert bench.tripped == ("POWER_UP", "RING_ENCODERS")
    assert [trip.first_out for trip in bench.node.trips] == [True, True]
    assert bench.room.first_out_code == LIMITS.row("POWER_UP").code
    bench.press("key")
    assert bench.room.first_out_code == LIMITS.row("RING_ENCODERS").code


def test_after_a_reset_the_oldest_that_is_left_is_shown():
    bench = armed()
    bench.set(ring_angle_mdeg=-29_700, motor_angle_mdeg=-29_700)
    bench.set(spot_error_um=9000)
    bench.set(ring_angle_mdeg=-30_000, motor_angle_mdeg=-30_000, spot_error_um=0)
    assert bench.room.first_out_code == LIMITS.row("RING_ANGLE").code
    bench.press("operator")
    assert bench.room.first_out_code == LIMITS.row("RING_DRIFT").code
    bench.press("service")
    assert bench.room.first_out_code == LIMITS.row("SPOT_POSITION").code


def test_once_all_is_clear_the_next_trip_is_a_first_out_again():
    bench = armed()
    bench.set(door_a_closed=0)
    bench.set(door_a_closed=1)
    bench.press("operator")
    assert bench.room.first_out_code == 0
    bench.set(spot_error_um=9000)
    bench.set(door_a_closed=0)
    assert [(trip.id, trip.first_out) for trip in bench.node.trips[1:]] == [
        ("DOOR", True),
        ("SPOT_POSITION", True),
        ("DOOR", False),
    ]
    assert bench.room.first_out_code == LIMITS.row("SPOT_POSITION").code


def test_causes_in_one_reading_are_ordered_as_in_the_file():
    bench = armed()
    bench.set(estop_healthy=0, chain_estop=0, door_a_closed=0, chain_dose1=0, permit_a=0)
    assert bench.node.decision.first_out.id == "ESTOP"
    assert Action.EMERGENCY in bench.node.decision.actions


def test_evidence_holds_ten_seconds_before_and_after():
    bench = ready()
    for k in range(30):
        bench.set(spot_error_um=k)
        bench.run(999)
    bench.set(estop_healthy=0)
    trip_ns = bench.room.now_ns
    for k in range(30):
        bench.set(spot_error_um=k)
        bench.run(999)
    episode = bench.node.engine.first_out.episodes[-1]
    assert episode.trips[0].id == "ESTOP"
    before = [t for t, states in episode.before if states[0][0] == "spot_error_um"]
    after = [t for t, states in episode.after if states[0][0] == "spot_error_um"]
    assert len(before) == len(after) == 10
    assert trip_ns - 10_000 * MS <= before[0] <= before[-1] <= trip_ns < after[0] <= after[-1] <= trip_ns + 10_000 * MS
    assert len(episode.digest) == 64


def test_a_restart_keeps_latches_forgets_bypasses_and_is_no_pulse():
    bench = armed(beam=True)
    bench.set(spot_error_um=2500)
    bench.run(500)
    kept = bench.node.engine.latched()
    bench.set(spot_error_um=100)
    bench.start(latched=kept)
    bench.run(300)
    assert bench.tripped == ("POWER_UP", "SPOT_POSITION")
    assert not bench.room.relay_closed(), "the first write of a new process must not close the relay"
    bench.set(permit_r=0, armed=0, beam_present=0)
    assert bench.press("key") == ("POWER_UP",)
    assert not bench.permit


def test_a_bypass_is_for_two_people_one_row_some_hours_and_service_mode_only():
    bench = ready(service_mode=1)
    now_ns = bench.room.now_ns

    def ask(row="RING_ANGLE", owner="Ada", approver="Bo", reason="encoder exchange", hours=2.0):
        bench.node.bypass(now_ns, row, owner, approver, reason, hours * HOUR_MS)

    for refused in (
        {"row": "DOOR"},
        {"row": "ESTOP"},
        {"row": "POWER_UP"},
        {"approver": "ada "},
        {"reason": " "},
        {"hours": 8.1},
        {"hours": 0},
    ):
        with pytest.raises(BypassRefused):
            ask(**refused)
    bench.set(service_mode=0)
    with pytest.raises(BypassRefused, match="service mode"):
        ask()
    assert bench.permit


def test_a_bypass_works_in_service_mode_ends_by_monotonic_time_and_forbids_treatment():
    bench = ready(service_mode=1)
    bench.node.bypass(bench.room.now_ns, "RING_ANGLE", "Ada", "Bo", "encoder exchange", 1000.0)
    bench.set(armed=1, preset_angle_mdeg=0, plan_angle_mdeg=0)
    bench.run(100)
    assert bench.permit
    bench.set(service_mode=0)
    assert bench.tripped == ("BYPASS_ACTIVE", "RING_ANGLE")
    bench.set(service_mode=1)
    bench.set(preset_angle_mdeg=-30_000, plan_angle_mdeg=-30_000)
    assert bench.press("operator") == ("RING_ANGLE",)
    bench.set(preset_angle_mdeg=0, plan_angle_mdeg=0)
    assert bench.permit
    bench.run(1000)
    assert bench.tripped == ("RING_ANGLE",), "expired"
    bench.set(service_mode=0, preset_angle_mdeg=-30_000, plan_angle_mdeg=-30_000)
    assert bench.press("operator") == ("RING_ANGLE",)
    assert bench.permit


def test_an_ended_bypass_is_over_at_the_next_step():
    bench = ready(service_mode=1)
    bench.node.bypass(bench.room.now_ns, "RING_ANGLE", "Ada", "Bo", "encoder exchange", HOUR_MS)
    bench.set(armed=1, preset_angle_mdeg=0, plan_angle_mdeg=0)
    bench.run(60)
    assert bench.permit
    bench.node.engine.end_bypass("RING_ANGLE")
    bench.run(50)
    assert bench.tripped == ("RING_ANGLE",)


def test_a_welded_relay_is_found():
    bench = armed()
    bench.set(door_a_closed=0)
    bench.room.relay_welded = True
    bench.run(200)
    assert "RELAY_WELDED" not in bench.tripped
    bench.run(150)
    assert "RELAY_WELDED" in bench.tripped
    assert bench.room.active_trips == 2


def test_the_species_may_be_unknown_only_without_beam():
    bench = armed()
    bench.set(species_token=0)
    bench.run(200)
    assert bench.permit
    bench.set(species_token=8016)
    assert bench.tripped == ("SPECIES_TOKEN",)
    assert CARBON == 6012


@pytest.mark.parametrize("signal", [0, 849, 1151, 5000])
def test_the_signal_per_ion_may_neither_fall_nor_rise(signal):
    bench = armed(beam=True)
    bench.set(signal_per_ion_permille=signal)
    bench.run(80)
    assert bench.permit
    bench.run(70)
    assert bench.tripped == ("SPECIES_SIGNAL",)


@pytest.mark.parametrize(("name", "row"), [("spot_error_um", "SPOT_POSITION"), ("magnet_deviation_ppm", "MAGNET_DEVIATION")])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_deviation_counts_on_both_sides(name, row, sign):
    limit = LIMITS.row(row).params["limit"]
    bench = armed(beam=True)
    bench.set(**{name: sign * limit})
    bench.run(200)
    assert bench.permit
    bench.set(**{name: sign * (limit + 1)})
    bench.run(100)
    assert bench.tripped == (row,)


def test_contacts_of_a_moving_door_may_follow_each_other_but_not_stay_apart():
    bench = ready()
    for contacts in ({"door_a_closed": 0}, {"door_b_closed": 0}, {"door_b_closed": 1}, {"door_a_closed": 1}):
        bench.set(**contacts)
        bench.run(400)
    assert bench.permit
    bench.set(door_b_closed=0)
    bench.run(600)
    assert bench.tripped == ("DOOR_CONTACTS",)
    bench.set(door_b_closed=1)
    assert bench.press("service") == ("DOOR_CONTACTS",)


def test_a_row_may_vote_and_hold():
    text = SHIPPED.read_text(encoding="utf-8")
    head, _, rest = text.partition("[interlock.MONITOR_HEALTH]")
    rest = rest.replace("value = 1", "value = 1, vote = 2", 1).replace("deadline_ms = 50", "hold_ms = 300, deadline_ms = 50", 1)
    rest = rest.replace("latch = true", "latch = false", 1)
    bench = ready(limits=parse(f"{head}[interlock.MONITOR_HEALTH]{rest}".encode()))
    bench.set(armed=1, monitor1_hv=0)
    bench.run(100)
    assert bench.permit
    bench.set(monitor2_fresh=0)
    assert bench.tripped == ("MONITOR_HEALTH",)
    bench.set(monitor2_fresh=1)
    bench.run(290)
    assert bench.tripped == ("MONITOR_HEALTH",), "held"
    bench.run(20)
    assert bench.permit
    assert bench.room.first_out_code == 0


def test_rare_differences_of_the_monitors_are_seen_over_the_window_only():
    bench = armed(beam=True)
    for _ in range(40):
        bench.set(counts1=bench.room.values["counts1"] + 100, counts2=bench.room.values["counts2"] + 103)
        bench.run(49)
        assert bench.permit
    bench.set(counts1=bench.room.values["counts1"] + 100, counts2=bench.room.values["counts2"] + 160)
    assert bench.tripped == ("MONITORS_DIFFER",)


def test_a_field_that_starts_again_from_zero_is_no_difference_but_a_dead_counter_is():
    bench = armed(beam=True)
    bench.set(counts1=0)
    bench.run(100)
    bench.set(counts2=0)
    bench.run(100)
    assert bench.permit
    for k in range(10):
        bench.set(counts1=100 * k, counts2=0)
        bench.run(30)
    assert "MONITORS_DIFFER" in bench.tripped


@pytest.mark.parametrize(("start", "end", "moves"), [(179_950, -179_950, False), (179_950, -179_800, True)])
def test_a_turn_past_half_way_round_is_not_a_difference(start, end, moves):
    bench = ready(ring_angle_mdeg=start, motor_angle_mdeg=start, preset_angle_mdeg=start)
    bench.set(armed=1, preset_angle_mdeg=end)
    assert ("RING_ANGLE" in bench.tripped) is moves


def test_an_unknown_latch_of_a_former_life_is_refused():
    with pytest.raises(KeyError):
        Engine(LIMITS, latched=["NO_SUCH_ROW"])


def test_a_role_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="role"):
        ready().node.reset(10**12, "visitor", True)
