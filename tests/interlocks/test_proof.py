"""The daily proof test: every contact walked, the beam-off path timed, and no treatment a day after."""

import pytest
from safety_room import MS
from test_plan_watch import LIMITS, NOTHING_GRANTED, RealBench

from interlocks.daemon import obey
from interlocks.matrix import SHIPPED, parse
from interlocks.proof import NEVER_S, ProofTest

HOUR_NS = 3_600_000_000_000
REQUIRED = parse(SHIPPED.read_bytes(), overlay=b"[engine]\nproof_required = true\n")
RESETS = ("operator", "physicist", "service", "key")


@pytest.fixture
def bench():
    made = RealBench(REQUIRED, **NOTHING_GRANTED)
    made.step()
    made.run(100)
    made.press("key")
    made.run(200)
    assert made.permit
    return made


def arm(made):
    made.set(armed=1)
    made.run(100)
    return made.permit


def walked_inputs(made):
    made.node.proof(made.room.now_ns, "Ada")
    return made.node._proof.left


def walk(made, but=()):
    """What the staff does: each contact bad, and good again; then the resets."""
    for name in made.node._proof.left:
        if name in but:
            continue
        good = made.room.values[name]
        made.set(**{name: 1 - good if good in (0, 1) else good - 1})
        made.run(60)
        made.set(**{name: good})
        made.run(60)
    made.run(700)
    for role in RESETS:
        made.press(role)
    made.run(300)


def states(made):
    return [record["state"] for record in made.records if record["kind"] == "proof"]


def days(made, hours):
    """Time passes; the steps of it are of no interest."""
    made.room.now_ns += round(hours * HOUR_NS)
    made.step()
    made.run(100)
    for role in RESETS:
        made.press(role)
    made.run(100)


def test_nothing_is_treated_before_a_proof_test_was_passed(bench):
    assert not arm(bench)
    assert bench.tripped == ("PROOF_TEST",)
    bench.set(armed=0)
    bench.run(60)
    assert bench.permit, "between treatments it withholds nothing, and needs no reset"


def test_a_whole_test_makes_treatment_possible_for_a_day(bench):
    obey(bench.node, b"proof begin Ada", bench.room.now_ns)
    walk(bench)
    assert states(bench) == ["begun", "passed"]
    record = bench.records[-1]
    assert record["owner"] == "Ada"
    assert 50.0 <= record["beam_off_ms"] <= 200.0
    assert bench.permit, "the permit comes back after the test"
    assert arm(bench)
    bench.set(armed=0)
    days(bench, 23.9)
    assert arm(bench), bench.tripped
    bench.set(armed=0)
    days(bench, 0.2)
    assert not arm(bench)
    assert bench.tripped == ("PROOF_TEST",)


def test_what_is_walked_are_the_contacts_of_every_row_that_has_some(bench):
    names = walked_inputs(bench)
    assert {"estop_healthy", "door_a_closed", "door_b_closed", "search_complete", "chain_quench", "monitor2_hv"} <= set(names)
    assert not {"permit_r", "armed", "plan_known"} & set(names)


def test_one_contact_that_was_not_walked_keeps_the_test_open(bench):
    bench.node.proof(bench.room.now_ns, "Ada")
    walk(bench, but=("chain_quench",))
    assert states(bench) == ["begun"]
    assert bench.node._proof.left == ("chain_quench",)
    assert not arm(bench), "an open test is none"
    assert states(bench) == ["begun", "abandoned"]


@pytest.mark.parametrize("relay", ["relay_welded", "motion_welded"])
def test_a_relay_that_does_not_fall_fails_the_test(bench, relay):
    bench.node.proof(bench.room.now_ns, "Ada")
    for name in bench.node._proof.left:  # all were seen bad, and are good now
        bench.node._proof._left[name] = True
    while not bench.node._proof.withholds:
        bench.run(50)
    setattr(bench.room, relay, True)
    bench.run(300)
    assert states(bench)[-1] == "failed"
    assert bench.records[-1]["why"] == "a relay did not fall in time"
    assert not arm(bench)


def test_a_failed_or_abandoned_test_leaves_the_last_one_its_age(bench):
    bench.node.proof(bench.room.now_ns, "Ada")
    walk(bench)
    bench.node.proof(bench.room.now_ns, "Bo")
    assert bench.node._proof.age_s(bench.room.now_ns) == NEVER_S, "an open test is none"
    assert arm(bench)
    assert states(bench) == ["begun", "passed", "begun", "abandoned"]


def test_a_lost_line_fails_an_open_test(bench):
    bench.node.proof(bench.room.now_ns, "Ada")
    bench.room.link_up = False
    bench.run(100)
    assert states(bench) == ["begun", "failed"]


def test_a_restart_forgets_that_a_test_was_passed(bench):
    bench.node.proof(bench.room.now_ns, "Ada")
    walk(bench)
    bench.start()
    bench.run(100)
    bench.press("key")
    assert not arm(bench)
    assert "PROOF_TEST" in bench.tripped


def test_nobody_begins_a_test_without_a_name_and_anybody_ends_one(bench):
    obey(bench.node, b"proof begin", bench.room.now_ns)
    obey(bench.node, b"proof begin  ", bench.room.now_ns)
    obey(bench.node, b"proof end", bench.room.now_ns)
    assert states(bench) == []
    obey(bench.node, b"proof begin Ada", bench.room.now_ns)
    obey(bench.node, b"proof end", bench.room.now_ns)
    assert states(bench) == ["begun", "abandoned"]


def test_where_none_is_required_age_is_no_matter():
    proof = ProofTest(LIMITS)
    assert proof.age_s(10**18) == 0
    assert ProofTest(REQUIRED).age_s(10**18) == NEVER_S
    assert MS == 1_000_000
