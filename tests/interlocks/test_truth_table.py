"""Every row, each combination of its inputs' states, phase and mode, against an oracle that reads the file by other code.

Cells of a row: states of its inputs (good, bad value, stale, missing, poor quality) x phase x mode and bypass. All combinations
up to three inputs. Beyond that all of them only in treatment mode in the phase in which the row trips, and every pair and all
of one kind in every other phase and mode. Then the same row with each input that decides phase, mode or resets not believed,
beside good and beside bad inputs of the row (every third of them, all in the slow tests). The number of cells is asserted.
"""

import itertools
from collections.abc import Iterator

import pytest
from oracle import BAD_VALUE, GOOD, MISSING, POOR, SOFTWARE, STALE, STATES, WITH_INPUTS, Case, bad_value, expect, good_value
from safety_room import LIMITS, MS, SAFE

from interlocks.bypass import BypassRefused
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
WHOLE_PRODUCT = 3  # inputs; a row of four would have 10,000 cells, one of five 50,000
TRIPS_IN = {"always": "armed", "never": "idle", "requested": "beam"}  # others: the phase of that name
OWN = ("armed", "permit_r", "beam_present", "standstill", "service_mode")
STEPS = 12  # more than a case has
GOOD_AT = [{name: Sample(value, True, k * STEP_NS, 0) for name, value in BASE.items()} for k in range(STEPS)]


def modes(row: str) -> tuple[str, ...]:
    if SOFTWARE[row]["reaction"]["bypassable_in"] == ["service"]:
        return ("treat", "service", "bypass", "bypass then treat")
    return ("treat", "service")


def combinations(inputs: list[str], whole: bool) -> Iterator[dict[str, str]]:
    """States of the inputs of a row: all combinations, or every pair and all of one kind."""
    if whole:
        for states in itertools.product(STATES, repeat=len(inputs)):
            yield dict(zip(inputs, states, strict=True))
        return
    for state in STATES:
        yield dict.fromkeys(inputs, state)
    for (one, other), states in itertools.product(itertools.combinations(inputs, 2), itertools.product(STATES[1:], repeat=2)):
        yield {**dict.fromkeys(inputs, GOOD), one: states[0], other: states[1]}


def cells(row: str) -> int:
    """How many cells a row has."""
    count, kinds, sheets = len(SOFTWARE[row]["test"]["inputs"]), len(STATES), len(PHASES) * len(modes(row))
    pairs = kinds + count * (count - 1) // 2 * (kinds - 1) ** 2
    return sheets * kinds**count if count <= WHOLE_PRODUCT else kinds**count + (sheets - 1) * pairs


def cases(row: str) -> Iterator[Case]:
    inputs, trips = SOFTWARE[row]["test"]["inputs"], SOFTWARE[row]["when"]["trips"]
    for phase, mode in itertools.product(PHASES, modes(row)):
        whole = len(inputs) <= WHOLE_PRODUCT or (phase, mode) == (TRIPS_IN.get(trips, trips), "treat")
        for states in combinations(inputs, whole):
            yield Case(phase, mode, row, states)


def unknown_cases(row: str) -> Iterator[Case]:
    """What decides whether the row matters is not believed."""
    inputs = SOFTWARE[row]["test"]["inputs"]
    for phase, mode, own, why in itertools.product(PHASES, modes(row)[::2], OWN, (STALE, MISSING, POOR)):
        if own in inputs or (own == "service_mode" and why == MISSING and mode != "treat"):
            continue  # varied above; a bypass is not set where the mode was never seen
        for state in (GOOD, BAD_VALUE):
            yield Case(phase, mode, row, {**dict.fromkeys(inputs, state), own: why})


def play(case: Case) -> tuple[Decision, tuple[dict[str, int], ...]]:
    """Bring an engine into the phase, apply the states, let 560 ms pass. Returns (decision, values idle, in phase, after)."""
    engine = Engine(LIMITS)
    absent = {name for name, state in case.states.items() if state == MISSING}
    now_ns, values, permit = 0, dict(BASE), (0, 0)

    def step(final: dict[str, str] | None = None) -> Decision:
        nonlocal now_ns, permit
        now_ns += STEP_NS
        values["permit_b"], values["motion_permit"] = permit
        if (final or {}).get("heartbeat") != BAD_VALUE:
            values["heartbeat"] += 1
        samples = dict(GOOD_AT[now_ns // STEP_NS])
        for name, value in values.items() - BASE.items():
            samples[name] = Sample(value, True, now_ns, 0)
        for name, state in (final or {}).items():
            samples[name] = Sample(values[name], state != POOR, now_ns - (1000 * MS if state == STALE else 0), 0)
        for name in absent:
            del samples[name]
        decision, _ = engine.step(now_ns, samples)
        permit = int(decision.permit), int(decision.motion_code == 0)
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
        if name in ("permit_b", "motion_permit"):
            continue  # a relay follows its permit in these cases; the welded ones have tests of their own
        if state == BAD_VALUE:
            values[name] = bad_value(row, index, before[name])
        elif state == GOOD:
            values[name] = good_value(row, index, before[name])
    for _ in range(5):
        decision = step(dict(case.states))
    return decision, (idle, before, dict(values))


def judge(case: Case) -> Decision:
    """Play a case; the engine must do what the oracle says."""
    decision, values = play(case)
    expected = expect(case, *values)
    seen = (frozenset(decision.tripped), frozenset(decision.withheld), frozenset(a.name for a in decision.actions))
    assert seen == (expected.tripped, expected.withheld, expected.actions), case
    assert decision.permit == expected.permit, case
    assert decision.motion_code == expected.motion_code, case
    return decision


@pytest.mark.parametrize("row", list(WITH_INPUTS))
def test_each_combination_does_what_the_file_says(row):
    count, trips, passes = 0, 0, 0
    for case in cases(row):
        decision = judge(case)
        count, trips, passes = count + 1, trips + (not decision.permit), passes + decision.permit
    assert count == cells(row)
    assert trips, "a row that never withholds is no interlock"
    assert passes, "a row that always withholds is none either"


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("row", list(WITH_INPUTS))
def test_with_phase_or_mode_unknown_it_does_what_the_file_says(row, every):
    for case in itertools.islice(unknown_cases(row), 0, None, every):
        judge(case)


@pytest.mark.parametrize("row", list(SOFTWARE))
@pytest.mark.parametrize("mode", ["treat", "service"])
def test_a_bypass_is_granted_in_service_mode_for_rows_that_allow_it_and_never_else(row, mode):
    engine = Engine(LIMITS)
    values = {**BASE, "service_mode": int(mode == "service")}
    engine.step(0, {name: Sample(value, True, 0, 0) for name, value in values.items()})
    if mode == "service" and SOFTWARE[row]["reaction"]["bypassable_in"] == ["service"]:
        engine.bypass(0, row, "Ada", "Bo", "exhaustive test", 1.0)
        assert set(engine.bypasses) == {row}
    else:
        with pytest.raises(BypassRefused):
            engine.bypass(0, row, "Ada", "Bo", "exhaustive test", 1.0)
        assert not engine.bypasses


def test_the_table_covers_every_row_that_has_inputs():
    without = {name for name, row in SOFTWARE.items() if name not in WITH_INPUTS}
    assert {SOFTWARE[name]["test"]["kind"] for name in without} == {"boot", "stall", "bypass"}
