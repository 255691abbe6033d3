"""The spot table accounts for every count, and its planned shares sum to the plan."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_example import COUNTS2_PER_MU, COUNTS_PER_MU, make_beam, make_fraction

from controller.record.outcome import Status
from controller.record.spots import COLUMNS, build_spots, plan_arrays, sum_spots, write_spots


def per_spot(outcome, table, column):
    mine = table["beam_number"] == outcome.beam.number
    flat = outcome.layer_offsets[table["layer_index"][mine]] + table["spot_index"][mine]
    return np.bincount(flat, weights=table[column][mine], minlength=outcome.beam.spots)


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 4),
    spots=st.integers(1, 30),
    paintings=st.integers(1, 4),
    cut_every=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_planned_shares_of_a_whole_beam_sum_to_the_plan_and_counts_to_the_monitors(layers, spots, paintings, cut_every, seed):
    fraction = make_fraction((make_beam(3, layers, spots, paintings, seed),), cut_every=cut_every)
    outcome = fraction.beams[0]
    table = build_spots(fraction.beams)
    np.testing.assert_allclose(per_spot(outcome, table, "mu_planned"), plan_arrays(outcome)[2], rtol=1e-12)
    assert table["mu_primary"].sum() * COUNTS_PER_MU == pytest.approx(outcome.pieces["counts1"].sum(), abs=0.01)
    assert table["mu_secondary"].sum() * COUNTS2_PER_MU == pytest.approx(outcome.pieces["counts2"].sum(), abs=0.01)
    by_painting = np.bincount(table["painting"], weights=table["mu_planned"])
    np.testing.assert_allclose(by_painting, outcome.beam.meterset / paintings, rtol=0.02)


def test_a_partial_beam_shows_the_full_share_of_the_spot_that_was_cut():
    fraction = make_fraction((make_beam(1, 2, 20, 2),), stop_after=30)
    outcome = fraction.beams[0]
    assert outcome.status is Status.PARTIAL
    table = build_spots(fraction.beams)
    granted = {(p.grant.layer_index, p.grant.painting): p.grant.counts1_max for p in outcome.passes}
    for layer, painting in granted:
        rows = (table["layer_index"] == layer) & (table["painting"] == painting)
        spots = np.unique(table["spot_index"][rows])
        share = np.bincount(table["spot_index"][rows], weights=table["mu_planned"][rows])[spots]
        expected = granted[layer, painting][spots] / COUNTS_PER_MU
        np.testing.assert_allclose(share, expected, atol=1.0 / COUNTS_PER_MU)
    assert table["interlock"][-1] == "position"
    assert set(table["interlock"][:-1]) == {""}
    untouched = sum_spots(outcome, table)
    assert np.isnan(untouched.x_mm[~untouched.delivered]).all()
    assert untouched.delivered.sum() == 20, "the second layer was never begun"


def test_rows_that_were_granted_again_share_one_plan():
    from dataclasses import replace

    fraction = make_fraction((make_beam(1, 1, 10),), cut_every=99)
    outcome = fraction.beams[0]
    first = outcome.passes[0]
    half = first.pieces[:5].copy()
    cut = first.pieces[5:6].copy()
    cut["counts1"] //= 4
    rest = first.pieces[5:].copy()
    rest["row"] -= 5
    rest["counts1"][0] -= cut["counts1"][0]
    keep = slice(5, None)
    grant = first.grant
    again = replace(
        grant,
        grant_id=2,
        spot_index=grant.spot_index[keep],
        x_um=grant.x_um[keep],
        y_um=grant.y_um[keep],
        counts1_max=rest["counts1"].astype(np.int32),
        counts2_max=grant.counts2_max[keep],
    )
    passes = (
        replace(first, pieces=np.concatenate([half, cut])),
        replace(first, grant=again, pieces=rest, attempt=2),
    )
    outcome = replace(outcome, passes=passes)
    table = build_spots([outcome])
    np.testing.assert_allclose(per_spot(outcome, table, "mu_planned"), plan_arrays(outcome)[2], rtol=1e-12)
    assert table["attempt"].tolist() == [1] * 6 + [2] * 5


def test_the_file_has_every_column_its_unit_and_says_simulated(tmp_path):
    import pyarrow.parquet as pq

    fraction = make_fraction()
    table = build_spots(fraction.beams)
    path = tmp_path / "spots.parquet"
    write_spots(table, path, fraction)
    back = pq.read_table(path)
    assert back.column_names == [c.name for c in COLUMNS]
    assert back.schema.metadata[b"simulated"] == b"true"
    assert back.schema.field("x_mm").metadata[b"unit"] == b"mm"
    assert back.schema.field("mu_primary").metadata[b"unit"] == b"MU"
    for column in COLUMNS:
        assert back[column.name].to_pylist() == table[column.name].tolist(), column.name


def test_a_fraction_without_beam_has_an_empty_table_with_all_columns(tmp_path):
    from dataclasses import replace

    import pyarrow.parquet as pq

    fraction = make_fraction()
    fraction = replace(fraction, beams=tuple(replace(b, passes=()) for b in fraction.beams))
    table = build_spots(fraction.beams)
    write_spots(table, tmp_path / "spots.parquet", fraction)
    back = pq.read_table(tmp_path / "spots.parquet")
    assert (back.num_rows, back.num_columns) == (0, len(COLUMNS))
    assert fraction.beams[0].irradiation_s == 0.0
    assert sum_spots(fraction.beams[0], table).primary.sum() == 0.0


def test_thirty_thousand_spots_take_little_time(tmp_path):
    import pyarrow.parquet  # noqa: F401 - importing is not what is measured

    fraction = make_fraction((make_beam(1, 40, 750),), cut_every=50)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        write_spots(build_spots(fraction.beams), tmp_path / "spots.parquet", fraction)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25, f"aim 0.06 s, took {min(times):.3f} s"
