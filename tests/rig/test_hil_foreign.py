"""The rig check against drives by another hand: a sound one passes, every planted misbehaviour is found and named."""

from __future__ import annotations

import json

import pytest
from foreign_drive import BUGS
from foreign_rig import AT_ONCE, check_all, foreign_drives, stalled

from controller.hil.report import as_dict, headline, render
from controller.hil.run import HilResult
from controller.hil.verdict import DRIVE_CHECKS, Verdict
from drivers.wire.codecs.cia402 import DriveState

pytestmark = pytest.mark.xdist_group("wires")

# What each misbehaviour must be found by, what must be said, and what else it cannot help failing.
EXPECTED: dict[str, tuple[str, str, set[str]]] = {
    "other-product": ("identity", "another device answers: vendor 0x1009, product 0xD7", set()),
    "no-torque-register": ("registers", "no register torque (38)", set()),
    "counter-stands": ("liveness", "its counter stands still", set()),
    "forgets-acceleration": ("registers", "acceleration (22) does not hold what was written", set()),
    "takes-old-commands": ("old_commands", "it took a command that was 250 ms old", set()),
    "no-limits": ("limits", "it moves towards 185 deg, beyond its soft limit", set()),
    "moves-when-enabled": ("enable", "it moved 0.300 deg while it was being enabled", set()),
    "brake-before-torque": ("torque_proof", "and torque was not proven", {"held"}),
    "never-there": ("move", "it stands +0.300 deg from its target", {"target_reached", "settling", "following"}),
    "early-reached": ("target_reached", "target reached was set", set()),
    "overshoots": ("settling", "over its target", set()),
    "too-fast": ("velocity", "it says 4.2", {"following"}),
    "lags": ("following", "away from the commanded profile", set()),
    "drops-on-disable": ("disable", "torque was off", {"held"}),
    "long-quick-stop": ("quick_stop", "after the quick stop, allowed", set()),
    "ignores-quick-stop": ("quick_stop", "after the quick stop, allowed", set()),
    "runs-unpolled": ("polling_lost", "although nobody polls it", set()),
    "starts-again": ("link_return", "it is enabled again after the line came back", set()),
    "resets-by-level": ("reset_edge", "without a rising edge", set()),
    "slow-answers": ("response", "half of the answers take longer than", set()),
    "odd-statusword": ("statuswords", "without voltage enabled (bit 4)", set()),
}
# After these the procedure must not go on: what comes later stays undone.
ENDS = {
    "other-product",
    "no-torque-register",
    "counter-stands",
    "no-limits",
    "moves-when-enabled",
    "brake-before-torque",
    "drops-on-disable",
    "long-quick-stop",
    "ignores-quick-stop",
    "runs-unpolled",
    "starts-again",
}


def failed(result: HilResult) -> dict[str, str]:
    return {check.requirement.id: check.reason for check in result.of(Verdict.FAIL)}


def unexplained(name: str, found: dict[str, str]) -> set[str]:
    """What was found beside what a misbehaviour must be found by, and what it cannot help failing."""
    check, _, also = EXPECTED[name]
    late = {other for other, reason in found.items() if name == "slow-answers" and "does not answer within" in reason}
    return set(found) - {check, *also} - late


def as_expected(name: str, result: HilResult) -> bool:
    found = failed(result)
    if name not in EXPECTED:
        return not found
    check, words, _ = EXPECTED[name]
    return words in found.get(check, "") and not unexplained(name, found)


@pytest.fixture(scope="module")
def results() -> dict[str, HilResult]:
    """Every drive checked once; again, fewer at once, where it is not as expected and this computer stood still meanwhile."""
    found: dict[str, HilResult] = {}
    waiting = ["sound", "plain", *BUGS]
    for at_once in (AT_ONCE, 3, 2, 1):
        with foreign_drives(waiting) as ttys:
            found.update(check_all(ttys, at_once))
        waiting = [name for name, result in found.items() if stalled(result) and not as_expected(name, result)]
        if not waiting:
            break
    return found


def test_every_misbehaviour_has_an_expectation() -> None:
    assert set(EXPECTED) == set(BUGS)
    assert len(BUGS) >= 10
    assert {row[0] for row in EXPECTED.values()} >= set(DRIVE_CHECKS) - {"rest", "held"}


def test_a_sound_drive_conforms(results: dict[str, HilResult]) -> None:
    result = results["sound"]
    assert [(check.requirement.id, check.verdict) for check in result.checks] == [(name, Verdict.PASS) for name in DRIVE_CHECKS]
    assert result.exit_code == 0
    assert result.left == "at rest, brake applied, not enabled"
    assert headline(result) == f"Conforms: {len(DRIVE_CHECKS)} of {len(DRIVE_CHECKS)} checks passed"


def test_a_drive_that_knows_no_command_tokens_conforms_without_them(results: dict[str, HilResult]) -> None:
    result = results["plain"]
    assert failed(result) == {}
    (undone,) = result.of(Verdict.NOT_DONE)
    assert undone.requirement.id == "old_commands"
    assert "names no command_token" in undone.reason
    assert result.exit_code == 0


@pytest.mark.parametrize("bug", BUGS)
def test_a_misbehaviour_is_found_and_named(results: dict[str, HilResult], bug: str) -> None:
    result = results[bug]
    name, words, _ = EXPECTED[bug]
    found = failed(result)
    assert words in found.get(name, ""), f"{bug}: found {found}, slowest answer {max(result.answers_s, default=0.0):.3f} s"
    assert not unexplained(bug, found), found
    assert result.exit_code == 3


@pytest.mark.parametrize("bug", sorted(ENDS))
def test_after_a_dangerous_failure_nothing_more_is_tried(results: dict[str, HilResult], bug: str) -> None:
    result = results[bug]
    order = list(DRIVE_CHECKS)
    name = EXPECTED[bug][0]
    whole_run = {"held", "statuswords", "response"}
    # What belongs to the same motion has been judged with it; the next motion is not made.
    later = [
        c for c in result.checks if order.index(c.requirement.id) > order.index(name) and c.requirement.id not in whole_run
    ]
    undone = [check for check in later if check.verdict is Verdict.NOT_DONE]
    assert [c.requirement.id for c in later if c.verdict is Verdict.PASS] == [] or name in ("limits", "enable", "link_return")
    assert undone or name == "link_return"
    assert all("ended" in check.reason for check in undone if not result.left.startswith("NOT SAFE"))


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug != "drops-on-disable"])
def test_the_drive_is_left_at_rest_whatever_it_did(results: dict[str, HilResult], bug: str) -> None:
    result = results[bug]
    assert result.left in ("at rest, brake applied, not enabled", "never enabled")
    if result.traces and result.traces[0].samples:
        last = result.traces[0].last
        assert last.still and last.braked
        assert last.state is not DriveState.OPERATION_ENABLED


def test_a_drive_that_cannot_be_made_safe_is_told_with_the_local_stop(results: dict[str, HilResult]) -> None:
    assert results["drops-on-disable"].left.startswith("NOT SAFE")
    assert "use the local stop now: red button beside the drive" in results["drops-on-disable"].left
    assert "red button beside the drive" in headline(results["drops-on-disable"])


def test_no_drive_leaves_its_travel(results: dict[str, HilResult]) -> None:
    """The travel of 2 deg, the fence beyond it, and what a stop at the fence takes."""
    for name, result in results.items():
        for trace in result.traces:
            assert all(-2.9 < sample.position_deg < 2.9 for sample in trace.samples), name


def test_the_report_holds_everything_and_loads_nothing(results: dict[str, HilResult]) -> None:
    for result in (results["sound"], results["ignores-quick-stop"], results["other-product"]):
        page = render(result)
        assert "http" not in page.replace("http://www.w3.org", "")
        assert "<script" not in page
        assert "SIMULATED" not in page
        for check in result.checks:
            assert check.requirement.name in page
        told = json.loads(json.dumps(as_dict(result)))
        assert [row["id"] for row in told["checks"]] == list(DRIVE_CHECKS)
        assert told["verdict"] == ("pass" if result is results["sound"] else "fail")
    sound = render(results["sound"])
    for title in ("Quick stop: position", "following error", "Answer times of the line"):
        assert title in sound
    assert "this axis has no safe stop by command" in render(results["ignores-quick-stop"])


def test_the_traces_are_those_of_the_drive(results: dict[str, HilResult]) -> None:
    told = as_dict(results["sound"])
    (trace,) = told["traces"]
    columns = list(trace["columns"])
    rows = trace["samples"]
    assert len(rows) > 300
    position = columns.index("position_deg")
    assert max(row[position] for row in rows) - min(row[position] for row in rows) == pytest.approx(2.0, abs=0.1)
    assert "0x02" in [word for _, word in trace["words"]]  # the quick stop
