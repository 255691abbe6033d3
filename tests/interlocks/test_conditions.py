"""Conditions are values in, values out."""

from hypothesis import given, settings
from hypothesis import strategies as st

from interlocks.conditions import (
    NEVER_NS,
    band,
    delay_off,
    delay_on,
    difference,
    discrepancy,
    drift,
    equal,
    judge_window,
    latch,
    limit,
    pattern,
    rate,
    slide,
    stale,
    vote,
    window,
)


def test_a_sample_is_believed_up_to_its_age_and_never_from_the_future():
    assert not stale(100, 100, 50)
    assert not stale(100, 150, 50)
    assert stale(100, 151, 50)
    assert stale(101, 100, 50)


def test_votes_count_bad_channels():
    assert vote([False, True, False], 1)
    assert not vote([False, True, False], 2)
    assert vote([True, True, False], 2)
    assert not vote([], 1)


def test_delay_on_wants_the_cause_without_a_gap():
    assert delay_on(True, None, 100, 0) == (True, 100, NEVER_NS)
    assert delay_on(True, None, 100, 50) == (False, 100, 150)
    assert delay_on(True, 100, 149, 50) == (False, 100, 150)
    assert delay_on(True, 100, 150, 50) == (True, 100, NEVER_NS)
    assert delay_on(False, 100, 149, 50) == (False, None, NEVER_NS)


def test_delay_off_holds_after_the_cause_went():
    assert delay_off(True, False, None, 100, 50) == (True, None, NEVER_NS)
    assert delay_off(False, False, None, 100, 50) == (False, None, NEVER_NS)
    assert delay_off(False, True, None, 100, 50) == (True, 100, 150)
    assert delay_off(False, True, 100, 149, 50) == (True, 100, 150)
    assert delay_off(False, True, 100, 150, 50) == (False, None, NEVER_NS)
    assert delay_off(True, True, 100, 140, 50) == (True, None, NEVER_NS)


def test_a_latch_remembers_and_an_active_cause_is_not_reset():
    assert latch(active=True, latched=False, reset=False)
    assert latch(active=False, latched=True, reset=False)
    assert not latch(active=False, latched=True, reset=True)
    assert latch(active=True, latched=True, reset=True)


def test_hysteresis_of_limit_and_band():
    p = {"limit": 100, "hysteresis": 20}
    assert [limit(p, v, False, 0) for v in (100, 101, -100, -101)] == [False, True, False, True]
    assert [limit(p, v, True, 0) for v in (81, 80, -81, -80)] == [True, False, True, False]
    p = {"low": 850, "high": 1150, "hysteresis": 10}
    assert [band(p, v, False, 0) for v in (849, 850, 1150, 1151)] == [True, False, False, True]
    assert [band(p, v, True, 0) for v in (859, 860, 1140, 1141)] == [True, False, False, True]


def test_equality_pattern_and_discrepancy():
    assert [equal({}, v, False, 2) for v in (1, 2, 3)] == [True, False, True]
    assert pattern({"forbidden": [1, 0]}, [1, 0], None, 0).bad
    assert not pattern({"forbidden": [1, 0]}, [1, 1], None, 0).bad
    assert discrepancy({}, [0, 1], None, 0).bad
    assert not discrepancy({}, [1, 1], None, 0).bad


def test_difference_goes_the_short_way_round_and_has_hysteresis():
    p = {"limit": 200, "hysteresis": 50, "modulus": 360_000}
    assert not difference(p, [179_950, -179_900], None, 0).bad
    assert difference(p, [179_950, -179_800], None, 0).bad
    assert difference(p, [0, 160], True, 0).bad
    assert not difference(p, [0, 150], True, 0).bad
    assert difference({"limit": 200}, [179_950, -179_900], None, 0).bad, "encoders of one ring are compared without a turn"
    assert not difference({"limit": 0, "neutral": 0}, [0, 6012], None, 0).bad
    assert difference({"limit": 0, "neutral": 0}, [8016, 6012], None, 0).bad


def test_drift_is_from_where_it_began_however_slow():
    memory = None
    for step in range(101):
        bad, memory, _ = drift({"limit": 100}, [5000 + step], memory, step)
        assert not bad
    assert drift({"limit": 100}, [5101], memory, 0).bad


def test_a_sliding_window_keeps_what_held_at_its_beginning():
    history = slide((), 0, (0,), 100)
    assert history == ((0, (0,)),)
    history = slide(history, 1000, (7,), 100)
    assert history == ((0, (0,)), (1000, (7,)))
    history = slide(history, 1100, (7,), 100)
    assert history == ((1000, (7,)),), "after which the old value no longer counts"


def test_a_window_is_looked_at_again_when_its_verdict_turns_and_not_before():
    history = ((0, (10,)), (50, (11,)), (90, (3,)), (120, (12,)))
    assert judge_window(history, 100, [False] * 4) == (False, NEVER_NS)
    assert judge_window(history, 100, [False, False, True, True]) == (False, 190), "the value 3 begins the window then"
    assert judge_window(history, 100, [True, True, True, False]) == (True, 220)
    assert judge_window(history[:1], 100, [True]) == (True, NEVER_NS)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 80), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=12),
    st.sampled_from([rate, window]),
)
def test_looking_when_due_misses_nothing_that_looking_every_millisecond_would_see(steps, judge):
    p, ms = {"limit": 300, "percent": 5, "floor": 20, "window_ms": 100}, 1_000_000
    often = seldom = None
    now_ns, values = 0, [100, 100]
    for wait_ms, by1, by2 in steps:
        values = [abs(values[0] + by1 - 30), values[1] + by2]
        bad, seldom, due_ns = judge(p, values, seldom, now_ns)
        for _ in range(wait_ms):
            truth, often, _ = judge(p, values, often, now_ns)
            if now_ns >= due_ns:
                bad, seldom, due_ns = judge(p, values, seldom, now_ns)
            assert bad == truth
            now_ns += ms


def test_rate_sees_a_jump_after_a_long_rest_and_forgets_it_after_the_window():
    p = {"limit": 3500, "window_ms": 200}
    ms = 1_000_000
    bad, memory, _ = rate(p, [0], None, 0)
    assert not bad
    bad, memory, due = rate(p, [701], memory, 60_000 * ms)
    assert bad
    assert due == 60_200 * ms
    assert not rate(p, [701], memory, due).bad


def test_a_steady_turn_at_full_speed_is_within_the_rate_limit():
    p, memory = {"limit": 3500, "window_ms": 200}, None
    for k in range(100):
        bad, memory, _ = rate(p, [150 * k], memory, k * 50_000_000)
        assert not bad
    for k in range(100, 120):
        bad, memory, _ = rate(p, [15_000 + 200 * (k - 99)], memory, k * 50_000_000)
    assert bad, "4 deg/s"


def test_window_compares_gains_with_a_ratio_and_a_floor():
    p = {"percent": 5, "floor": 20, "window_ms": 500, "ratio": 0.5}
    _, memory, _ = window(p, [0, 0], None, 0)
    assert not window(p, [1000, 520], memory, 1).bad
    assert window(p, [1000, 530], memory, 1).bad
    assert not window(p, [40, 0], memory, 1).bad, "20 counts of the second"
    assert window(p, [42, 0], memory, 1).bad


def test_window_notices_a_difference_that_an_older_one_had_hidden():
    p, ms = {"percent": 5, "floor": 20, "window_ms": 500}, 1_000_000
    _, memory, _ = window(p, [0, 0], None, 0)
    bad, memory, _ = window(p, [100, 82], memory, 100 * ms)
    assert not bad
    bad, memory, due = window(p, [200, 218], memory, 300 * ms)
    assert not bad
    assert due == 600 * ms
    assert window(p, [200, 218], memory, due).bad
