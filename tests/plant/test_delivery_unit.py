"""The delivery unit: what it takes, what it delivers, and when and how it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from beam_bench import MS, US, Bench, with_crc

from simulators.plant.grants import PIECE, Refusal, crc32c
from simulators.plant.unit_terms import Flag, Hold, Reason, UnitState


@pytest.fixture
def bench() -> Bench:
    return Bench().ready()


def carried(bench: Bench) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Delivered less planned, summed up to the end of each row of the last grant, from the truth events."""
    grant = bench.kind("grant.accepted")[-1].data
    rows = np.zeros(grant["rows"])
    for event in bench.kind("delivery.segment"):
        if event.data["grant_id"] == grant["grant_id"]:
            np.add.at(rows, event.data["row"], event.data["counts1"])
    return np.cumsum(rows - grant["counts1_max"])


# --- delivering ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("intensity", [2_000_000, 5_000_000, 20_000_000])
def test_the_carried_count_stays_within_one_reaction_quantum_at_every_spot(bench: Bench, mode: int, intensity: int) -> None:
    counts = np.random.default_rng(4).integers(50, 120, 400) * bench.quantum(intensity)
    pieces = bench.deliver(bench.words(counts, n=400, mode=mode, intensity=intensity))
    assert bench.unit.reason is Reason.FINISHED
    assert np.abs(carried(bench)).max() <= bench.quantum(intensity)
    assert np.unique(pieces["row"]).size == 400


def test_spots_of_a_slice_get_what_was_planned_and_land_where_they_should(bench: Bench) -> None:
    pieces = bench.deliver(bench.words(1200, n=400))
    segment = bench.kind("delivery.segment")[-1].data
    assert np.percentile(np.abs(pieces["counts1"] / 1200.0 - 1.0), 95) < 0.03
    assert np.hypot(segment["x_mm"] - segment["planned_x_mm"], segment["y_mm"] - segment["planned_y_mm"]).max() < 0.1
    seen = np.column_stack([pieces["x_um"], pieces["y_um"]]) / 1e3
    planned = np.column_stack([segment["planned_x_mm"], segment["planned_y_mm"]])
    assert np.sqrt(np.mean((seen - planned) ** 2)) < 0.1


def test_one_spot_layers_have_no_bias(bench: Bench) -> None:
    delivered = [int(bench.deliver(bench.words(1000, n=1, layer=i))["counts1"].sum()) for i in range(40)]
    assert np.mean(delivered) == pytest.approx(1000.0, rel=0.002)
    assert np.abs(np.array(delivered) - 1000).max() <= bench.quantum(5_000_000)


def test_counts_of_the_two_monitors_have_gains_of_their_own(bench: Bench) -> None:
    bench.deliver(bench.words(5000, n=200))
    total1, total2 = bench.unit.counts()
    c = bench.truth.chambers
    assert total2 / total1 == pytest.approx((1 + c.gain2_rel) / (1 + c.gain1_rel), rel=3e-4)
    assert bench.unit2.total == total2


def test_raster_beam_stays_on_between_near_spots_and_goes_off_over_long_steps(bench: Bench) -> None:
    x_um = np.array([-30_000, -27_000, -24_000, 24_000, 27_000])
    pieces = bench.deliver(bench.words(1000, n=5, x_um=x_um, y_um=np.zeros(5)))
    gap_ns = pieces["t_start_ns"][1:] - pieces["t_end_ns"][:-1]
    assert list(gap_ns == 0) == [True, True, False, True]
    assert 300 * US <= gap_ns[2] <= 2 * MS


def test_spot_mode_turns_the_beam_off_at_every_step(bench: Bench) -> None:
    pieces = bench.deliver(bench.words(1000, n=20, mode=1))
    assert np.all(pieces["t_start_ns"][1:] - pieces["t_end_ns"][:-1] >= 300 * US)


def test_a_spill_that_runs_out_is_refilled_and_the_interrupted_row_has_two_pieces(bench: Bench) -> None:
    intensity = 500_000_000
    pieces = bench.deliver(bench.words(500_000, n=100, intensity=intensity))
    assert bench.unit.reason is Reason.FINISHED
    assert np.abs(carried(bench)).max() <= bench.quantum(intensity)
    cut = np.flatnonzero(pieces["flags"] & Flag.CUT_SPILL)
    assert cut.size >= 2
    for k in cut:
        assert pieces["row"][k] == pieces["row"][k + 1]
        assert pieces["spill"][k + 1] == pieces["spill"][k] + 1
    used: dict[int, float] = {}
    for event in bench.kind("delivery.segment"):
        used[event.data["spill"]] = used.get(event.data["spill"], 0.0) + float(event.data["ions"].sum())
    fills = {event.data["spill"]: event.data["ions"] for event in bench.kind("spill.start")}
    assert all(ions <= fills[spill] * (1 + 1e-9) for spill, ions in used.items())


def test_every_count_belongs_to_exactly_one_grant(bench: Bench) -> None:
    for i in range(5):
        bench.deliver(bench.words(1500, n=80, layer=i))
    told = sum(int(event.data["counts1"].sum()) for event in bench.kind("delivery.segment"))
    ended = sum(event.data["counts1"] for event in bench.kind("grant.ended"))
    assert told == ended == bench.unit.counts()[0]


def test_the_same_seed_delivers_the_same_counts_at_the_same_nanoseconds() -> None:
    first, again, other = (Bench(seed=seed).ready() for seed in (7, 7, 8))
    a, b, c = (one.deliver(one.words(900, n=150)) for one in (first, again, other))
    assert np.array_equal(a, b)
    assert not np.array_equal(a["t_end_ns"], c["t_end_ns"])


def test_a_grant_begun_later_is_delivered_with_the_same_draws(bench: Bench) -> None:
    early = bench.deliver(bench.words(900, n=50))
    late_bench = Bench().ready()
    late_bench.run(0.7)
    late = late_bench.deliver(late_bench.words(900, n=50))
    assert np.array_equal(early["counts1"], late["counts1"])
    assert np.array_equal(early["t_end_ns"] - early["t_start_ns"][0], late["t_end_ns"] - late["t_start_ns"][0])


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "refusal"),
    [
        ({"protocol": 2}, Refusal.PROTOCOL),
        ({"mode": 7}, Refusal.PROTOCOL),
        ({"boot_id": 5}, Refusal.BOOT_ID),
        ({"grant_id": 3}, Refusal.ID),
        ({"grant_id": 0}, Refusal.ID),
        ({"species": 2004}, Refusal.SPECIES),
        ({"kev_u": 290_000}, Refusal.ENERGY),
        ({"intensity": 10}, Refusal.INTENSITY),
        ({"quantum": 2}, Refusal.INTENSITY),
        ({"x_um": np.full(100, 101_000)}, Refusal.FIELD),
        ({"counts": -1}, Refusal.FIELD),
    ],
)
def test_a_grant_that_is_not_for_this_beam_is_refused_with_its_reason(
    bench: Bench, header: dict[str, Any], refusal: Refusal
) -> None:
    words = bench.words(**header)
    bench.unit.submit(words)
    assert bench.unit.echo[2:] == (0, int(refusal))
    assert bench.unit.open_grant is None
    assert bench.unit.memory.last_grant_id == 0
    assert bench.kind("grant.refused")[-1].data["code"] == refusal


def test_a_damaged_grant_is_refused(bench: Bench) -> None:
    words = bench.words()
    words[20] += 1
    bench.unit.submit(words)
    assert bench.unit.echo[3] == Refusal.CRC


@pytest.mark.parametrize("rows", [0, 99, 4001])
def test_a_row_count_that_does_not_fit_is_refused(bench: Bench, rows: int) -> None:
    words = bench.words()[:-1].copy()
    words[13] = rows
    bench.unit.submit(with_crc(words))
    assert bench.unit.echo[3] == Refusal.ROWS


def test_a_second_grant_and_a_repeated_one_are_refused_and_an_id_is_consumed_once(bench: Bench) -> None:
    words = bench.words()
    bench.begin(words)
    bench.unit.submit(bench.words())
    assert bench.unit.echo[3] == Refusal.OPEN
    bench.run_until_ended()
    bench.unit.submit(words)
    assert bench.unit.echo[3] == Refusal.ID


def test_without_a_map_for_its_energy_a_grant_is_refused() -> None:
    bench = Bench().ready()
    words = bench.words()
    values = bench.true_map(300_000)
    values[0] = 290_000
    bench.unit.load_map(values)
    bench.unit.submit(words)
    assert bench.unit.echo[3] == Refusal.MAP


def test_a_grant_may_wait_for_the_energy_it_was_made_for_but_not_longer_than_two_seconds(bench: Bench) -> None:
    bench.ring.step_to(295_000)
    bench.tune(295_000)
    values = bench.true_map(295_000)
    bench.unit.load_map(values)
    words = bench.words(n=20)
    bench.begin(words)
    assert bench.unit.state is UnitState.HELD
    assert bench.unit.hold & Hold.ENERGY
    bench.run_until_ended()
    assert bench.unit.reason is Reason.FINISHED
    segment = bench.kind("delivery.segment")[0].data
    assert segment["energy_mev_u"] == pytest.approx(295.0, rel=3e-4)

    late = bench.words(n=20)
    bench.submit(late)
    bench.run(2.1)
    bench.unit.start(int(late[2]), int(late[-1]))
    assert bench.unit.echo[2:] == (0, int(Refusal.AGE))
    assert bench.unit.open_grant is None
    assert len(bench.kind("delivery.segment")) == 1


def test_a_start_needs_the_crc_of_the_grant_and_permission(bench: Bench) -> None:
    words = bench.words()
    grant_id = bench.submit(words)
    bench.unit.start(grant_id, int(words[-1]) ^ 1)
    assert bench.unit.echo[3] == Refusal.CRC
    bench.chain.permit_r.set(False)
    bench.unit.start(grant_id, int(words[-1]))
    assert bench.unit.echo[3] == Refusal.NOT_PERMITTED
    assert not bench.kind("beam.on")
    bench.chain.permit_r.set(True)
    bench.unit.start(grant_id, int(words[-1]))
    assert bench.unit.delivering


def test_a_start_is_refused_while_the_beam_leads_elsewhere() -> None:
    bench = Bench().ready()
    bench.plant.switchyard.select("G2")
    bench.run(40.0)
    bench.ring.start_cycle(300_000)
    bench.run(3.0)
    words = bench.words()
    grant_id = bench.submit(words)
    bench.unit.start(grant_id, int(words[-1]))
    assert bench.unit.echo[3] == Refusal.NOT_PERMITTED


# --- holds --------------------------------------------------------------------------------------------------------


def begun(bench: Bench, after_s: float = 0.5, **kwargs: Any) -> int:
    """A grant of a long slice, `after_s` into its delivery."""
    grant_id = bench.begin(bench.words(2000, n=200, **kwargs))
    bench.run(after_s)
    assert bench.unit.delivering
    return grant_id


@pytest.mark.parametrize(
    ("close", "hold", "flag"), [("gate", Hold.GATE, Flag.CUT_GATE), ("controller", Hold.CONTROLLER, Flag.CUT_CONTROLLER)]
)
def test_a_closed_gate_holds_within_200_us_and_the_grant_goes_on_where_it_was(
    bench: Bench, close: str, hold: Hold, flag: Flag
) -> None:
    def gate(open_: bool) -> None:
        if close == "gate":
            bench.unit.gate.set(open_)
        else:
            bench.unit.set_controller_gate(open_)

    grant_id = begun(bench)
    closed = bench.now
    gate(False)
    bench.run(0.1)
    assert bench.unit.state is UnitState.HELD
    assert bench.unit.hold == hold
    off = bench.kind("beam.off")[-1]
    assert off.t_ns - closed <= 200 * US
    during = bench.unit.counts()
    bench.run(1.0)
    assert bench.unit.counts() == during
    gate(True)
    bench.run_until_ended()
    assert bench.unit.reason is Reason.FINISHED
    pieces = bench.unit.memory.pieces(grant_id)
    split = np.flatnonzero(pieces["flags"] & flag)
    assert split.size == 1
    assert pieces["row"][split[0]] == pieces["row"][split[0] + 1]
    assert np.abs(carried(bench)).max() <= bench.quantum(5_000_000)


def test_many_short_gates_lose_and_gain_nothing(bench: Bench) -> None:
    begun(bench)
    for _ in range(30):
        bench.unit.gate.set(False)
        bench.run(0.013)
        bench.unit.gate.set(True)
        bench.run(0.029)
    bench.run_until_ended()
    assert bench.unit.reason is Reason.FINISHED
    assert np.abs(carried(bench)).max() <= bench.quantum(5_000_000)


def test_a_grant_started_with_the_gate_closed_waits(bench: Bench) -> None:
    bench.unit.gate.set(False)
    bench.begin(bench.words(n=20))
    bench.run(1.0)
    assert (bench.unit.state, bench.unit.hold) == (UnitState.HELD, Hold.GATE)
    assert not bench.kind("beam.on")
    bench.unit.gate.set(True)
    bench.run_until_ended()
    assert bench.unit.reason is Reason.FINISHED


def test_a_connected_sensor_that_falls_silent_closes_the_gate_after_60_ms(bench: Bench) -> None:
    gate = bench.unit.gate
    gate.connect()
    bench.begin(bench.words(2000, n=200))
    bench.run(0.2)
    assert not bench.kind("beam.on")
    for _ in range(10):
        gate.edge(True)
        bench.run(0.05)
    silent = bench.now - 50 * MS
    assert bench.unit.delivering
    bench.run(0.2)
    assert 0 <= bench.kind("beam.off")[-1].t_ns - (silent + 60 * MS) <= 200 * US
    assert bench.unit.hold is Hold.GATE
    gate.edge(True)
    bench.run(0.01)
    assert bench.unit.delivering
    gate.edge(False)
    bench.run(0.01)
    assert not bench.unit.delivering
    gate.disconnect()
    bench.run_until_ended()
    assert bench.unit.reason is Reason.FINISHED


# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", ["estop", "door", "search", "standstill", "torque_off"])
def test_a_chain_element_that_falls_ends_the_grant_with_beam_off_within_400_us(bench: Bench, element: str) -> None:
    begun(bench)
    fell = bench.now
    bench.chain.elements[element].set(False)
    bench.run(0.1)
    assert bench.unit.state is UnitState.ENDED_EARLY
    assert bench.unit.reason is Reason.PERMIT
    off = bench.kind("beam.off")[-1]
    assert off.t_ns - fell <= 400 * US  # 200 us of the chain, 200 us of the cut-off
    lost = next(e.t_ns for e in bench.kind("permit") if e.t_ns >= fell and e.data["which"] == "A")
    assert off.t_ns - lost <= 200 * US
    after = bench.unit.counts()
    bench.chain.elements[element].set(True)
    bench.run(5.0)
    assert bench.unit.counts() == after  # nothing starts again by itself


def test_what_was_delivered_when_the_permit_fell_is_in_results_and_latch(bench: Bench) -> None:
    grant_id = begun(bench)
    bench.chain.permit_r.set(False)
    bench.run(0.1)
    pieces = bench.unit.memory.pieces(grant_id)
    assert pieces["flags"][-1] & Flag.CUT_PERMIT
    assert not pieces["flags"][-1] & Flag.ROW_ENDED
    latch = bench.unit.memory.latch()
    assert crc32c(latch[:-1]) == latch[-1]
    assert list(latch[:3]) == [bench.unit.boot_id, grant_id, int(pieces["row"][-1]) - 1]
    assert int(latch[4]) == int(pieces["counts1"][-1])
    assert int(latch[8]) == int(pieces["counts1"].sum()) == bench.unit.counts()[0]


def test_an_abort_ends_the_grant_and_the_next_one_is_taken(bench: Bench) -> None:
    begun(bench)
    bench.unit.abort()
    bench.run(0.01)
    assert (bench.unit.state, bench.unit.reason) == (UnitState.ENDED_EARLY, Reason.ABORTED)
    bench.deliver(bench.words(n=10))
    assert bench.unit.reason is Reason.FINISHED


def test_an_abort_before_the_start_drops_the_grant(bench: Bench) -> None:
    bench.submit(bench.words())
    bench.unit.abort()
    assert bench.unit.open_grant is None
    bench.deliver(bench.words(n=10))
    assert bench.unit.reason is Reason.FINISHED


def test_totals_in_flight_are_what_the_pieces_say_afterwards(bench: Bench) -> None:
    grant_id = begun(bench)
    rows, (total1, total2) = bench.unit.rows_finished(), bench.unit.counts()
    seen_ns = bench.now
    bench.run_until_ended()
    pieces = bench.unit.memory.pieces(grant_id)
    done = pieces["t_end_ns"] <= seen_ns
    assert rows == np.count_nonzero(done)
    open_row = pieces[rows]
    assert 0 <= total1 - int(pieces["counts1"][done].sum()) <= int(open_row["counts1"])
    assert 0 <= total2 - int(pieces["counts2"][done].sum()) <= int(open_row["counts2"])


# --- trips --------------------------------------------------------------------------------------------------------


def tripped(bench: Bench, reason: Reason, within_s: float = 1.0) -> None:
    """The unit has latched for a reason, the chain is open, and only a reset after the cause is gone helps."""
    bench.run(within_s)
    assert bench.unit.reason is reason, bench.unit.reason
    assert bench.unit.state is UnitState.LATCHED
    assert not bench.chain.dose1_ok.value
    assert not bench.chain.beam_enable.value
    assert not bench.unit.delivering
    bench.unit.submit(bench.words())
    assert bench.unit.echo[3] == Refusal.LATCHED


@pytest.mark.parametrize("fault", ["mirrored_x", "mirrored_y", "swapped", "stuck"])
def test_a_scanner_that_is_not_the_commissioned_one_is_caught_at_the_first_wrong_spot(bench: Bench, fault: str) -> None:
    setattr(bench.room.scanner, fault, True)
    bench.begin(bench.words(2000, n=200))
    tripped(bench, Reason.POSITION)
    segment = bench.kind("delivery.segment")[-1].data
    error = np.maximum(np.abs(segment["x_mm"] - segment["planned_x_mm"]), np.abs(segment["y_mm"] - segment["planned_y_mm"]))
    wrong = error > 2.0
    assert wrong.sum() == 1
    assert float((segment["t_end_ns"] - segment["t_start_ns"])[wrong].sum()) <= 500 * US


def test_a_wrong_scale_is_caught_where_it_matters(bench: Bench) -> None:
    bench.room.scanner.scale = 0.9
    bench.begin(bench.words(2000, n=200))
    tripped(bench, Reason.POSITION)


def test_a_small_offset_pauses_and_goes_on_when_acknowledged(bench: Bench) -> None:
    values = bench.true_map(300_000)
    values[1] += 1.4 * values[2]  # the library is 1.4 mm wrong in x
    bench.unit.load_map(values)
    bench.begin(bench.words(n=50))
    bench.run(0.1)
    assert (bench.unit.state, bench.unit.hold) == (UnitState.HELD, Hold.PAUSE)
    assert bench.unit.position_error_um() > 1000
    bench.run(5.0)
    assert len(bench.kind("beam.on")) == 1
    bench.unit.set_controller_gate(True)
    bench.run(0.01)
    assert len(bench.kind("beam.on")) == 2


def test_one_magnet_off_by_half_a_percent_unseen_by_its_supply_is_seen_by_the_strips(bench: Bench) -> None:
    bench.magnets.offset_field(4, 0.005)
    bench.begin(bench.words(2000, n=200))
    tripped(bench, Reason.POSITION)


def test_a_supply_that_deviates_during_beam_ends_it(bench: Bench) -> None:
    begun(bench)
    bench.magnets.offset_supply(4, 0.005)
    tripped(bench, Reason.SUPPLY)


def test_a_quench_during_beam_ends_it(bench: Bench) -> None:
    begun(bench)
    quenched = bench.now
    bench.magnets.quench(4)
    tripped(bench, Reason.SUPPLY)
    assert bench.kind("beam.off")[-1].t_ns - quenched <= 200 * US


@pytest.mark.parametrize(("which", "value"), [("unit", 1.2), ("unit", 0.8), ("unit2", 1.2), ("unit2", 0.93)])
def test_a_monitor_whose_gain_jumps_is_caught_by_the_other(bench: Bench, which: str, value: float) -> None:
    begun(bench)
    jumped = bench.now
    getattr(bench, which).monitor.gain_factor = value
    tripped(bench, Reason.DISAGREE)
    assert bench.kind("beam.off")[-1].t_ns - jumped <= 150 * MS


@pytest.mark.parametrize("value", [1.2, 0.8])
def test_a_gain_jump_of_a_fifth_is_caught_within_milliseconds(bench: Bench, value: float) -> None:
    begun(bench)
    jumped = bench.now
    bench.unit.monitor.gain_factor = value
    tripped(bench, Reason.DISAGREE)
    assert bench.kind("beam.off")[-1].t_ns - jumped <= 10 * MS


def test_a_dead_monitor_stops_the_beam_within_its_time(bench: Bench) -> None:
    begun(bench)
    died = bench.now
    bench.unit.monitor.dead = True
    tripped(bench, Reason.DEAD)
    assert bench.kind("beam.off")[-1].t_ns - died <= 3 * MS
    bench.unit.reset(bench.unit.boot_id)
    assert bench.unit.latched  # the cause is still there
    bench.unit.monitor.dead = False
    bench.unit.reset(bench.unit.boot_id + 1)
    assert bench.unit.latched  # not this unit's run
    bench.unit.reset(bench.unit.boot_id)
    assert not bench.unit.latched
    assert bench.chain.dose1_ok.value


def test_high_voltage_that_sags_stops_the_beam_and_keeps_it_off(bench: Bench) -> None:
    begun(bench)
    sagged = bench.now
    bench.unit.monitor.hv_rel = 0.9
    tripped(bench, Reason.DEAD)
    assert bench.kind("beam.off")[-1].t_ns - sagged <= 2 * MS


def test_a_wrong_calibration_of_the_charge_per_ion_is_noticed_within_one_slice(bench: Bench) -> None:
    values = bench.true_map(300_000)
    values[11] *= 1.25
    values[12] *= 1.25
    bench.unit.load_map(values)
    bench.begin(bench.words(2000, n=200))
    tripped(bench, Reason.TOKEN)


def test_a_wrong_ion_behind_a_lying_read_back_is_told_by_its_ionisation(bench: Bench) -> None:
    bench.ring.faults.wrong_species_token = 8016
    bench.ring.faults.species_reading_lies = True
    bench.begin(bench.words(2000, n=200))
    bench.run(1.0)
    assert bench.unit.state is UnitState.LATCHED
    assert bench.unit.signal_permille() > 1500
    assert bench.kind("beam.off")[-1].t_ns - bench.kind("beam.on")[-1].t_ns <= 101 * MS


def test_a_spill_of_another_energy_gives_no_beam_at_all(bench: Bench) -> None:
    bench.ring.faults.energy_offset_mev_u = 3.0
    bench.ring.step_to(299_000)
    bench.tune(299_000)
    bench.unit.load_map(bench.true_map(299_000))
    bench.begin(bench.words())
    tripped(bench, Reason.TOKEN)
    assert not bench.kind("beam.on")
    assert bench.unit.counts() == (0, 0)


@pytest.mark.parametrize(("factor", "pause"), [(2.5, True), (4.0, False)])
def test_a_burst_pauses_at_twice_and_ends_at_three_times_the_rate(bench: Bench, factor: float, pause: bool) -> None:
    bench.ring.faults.spike_factor = factor
    bench.begin(bench.words(2000, n=200))
    bench.run(0.2)
    if pause:
        assert (bench.unit.state, bench.unit.hold) == (UnitState.HELD, Hold.PAUSE)
        bench.unit.set_controller_gate(True)
        bench.run_until_ended()
        assert bench.unit.reason is Reason.FINISHED
    else:
        tripped(bench, Reason.RATE)
    off = bench.kind("beam.off")[0].t_ns - bench.kind("beam.on")[0].t_ns
    assert off <= (50 + 1) * MS  # the burst begins 50 ms into the stretch


def test_extraction_that_sticks_is_ended_by_the_chopper_and_latched(bench: Bench) -> None:
    bench.ring.faults.rfko_stuck_on = True
    bench.begin(bench.words(2000, n=50, mode=1))
    tripped(bench, Reason.DOSE_1)
    over = float(carried(bench)[0])
    assert bench.quantum(5_000_000) < over < 6 * bench.quantum(5_000_000)


def test_with_extraction_stuck_the_chopper_still_meets_the_cut_off(bench: Bench) -> None:
    begun(bench)
    bench.ring.faults.rfko_stuck_on = True
    fell = bench.now
    bench.chain.permit_r.set(False)
    bench.run(0.1)
    assert bench.kind("beam.off")[-1].t_ns - fell <= 200 * US


def test_a_spill_that_never_comes_ends_after_five_seconds(bench: Bench) -> None:
    bench.ring.faults.no_spill = True
    bench.begin(bench.words())
    bench.run(4.9)
    assert bench.unit.state is UnitState.DELIVERING
    tripped(bench, Reason.DEAD)
    assert bench.unit.counts() == (0, 0)


def test_a_spill_that_ends_early_is_only_a_hold(bench: Bench) -> None:
    bench.ring.faults.early_end = 0.01
    bench.begin(bench.words(2000, n=200))
    bench.run(3.0)
    assert Hold.SPILL in bench.unit.hold or bench.unit.delivering
    bench.ring.faults.early_end = 1.0
    bench.run_until_ended()
    assert bench.unit.reason is Reason.FINISHED
    assert np.abs(carried(bench)).max() <= bench.quantum(5_000_000)


def test_counts_without_a_spot_are_told_and_latch_beyond_twenty(bench: Bench) -> None:
    bench.unit.leak(5, 5)
    assert bench.unit.state is UnitState.IDLE
    bench.unit.leak(30, 30)
    assert (bench.unit.state, bench.unit.reason) == (UnitState.LATCHED, Reason.STRAY)
    assert [event.data["counts1"] for event in bench.kind("stray")] == [5, 30]


def test_a_dead_strip_channel_does_not_pass_for_a_position(bench: Bench) -> None:
    bench.unit.strips.dead_x = True
    bench.begin(bench.words(2000, n=200))
    tripped(bench, Reason.POSITION)


def test_a_position_is_known_to_a_tenth_of_a_millimetre(bench: Bench) -> None:
    pieces = bench.deliver(bench.words(200, n=400, intensity=20_000_000))
    segment = bench.kind("delivery.segment")[-1].data
    error = pieces["x_um"] / 1e3 - segment["x_mm"]
    assert 0.005 < float(np.std(error)) < 0.1
    assert abs(float(np.mean(error))) < 0.02


# --- power --------------------------------------------------------------------------------------------------------


def test_a_power_loss_keeps_the_dose_memory_and_the_ids_and_changes_the_boot_id(bench: Bench) -> None:
    boot = bench.unit.boot_id
    grant_id = begun(bench)
    lost = bench.now
    bench.unit.power_cycle(off_s=0.5)
    bench.run(0.1)
    assert not bench.chain.dose1_ok.value
    assert bench.kind("beam.off")[-1].t_ns - lost <= 200 * US
    total = bench.unit.counts()
    bench.run(1.0)
    assert bench.unit.boot_id == boot + 1
    assert (
        bench.unit.counts()
        == total
        == (
            sum(int(e.data["counts1"].sum()) for e in bench.kind("delivery.segment")),
            sum(int(e.data["counts2"].sum()) for e in bench.kind("delivery.segment")),
        )
    )
    latch = bench.unit.memory.latch()
    assert list(latch[:2]) == [boot, grant_id]
    assert bench.unit.memory.pieces(grant_id).size == 0
    bench.load_true_map(300_000)
    bench.unit.submit(bench.words(boot_id=boot))
    assert bench.unit.echo[3] == Refusal.BOOT_ID
    bench.run(1.0)
    bench.deliver(bench.words(n=10))
    assert bench.unit.reason is Reason.FINISHED
    assert int(bench.unit.memory.latch()[0]) == boot + 1


def test_a_latch_survives_a_power_loss(bench: Bench) -> None:
    bench.unit.leak(50, 50)
    bench.unit.power_cycle()
    bench.run(1.0)
    assert bench.unit.state is UnitState.LATCHED
    assert not bench.chain.dose1_ok.value


# --- results ------------------------------------------------------------------------------------------------------


def test_results_of_the_last_three_grants_are_kept(bench: Bench) -> None:
    for i in range(4):
        bench.deliver(bench.words(n=10, layer=i))
    assert bench.unit.memory.held == (2, 4)
    assert [bench.unit.memory.pieces(i).size for i in (1, 2, 3, 4)] == [0, 10, 10, 10]


def test_results_come_in_answers_of_256_pieces_with_a_good_crc(bench: Bench) -> None:
    grant_id = bench.begin(bench.words(600, n=400))
    bench.run_until_ended()
    seen = []
    for first, size in ((0, 256), (256, 144), (400, 0)):
        words = bench.unit.memory.answer(bench.unit.boot_id, grant_id, first)
        assert crc32c(words[:-1]) == words[-1]
        assert list(words[:5]) == [1, bench.unit.boot_id, grant_id, first, size]
        seen.append(words[5:-1].reshape(size, 16))
    rows = np.concatenate(seen)
    pieces = bench.unit.memory.pieces(grant_id)
    assert np.array_equal(rows[:, 0], pieces["row"])
    high, low = rows[:, 11].astype(np.int64), rows[:, 12].astype(np.int64) & 0xFFFFFFFF
    assert np.array_equal((high << 32) | low, pieces["t_start_ns"])
    assert pieces.dtype == PIECE


def test_stopping_at_the_very_instant_of_start_and_end_counts_once(bench: Bench) -> None:
    bench.begin(bench.words(n=10))
    bench.chain.permit_r.set(False)  # the same instant
    bench.run(0.1)
    assert bench.unit.reason is Reason.PERMIT
    assert bench.unit.counts()[0] == sum(int(e.data["counts1"].sum()) for e in bench.kind("delivery.segment"))
    bench.chain.permit_r.set(True)
    bench.run(1.0)
    words = bench.words(n=10)
    bench.begin(words)
    end_ns = bench.unit._run.stretch.end_ns if bench.unit._run is not None else 0
    bench.kernel.at(end_ns, lambda _t: bench.chain.permit_r.set(False))
    bench.run_until_ended()
    bench.run(0.1)
    told = sum(int(e.data["counts1"].sum()) for e in bench.kind("delivery.segment"))
    assert bench.unit.counts()[0] == told
    assert len(bench.kind("beam.on")) == len(bench.kind("beam.off"))


def test_a_slice_of_750_spots_costs_little(bench: Bench) -> None:
    import time

    costs = []
    for i in range(12):
        words = bench.words(300, n=750, layer=i, intensity=20_000_000, y_um=(np.arange(750) // 20 - 19) * 3000)
        began = time.process_time()
        bench.begin(words)
        bench.run_until_ended()
        costs.append(time.process_time() - began)
    assert np.median(costs) < 0.006  # 1.2 ms on a quiet machine
