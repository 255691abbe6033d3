"""Ranges, rigidity and ionisation of the plant's ions against published and independently computed figures."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.physics import dose, ranges, rigidity


@pytest.mark.parametrize(
    ("token", "energy_mev_u", "range_cm"),
    [
        (6012, 430.0, 31.05),
        (6012, 290.0, 16.37),
        (2004, 230.0, 33.26),
        (8016, 400.0, 20.76),
        (10020, 350.0, 13.39),
        (1001, 150.0, 15.85),
    ],
)
def test_ranges_in_water_are_those_of_the_table(token: int, energy_mev_u: float, range_cm: float) -> None:
    assert float(ranges.range_mm(token, energy_mev_u)) == pytest.approx(10 * range_cm, abs=0.01)


@pytest.mark.parametrize("token", sorted(rigidity.NUCLEI))
def test_energy_is_the_inverse_of_range(token: int) -> None:
    energies = np.linspace(60.0, 430.0, 75)
    assert ranges.energy_mev_u(token, ranges.range_mm(token, energies)) == pytest.approx(energies, rel=1e-12)


def test_between_its_nodes_the_table_follows_the_integral_of_the_stopping_power() -> None:
    # The plant's own Bethe formula integrated from one node to points between: same slope within half a millimetre.
    start = 290.0
    for energy in (310.0, 330.0, 345.0):
        steps = np.linspace(start, energy, 400)
        stopping = np.array([dose.mass_stopping_mev_cm2_g(6012, e, dose.WATER) for e in steps])
        added_mm = 10.0 * np.trapezoid(12.0 / stopping, steps)
        assert float(ranges.range_mm(6012, energy) - ranges.range_mm(6012, start)) == pytest.approx(added_mm, abs=0.6)


def test_a_millimetre_of_range_costs_carbon_what_is_known() -> None:
    for energy, mev_per_mm in ((430.0, 0.87), (290.0, 1.07), (200.0, 1.34), (100.0, 2.16)):
        step = ranges.range_mm(6012, energy) - ranges.range_mm(6012, energy - 1.0)
        assert 1.0 / float(step) == pytest.approx(mev_per_mm, rel=0.06)


@pytest.mark.parametrize(("energy_mev_u", "tm", "beta"), [(55.6, 2.179, 0.331), (200.0, 4.285, 0.568), (430.0, 6.624, 0.729)])
def test_rigidity_and_speed_of_carbon(energy_mev_u: float, tm: float, beta: float) -> None:
    ion = rigidity.nucleus(6012)
    assert ion.rigidity_tm(energy_mev_u) == pytest.approx(tm, abs=1e-3)
    assert ion.beta(energy_mev_u) == pytest.approx(beta, abs=1e-3)


def test_magnets_cannot_tell_helium_carbon_oxygen_and_neon_apart() -> None:
    at_200 = [rigidity.nucleus(token).rigidity_tm(200.0) for token in (2004, 6012, 8016, 10020)]
    assert max(at_200) / min(at_200) - 1.0 < 1e-3


def test_ionisation_tells_them_apart_by_their_charge_squared() -> None:
    charge = {token: dose.chamber_charge_pc(token, 200.0, 5.0) for token in (2004, 6012, 8016, 10020)}
    assert charge[6012] / charge[2004] == pytest.approx(9.0, rel=0.02)
    assert charge[10020] / charge[8016] == pytest.approx(100 / 64, rel=0.02)


def test_one_monitor_unit_is_about_eighty_thousand_carbon_ions() -> None:
    assert 20.0 / dose.chamber_charge_pc(6012, 430.0, 5.0) == pytest.approx(8e4, rel=0.05)


def test_let_and_fluence_in_water_are_those_recalled() -> None:
    for token, let in ((6012, 12.8), (2004, 1.4), (8016, 22.8), (10020, 35.6)):
        assert dose.let_water_kev_um(token, 290.0) == pytest.approx(let, rel=0.03)
    assert 1.0 / dose.entrance_dose_gy_per_ion_mm2(6012, 430.0) == pytest.approx(6.0e5, rel=0.02)


def test_protons_per_monitor_unit_follow_the_measured_table(shared_plans: object) -> None:
    from pathlib import Path

    text = (Path(str(shared_plans)) / "dcpt" / "beam_model_particles_per_mu.csv").read_text(encoding="utf-8")
    table = np.array([[float(v) for v in line.split(",")[:4]] for line in text.splitlines() if line and line[0].isdigit()])
    from simulators.plant.truth import load_truth

    fc = load_truth("research").rooms["R1"].chambers.charge_per_count_proton_fc
    for energy in (70.0, 100.0, 150.0, 200.0, 230.0):
        protons = np.interp(energy, table[:, 0], table[:, 3])
        assert fc / dose.chamber_charge_pc(1001, energy, 5.0) == pytest.approx(protons, rel=0.01)
