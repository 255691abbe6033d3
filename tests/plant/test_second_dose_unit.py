"""The second dose unit: ceilings and trips of its own, which end the beam with nobody's help."""

from __future__ import annotations

import numpy as np
import pytest
from beam_bench import MS, US, Bench

from simulators.plant.second_dose_unit import NEVER_S, Trip, Watch
from simulators.plant.unit_terms import Reason, UnitState


@pytest.fixture
def bench() -> Bench:
    return Bench().ready()


def test_a_field_begins_with_ceilings_and_a_total_of_zero(bench: Bench) -> None:
    bench.deliver(bench.words(n=20))
    assert bench.unit2.total > 0
    assert bench.unit.field_counts1() > 0
    bench.unit2.start_field(bench.unit2.boot_id, 50_000, 3_000)
    assert bench.unit2.state is Watch.WATCHING
    assert bench.unit2.total == 0
    assert bench.unit.field_counts1() == 0


@pytest.mark.parametrize("ceilings", [(0, 10), (10, 0), (-5, 10)])
def test_ceilings_must_be_positive(bench: Bench, ceilings: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        bench.unit2.start_field(bench.unit2.boot_id, *ceilings)
    with pytest.raises(ValueError, match="boot id"):
        bench.unit2.start_field(1, 10, 10)


def test_the_field_ceiling_ends_the_beam_within_half_a_millisecond_and_a_few_counts(bench: Bench) -> None:
    bench.unit2.start_field(bench.unit2.boot_id, 50_500, 3_000)
    bench.begin(bench.words(1000, n=100))
    bench.run(5.0)
    assert (bench.unit2.state, bench.unit2.trip) == (Watch.TRIPPED, Trip.FIELD)
    assert (bench.unit.state, bench.unit.reason) == (UnitState.LATCHED, Reason.SECOND_UNIT)
    trip = next(e for e in bench.kind("trip") if e.data["element"] == "dose 2")
    assert bench.kind("beam.off")[-1].t_ns - trip.t_ns <= 200 * US
    per_ms = 5_000_000 * 1e-3 * bench.unit2.monitor.counts_per_ion(6012, 300.0)
    assert 50_500 <= bench.unit2.total <= 50_500 + per_ms


def test_the_spot_ceiling_catches_a_spot_that_is_too_big_for_it(bench: Bench) -> None:
    counts = np.full(20, 1000)
    counts[7] = 5000
    bench.unit2.start_field(bench.unit2.boot_id, 10**7, 3_000)
    bench.begin(bench.words(counts, n=20))
    bench.run(2.0)
    assert (bench.unit2.trip, bench.unit2.tripped_row) == (Trip.SPOT, 7)
    assert bench.unit.rows_finished() == 7


def test_a_spot_delivered_in_two_pieces_is_one_spot_for_the_ceiling(bench: Bench) -> None:
    bench.unit2.start_field(bench.unit2.boot_id, 10**7, 3_000)
    bench.begin(bench.words(np.array([4000]), n=1))
    bench.run(0.02)  # 1,600 of 4,000 counts: neither piece alone reaches the ceiling
    bench.unit.gate.set(False)
    bench.run(0.1)
    assert 1_000 < bench.unit2.total < 3_000
    bench.unit.gate.set(True)
    bench.run(1.0)
    assert bench.unit2.trip is Trip.SPOT
    assert bench.unit2.total < 3_100


def test_the_same_row_of_the_next_grant_is_another_spot(bench: Bench) -> None:
    bench.unit2.start_field(bench.unit2.boot_id, 10**7, 3_000)
    for i in range(5):
        bench.deliver(bench.words(np.array([2000]), n=1, layer=i))
        assert bench.unit.reason is Reason.FINISHED
    assert bench.unit2.state is Watch.WATCHING


def test_beam_without_ceilings_trips_at_the_first_count() -> None:
    bench = Bench().ready()
    bench.unit2.power_cycle(0.2)
    bench.run(0.5)
    assert bench.unit2.state is Watch.IDLE
    bench.begin(bench.words())
    bench.run(1.0)
    assert bench.unit2.trip is Trip.NO_CEILING
    assert bench.unit.counts()[0] < 100


@pytest.mark.parametrize(
    ("fault", "value", "trip", "within_ms"), [("hv_rel", 0.9, Trip.HIGH_VOLTAGE, 2), ("dead", True, Trip.STALE, 3)]
)
def test_a_chamber_that_fails_ends_the_beam(bench: Bench, fault: str, value: float | bool, trip: Trip, within_ms: int) -> None:
    bench.begin(bench.words(2000, n=200))
    bench.run(0.5)
    failed = bench.now
    setattr(bench.unit2.monitor, fault, value)
    bench.run(1.0)
    assert bench.unit2.trip is trip
    assert bench.kind("beam.off")[-1].t_ns - failed <= within_ms * MS
    assert not bench.chain.beam_enable.value


def test_a_trip_stands_until_a_self_test_passes(bench: Bench) -> None:
    bench.unit2.monitor.hv_rel = 0.9
    bench.run(0.1)
    bench.unit2.start_field(bench.unit2.boot_id, 1000, 1000)
    assert bench.unit2.state is Watch.TRIPPED
    bench.unit2.self_test()
    bench.run(1.0)
    assert bench.unit2.state is Watch.TRIPPED
    bench.unit2.monitor.hv_rel = 1.0
    bench.unit2.self_test()
    bench.run(0.2)
    assert bench.unit2.state is Watch.TRIPPED
    bench.run(0.2)
    assert bench.unit2.state is Watch.IDLE
    assert bench.chain.dose2_ok.value


@pytest.mark.parametrize("which", ["unit", "unit2"])
def test_the_self_test_finds_a_wrong_gain_in_either_channel(bench: Bench, which: str) -> None:
    assert bench.unit2.self_test_age_s == NEVER_S
    bench.unit2.self_test()
    bench.run(1.0)
    assert bench.unit2.state is not Watch.TRIPPED
    assert bench.unit2.self_test_age_s == 0
    getattr(bench, which).monitor.gain_factor = 1.05
    bench.unit2.self_test()
    bench.run(1.0)
    assert bench.unit2.trip is Trip.SELF_TEST
    assert not bench.chain.dose2_ok.value


def test_the_total_in_flight_grows_to_what_is_collected(bench: Bench) -> None:
    bench.begin(bench.words(2000, n=100))
    seen = []
    for _ in range(10):
        bench.run(0.1)
        seen.append(bench.unit2.total)
    assert seen == sorted(seen)
    assert len(set(seen)) == 10
    bench.run_until_ended()
    assert bench.unit2.total == bench.unit.counts()[1]


# --- ceiling trips and power -------------------------------------------------------------------------------------------------


def ceiling_tripped(bench: Bench, *, spot: bool = False) -> None:
    bench.unit2.start_field(bench.unit2.boot_id, 10**7 if spot else 20_500, 1_500 if spot else 3_000)
    bench.begin(bench.words(2000 if spot else 1000, n=100))
    bench.run(3.0)
    assert bench.unit2.trip is (Trip.SPOT if spot else Trip.FIELD)


@pytest.mark.parametrize("spot", [False, True])
def test_a_ceiling_trip_survives_self_tests_fields_and_power_until_it_is_acknowledged(bench: Bench, spot: bool) -> None:
    ceiling_tripped(bench, spot=spot)
    reason, total, row = bench.unit2.trip, bench.unit2.total, bench.unit2.tripped_row
    bench.unit2.self_test()
    bench.run(1.0)
    assert (bench.unit2.state, bench.unit2.trip, bench.unit2.total) == (Watch.TRIPPED, reason, total)
    assert bench.unit2.self_test_age_s == 0 and not bench.chain.dose2_ok.value
    bench.unit2.start_field(bench.unit2.boot_id, 10**7, 10**6)
    assert (bench.unit2.state, bench.unit2.trip, bench.unit2.total) == (Watch.TRIPPED, reason, total)
    bench.unit2.power_cycle(0.2)
    bench.run(1.0)
    assert (bench.unit2.state, bench.unit2.trip, bench.unit2.tripped_row) == (Watch.TRIPPED, reason, row)
    assert not bench.chain.dose2_ok.value
    bench.unit2.acknowledge(bench.unit2.boot_id - 1)
    assert bench.unit2.state is Watch.TRIPPED, "another run of the unit was meant"
    bench.unit2.acknowledge(bench.unit2.boot_id)
    assert (bench.unit2.state, bench.unit2.trip) == (Watch.IDLE, Trip.NONE)
    assert bench.chain.dose2_ok.value


def test_after_an_acknowledgement_beam_needs_a_new_field(bench: Bench) -> None:
    ceiling_tripped(bench)
    bench.unit2.acknowledge(bench.unit2.boot_id)
    bench.unit.reset(bench.unit.boot_id)
    bench.run(1.0)
    before = bench.unit.counts()[0]
    bench.begin(bench.words())
    bench.run(1.0)
    assert bench.unit2.trip is Trip.NO_CEILING
    assert bench.unit.counts()[0] - before < 100
    bench.unit2.self_test()
    bench.run(1.0)
    bench.unit.reset(bench.unit.boot_id)
    bench.unit2.start_field(bench.unit2.boot_id, 10**7, 10**6)
    bench.run(1.0)
    bench.deliver(bench.words(n=10))
    assert bench.unit.reason is Reason.FINISHED


def test_an_acknowledgement_does_not_cover_a_chamber_that_fails(bench: Bench) -> None:
    ceiling_tripped(bench)
    bench.unit2.monitor.gain_factor = 1.1
    bench.unit2.self_test()
    bench.run(1.0)
    assert bench.unit2.trip is Trip.FIELD
    bench.unit2.acknowledge(bench.unit2.boot_id)
    assert (bench.unit2.state, bench.unit2.trip) == (Watch.TRIPPED, Trip.SELF_TEST)
    assert not bench.chain.dose2_ok.value
    bench.unit2.monitor.gain_factor = 1.0
    bench.unit2.self_test()
    bench.run(1.0)
    assert bench.unit2.state is Watch.IDLE


def test_only_ceiling_trips_can_be_acknowledged(bench: Bench) -> None:
    bench.unit2.monitor.hv_rel = 0.9
    bench.run(0.1)
    bench.unit2.monitor.hv_rel = 1.0
    bench.unit2.acknowledge(bench.unit2.boot_id)
    assert bench.unit2.trip is Trip.HIGH_VOLTAGE and not bench.chain.dose2_ok.value


def test_without_power_its_line_is_open_and_beam_ends_within_its_time(bench: Bench) -> None:
    bench.begin(bench.words(2000, n=200))
    bench.run(0.5)
    assert bench.unit.state is UnitState.DELIVERING
    lost = bench.now
    bench.unit2.power_cycle(0.3)
    assert not bench.chain.dose2_ok.value
    bench.run(0.2)
    assert bench.kind("beam.off")[-1].t_ns - lost <= 400 * US
    bench.unit2.self_test()
    bench.unit2.start_field(bench.unit2.boot_id, 10**7, 10**6)
    bench.unit2.acknowledge(bench.unit2.boot_id)
    bench.run(0.05)
    assert not bench.chain.dose2_ok.value and not bench.chain.permit_a.value
    bench.run(0.3)
    assert bench.chain.dose2_ok.value
    assert (bench.unit2.state, bench.unit2.total, bench.unit2.self_test_age_s) == (Watch.IDLE, 0, NEVER_S)


def test_a_chamber_that_fails_while_the_power_is_away_is_noticed_when_it_is_back(bench: Bench) -> None:
    bench.unit2.power_cycle(0.2)
    bench.unit2.monitor.hv_rel = 0.5
    bench.run(0.1)
    assert bench.unit2.state is not Watch.TRIPPED
    bench.run(0.5)
    assert bench.unit2.trip is Trip.HIGH_VOLTAGE and not bench.chain.dose2_ok.value


def test_a_self_test_is_lost_with_the_power(bench: Bench) -> None:
    bench.unit2.self_test()
    bench.run(0.1)
    bench.unit2.power_cycle(0.05)
    bench.run(1.0)
    assert bench.unit2.self_test_age_s == NEVER_S
