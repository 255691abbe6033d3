"""Passes and cycles: nothing lost, nothing doubled, slow enough to be cut off, and never up in energy within a cycle."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.plan.counting import Conversion, rate_for, smallest_ions
from controller.plan.deliverability import check
from controller.plan.errors import PlanError
from controller.plan.raster import delivery_order
from controller.plan.schedule import ROWS_MAX, planned_counts, schedule, share
from drivers.hal.capabilities import ScanMode
from drivers.hal.facility import load_facility
from drivers.hal.ions import CARBON, HELIUM, NEON, OXYGEN

ASAN = load_facility("asan")
SHAPES = ["sphere", "box", "pancreas", "liver", "lung", "prostate", "qa-grid", "benchmark"]


@pytest.fixture(params=SHAPES)
def plan(request, made, read):
    return read(made(shape=request.param))


def counts_of(beam, planned):
    """(counts1 per layer and spot, meterset per layer and spot) summed over passes."""
    counts = [np.zeros(layer.spots, dtype=np.int64) for layer in beam.layers]
    meterset = [np.zeros(layer.spots) for layer in beam.layers]
    for p in planned.passes:
        np.add.at(counts[p.layer_index], p.spot_index, p.counts1)
        np.add.at(meterset[p.layer_index], p.spot_index, p.meterset)
    return counts, meterset


def test_every_spot_is_planned_in_full_and_once_per_painting(plan, asan, library):
    for beam in plan.beams:
        planned = schedule(beam, asan, asan.rooms["G1"], library)
        counts, meterset = counts_of(beam, planned)
        exact = np.concatenate([layer.meterset for layer in beam.layers]) * asan.meterset.counts_per_mu
        assert np.abs(np.cumsum(np.concatenate(counts)) - np.cumsum(exact)).max() <= 0.5 + 1e-6
        for layer, done in zip(beam.layers, meterset, strict=True):
            np.testing.assert_allclose(done, layer.meterset, rtol=1e-12)
            seen = [
                tuple(
                    sorted(
                        int(s) for p in planned.passes if (p.layer_index, p.painting) == (layer.index, k) for s in p.spot_index
                    )
                )
                for k in range(layer.paintings)
            ]
            assert all(spots == tuple(range(layer.spots)) for spots in seen)
        assert planned.counts1 == sum(int(c.sum()) for c in counts)
        assert planned.counts1 == pytest.approx(1000.0 * beam.meterset, rel=1e-6)


def test_energies_only_step_down_within_a_cycle_and_layers_descend(plan, asan, library):
    for beam in plan.beams:
        planned = schedule(beam, asan, asan.rooms["G1"], library)
        energies = [p.energy_mev_u for p in planned.passes]
        assert energies == sorted(energies, reverse=True)
        cycles = [p.cycle_index for p in planned.passes]
        assert cycles == sorted(cycles)
        assert set(cycles) == set(range(planned.cycles))


def test_a_cycle_never_needs_more_ions_or_time_than_it_has(plan, asan, library):
    for beam in plan.beams:
        offer = asan.accelerator.offer(beam.ion.symbol)
        planned = schedule(beam, asan, asan.rooms["G1"], library)
        for cycle in range(planned.cycles):
            here = [p for p in planned.passes if p.cycle_index == cycle]
            assert sum(p.ions for p in here) <= offer.ions_per_cycle
            assert sum(p.duration_s for p in here) <= asan.accelerator.flattop_max_s


def test_the_quantum_is_within_two_percent_of_the_smallest_spot(plan, asan, library):
    for beam in plan.beams:
        offer = asan.accelerator.offer(beam.ion.symbol)
        for p in schedule(beam, asan, asan.rooms["G1"], library).passes:
            carried = p.intensity_per_s * asan.accelerator.cutoff_us * 1e-6 * library.counts_per_ion(beam.ion, p.energy_mev_u)
            assert carried <= p.quantum_counts + 1e-9
            assert p.quantum_counts <= 0.02 * p.counts1.min()
            assert offer.intensity_min_per_s <= p.intensity_per_s <= offer.intensity_max_per_s


def test_grants_stay_small_and_positions_are_the_plans(plan, asan, library):
    for beam in plan.beams:
        for p in schedule(beam, asan, asan.rooms["G1"], library).passes:
            assert 0 < p.rows <= ROWS_MAX
            assert (p.counts1 > 0).all()
            layer = beam.layers[p.layer_index]
            np.testing.assert_allclose(p.x_um, 1000.0 * layer.x_mm[p.spot_index], atol=0.5)
            np.testing.assert_allclose(p.y_um, 1000.0 * layer.y_mm[p.spot_index], atol=0.5)
            assert p.energy_kev_u == round(1000 * layer.energy_mev_u)
            assert (p.spot_index.dtype, p.x_um.dtype, p.counts1.dtype, p.counts2.dtype) == (
                np.int32,
                np.int32,
                np.int64,
                np.int64,
            )


def test_spots_far_apart_are_delivered_one_by_one(made, read, asan, library):
    (grid,) = read(made(shape="qa-grid")).beams
    (sphere,) = read(made(shape="sphere")).beams
    assert {p.scan_mode for p in schedule(grid, asan, asan.rooms["G1"], library).passes} == {ScanMode.SPOT}
    assert {p.scan_mode for p in schedule(sphere, asan, asan.rooms["G1"], library).passes} == {ScanMode.RASTER}


def test_ascending_plans_are_delivered_descending_under_the_plans_own_indices(made, read, asan, library):
    (beam,) = read(made(shape="sphere")).beams
    layers = tuple(replace(layer, index=i, control_point_index=2 * i) for i, layer in enumerate(beam.layers[::-1]))
    planned = schedule(replace(beam, layers=layers), asan, asan.rooms["G1"], library)
    order = list(dict.fromkeys(p.layer_index for p in planned.passes))
    assert order == list(range(len(layers)))[::-1]
    assert planned.passes[0].energy_mev_u == beam.layers[0].energy_mev_u


def test_paintings_of_a_layer_follow_one_another(made, read, asan, library):
    (beam,) = read(made(shape="liver")).beams
    order = [(p.layer_index, p.painting) for p in schedule(beam, asan, asan.rooms["G1"], library).passes]
    assert list(dict.fromkeys(order)) == [(layer, painting) for layer in range(len(beam.layers)) for painting in range(4)]


def test_the_plans_order_is_kept_where_it_is_not_free(made, read, asan, library):
    (beam,) = read(made(shape="sphere")).beams
    rng = np.random.default_rng(3)
    shuffled = []
    for layer in beam.layers:
        order = rng.permutation(layer.spots)
        shuffled.append(replace(layer, x_mm=layer.x_mm[order], y_mm=layer.y_mm[order], meterset=layer.meterset[order]))
    kept = replace(beam, layers=tuple(replace(layer, reordering_allowed=False) for layer in shuffled))
    for p in schedule(kept, asan, asan.rooms["G1"], library).passes:
        assert (np.diff(p.spot_index) > 0).all()
    free = schedule(replace(beam, layers=tuple(shuffled)), asan, asan.rooms["G1"], library)
    assert {p.scan_mode for p in free.passes} == {ScanMode.RASTER}
    assert free.duration_s < schedule(kept, asan, asan.rooms["G1"], library).duration_s


def test_spots_of_zero_weight_are_not_granted(made, read, asan, library):
    (beam,) = read(made(shape="sphere")).beams
    meterset = beam.layers[0].meterset.copy()
    meterset[[0, 5]] = 0.0
    planned = schedule(replace(beam, layers=(replace(beam.layers[0], meterset=meterset),)), asan, asan.rooms["G1"], library)
    granted = np.concatenate([p.spot_index for p in planned.passes])
    assert not {0, 5} & set(granted.tolist())
    assert granted.size == meterset.size - 2


def test_a_layer_of_many_spots_is_cut_into_grants(made, read, asan, library):
    (beam,) = read(made(shape="sphere")).beams
    x, y = (a.ravel().astype(float) for a in np.meshgrid(np.arange(-50, 50), np.arange(-50, 50)))
    wide = replace(beam.layers[0], x_mm=x, y_mm=y, meterset=np.full(x.size, 3.0), reordering_allowed=False)
    planned = schedule(replace(beam, layers=(wide,)), asan, asan.rooms["G1"], library)
    assert [p.slice_index for p in planned.passes] == list(range(len(planned.passes)))
    assert sum(p.rows for p in planned.passes) == 10_000
    assert np.concatenate([p.spot_index for p in planned.passes]).tolist() == list(range(10_000))


def test_a_gate_slows_a_layer_down_to_fill_it_but_not_below_what_is_offered(made, read, asan, library):
    (beam,) = read(made(shape="liver")).beams
    freely, gated = (schedule(beam, asan, asan.rooms["G1"], library, gate_s=gate) for gate in (None, 3.0))
    for layer in beam.layers:
        fast, slow = (sum(p.duration_s for p in s.passes if p.layer_index == layer.index) for s in (freely, gated))
        assert slow >= min(3.0, fast) * (1.0 - 1e-6)
        assert slow >= fast * (1.0 - 1e-6)
    floor = schedule(beam, asan, asan.rooms["G1"], library, gate_s=1e6)
    assert {p.intensity_per_s for p in floor.passes} == {int(asan.accelerator.offer("C").intensity_min_per_s)}


def test_thirty_thousand_spots_are_scheduled_in_a_blink(made, read, asan, library):
    (beam,) = read(made(shape="benchmark")).beams
    assert beam.spots == 30_000
    took = []
    for _ in range(5):
        start = time.perf_counter()
        schedule(beam, asan, asan.rooms["G1"], library)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05  # 9 ms on the machine of the notes; generous for a busy one


def test_a_beam_that_cannot_be_cut_off_is_not_scheduled(made, read, asan, library):
    (beam,) = read(made(shape="sphere")).beams
    tiny = replace(beam.layers[0], meterset=np.full(beam.layers[0].spots, 0.06))
    with pytest.raises(PlanError, match="cannot be cut off"):
        schedule(replace(beam, layers=(tiny,)), asan, asan.rooms["G1"], library)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60), st.integers(1, 12))
def test_paintings_share_each_spot_exactly_and_evenly(counts, paintings):
    counts = np.array(counts, dtype=np.int64)
    shares = np.stack([share(counts, k, paintings) for k in range(paintings)])
    np.testing.assert_array_equal(shares.sum(axis=0), counts)
    assert (shares.max(axis=0) - shares.min(axis=0) <= 1).all()
    assert np.ptp(shares.sum(axis=1)) <= 1


@settings(max_examples=200, deadline=None)
@given(
    counts=st.integers(1, 100_000),
    per_ion=st.floats(5e-4, 0.2),
    ion=st.sampled_from([CARBON, HELIUM, OXYGEN, NEON]),
    slowest=st.floats(1e5, 1e10),
)
def test_what_the_rule_accepts_can_be_cut_off(counts, per_ion, ion, slowest):
    """A rate keeps the quantum within 2 % and the intensity on offer; what `smallest_ions` promises is accepted."""
    offer = ASAN.accelerator.offer(ion.symbol)
    conversion = Conversion(1000.0, per_ion, 1.0)
    rate = rate_for(counts, conversion, offer, ASAN.accelerator, slowest)
    if rate is not None:
        assert 1 <= rate.quantum_counts <= 0.02 * counts
        assert rate.intensity_per_s * 200e-6 * per_ion <= rate.quantum_counts * (1 + 1e-9)
        assert offer.intensity_min_per_s <= rate.intensity_per_s <= offer.intensity_max_per_s
    enough = int(np.ceil(smallest_ions(offer, ASAN.accelerator, conversion) * per_ion - 1e-6))
    assert rate_for(enough, conversion, offer, ASAN.accelerator) is not None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_check_accepts_can_be_scheduled(made, tmp_path_factory, data):
    """Any metersets and paintings: either a reason, or a schedule that keeps every rule."""
    from controller.plan.nominal import NominalLibrary
    from controller.plan.reading import read_plan

    library = NominalLibrary(ASAN.meterset)
    path = tmp_path_factory.mktemp("any") / "plan.dcm"
    path.write_bytes(made(shape="qa-grid"))
    plan = read_plan(path)
    (beam,) = plan.beams
    n = data.draw(st.integers(1, 30))
    floats = st.floats(0.0, 50.0)
    layers = tuple(
        replace(
            beam.layers[0],
            index=i,
            energy_mev_u=data.draw(st.integers(112, 860)) / 2.0,
            x_mm=np.arange(n, dtype=float),
            y_mm=np.zeros(n),
            meterset=np.array(data.draw(st.lists(floats, min_size=n, max_size=n))),
            paintings=data.draw(st.integers(1, 4)),
        )
        for i in range(data.draw(st.integers(1, 4)))
    )
    changed = replace(beam, layers=layers)
    if check(replace(plan, beams=(changed,)), ASAN, ASAN.rooms["G1"], library):
        return
    planned = schedule(changed, ASAN, ASAN.rooms["G1"], library)
    counts = [c for c, _ in planned_counts(changed, ASAN, ASAN.rooms["G1"], library)]
    done, _ = counts_of(changed, planned)
    for want, got in zip(counts, done, strict=True):
        np.testing.assert_array_equal(want, got)


def test_a_raster_is_never_longer_than_the_plans_own_order(asan):
    nozzle = asan.rooms["G1"].nozzle
    rng = np.random.default_rng(5)
    for n in (1, 2, 3, 50, 400):
        x, y = rng.uniform(-50, 50, n), rng.uniform(-50, 50, n)
        order = delivery_order(x, y, nozzle, free=True)
        assert sorted(order.tolist()) == list(range(n))
        assert np.hypot(np.diff(x[order]), np.diff(y[order])).sum() <= np.hypot(np.diff(x), np.diff(y)).sum() + 1e-9
