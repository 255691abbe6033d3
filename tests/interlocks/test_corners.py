"""Corners that only planted faults showed: what two rules make together, what comes back by time alone, what evidence holds."""

import dataclasses
import json

import pytest
from oracle import SOFTWARE, bad_value
from safety_room import LIMITS, MS, SAFE, Bench, armed, moving, ready

from interlocks import bypass
from interlocks.bypass import BypassRefused
from interlocks.conditions import NEVER_NS, above, drift, still
from interlocks.daemon import latched_before
from interlocks.engine import Engine
from interlocks.first_out import FirstOut
from interlocks.inputs import Sample
from interlocks.plan_watch import _words
from interlocks.proof import ProofTest

HOUR_MS = 3_600_000.0


def test_what_was_missing_before_the_key_was_turned_needs_no_button_of_its_own():
    bench = Bench()
    bench.room.link_up = False
    bench.step()
    bench.run(500)
    assert len(bench.tripped) > 5, "nothing is known, so everything that trips always, or while armed, does"
    bench.room.link_up = True
    bench.run(500)
    assert bench.press("key") == ("POWER_UP",)
    assert bench.permit


def test_what_was_bad_before_the_key_was_turned_needs_its_own_button():
    bench = Bench(estop_healthy=0, motor_angle_mdeg=0)
    bench.step()
    bench.run(100)
    bench.set(estop_healthy=1, motor_angle_mdeg=SAFE["motor_angle_mdeg"])
    assert set(bench.press("key")) == {"POWER_UP", "ESTOP"}
    assert bench.tripped == ("RING_ENCODERS",)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_jump_of_the_ring_is_too_fast_either_way_and_over_by_time_alone(sign):
    bench = moving()
    bench.run(1000)
    start = bench.room.values["ring_angle_mdeg"]
    bench.set(ring_angle_mdeg=start + sign * 800, motor_angle_mdeg=start + sign * 800)
    bench.run(100)
    assert bench.tripped == ("RING_SPEED",)
    assert bench.press("service") == (), "the jump is still in the window"
    bench.run(300)
    assert bench.press("service") == ("RING_SPEED",), "nothing came since: the end of the window alone ended the cause"


LIMITED = [name for name, row in SOFTWARE.items() if row["test"]["kind"] in ("limit", "band") and "hysteresis" in row["test"]]


@pytest.mark.parametrize("row", LIMITED)
def test_between_limit_and_hysteresis_it_stays_as_it_was(row):
    test, when = SOFTWARE[row]["test"], SOFTWARE[row]["when"]
    name, edge, inner = test["inputs"][0], test.get("limit", test.get("high")), test["hysteresis"]
    assert when["trips"] == "beam"
    wait_ms = when.get("debounce_ms", 0)
    assert wait_ms >= 40, "or the test below cannot tell"
    bench = armed(beam=True)
    bench.set(**{name: edge - inner + 1})
    bench.run(300)
    assert bench.permit, "not reached from inside"
    bench.set(**{name: edge + 1})
    bench.run(wait_ms - 20)
    assert bench.permit
    bench.set(**{name: edge - inner + 1})
    bench.run(40)
    assert bench.tripped == (row,), "not left by going back a little"
    bench = armed(beam=True)
    bench.set(**{name: edge + 1})
    bench.run(wait_ms - 20)
    bench.set(**{name: edge - inner})
    bench.run(300)
    assert bench.permit, "left by going back by the hysteresis"


def test_drift_is_measured_from_this_arming():
    bench = armed()
    bench.set(armed=0)
    bench.set(ring_angle_mdeg=40_000, motor_angle_mdeg=40_000, preset_angle_mdeg=40_000)
    if "plan_angle_mdeg" in bench.room.values:
        bench.set(plan_angle_mdeg=40_000)
    bench.set(armed=1)
    bench.run(200)
    assert bench.permit
    bench.set(ring_angle_mdeg=40_101)
    assert bench.tripped == ("RING_DRIFT",)


PHASE_INPUT = {"armed": "armed", "requested": "permit_r", "beam": "beam_present", "moving": "standstill"}
UNBELIEVED = {
    "missing": None,
    "poor": Sample(0, False, 0, 0),
    "old": Sample(0, True, -(10**12), 0),
}


@pytest.mark.parametrize("why", list(UNBELIEVED))
@pytest.mark.parametrize("phase", list(PHASE_INPUT))
def test_a_phase_that_is_not_known_counts_as_the_one_in_which_more_matters(phase, why):
    """Even where the phase's input would say, if it were believed, that nothing matters."""
    rows = [n for n, r in SOFTWARE.items() if r["when"]["trips"] == phase and r["test"]["kind"] in ("equal", "limit", "band")]
    rows = [n for n in rows if SOFTWARE[n]["when"].get("debounce_ms", 0) < 1000]
    if phase == "moving":  # its one row needs a history
        rows = ["RING_SPEED"]
    for row in rows:
        test, engine, quiet = SOFTWARE[row]["test"], Engine(LIMITS), {"armed": 0, "beam_present": 0, "standstill": 1}
        for step in range(16):
            now_ns = step * 100 * MS
            values = {**SAFE, **quiet}
            if step >= 2:
                for i, name in enumerate(test["inputs"][: test.get("vote", 1)]):
                    running = row == "RING_SPEED"
                    values[name] = SAFE[name] + step * 1000 if running else bad_value(SOFTWARE[row], i, SAFE[name])
            samples = {name: Sample(value, True, now_ns, 0) for name, value in values.items()}
            unknown = UNBELIEVED[why]
            del samples[PHASE_INPUT[phase]]
            if unknown is not None:
                value = values[PHASE_INPUT[phase]]
                samples[PHASE_INPUT[phase]] = unknown._replace(value=value, t_ns=now_ns + unknown.t_ns)
            decision, _ = engine.step(now_ns, samples)
        assert row in decision.tripped, (row, why)


def test_people_are_never_bypassed_even_if_a_row_were_to_allow_it():
    row = dataclasses.replace(LIMITS.row("DOOR"), bypassable_in=("service",))
    with pytest.raises(BypassRefused, match="people"):
        bypass.grant(row, "Ada", "Bo", "why not", 0, 1, 10, True)


@pytest.mark.parametrize("blank", ["owner", "approver", "reason"])
def test_a_bypass_needs_owner_approver_and_reason(blank):
    words = {"owner": "Ada", "approver": "Bo", "reason": "encoder exchange", blank: "  "}
    with pytest.raises(BypassRefused, match="needed"):
        bypass.grant(LIMITS.row("RING_ANGLE"), words["owner"], words["approver"], words["reason"], 0, 1, 10, True)


def test_a_bypass_of_one_row_hides_no_other_and_is_on_record():
    bench = ready(service_mode=1)
    bench.node.bypass(bench.room.now_ns, "RING_ANGLE", "Ada", "Bo", "encoder exchange", HOUR_MS)
    record = next(r for r in bench.records if r["kind"] == "bypass")
    assert (record["id"], record["owner"], record["approver"], record["reason"]) == (
        "RING_ANGLE",
        "Ada",
        "Bo",
        "encoder exchange",
    )
    assert record["expires_ns"] == bench.room.now_ns + 3600 * 10**9
    bench.set(armed=1, preset_angle_mdeg=0)
    bench.set(spot_error_um=9000)
    assert "SPOT_POSITION" in bench.tripped
    assert "RING_ANGLE" not in bench.tripped


def test_having_started_is_no_episode():
    bench = ready()
    bench.run(12_000)
    assert not bench.node.engine.first_out.episodes
    assert [trip.id for trip in bench.node.trips] == ["POWER_UP"]


def episode_of(before: int):
    """Evidence of a trip with a consequence, after a change of `before` of something else."""
    bench = armed()
    bench.run(3000)
    bench.set(spot_error_um=before)
    bench.run(1000)
    bench.set(chain_quench=0)
    bench.set(door_a_closed=0)
    for _ in range(240):  # nothing changes any more but what the room itself does
        bench.run(50)
    (episode,) = bench.node.engine.first_out.episodes
    return episode


def test_an_episode_has_what_followed_and_its_two_buffers_meet_at_the_first_trip():
    episode = episode_of(500)
    assert [trip.id for trip in episode.trips][:2] == ["CHAIN_QUENCH", "DOOR"]
    first_ns = episode.trips[0].t_ns
    assert all(t_ns <= first_ns for t_ns, _ in episode.before)
    assert all(first_ns < t_ns <= first_ns + 10_000 * MS for t_ns, _ in episode.after)
    assert "spot_error_um" in {name for _, states in episode.before for name, *_ in states}
    assert "spot_error_um" not in {name for _, states in episode.after for name, *_ in states}
    assert "door_a_closed" in {name for _, states in episode.after for name, *_ in states}


def test_the_digest_is_of_the_evidence_and_not_of_the_trips_alone():
    first, again, other = episode_of(500), episode_of(500), episode_of(501)
    assert first.digest == again.digest
    assert first.trips == other.trips
    assert first.digest != other.digest


def test_the_last_word_of_the_journal_counts(tmp_path):
    path = tmp_path / "journal.jsonl"
    records = [{"kind": "trip", "latched": ["DOOR", "SPOT_POSITION"]}, {"kind": "reset", "latched": ["SPOT_POSITION"]}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert latched_before(path, LIMITS) == ("SPOT_POSITION",)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "reset", "latched": []}) + "\n")
    assert latched_before(path, LIMITS) == ()


def test_a_ceiling_too_large_for_its_registers_is_the_largest_that_fits_and_never_a_small_one():
    words = _words(1, -30_000, 1 << 32, 1 << 40, 1 << 64, 1 << 40, 7, 8, 9)
    assert words[:5] == (1, 0xFFFF, 0x8AD0, 0xFFFF, 0xFFFF)
    assert words[5:15] == (0, 0x100, 0, 0, *[0xFFFF] * 6)
    assert words[15:] == (0, 0, 0, 7, 0, 8, 0, 9)


def test_what_must_keep_changing_may_stand_for_its_limit_and_says_when_that_ends():
    p = {"limit": 200}
    bad, memory, due_ns = still(p, [7], None, 1000 * MS)
    assert (bad, due_ns) == (False, 1200 * MS)
    bad, memory, due_ns = still(p, [7], memory, 1199 * MS)
    assert (bad, due_ns) == (False, 1200 * MS), "that somebody looked is no change"
    assert still(p, [7], memory, 1200 * MS) == (True, (7, 1000 * MS), NEVER_NS)
    assert still(p, [8], memory, 1200 * MS) == (False, (8, 1200 * MS), 1400 * MS)


def test_a_ceiling_has_a_share_and_a_floor_and_nothing_is_no_ceiling():
    p = {"percent": 2, "floor": 50}
    assert not above(p, [1070, 1000], None, 0).bad
    assert above(p, [1071, 1000], None, 0).bad
    assert not above(p, [1071, 0], None, 0).bad
    assert above(p, [52, 1], None, 0).bad


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_axis_alone_drifts_and_from_where_it_began(axis):
    p, now = {"limit": 500}, [10, -20, 30]
    _, memory, _ = drift(p, now, None, 0)
    for by, bad in ((300, False), (500, False), (501, True)):
        moved = [value + (by if index == axis else 0) for index, value in enumerate(now)]
        assert drift(p, moved, memory, 0) == (bad, (10, -20, 30), NEVER_NS)


def test_a_proof_test_ends_without_a_result_when_its_inputs_cannot_be_believed():
    proof = ProofTest(LIMITS)
    proof.begin("Ada")
    assert proof.step(0, {name: Sample(value, True, 0, 0) for name, value in SAFE.items()}, True) is None
    record = proof.step(MS, {name: Sample(value, False, MS, 0) for name, value in SAFE.items()}, True)
    assert (record["state"], record["why"]) == ("failed", "inputs could not be believed")
    assert proof.left == ()


@pytest.mark.parametrize("left", ["permit_r", "beam_present"])
def test_no_reset_while_beam_is_asked_for_nor_while_it_is_there(left):
    bench = armed(beam=True)
    bench.set(spot_error_um=9000)
    bench.set(spot_error_um=0, armed=0, **{name: 0 for name in ("permit_r", "beam_present") if name != left})
    bench.run(100)
    bench.node.reset(bench.room.now_ns, "physicist", True)
    bench.run(3)
    reset = bench.node.reset(bench.room.now_ns, "physicist", False)
    assert "SPOT_POSITION" not in reset.cleared
    assert "withdraw the request first" in dict(reset.refused)["SPOT_POSITION"]
    bench.set(**{left: 0})
    bench.run(100)
    assert "SPOT_POSITION" in bench.press("physicist")


def test_what_came_before_is_not_kept_as_after_where_nothing_followed():
    first_out, second = FirstOut(), 1000 * MS
    first_out.note(5 * second, (("door_a_closed", 0, True),))
    first_out.trip(6 * second, LIMITS.row("DOOR"), ())
    first_out.close_due(16 * second)
    (episode,) = first_out.episodes
    assert len(episode.before) == 1
    assert episode.after == ()
