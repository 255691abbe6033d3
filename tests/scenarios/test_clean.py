"""Undisturbed treatments: every ion and room, both scan modes, paintings, seeds: no false alarm, and the planned dose.

Dose and place are judged by the plant's truth: what ions came where, not what a monitor or the controller says of them.
"""

from __future__ import annotations

import numpy as np
import pytest
from stage import Stage, spot_errors_mm, treat

from simulators.invariants import PrescribedLayer

METERSET_REL = 0.005
SPOT_REL_P95 = 0.03
RMS_MM = 1.0
BIAS_MM = 0.2

BALL = {"shape": "sphere", "diameter_mm": 16.0, "depth_mm": 100.0, "dose_gy": 1.0}

TREATMENTS = {
    "C in G1": {**BALL, "species": "C", "angles_deg": (0.0,)},
    "He in G1": {**BALL, "species": "He", "angles_deg": (0.0,)},
    "O in G1": {**BALL, "species": "O", "angles_deg": (0.0,)},
    "Ne in G1": {**BALL, "species": "Ne", "angles_deg": (0.0,)},
    "C in G2": {**BALL, "species": "C", "angles_deg": (88.0,), "room": "G2"},
    "C in F1:0": {**BALL, "species": "C", "angles_deg": (0.0,), "room": "F1"},
    "He in F1:90": {**BALL, "species": "He", "angles_deg": (90.0,), "room": "F1"},
    "three paintings": {**BALL, "species": "C", "angles_deg": (0.0,), "paintings": 3},
    "beam off at each step": {"shape": "qa-grid", "species": "C", "diameter_mm": 80.0, "spot_spacing_mm": 20.0, "spot_mu": 2.0},
    "two beams": {**BALL, "species": "C", "angles_deg": (0.0, 3.0), "dose_gy": 2.0},
}


def true_counts(run: Stage) -> dict[tuple[int, int], np.ndarray]:
    """What the ions of each spot are worth in counts of a sound monitor 1, by beam and layer."""
    monitor, given = run.room.unit.monitor, {}
    for event in run.happened("delivery.segment"):
        data = event.data
        key = (data["beam"], data["layer"])
        table = given.setdefault(key, np.zeros(prescribed(run)[key].counts1.size))
        worth = monitor.sound_counts_per_ion(data["species"], data["energy_mev_u"])
        np.add.at(table, data["spot_index"], data["ions"] * worth)
    return given


def prescribed(run: Stage) -> dict[tuple[int, int], PrescribedLayer]:
    """The plan as the invariants hold it."""
    return run.prescription.layers


def check_dose(run: Stage) -> None:
    """The acceptance of a field, by the plant's truth and by the record."""
    assert run.violation is None, str(run.result.violation)
    assert (run.status, run.termination, run.interlocks) == ("complete", "NORMAL", [])
    run.check_safe()
    run.check_record()
    given, planned = true_counts(run), prescribed(run)
    assert set(given) == {key for key, layer in planned.items() if layer.counts1.any()}
    for beam in run.result.summary["beams"]:
        number = beam["number"]
        want = sum(layer.counts1.sum() for (b, _), layer in planned.items() if b == number)
        got = sum(counts.sum() for (b, _), counts in given.items() if b == number)
        assert got == pytest.approx(want, rel=METERSET_REL)
        for name in ("meterset_delivered_primary", "meterset_delivered_secondary"):
            assert beam[name] == pytest.approx(beam["meterset_planned"], rel=METERSET_REL), name
    error = np.concatenate([given[key] / planned[key].counts1 - 1.0 for key in given])
    assert np.percentile(np.abs(error), 95) <= SPOT_REL_P95
    x, y, counts = spot_errors_mm(run)
    for axis in (x, y):
        assert np.sqrt(np.average(axis**2, weights=counts)) <= RMS_MM
        assert abs(np.average(axis, weights=counts)) <= BIAS_MM


@pytest.mark.parametrize("name", TREATMENTS)
def test_an_undisturbed_treatment_gives_the_planned_dose_and_no_alarm(plan_of, name):
    run = treat(plan_of(**TREATMENTS[name]))
    check_dose(run)
    modes = {event.data["scan_mode"] for event in run.happened("delivery.segment")}
    assert modes == ({1} if name == "beam off at each step" else {0})


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_other_seeds(sphere, seed):
    check_dose(treat(sphere, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", TREATMENTS)
def test_many_seeds(plan_of, name):
    for seed in range(10, 25):
        check_dose(treat(plan_of(**TREATMENTS[name]), seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        {"shape": "sphere", "species": "C", "diameter_mm": 60.0, "depth_mm": 150.0, "dose_gy": 2.0, "angles_deg": (30.0,)},
        {"shape": "liver", "species": "C", "angles_deg": (0.0,), "paintings": 4},
        {"shape": "prostate", "species": "C"},
        {"shape": "lung", "species": "He"},
    ],
    ids=lambda spec: spec["shape"],
)
def test_larger_targets(plan_of, spec):
    check_dose(treat(plan_of(**spec)))


@pytest.mark.parametrize("schedule_seed", [1, 2, 3])
def test_another_order_of_what_is_ready_together_gives_the_same_dose(sphere, schedule_seed):
    check_dose(treat(sphere, schedule_seed=schedule_seed))


@pytest.mark.slow
def test_many_orders_of_what_is_ready_together(grid):
    for schedule_seed in range(100, 200):
        check_dose(treat(grid, schedule_seed=schedule_seed))
