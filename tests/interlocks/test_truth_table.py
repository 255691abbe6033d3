"""Every row, each combination of its inputs' states, phase and mode, against an oracle that reads the file by other code."""

import itertools
from collections.abc import Iterator

import pytest
from oracle import BAD_VALUE, GOOD, MISSING, POOR, SOFTWARE, STALE, STATES, WITH_INPUTS, Case, bad_value, expect, good_value
from safety_room import LIMITS, MS, SAFE

from interlocks.engine import Decision, Engine
from interlocks.inputs import Sample

STEP_NS = 140 * MS
PHASES = ("idle", "moving", "armed", "beam")
IN_PHASE = {
    "idle": {},
    "moving": {"standstill": 0, "chain_standstill": 0},
    "armed": {"armed": 1},
    "beam": {"armed": 1, "permit_r": 1, "beam_present": 1},
}
BASE = {**SAFE, "motor_angle_mdeg": SAFE["ring_angle_mdeg"]}


def modes(row: str) -> tuple[str, ...]:
    if SOFTWARE[row]["reaction"]["bypassable_in"] == ["service"]:
        return ("treat", "service", "bypass", "bypass then treat")
    return ("treat", "service")


def phases(row: str) -> tuple[str, ...]:
    """Every phase; rows of many inputs leave out the turning gantry, in which only rows about the ring differ."""
    return PHASES if len(SOFTWARE[row]["test"]["inputs"]) <= 2 else tuple(p for p in PHASES if p != "moving")


def cases(row: str) -> Iterator[Case]:
    inputs = SOFTWARE[row]["test"]["inputs"]
    for phase, mode in itertools.product(phases(row), modes(row)):
        for states in itertools.product(STATES, repeat=len(inputs)):
            yield Case(phase, mode, row, dict(zip(inputs, states, strict=True)))


def play(case: Case) -> tuple[Decision, tuple[dict[str, int], ...]]:
    """Bring an engine into the phase, apply the states, let 560 ms pass. Returns (decision, values idle, in phase, after)."""
    engine = Engine(LIMITS)
    absent = {name for name, state in case.states.items() if state == MISSING}
    now_ns, values, permit = 0, dict(BASE), False

    def step(final: dict[str, str] | None = None) -> Decision:
        nonlocal now_ns, permit
        now_ns += STEP_NS
        values["permit_b"] = int(permit)
        if (final or {}).get("heartbeat") != BAD_VALUE:
            values["heartbeat"] += 1
        samples = {name: Sample(value, True, now_ns, 0) for name, value in values.items()}
        for name, state in (final or {}).items():
            samples[name] = Sample(values[name], state != POOR, now_ns - (1000 * MS if state == STALE else 0), 0)
        for name in absent:
            del samples[name]
        decision, _ = engine.step(now_ns, samples)
        permit = decision.permit
        return decision

    values["service_mode"] = int(case.mode != "treat")
    step()
    engine.clear(["POWER_UP"])
    step()
    idle = dict(values)
    if case.mode.startswith("bypass"):
        engine.bypass(now_ns, case.row, "Ada", "Bo", "exhaustive test", 3_600_000.0)
    values.update(IN_PHASE[case.phase])
    step()
    if case.mode == "bypass then treat":
        values["service_mode"] = 0
    before = dict(values)
    row = SOFTWARE[case.row]
    for index, (name, state) in enumerate(case.states.items()):
        if name == "permit_b":
            continue  # the relay follows the permit in these cases; the welded one has a test of its own
        if state == BAD_VALUE:
            values[name] = bad_value(row, index, before[name])
        elif state == GOOD:
            values[name] = good_value(row, index, before[name])
    for _ in range(5):
        decision = step(dict(case.states))
    return decision, (idle, before, dict(values))


@pytest.mark.parametrize("row", list(WITH_INPUTS))
def test_each_combination_does_what_the_file_says(row):
    count, trips, passes = 0, 0, 0
    for case in cases(row):
        decision, values = play(case)
        expected = expect(case, *values)
        seen = (frozenset(decision.tripped), frozenset(decision.withheld), frozenset(a.name for a in decision.actions))
        assert seen == (expected.tripped, expected.withheld, expected.actions), case
        assert decision.permit == expected.permit, case
        count, trips, passes = count + 1, trips + (not decision.permit), passes + decision.permit
    assert count == len(phases(row)) * len(modes(row)) * len(STATES) ** len(SOFTWARE[row]["test"]["inputs"])
    assert trips, "a row that never withholds is no interlock"
    assert passes, "a row that always withholds is none either"


def test_the_table_covers_every_row_that_has_inputs():
    without = {name for name, row in SOFTWARE.items() if name not in WITH_INPUTS}
    assert {SOFTWARE[name]["test"]["kind"] for name in without} == {"boot", "stall", "bypass"}
