"""The ring: cycles, steps, spills that run out and refill, species, faults."""

from __future__ import annotations

import numpy as np
import pytest
from beam_bench import MS, Bench, S

from simulators.plant.synchrotron import RingFault, RingState


def fresh() -> Bench:
    return Bench()


def test_a_cycle_to_430_takes_about_two_seconds_and_ends_on_a_measured_flattop() -> None:
    bench = fresh()
    bench.ring.start_cycle(430_000)
    bench.run(1.7)
    assert not bench.ring.settled
    assert bench.ring.measured_kev_u == 0
    bench.run(0.5)
    assert bench.ring.settled
    assert bench.ring.measured_kev_u == 430_000
    assert bench.ring.true_energy_mev_u == pytest.approx(430.0, rel=3e-4)
    assert bench.ring.spill == 1


def test_a_small_step_takes_100_ms_and_a_coarse_one_a_quarter_of_a_second() -> None:
    bench = fresh()
    bench.ring.start_cycle(430_000)
    bench.run(3.0)
    for target, least_ms, most_ms in ((428_500, 90, 115), (400_000, 220, 260)):
        began = bench.now
        bench.ring.step_to(target)
        assert bench.ring.state is RingState.STEPPING
        bench.run(least_ms / 1e3)
        assert not bench.ring.settled
        bench.kernel.advance_to(began + most_ms * MS)
        assert bench.ring.measured_kev_u == target


def test_energies_only_step_down_within_a_cycle() -> None:
    bench = fresh()
    bench.ring.start_cycle(300_000)
    bench.run(3.0)
    bench.ring.step_to(310_000)
    bench.run(1.0)
    assert bench.ring.fault is RingFault.STEP_UP
    assert bench.ring.measured_kev_u == 300_000
    bench.ring.step_to(290_000)
    assert bench.ring.fault is RingFault.NONE


@pytest.mark.parametrize("kev_u", [40_000, 430_001, -1, 0])
def test_an_energy_outside_the_species_range_is_refused(kev_u: int) -> None:
    bench = fresh()
    bench.ring.start_cycle(kev_u)
    bench.run(5.0)
    assert bench.ring.fault is RingFault.ENERGY
    assert bench.ring.state is RingState.OFF


def test_fills_scatter_but_the_same_seed_gives_the_same_fills() -> None:
    def fills(seed: int) -> list[float]:
        bench = Bench(seed=seed)
        out = []
        for _ in range(6):
            bench.ring.start_cycle(300_000)
            bench.run(3.0)
            out.append(bench.ring.ions_left)
        return out

    first = fills(5)
    assert first == fills(5)
    assert first != fills(6)
    assert np.mean(first) == pytest.approx(1.02e9, rel=0.1)
    assert len(set(first)) == 6


def test_an_expired_flattop_is_empty_and_stays_so_while_nobody_wants_beam() -> None:
    bench = fresh()
    bench.ring.start_cycle(300_000)
    bench.run(70.0)
    assert bench.ring.state is RingState.EMPTY
    assert bench.ring.ions_left == 0.0
    bench.run(30.0)
    assert bench.ring.spill == 1
    bench.ring.want_beam("unit", True)
    bench.run(3.0)
    assert bench.ring.spill == 2
    assert bench.ring.measured_kev_u == 300_000


def test_species_switch_takes_30_to_60_s_and_dumps_the_ring() -> None:
    bench = fresh()
    bench.ring.start_cycle(200_000)
    bench.run(3.0)
    bench.ring.select_species(2004)
    assert bench.ring.measured_species == 0
    assert bench.ring.state is RingState.OFF
    bench.ring.start_cycle(200_000)
    assert bench.ring.fault is RingFault.SPECIES
    bench.run(29.9)
    assert bench.ring.measured_species == 0
    bench.run(30.1)
    assert bench.ring.measured_species == 2004
    bench.ring.start_cycle(200_000)
    bench.run(3.0)
    assert bench.ring.measured_kev_u == 200_000


def test_an_ion_the_source_lacks_is_refused() -> None:
    bench = fresh()
    bench.ring.select_species(1001)
    assert bench.ring.fault is RingFault.SPECIES
    assert bench.ring.measured_species == 6012


def test_a_wrong_energy_and_a_wrong_species_show_in_the_measurement() -> None:
    bench = fresh()
    bench.ring.faults.energy_offset_mev_u = 3.0
    bench.ring.faults.wrong_species_token = 8016
    bench.ring.start_cycle(300_000)
    bench.run(3.0)
    assert bench.ring.measured_kev_u == pytest.approx(303_000, abs=60)
    assert bench.ring.measured_species == 8016
    bench.ring.faults.species_reading_lies = True
    assert bench.ring.measured_species == 6012
    assert bench.ring.true_species == 8016


def test_a_trip_dumps_the_ring_until_it_is_switched_off() -> None:
    bench = fresh()
    bench.ring.start_cycle(300_000)
    bench.run(3.0)
    bench.ring.trip()
    assert bench.ring.state is RingState.FAULT
    assert bench.ring.ions_left == 0.0
    bench.ring.off()
    assert (bench.ring.state, bench.ring.fault) == (RingState.OFF, RingFault.NONE)


def test_off_in_mid_cycle_ends_it() -> None:
    bench = fresh()
    bench.ring.start_cycle(300_000)
    bench.run(0.3)
    bench.ring.off()
    bench.run(5.0)
    assert bench.ring.state is RingState.OFF
    assert not bench.kind("spill.start")


def test_spills_are_told_with_their_true_energy() -> None:
    bench = fresh()
    bench.ring.start_cycle(300_000)
    bench.run(3.0)
    bench.ring.off()
    start, end = bench.kind("spill.start")[0], bench.kind("spill.end")[0]
    assert start.data["spill"] == end.data["spill"] == 1
    assert start.data["energy_mev_u"] == bench.kind("spill.start")[0].data["energy_mev_u"]
    assert start.t_ns < end.t_ns == 3 * S


def test_never_more_than_one_path_is_open_and_none_while_switching() -> None:
    bench = fresh()
    yard = bench.plant.switchyard
    yard.select("G1")
    assert (yard.route, yard.readback) == ("none", "moving")
    bench.run(40.0)
    assert (yard.route, yard.readback) == ("G1", "G1")
    yard.select("F1:90")
    assert yard.route == "none"
    bench.run(10.0)
    yard.select("G2")  # thought better of it
    bench.run(60.0)
    assert yard.route == "G2"
    assert [event.data["route"] for event in bench.kind("route")] == ["G1", "none", "G2"]
    with pytest.raises(ValueError, match="no route 'G9'"):
        yard.select("G9")
