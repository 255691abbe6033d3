"""The judges of the rig check alone: from samples to words, on values made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.hil import judge_drive as judge
from controller.hil.judge_line import line_time_s, responses
from controller.hil.trace import Profile, Sample, Trace, longest_gap_s, reaction_s
from controller.hil.verdict import DRIVE_CHECKS, Notes, Verdict

BRAKED, PROVEN = 4, 32
DISABLED, ENABLED = 0x250, 0x237
REST = Sample(0.0, DISABLED, 0.0, 0.0, 0.0, 0, BRAKED, 0)
sizes = st.floats(0.1, 50.0)


@given(distance=st.floats(0.01, 50.0), speed=sizes, acceleration=sizes, jerk=st.sampled_from([0.0, 0.5, 5.0, 500.0]))
def test_a_profile_starts_and_ends_at_rest_and_keeps_every_limit(
    distance: float, speed: float, acceleration: float, jerk: float
) -> None:
    profile = Profile(1.0, 1.0 + distance, speed, acceleration, jerk)
    t = np.linspace(0.0, profile.duration_s, 4001)
    x = profile.positions_deg(t)
    assert x[0] == pytest.approx(1.0) and x[-1] == pytest.approx(1.0 + distance)
    assert (np.diff(x) >= -1e-6).all()
    v = np.diff(x) / t[1]
    assert v.max() <= speed * 1.001 + 1e-6 / t[1]
    assert np.abs(np.diff(v) / t[1]).max() <= acceleration * 1.02 + 4e-6 / t[1] ** 2
    assert max(v[0], v[-1]) <= 0.01 * speed + acceleration * t[1] + 1e-6 / t[1]


def test_a_profile_is_as_fast_as_the_limits_allow() -> None:
    assert Profile(0.0, 10.0, 2.0, 1.0, 0.0).duration_s == pytest.approx(7.0)
    assert Profile(0.0, 1.0, 2.0, 1.0, 0.0).duration_s == pytest.approx(2.0)  # never reaches its speed
    assert Profile(0.0, 10.0, 2.0, 1.0, 1.0).duration_s == pytest.approx(8.0)
    assert Profile(3.0, 3.0, 2.0, 1.0, 1.0).duration_s == 0.0


@pytest.mark.parametrize(("delay_s", "unsure_s", "worst_deg"), [(0.1, 0.0, 0.0), (0.1, 0.02, 0.0), (0.35, 0.0, 0.05)])
def test_the_start_delay_is_no_following_error_but_a_late_start_is(delay_s: float, unsure_s: float, worst_deg: float) -> None:
    profile = Profile(0.0, 2.0, 1.0, 10.0, 0.0)
    times = np.arange(0.0, 3.0, 0.01)
    places = profile.positions_deg(times - delay_s)
    samples = [
        replace(REST, t_s=float(t), position_deg=float(x), unsure_s=unsure_s) for t, x in zip(times, places, strict=True)
    ]
    found_s, found_deg = reaction_s(samples, profile, 0.0, judge.START_S)
    assert found_deg == pytest.approx(worst_deg, abs=0.005)
    assert found_s == pytest.approx(min(delay_s, judge.START_S), abs=0.03)


def steps(*states: tuple[int, int]) -> list[Sample]:
    """Samples 10 ms apart: statusword and safety word."""
    return [replace(REST, t_s=0.01 * i, statusword=word, safety=safety) for i, (word, safety) in enumerate(states)]


def test_torque_is_proven_before_the_brake_opens() -> None:
    good = steps((0x233, BRAKED), (0x233, BRAKED | PROVEN), (0x233, PROVEN), (ENABLED, PROVEN))
    assert judge.torque_first(good).good
    free = steps((0x233, BRAKED), (0x233, 0), (ENABLED, PROVEN))
    assert "the brake was released at 0.010 s and torque was not proven" in judge.torque_first(free).reason
    early = steps((0x233, BRAKED), (ENABLED, BRAKED | PROVEN), (ENABLED, PROVEN))
    assert "operation enabled at 0.010 s with the brake still applied" in judge.torque_first(early).reason


def test_the_brake_is_set_before_torque_goes() -> None:
    good = steps((ENABLED, PROVEN), (ENABLED, PROVEN | BRAKED), (DISABLED, BRAKED))
    assert judge.brake_first(good, 0.0).good
    assert (
        "torque was off at 0.010 s"
        in judge.brake_first(steps((ENABLED, PROVEN), (DISABLED, 0), (DISABLED, BRAKED)), 0.0).reason
    )
    assert judge.brake_first(steps((ENABLED, PROVEN)), 0.0).reason == "the brake was not applied"
    sagged = [*good[:-1], replace(good[-1], position_deg=-0.2)]
    assert "moved 0.200 deg while its brake was set" in judge.brake_first(sagged, 0.0).reason


def test_states_that_come_out_of_order_are_told() -> None:
    backwards = steps((0x233, BRAKED), (0x221, BRAKED), (ENABLED, PROVEN))
    assert "states came as switched on > ready to switch on" in judge.enabling(backwards, 0.1).reason


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (replace(REST, position_deg=0.3), ""),
        (replace(REST, position_deg=0.3, speed_deg_s=0.5), "it still moves at +0.50 deg/s"),
        (replace(REST, position_deg=0.9), "it went 0.900 deg after the quick stop, allowed"),
        (replace(REST, position_deg=0.3, statusword=ENABLED), "it ended in operation enabled"),
        (replace(REST, position_deg=0.3, safety=0), "the brake was not applied"),
    ],
)
def test_a_quick_stop_is_judged_by_distance_end_and_brake(last: Sample, words: str) -> None:
    found = judge.quick_stop(judge.Stopped(1.0, 0.0, [REST, last]), 2.0)
    assert found.good is (not words)
    assert words in found.reason


def test_the_distance_allowed_grows_with_speed_and_silence() -> None:
    assert judge.stopping_deg(1.0, 2.0) == pytest.approx(1.2 * 0.25 + 0.1 + 0.05)
    assert judge.stopping_deg(1.0, 2.0, 0.3) == pytest.approx(1.2 * 0.25 + 0.4 + 0.05)
    assert judge.stopping_deg(2.0, 2.0) > 2 * judge.stopping_deg(1.0, 2.0)


def test_a_drive_that_is_silent_about_why_it_stopped_is_told() -> None:
    stop = judge.Stopped(1.0, 0.0, [replace(REST, position_deg=0.3, statusword=0x208, error_code=0x8611)])
    assert "does not say that polling was lost" in judge.polling_lost([stop], 2.0, 0.2, 0.8).reason
    good = judge.Stopped(1.0, 0.0, [replace(REST, position_deg=0.3, statusword=0x208, error_code=0x8700)])
    assert judge.polling_lost([stop, good], 2.0, 0.2, 0.8).good  # of a ring, one says it for both


def test_a_counter_that_stops_in_between_is_seen_and_silence_of_ours_is_not() -> None:
    counts = [0, 1, 2, 2, 2, 2, 2, 2, 3]
    polled = Trace("A", [replace(REST, t_s=0.05 * i, counter=c) for i, c in enumerate(counts)])
    assert judge.standstill_of_counter_s(polled) == pytest.approx(0.25)
    unasked = Trace("A", [replace(REST, t_s=t, counter=c) for t, c in ((0.0, 1), (0.01, 2), (5.0, 2), (5.01, 3))])
    assert judge.standstill_of_counter_s(unasked) < 0.02
    assert longest_gap_s(unasked.samples) == pytest.approx(4.99)


def test_the_line_is_judged_against_its_baud_rate() -> None:
    assert line_time_s(12, 115200) == pytest.approx((8 + 5 + 24 + 7) * 11 / 115200)
    assert line_time_s(12, None) == 0.0
    assert responses([0.005] * 100, 0, 12, 115200, 0.2).good
    assert "half of the answers" in responses([0.030] * 100, 0, 12, 115200, 0.2).reason
    assert "one in a hundred" in responses([0.005] * 190 + [0.08] * 10, 0, 12, 115200, 0.2).reason
    assert responses([0.005] * 95 + [0.08] * 5, 0, 12, 115200, 0.2).good  # too few to say one in a hundred
    assert "got no sound answer" in responses([0.005] * 100, 5, 12, 115200, 0.2).reason
    assert "one in a hundred" in responses([0.055] * 200, 0, 12, 9600, 0.2).reason  # too slow a line for its deadline
    assert responses([0.055] * 100, 0, 12, 9600, 0.4).good


def test_a_failure_stays_whatever_is_found_later() -> None:
    notes = Notes(DRIVE_CHECKS)
    notes.judge("move", False, "0.3 deg", "0.1 deg", "too far")
    notes.judge("move", True, "0.0 deg", "0.1 deg")
    notes.skip("move", "never")
    done = {check.requirement.id: check for check in notes.finish("ended")}
    assert (done["move"].verdict, done["move"].reason) == (Verdict.FAIL, "too far")
    assert done["identity"].verdict is Verdict.NOT_DONE
    assert list(done) == list(DRIVE_CHECKS)
