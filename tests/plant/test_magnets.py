"""The magnets of a line: ramps, settling, heat, quench, supplies that deviate or are swapped."""

from __future__ import annotations

import numpy as np
import pytest
from beam_bench import Bench


def tuned(kev_u: int = 300_000) -> Bench:
    bench = Bench()
    bench.tune(kev_u)
    bench.run(30.0)
    return bench


def test_currents_ramp_no_faster_than_the_limit_and_settle_within_tolerance() -> None:
    bench = Bench()
    bench.tune(300_000)
    last = bench.magnets.true_currents_a()
    while bench.magnets.settled_token == 0:
        bench.run(0.01)
        now = bench.magnets.true_currents_a()
        assert np.abs(now - last).max() <= bench.truth.magnets.ramp_a_s * 0.01 * 1.0001
        last = now
    assert bench.magnets.settled_token == 300_000
    assert bench.magnets.deviation_ppm() <= 200
    assert bench.now / 1e9 == pytest.approx(bench.currents(300_000).max() / 25.0, abs=0.2)


def test_a_range_step_of_a_millimetre_and_a_half_settles_within_100_ms() -> None:
    for kev_u, down in ((430_000, 1_400), (200_000, 2_000), (100_000, 3_200)):
        bench = tuned(kev_u)
        bench.tune(kev_u - down)
        assert bench.magnets.settled_token == 0
        bench.run(0.1)
        assert bench.magnets.settled_token == kev_u - down


def test_each_step_heats_by_20_mk_and_the_heat_relaxes_in_a_minute() -> None:
    bench = tuned()
    bench.run(600.0)
    cold = bench.magnets.temperatures_k()
    assert cold == pytest.approx(4.3, abs=1e-3)
    for i in range(1, 6):
        bench.tune(300_000 - 500 * i)
        bench.run(0.1)
    warm = bench.magnets.temperatures_k()
    assert warm - cold == pytest.approx(0.1, abs=0.002)
    bench.run(60.0)
    assert bench.magnets.temperatures_k() - cold == pytest.approx(0.1 / np.e, abs=0.002)


def test_a_warm_coil_holds_further_ramps_back_until_it_has_cooled() -> None:
    bench = tuned(430_000)
    target = 430_000
    while not bench.magnets.ramp_inhibited:
        target -= 500
        bench.tune(target)
        bench.run(0.12)
        assert target > 380_000
    assert float(bench.magnets.temperatures_k().max()) < 6.0
    bench.tune(target - 500)
    held = bench.magnets.measured_currents_a()
    bench.run(1.0)
    assert bench.magnets.settled_token == 0
    assert bench.magnets.measured_currents_a() == pytest.approx(held, abs=0.02)
    bench.run(15.0)
    assert bench.magnets.settled_token == target - 500


def test_the_same_currents_again_do_not_heat() -> None:
    bench = tuned()
    bench.run(600.0)
    bench.tune(300_000)
    assert bench.magnets.temperatures_k() == pytest.approx(4.3, abs=1e-3)


def test_a_quench_opens_the_chain_dumps_the_coils_and_takes_no_set_point() -> None:
    bench = tuned()
    assert bench.chain.quench_ok.value
    bench.magnets.quench(2)
    assert not bench.chain.quench_ok.value
    assert bench.magnets.quench_bits == 4
    assert bench.kind("quench")[0].data == {"room": "G1", "magnet": "BM03"}
    full = bench.magnets.true_currents_a()
    bench.run(2.0)
    assert bench.magnets.true_currents_a() == pytest.approx(full / np.e, rel=1e-6)
    bench.tune(300_000)
    bench.run(20.0)
    assert bench.magnets.settled_token == 0
    bench.magnets.recover()
    assert bench.chain.quench_ok.value
    bench.tune(300_000)
    bench.run(20.0)
    assert bench.magnets.settled_token == 300_000


def test_a_supply_that_deviates_is_measured_and_unsettles() -> None:
    bench = tuned()
    bench.magnets.offset_supply(3, 0.005)
    assert bench.magnets.settled_token == 0
    assert bench.magnets.deviation_ppm() == pytest.approx(5000, rel=0.02)
    assert bench.magnets.off_setpoint


def test_swapped_supplies_read_right_and_steer_wrong() -> None:
    bench = tuned()
    before = bench.magnets.beam_at_isocentre(6012, 300.0)
    bench.magnets.swap(5, 6)
    assert bench.magnets.deviation_ppm() <= 200
    after = bench.magnets.beam_at_isocentre(6012, 300.0)
    assert abs(after.y_mm - before.y_mm) > 2.0


@pytest.mark.parametrize("wrong", ["short", "nan", "beyond"])
def test_set_points_that_make_no_sense_are_refused_and_change_nothing(wrong: str) -> None:
    bench = tuned()
    currents = bench.currents(300_000)
    if wrong == "short":
        currents = currents[:-1]
    elif wrong == "nan":
        currents[3] = np.nan
    else:
        currents[3] = 500.0
    with pytest.raises(ValueError, match=r"currents|A for supply"):
        bench.magnets.set_currents(290_000, currents)
    assert bench.magnets.settled_token == 300_000


def test_a_fixed_room_has_few_normal_magnets_behind_the_same_interface() -> None:
    bench = Bench(room="F1")
    assert bench.magnets.names == ("FB01", "FB02", "FB03")
    bench.tune(300_000)
    bench.run(10.0)
    assert bench.magnets.settled_token == 300_000
    for i in range(200):
        bench.tune(300_000 - 100 * (i + 1))
        bench.run(0.2)
    assert not bench.magnets.ramp_inhibited
