"""What limits.toml says must happen, worked out again from the file alone: no code of the package under test is used here.

A case is: the room was good and in a phase for a while; then, at one instant, some inputs took a state and kept it for 560 ms.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAW = tomllib.loads((Path(__file__).parents[2] / "interlocks" / "limits.toml").read_text(encoding="utf-8"))
SOFTWARE = {name: row for name, row in RAW["interlock"].items() if row["sort"]["acts"] == "software"}
WITH_INPUTS = {name: row for name, row in SOFTWARE.items() if row["test"].get("inputs")}

CASE_MS = 560  # how long the states of a case last
GOOD, BAD_VALUE, STALE, MISSING, POOR = "good", "bad value", "stale", "missing", "poor quality"
STATES = (GOOD, BAD_VALUE, STALE, MISSING, POOR)


def good_value(row: Mapping[str, Any], index: int, base: int) -> int:
    """A value with which this row is content, whatever its other inputs show of theirs."""
    test = row["test"]
    if test["kind"] == "equal":
        return test["value"][index] if isinstance(test["value"], list) else test["value"]
    if test["kind"] == "pattern":
        return 1 - test["forbidden"][index]
    return base


def bad_value(row: Mapping[str, Any], index: int, base: int) -> int:
    """A value that this row objects to, if its other inputs stay good."""
    test = row["test"]
    match test["kind"]:
        case "equal":
            wanted = good_value(row, index, base)
            return 1 - wanted if wanted in (0, 1) else wanted - 1
        case "pattern":
            return test["forbidden"][index]
        case "limit":
            return -test["limit"] - 1
        case "band":
            return test["high"] + 1
        case "difference":
            return base + test["limit"] + 1
        case "above":
            return base * 2 + test["floor"] if index == 0 else base // 2
        case "drift":
            return base + test["limit"] + 1
        case "rate":
            return base + test["limit"] * test["window_ms"] // 1000 + 1
        case "window":
            return base + 1000
        case "discrepancy":
            return 1 - base
        case "feedback" | "stale":
            return 1 - base
        case "still":
            return base  # and stays there
    raise AssertionError(test["kind"])


@dataclass(frozen=True)
class Case:
    """One combination."""

    phase: str  # idle, moving, armed, beam
    mode: str  # treat, service, bypass, bypass then treat
    row: str  # whose inputs vary, and which is bypassed where the mode says so
    states: Mapping[str, str]  # of those inputs


@dataclass(frozen=True)
class Expected:
    tripped: frozenset[str]
    withheld: frozenset[str]
    actions: frozenset[str]
    standing: frozenset[str]  # of those tripped: the cause is there now

    @property
    def permit(self) -> bool:
        return not self.tripped and not self.withheld

    @property
    def motion_code(self) -> int:
        """First-out code of the row that withholds motion, the first in the file; 0: none does."""
        for name, row in SOFTWARE.items():
            asked = set(row["reaction"]["action"])
            stops, inhibits = asked & {"MOTION_STOP", "EMERGENCY"}, "INHIBIT_MOTION" in asked
            if (stops and name in self.tripped) or (inhibits and name in self.standing):
                return int(row["sort"]["code"])
        return 0


def cause(
    row: Mapping[str, Any], base: Mapping[str, int], final: Mapping[str, int], began_armed: bool, began_moving: bool
) -> bool:
    """Whether the values alone, all believed, are bad for this row."""
    test = row["test"]
    values = [final[i] for i in test["inputs"]]
    before = [base[i] for i in test["inputs"]]
    match test["kind"]:
        case "pattern":
            return values == test["forbidden"]
        case "difference":
            gap = abs(values[0] - values[1])
            if "modulus" in test:
                gap = min(gap % test["modulus"], -gap % test["modulus"])
            return gap > test["limit"] and values[0] != test.get("neutral", object())
        case "above":
            return values[0] - test["floor"] > values[1] * (100 + test["percent"]) / 100 and values[1] != 0
        case "still":
            return final is not base and values == before  # a case lasts longer than any such row allows
        case "drift":
            return began_armed and any(abs(v - b) > test["limit"] for v, b in zip(values, before, strict=True))
        case "rate":
            return began_moving and abs(values[0] - before[0]) / (test["window_ms"] / 1000) > test["limit"]
        case "window":
            gains = [v - b for v, b in zip(values, before, strict=True)]
            return began_armed and abs(gains[0] - gains[1]) > max(max(gains) * test["percent"] / 100, test["floor"])
        case "discrepancy":
            return values[0] != values[1]
        case "stale" | "feedback":  # the relay of the cases follows the permit
            return False
    raise AssertionError(test["kind"])


def standing(
    case: Case, phase: str, bypassed: bool, base: Mapping[str, int], final: Mapping[str, int], states: Mapping[str, str]
) -> tuple[set[str], set[str]]:
    """Rows whose cause is there and matters, and rows that withhold without that, at one stage of a case."""

    def invalid(name: str) -> bool:
        return states.get(name, GOOD) in (STALE, MISSING, POOR)

    armed = invalid("armed") or final["armed"] != 0
    began_armed = phase in ("armed", "beam") or states.get("armed") == MISSING
    began_moving = phase == "moving" or states.get("standstill") == MISSING
    asked = phase == "beam" or invalid("permit_r") or final["permit_r"] != 0
    phases = {
        "always": True,
        "never": False,
        "armed": armed,
        "requested": armed and asked,
        "beam": invalid("beam_present") or final["beam_present"] != 0,
        "moving": invalid("standstill") or final["standstill"] != 1,
    }
    tripped, withheld = set(), set()
    for name, row in WITH_INPUTS.items():
        test, inputs = row["test"], row["test"]["inputs"]
        if test["kind"] in ("equal", "limit", "band"):
            unbelieved, wrong = sum(map(invalid, inputs)), 0
            for index, i in enumerate(inputs):
                if test["kind"] == "equal":
                    off = final[i] != good_value(row, index, base[i])
                elif test["kind"] == "limit":
                    off = abs(final[i]) > test["limit"]
                else:
                    off = not test["low"] <= final[i] <= test["high"]
                wrong += off and not invalid(i)
            needed = test.get("vote", 1)
            bad = unbelieved + wrong >= needed
            if wrong >= needed and row["when"].get("debounce_ms", 0) > CASE_MS:
                bad = False  # what is believed and only short
        else:
            lasts = row["when"].get("debounce_ms", 0) <= CASE_MS  # what is believed and only short is not bad
            bad = any(map(invalid, inputs)) or (lasts and cause(row, base, final, began_armed, began_moving))
        if bypassed and name == case.row:
            continue
        if bad and phases[row["when"]["trips"]]:
            tripped.add(name)
        elif bad and row["when"]["withholds"] == "always":
            withheld.add(name)
    return tripped, withheld


def expect(case: Case, idle: Mapping[str, int], base: Mapping[str, int], final: Mapping[str, int]) -> Expected:
    """The end of a case. It goes idle, phase (and bypass), states; a missing input is so from the start, and trips latch."""
    missing = {name: state for name, state in case.states.items() if state == MISSING}
    earlier = standing(case, "idle", False, idle, idle, missing)[0]
    earlier |= standing(case, case.phase, case.mode.startswith("bypass"), base, base, missing)[0]
    mode_known = case.states.get("service_mode", GOOD) == GOOD
    tripped, withheld = standing(case, case.phase, case.mode == "bypass" and mode_known, base, final, case.states)
    now = frozenset(tripped)
    tripped |= {name for name in earlier if SOFTWARE[name]["reaction"]["latch"]}
    if case.mode == "bypass then treat" or (case.mode == "bypass" and not mode_known):
        tripped.add(next(name for name, row in SOFTWARE.items() if row["test"]["kind"] == "bypass"))
    actions = {action for name in tripped for action in SOFTWARE[name]["reaction"]["action"]}
    return Expected(frozenset(tripped), frozenset(withheld - tripped), frozenset(actions), now)
