"""What must be true of closed-form motion, whatever the distances and limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.physics.breathing import Breathing, BreathingPattern
from simulators.physics.motion import Limits, State, chain, coast, friction_stop, move, stop

# Set-points travel in thousandths; a millionth of one is as near as two places can lie here.
positions = st.integers(-400_000_000, 400_000_000).map(lambda n: n / 1e6)
limits = st.builds(Limits, st.floats(0.1, 20.0), st.floats(0.05, 20.0), st.floats(0.05, 50.0))


def grid(trajectory, n=2001):
    """Times over the whole trajectory and a little after it."""
    return np.linspace(0.0, trajectory.duration_s * 1.05 + 0.01, n)


def assert_continuous(trajectory):
    """Each segment ends where the next begins, in position, speed and acceleration."""
    for k, end in enumerate(trajectory.starts[1:]):
        p, v, a = trajectory.states[k]
        j, d = trajectory.jerks[k], end - trajectory.starts[k]
        arrives = (p + v * d + a * d**2 / 2 + j * d**3 / 6, v + a * d + j * d**2 / 2, a + j * d)
        assert arrives == pytest.approx(trajectory.states[k + 1], abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(start=positions, end=positions, limit=limits)
def test_a_move_arrives_exactly_and_never_exceeds_its_limits(start, end, limit):
    path = move(start, end, limit)
    p, v, a = path.sample(grid(path))
    assert path.at(0.0).position == start
    assert path.at(path.duration_s).position == end
    assert path.at(path.duration_s + 5.0) == State(end)
    assert np.abs(v).max() <= limit.speed * (1 + 1e-9)
    assert np.abs(a).max() <= limit.acceleration * (1 + 1e-9)
    assert np.abs(path.jerks).max() <= limit.jerk
    assert p.min() >= min(start, end) - 1e-6 and p.max() <= max(start, end) + 1e-6
    assert np.all(np.sign(end - start) * np.diff(p) >= -1e-6)
    assert_continuous(path)
    # the last segment meets the target by itself: nothing was snapped over a gap
    assert abs(path.position(np.nextafter(path.duration_s, 0.0)) - end) < 1e-6


@settings(max_examples=200, deadline=None)
@given(
    speed=st.floats(-10.0, 10.0),
    acceleration=st.floats(-5.0, 5.0),
    deceleration=st.floats(0.2, 10.0),
    jerk=st.floats(0.2, 50.0),
)
def test_a_stop_from_any_state_ends_at_rest_within_its_limits(speed, acceleration, deceleration, jerk):
    path = stop(State(1.0, speed, acceleration), deceleration, jerk)
    _, v, a = path.sample(grid(path))
    before = path.at(np.nextafter(path.duration_s, 0.0))
    assert abs(before.speed) < 1e-6
    assert abs(before.acceleration) < 1e-6
    assert np.abs(a).max() <= max(deceleration, abs(acceleration)) * (1 + 1e-9)
    assert np.abs(path.jerks).max() <= jerk
    assert np.abs(v).max() <= abs(speed) + acceleration**2 / (2 * jerk) + 1e-6
    assert_continuous(path)


def test_a_stop_in_the_middle_of_a_move_is_continuous_with_the_move():
    ring = move(0.0, 90.0, Limits(3.0, 0.5, 0.5))
    for t in np.linspace(0.0, ring.duration_s, 37):
        at = ring.at(t)
        halt = stop(at, 2.0, 10.0)
        assert halt.at(0.0) == at
        assert 0.0 <= halt.end - at.position <= 3.0


def test_a_full_speed_quick_stop_takes_the_distance_that_the_formula_gives():
    # v^2 / (2 d) + v d / (2 j) for a stop that reaches its full deceleration
    assert stop(State(0.0, 3.0), 2.0, 10.0).end == pytest.approx(9 / 4 + 3 * 2 / 20)


def test_scalar_and_vector_evaluation_agree():
    path = move(-12.0, 33.0, Limits(3.0, 0.5, 0.5))
    t = grid(path, 301)
    p, v, a = path.sample(t)
    for i in range(0, 301, 7):
        state = path.at(float(t[i]))
        assert (state.position, state.speed, state.acceleration) == (p[i], v[i], a[i])
        assert path.position(float(t[i])) == p[i]


@given(start=positions, end=positions, fraction=st.floats(0.0, 1.0))
@settings(max_examples=100, deadline=None)
def test_time_of_is_when_the_axis_first_gets_there(start, end, fraction):
    path = move(start, end, Limits(3.0, 0.5, 0.5))
    where = min(max(start + fraction * (end - start), min(start, end)), max(start, end))
    when = path.time_of(where)
    assert when is not None
    # a micrometre of a slow start takes milliseconds: compare positions, not times
    assert path.position(when) == pytest.approx(where, abs=1e-5)
    assert path.time_of(end + 1.0 if end >= start else end - 1.0) is None


def test_an_axis_without_torque_obeys_its_constant_acceleration():
    free = coast(10.0, 1.0, 0.2)
    assert free.at(3.0).position == pytest.approx(10 + 3 + 0.9)
    assert free.at(3.0).speed == pytest.approx(1.6)
    assert free.time_of(13.9) == pytest.approx(3.0)
    braked = friction_stop(0.0, -3.0, 4.0)
    assert braked.end == pytest.approx(-9 / 8)
    assert braked.at(10.0).speed == 0.0


def test_limits_that_mean_nothing_are_refused():
    for bad in ((0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))):
        with pytest.raises(ValueError, match="must be above 0"):
            Limits(*bad)


def test_a_chain_leaves_out_empty_pieces():
    assert len(chain(State(0.0), ((0.0, 1.0), (1.0, 0.0))).starts) == 2


def test_breathing_is_a_pure_function_of_time_and_stays_longest_at_exhale():
    rng = np.random.default_rng(4)
    breathing = Breathing(BreathingPattern(drift_mm_per_min=0.0), rng, 300.0)
    t = np.linspace(0.0, 300.0, 60001)
    z = breathing.displacement_mm(t)
    assert np.array_equal(z[::-1], breathing.displacement_mm(t[::-1]))
    assert z.min() >= 0.0
    assert 8.0 < z.max() < 20.0
    assert np.abs(np.diff(z)).max() < 0.3  # no jump between breaths in 5 ms
    assert np.mean(z < 4.0) > 0.5


def test_gate_intervals_end_exactly_at_the_level():
    breathing = Breathing(BreathingPattern(cough_s=(20.0,)), np.random.default_rng(5), 120.0)
    gates = breathing.open_intervals_s(3.0, 0.0, 100.0)
    assert len(gates) > 20
    inner = gates.ravel()[1:-1]
    assert breathing.displacement_mm(inner) == pytest.approx(3.0, abs=1e-4)
    assert breathing.displacement_mm(gates.mean(axis=1)).max() < 3.0
    assert np.all(np.diff(gates.ravel()) > 0)
