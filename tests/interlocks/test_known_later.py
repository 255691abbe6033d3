"""What tripped as not known, and is by now seen to be bad, says so: the row's own words, wherever it is told."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safety_room import LIMITS, MS, SAFE, Bench, armed, ready

from interlocks.daemon import obey
from interlocks.engine import Engine
from interlocks.first_out import NOT_KNOWN
from interlocks.inputs import Sample

OPEN = {"door_a_closed": 0, "door_b_closed": 0, "search_complete": 0, "search_state": 0, "chain_door_search": 0}


def rows(bench: Bench) -> dict[str, dict]:
    _, _, answer = obey(bench.node, b"status w", bench.room.now_ns).split(b" ", 2)
    return {row["id"]: row for row in json.loads(answer)["rows"]}


def lost(bench: Bench, ms: float = 5_000.0, **values: int) -> Bench:
    """The room does not answer for a while, in which things happen there."""
    bench.room.link_up = False
    bench.run(ms)
    bench.room.values.update(values)
    bench.room.link_up = True
    bench.run(100)
    return bench


def test_a_door_that_was_opened_in_a_silence_is_told_as_an_open_door():
    bench = lost(ready(), **OPEN)
    told = rows(bench)
    for name in ("DOOR", "SEARCH"):
        row = LIMITS.row(name)
        assert (told[name]["what"], told[name]["advice"]) == (row.what, row.advice)
        assert all(believed for _, _, believed in told[name]["states"])
    assert told["PLANT_STALE"]["first_out"] and not told["DOOR"]["first_out"]
    others = {name for name, row in told.items() if row["what"] == NOT_KNOWN[0]}
    assert others and not others & {"DOOR", "SEARCH"}, "what was good again stays what it was: not known"
    bench.press("operator")
    assert bench.tripped == ("DOOR", "SEARCH") and rows(bench)["DOOR"]["what"] == LIMITS.row("DOOR").what
    assert bench.room.first_out_code == LIMITS.row("DOOR").code
    assert list(bench.room.evidence) == [0, 0, 0, 1, 0], "closed is 1, it shows 0, by its first contact"
    journal = [record for record in bench.records if record["kind"] == "trip" and record["id"] == "DOOR"]
    assert [record["what"] for record in journal] == [NOT_KNOWN[0], LIMITS.row("DOOR").what]


def test_it_is_told_anew_once_and_needs_the_operator_as_what_was_not_known_does():
    bench = lost(ready(), monitor1_hv=0)
    assert rows(bench)["MONITOR_HEALTH"]["what"] == LIMITS.row("MONITOR_HEALTH").what
    trips = len(bench.node.trips)
    bench.run(2_000)
    assert len(bench.node.trips) == trips
    bench.press("operator")
    assert "MONITOR_HEALTH" in bench.tripped, "the cause is still there"
    bench.set(monitor1_hv=1)
    assert "MONITOR_HEALTH" in bench.press("operator"), "it never tripped by a value: outside a treatment it only withholds"


def test_when_it_then_trips_in_a_treatment_it_needs_its_own_role():
    bench = lost(ready(), monitor1_hv=0)
    bench.set(armed=1)
    bench.run(50)
    bench.set(monitor1_hv=1, armed=0)
    assert "MONITOR_HEALTH" not in bench.press("operator")
    assert "MONITOR_HEALTH" in bench.press(LIMITS.row("MONITOR_HEALTH").reset_role)


def test_what_only_withholds_and_was_never_lost_is_no_trip():
    bench = ready()
    bench.set(**OPEN)
    bench.run(500)
    assert bench.tripped == () and {"DOOR", "SEARCH"} <= set(bench.withheld)


def test_a_first_out_that_is_known_by_now_stays_the_first_out():
    """The door's contacts alone are not believed at first, then they are, and open: with the armed phase and without."""
    for phase in (0, 1):
        engine = Engine(LIMITS)
        values = {name: value for name, value in SAFE.items() if name not in ("permit_b", "motion_permit")} | {"armed": phase}

        def at(ms, bad=(), engine=engine, values=values, **changed):
            values.update(changed)
            samples = {name: Sample(value, name not in bad, ms * MS, ms) for name, value in values.items()}
            samples |= {name: Sample(0, True, ms * MS, ms) for name in ("permit_b", "motion_permit")}
            return engine.step(ms * MS, samples)[0]

        at(0)
        at(10)
        engine.clear(["POWER_UP"])
        assert at(20).tripped == ()
        at(60, armed=1)
        first = at(100, bad=("door_a_closed", "door_b_closed")).first_out
        assert (first.id, first.what, first.first_out) == ("DOOR", NOT_KNOWN[0], True)
        decision = at(150, door_a_closed=0, door_b_closed=0, armed=phase)
        first = decision.first_out
        assert (first.id, first.what, first.first_out) == ("DOOR", LIMITS.row("DOOR").what, True)
        assert [trip.id for trip in decision.new][:1] == ["DOOR"]
        assert at(200, door_a_closed=0, estop_healthy=0).first_out.id == "DOOR", "and nothing that followed takes its place"


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["door_a_closed", "search_complete", "monitor1_hv", "chain_quench"]), st.just(0)),
    st.sampled_from([120.0, 400.0, 5_000.0]),
    st.booleans(),
)
def test_no_row_is_told_as_not_known_while_its_inputs_are_believed_and_bad(values, ms, treating):
    bench = lost(armed() if treating else ready(), ms, **values)
    bench.run(1_000)
    told = rows(bench)
    for row in LIMITS.software:
        if row.id in told and row.kind == "equal":
            wanted = row.params["value"] if isinstance(row.params["value"], list) else [row.params["value"]] * len(row.inputs)
            bad = any(bench.room.values.get(name, good) != good for name, good in zip(row.inputs, wanted, strict=True))
            if bad and (row.withholds or treating) and row.inputs != ("permit_r",):
                assert told[row.id]["what"] == row.what


@pytest.mark.parametrize("again", [True, False])
def test_a_door_that_was_closed_again_is_reset_by_the_operator(again):
    bench = lost(ready(), **OPEN)
    bench.set(**{name: SAFE[name] for name in OPEN})
    if again:
        lost(bench)
    bench.run(100)
    assert {"DOOR", "SEARCH"} <= set(bench.press("operator"))
    assert bench.permit
