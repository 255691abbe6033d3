"""What is left of a beam never asks for more than the plan, nor for a rest that cannot be delivered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.delivery.remainder import carried_rest, remaining_schedule
from controller.fraction import planned_counts
from controller.intake import take_in

QUANTUM = 12


SPOTS = st.lists(st.tuples(st.integers(60, 2000), st.floats(0.0, 1.1)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(SPOTS)
def test_no_spot_is_owed_more_than_its_rest_and_a_quantum_and_none_too_little_to_deliver(spots) -> None:
    planned = np.array([p for p, _ in spots], dtype=np.int64)
    received = np.array([int(p * share) for p, share in spots], dtype=np.int64)
    owed = carried_rest(planned, received, QUANTUM)
    assert (owed <= np.maximum(planned - received, 0) + QUANTUM).all()
    assert (owed <= planned).all()
    assert ((owed == 0) | (owed > QUANTUM)).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-QUANTUM // 2, QUANTUM // 2), min_size=1, max_size=80))
def test_counts_that_were_only_shifted_between_neighbours_are_not_delivered_again(shifts: list[int]) -> None:
    carried = np.diff(np.array([0, *shifts]))  # running difference within half a quantum, as the unit keeps it
    planned = np.full(carried.size + 20, 900)
    received = np.concatenate([900 + carried, np.zeros(20, np.int64)])
    owed = carried_rest(planned, received, QUANTUM)
    assert not owed[: carried.size].any()
    assert abs(int(owed.sum()) - int((planned - received).sum())) <= QUANTUM


@pytest.fixture(scope="module")
def beam(two_beams: Path):
    intake = take_in(two_beams, "asan", "G1", (1,), {})
    return intake.beams[0], intake.schedules[0]


def test_nothing_received_leaves_the_whole_beam(beam) -> None:
    plan, schedule = beam
    planned = planned_counts(plan, schedule)
    left = remaining_schedule(plan, schedule, np.zeros_like(planned))
    np.testing.assert_array_equal(planned_counts(plan, left), planned)
    assert [p.layer_index for p in left.passes] == [p.layer_index for p in schedule.passes]
    assert left.duration_s == pytest.approx(schedule.duration_s)


def test_everything_received_leaves_nothing(beam) -> None:
    plan, schedule = beam
    assert remaining_schedule(plan, schedule, planned_counts(plan, schedule)).passes == ()


def test_what_the_first_passes_gave_is_taken_from_them_and_not_from_the_last(beam) -> None:
    plan, schedule = beam
    offsets = np.concatenate([[0], np.cumsum([la.spots for la in plan.layers])])
    received = np.zeros(int(offsets[-1]), np.int64)
    done, cut = schedule.passes[:5], schedule.passes[5]
    for p in done:
        np.add.at(received, offsets[p.layer_index] + p.spot_index, p.counts1)
    half = cut.rows // 2
    np.add.at(received, offsets[cut.layer_index] + cut.spot_index[:half], cut.counts1[:half])
    left = remaining_schedule(plan, schedule, received)
    assert [(p.layer_index, p.painting) for p in left.passes] == [(p.layer_index, p.painting) for p in schedule.passes[5:]]
    np.testing.assert_array_equal(left.passes[0].spot_index, cut.spot_index[half:])
    np.testing.assert_array_equal(received + planned_counts(plan, left), planned_counts(plan, schedule))
    assert left.passes[0].meterset.sum() == pytest.approx(cut.meterset[half:].sum())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_was_received_no_spot_ends_above_its_plan_by_more_than_a_quantum(beam, seed: int) -> None:
    plan, schedule = beam
    planned = planned_counts(plan, schedule)
    rng = np.random.default_rng(seed)
    received = np.rint(planned * rng.choice([0.0, 0.3, 1.0, 1.02], planned.size)).astype(np.int64)
    quantum = max(p.quantum_counts for p in schedule.passes)
    total = received + planned_counts(plan, remaining_schedule(plan, schedule, received))
    assert (total <= np.maximum(planned, received) + quantum).all()
    assert (total >= planned - quantum).all() or total.sum() >= planned.sum() - quantum * len(schedule.passes)


def test_another_plans_counts_are_refused(beam) -> None:
    plan, schedule = beam
    with pytest.raises(ValueError, match="spots"):
        remaining_schedule(plan, schedule, np.zeros(3, np.int64))
