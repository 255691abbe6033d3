"""Where the beam lands: magnets to orbit and size, scanners to position, strips to what is seen."""

from __future__ import annotations

import numpy as np
import pytest
from beam_bench import Bench

from simulators.physics import noise, optics
from simulators.physics.rigidity import nucleus
from simulators.plant.scanner import Scanner
from simulators.plant.truth import load_truth

SCANNER = load_truth("asan").rooms["G1"].scanner
BRHO = nucleus(6012).rigidity_tm(430.0)


def test_500_ampere_move_430_mev_carbon_by_100_mm() -> None:
    x, y = Scanner(SCANNER).displacement_mm(np.array([0.0, 500.0, -500.0]), np.zeros(3), BRHO)
    assert x[1] - x[0] == pytest.approx(100.0, abs=1.0)
    assert x[2] - x[0] == pytest.approx(-(x[1] - x[0]), abs=1e-6)
    assert 0.0 < y[1] - y[0] < 0.5  # a small rotation


def test_at_half_the_rigidity_the_same_current_moves_twice_as_far() -> None:
    scanner = Scanner(SCANNER)
    near = scanner.displacement_mm(np.array([0.0, 100.0]), np.zeros(2), BRHO)[0]
    far = scanner.displacement_mm(np.array([0.0, 100.0]), np.zeros(2), BRHO / 2)[0]
    assert (far[1] - far[0]) / (near[1] - near[0]) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize(
    ("fault", "value", "change"),
    [
        ("mirrored_x", True, (-1.0, 1.0)),
        ("mirrored_y", True, (1.0, -1.0)),
        ("scale", 0.97, (0.97, 0.97)),
        ("stuck", True, (0.0, 0.0)),
    ],
)
def test_scanner_faults_move_the_beam_elsewhere(fault: str, value: bool | float, change: tuple[float, float]) -> None:
    current = np.array([0.0, 200.0])
    good, bad = Scanner(SCANNER), Scanner(SCANNER)
    setattr(bad, fault, value)
    gx, gy = good.displacement_mm(current, current, BRHO)
    bx, by = bad.displacement_mm(current, current, BRHO)
    assert bx[1] - bx[0] == pytest.approx(change[0] * (gx[1] - gx[0]), abs=0.4)
    assert by[1] - by[0] == pytest.approx(change[1] * (gy[1] - gy[0]), abs=0.4)


def test_swapped_supplies_exchange_the_axes() -> None:
    swapped = Scanner(SCANNER)
    swapped.swapped = True
    x, y = swapped.displacement_mm(np.array([200.0]), np.array([0.0]), BRHO)
    assert abs(x[0]) < 1.0
    assert y[0] == pytest.approx(40.0, abs=1.0)


def test_residual_sag_stays_below_a_fifth_of_a_millimetre_at_every_angle() -> None:
    for name in ("asan", "qst", "research"):
        for room in load_truth(name).rooms.values():
            sag = np.array([Scanner(room.scanner).sag_mm(angle) for angle in range(-180, 181, 5)])
            assert np.abs(sag).max() <= 0.2


def test_the_gantry_is_achromatic_a_common_field_error_does_not_move_the_beam() -> None:
    for name in ("asan", "qst", "research"):
        for room in load_truth(name).rooms.values():
            assert sum(room.magnets.orbit_y_mm) == 0.0


def test_nameplate_currents_leave_an_orbit_that_commissioning_must_learn() -> None:
    bench = Bench().ready()
    beam = bench.magnets.beam_at_isocentre(6012, 300.0)
    assert beam.arrives
    assert 1.0 < np.hypot(beam.x_mm, beam.y_mm) < 15.0


def test_one_magnet_half_a_percent_off_moves_the_beam_by_millimetres() -> None:
    bench = Bench().ready()
    before = bench.magnets.beam_at_isocentre(6012, 300.0)
    bench.magnets.offset_field(4, 0.005)
    after = bench.magnets.beam_at_isocentre(6012, 300.0)
    assert after.y_mm - before.y_mm == pytest.approx(0.005 * bench.truth.magnets.orbit_y_mm[4], rel=0.01)


def test_magnets_set_for_another_energy_lose_the_beam() -> None:
    bench = Bench().ready()
    assert bench.magnets.beam_at_isocentre(6012, 300.0).arrives
    assert not bench.magnets.beam_at_isocentre(6012, 330.0).arrives


def test_quadrupole_currents_change_the_spot_size_in_opposite_senses() -> None:
    bench = Bench().ready()
    before = bench.magnets.beam_at_isocentre(6012, 300.0)
    currents = bench.currents(300_000)
    currents[18] *= 1.08
    bench.magnets.set_currents(300_000, currents)
    bench.run(5.0)
    after = bench.magnets.beam_at_isocentre(6012, 300.0)
    assert after.sigma_x_mm > 1.05 * before.sigma_x_mm
    assert after.sigma_y_mm < 0.95 * before.sigma_y_mm
    assert after.y_mm == pytest.approx(before.y_mm)


@pytest.mark.parametrize(
    ("token", "energy", "low", "high"), [(6012, 430.0, 2.0, 3.0), (6012, 100.0, 2.5, 4.5), (2004, 150.0, 3.0, 5.0)]
)
def test_spot_sizes_are_those_of_clinical_beams(token: int, energy: float, low: float, high: float) -> None:
    spot = load_truth("asan").rooms["G1"].spot
    scattered = optics.scattered_sigma_mm(token, energy, spot.scatter_x0, spot.scatter_drift_mm)
    rigidity = nucleus(token).rigidity_tm(energy)
    sigma = optics.spot_sigma_mm(spot.optical_x_mm, rigidity, 6.6236, np.zeros(10), np.ones(10), scattered)
    assert low < sigma < high


def test_ripple_has_the_asked_strength_and_inverts() -> None:
    ripple = noise.draw_ripple(np.random.default_rng(3), 0.15, (120.0, 300.0, 720.0, 1500.0))
    t = np.linspace(0.0, 2.0, 40_001)
    assert float(np.std(ripple.intensity(t))) == pytest.approx(0.15, rel=0.03)
    assert float(ripple.intensity(t).min()) > 0.0
    assert ripple.invert_s(ripple.integral_s(t)) == pytest.approx(t, abs=1e-6)


def test_a_burst_is_part_of_the_integral_and_inverts_too() -> None:
    plain = noise.draw_ripple(np.random.default_rng(3), 0.15, (120.0, 300.0))
    burst = noise.Ripple(plain.amplitude, plain.omega_rad_s, plain.phase_rad, 0.3, 0.05, 4.0)
    t = np.linspace(0.0, 1.0, 501)
    assert float(burst.integral_s(t)[-1] - plain.integral_s(t)[-1]) == pytest.approx(0.05 * 3.0)
    assert burst.integral_s(burst.invert_s(burst.integral_s(t))) == pytest.approx(burst.integral_s(t), abs=2e-5)
