"""A facility's overlay of the limits file: it may tighten rows, require plan and proof test, and give conversion figures.

Judged against the shipped file before anything is merged, every reason at once: nothing may be relaxed in any class, no row is
new or gone, and a changed row says who says so. Not responsible for what a row means (`matrix` judges the merged file again).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LOWER = ("limit", "percent", "floor", "high", "vote", "warn", "correct", "pause")  # figures: lower is tighter
FORM = "a row is [interlock.ID] with source and test = { FIGURE = ... }, when or reaction; else [engine], [conversion.UNIT]"
PHASE_ORDER = {"never": 0, "beam": 1, "requested": 1, "moving": 1, "armed": 2, "always": 3}


def overlay_of(facility: str) -> Path | None:
    """The shipped overlay of a facility, if there is one."""
    path = Path(__file__).with_name("limits.d") / f"{facility}.toml"
    return path if path.is_file() else None


def is_number(value: Any) -> bool:
    """Whether a value of a table is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _at_most(new: Any, old: Any) -> bool:
    return is_number(new) and is_number(old) and 0 <= new <= old


def _at_least(new: Any, old: Any) -> bool:
    return is_number(new) and new >= (old if is_number(old) else 0)


def _switch_on(new: Any, old: Any) -> bool:
    return new is True or (new is False and old is False)


# Table and key: whether the new value is as tight as the old one, or tighter. What is not here stays as it is.
TIGHTER: Mapping[tuple[str, str], Callable[[Any, Any], bool]] = {
    **{("test", key): _at_most for key in LOWER},
    ("test", "low"): lambda new, old: is_number(new) and new >= old,
    ("when", "deadline_ms"): _at_most,
    ("when", "debounce_ms"): lambda new, old: _at_most(new, 0 if old is None else old),
    ("when", "hold_ms"): _at_least,
    ("when", "withholds"): lambda new, old: new in ("always", old),
    ("when", "trips"): lambda new, old: new == old or PHASE_ORDER.get(str(new), -1) > PHASE_ORDER.get(str(old), 9),
    ("reaction", "latch"): _switch_on,
    ("reaction", "bypassable_in"): lambda new, old: new in ([], old),
    ("reaction", "action"): lambda new, old: isinstance(new, list) and set(map(str, old)) <= set(map(str, new)),
    ("engine", "plan_required"): _switch_on,
    ("engine", "proof_required"): _switch_on,
    **{("engine", key): _at_most for key in ("poll_ms", "stall_ms", "stale_ms", "bypass_max_h")},
}


def merged(shipped: Mapping[str, Any], over: Mapping[str, Any], reasons: list[str]) -> dict[str, Any]:
    """The shipped tables with those of the overlay; what it may not do goes to `reasons` and is left out."""
    tables = {name for name in ("engine", "interlock", "conversion") if isinstance(over.get(name), dict)}
    reasons += [f"overlay: unknown table {name!r}: {FORM}" for name in over if name not in tables]
    engine, rows = _table("engine", "engine", shipped["engine"], over.get("engine", {}), reasons), dict(shipped["interlock"])
    changed = over.get("interlock", {})
    for name, change in changed.items() if isinstance(changed, dict) else ():
        if name not in rows or not isinstance(change, dict):
            reasons.append(f"overlay: {name} is not a row of the shipped file")
            continue
        if not isinstance(change.get("source"), str) or not change["source"]:
            reasons.append(f"overlay: {name}: source missing: who says so?")
        if "when" in change and not (isinstance(change["when"], dict) and "deadline_ms" in change["when"]):
            reasons.append(f"overlay: {name}: deadline_ms missing")
        unknown = change.keys() - {"test", "when", "reaction", "source"}
        reasons += [f"overlay: {name}: {key} cannot be changed: {FORM}" for key in sorted(unknown)]
        row = rows[name]
        parts = {t: _table(name, t, row[t], change[t], reasons) for t in ("test", "when", "reaction") if t in change}
        rows[name] = {**row, **parts, "source": f"{row['source']}; facility: {change.get('source')}"}
    return {**shipped, "engine": engine, "interlock": rows, "conversion": over.get("conversion", {})}


def _table(row: str, table: str, old: Mapping[str, Any], new: Any, reasons: list[str]) -> dict[str, Any]:
    if not isinstance(new, dict):
        reasons.append(f"overlay: {row}: {table} is not a table")
        return dict(old)
    for key, value in new.items():
        tighter = TIGHTER.get((table, key))
        if value == old.get(key) and type(value) is type(old.get(key)):
            continue
        if tighter is None or (key not in old and key not in ("debounce_ms", "hold_ms")):
            reasons.append(f"overlay: {row}: {key} cannot be changed")
        elif not tighter(value, old.get(key)):
            reasons.append(f"overlay: {row}: {key} = {value!r} relaxes {old.get(key)!r}")
    return {**old, **new}


def figures(conversion: Any, reasons: list[str]) -> dict[tuple[str, int], tuple[tuple[float, float], ...]]:
    """`[conversion.UNIT]` tables, species = [[MeV/u, counts of monitor 1 per unit], ...], energies ascending.

    `ratio2`: counts of monitor 2 per count of monitor 1. `excess2`: counts of monitor 2 that a field may have beyond the plan.
    """
    found: dict[tuple[str, int], tuple[tuple[float, float], ...]] = {}
    for unit, species in conversion.items() if isinstance(conversion, dict) else ():
        for token, table in species.items() if isinstance(species, dict) else ():
            pairs = [pair for pair in table if isinstance(pair, list) and len(pair) == 2] if isinstance(table, list) else []
            whole = bool(pairs) and len(pairs) == len(table) and all(is_number(x) and x > 0 for pair in pairs for x in pair)
            rising = whole and all(a[0] < b[0] for a, b in itertools.pairwise(pairs))
            if unit not in ("MU", "NP", "ratio2", "excess2") or not token.isdecimal() or not rising:
                reasons.append(f"conversion.{unit}.{token}: not pairs of rising energy and counts, all above 0")
            else:
                found[unit, int(token)] = tuple((float(energy), float(counts)) for energy, counts in pairs)
    return found
