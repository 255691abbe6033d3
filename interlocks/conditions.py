"""What "bad" means: pure functions of values, what was remembered, and the time. Nothing here keeps state or acts.

A condition that needs a memory gets it as an argument and returns the next one, an immutable value. Values are integers as
the room safety node gives them (mdeg, um, ppm, counts, bits); times are integer ns. Not responsible for whether a value may be
believed (`stale` below decides age, `inputs` quality), nor for when a condition matters and what follows from it (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

NEVER_NS = 1 << 62  # later than any deadline
NS_PER_MS = 1_000_000

Params = Mapping[str, Any]  # the `test` table of a row; `matrix` has checked names, types and signs


class Verdict(NamedTuple):
    """Outcome of a condition over all of its inputs: is it bad, what to remember, when to look again without any change."""

    bad: bool
    memory: Any
    due_ns: int = NEVER_NS


# --- elements -----------------------------------------------------------------------------------------------------


def stale(t_ns: int, now_ns: int, stale_ns: int) -> bool:
    """Whether a sample of time `t_ns` is too old to believe; one from the future is not believed either."""
    return not 0 <= now_ns - t_ns <= stale_ns


def vote(bad: Sequence[bool], needed: int) -> bool:
    """M out of N: true when at least `needed` channels are bad (1 = any channel trips, N = all must agree to trip)."""
    return sum(bad) >= needed


def delay_on(raw: bool, since_ns: int | None, now_ns: int, delay_ns: int) -> tuple[bool, int | None, int]:
    """True once `raw` has lasted `delay_ns`. Returns (delayed, since, due): `since` is None while `raw` is false."""
    if not raw:
        return False, None, NEVER_NS
    start = now_ns if since_ns is None else min(since_ns, now_ns)  # set back: what began in the future begins now
    if now_ns - start >= delay_ns:
        return True, start, NEVER_NS
    return False, start, start + delay_ns


def delay_off(raw: bool, was: bool, since_ns: int | None, now_ns: int, delay_ns: int) -> tuple[bool, int | None, int]:
    """True while `raw` and `delay_ns` longer. `was`: the last outcome. Returns (delayed, since `raw` ended, due)."""
    if raw or not was:
        return raw, None, NEVER_NS
    start = now_ns if since_ns is None else min(since_ns, now_ns)
    if now_ns - start >= delay_ns:
        return False, None, NEVER_NS
    return True, start, start + delay_ns


def latch(active: bool, latched: bool, reset: bool) -> bool:
    """Remembers `active` until `reset`; an active cause cannot be reset."""
    return active or (latched and not reset)


# --- one channel: bad or not; `was` gives hysteresis ----------------------------------------------------------------


def equal(p: Params, value: int, was: bool, wanted: int) -> bool:
    """Bad unless `value` is the wanted one."""
    return value != wanted


def limit(p: Params, value: int, was: bool, wanted: int) -> bool:
    """Bad above `limit` in size; good again only at or below `limit - hysteresis`."""
    return bool(abs(value) > p["limit"] - (p.get("hysteresis", 0) if was else 0))


def band(p: Params, value: int, was: bool, wanted: int) -> bool:
    """Bad outside [low, high]; good again only `hysteresis` inside."""
    inner = p.get("hysteresis", 0) if was else 0
    return not p["low"] + inner <= value <= p["high"] - inner


# --- several inputs judged together, or one over time ---------------------------------------------------------------


def apart(p: Params, a: int, b: int) -> int:
    """Distance of two values, the short way round when the row has a `modulus` (a full turn)."""
    distance = abs(a - b)
    if "modulus" not in p:
        return distance
    turn = int(p["modulus"])
    return min(distance % turn, turn - distance % turn)


def difference(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when two values are more than `limit` apart (memory: was bad). `neutral`: the first says "nothing measured"."""
    allowed = p["limit"] - (p.get("hysteresis", 0) if memory else 0)
    bad = values[0] != p.get("neutral") and apart(p, values[0], values[1]) > allowed
    return Verdict(bad, bad)


def drift(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when any value has moved more than `limit` from where it was when the row's phase began (memory: those values)."""
    reference = tuple(values) if memory is None else memory
    return Verdict(any([apart(p, now, then) > p["limit"] for now, then in zip(values, reference, strict=True)]), reference)


def pattern(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when the values are exactly the forbidden combination."""
    return Verdict(list(values) == list(p["forbidden"]), None)


def discrepancy(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when two contacts of one thing do not agree (1oo2D); the row's debounce is the time allowed to both to follow."""
    return Verdict(len(set(values)) > 1, None)


def still(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when a value that must keep changing has stood for `limit` ms (memory: it, and since when)."""
    since_ns = min(memory[1], now_ns) if memory is not None and memory[0] == values[0] else now_ns
    due_ns = since_ns + p["limit"] * NS_PER_MS
    return Verdict(now_ns >= due_ns, (values[0], since_ns), due_ns if now_ns < due_ns else NEVER_NS)


def above(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when the first value is above the second by more than `percent` of it and `floor`. A second of 0: no ceiling."""
    value, ceiling = values
    return Verdict(ceiling > 0 and value > ceiling * (1 + p["percent"] / 100.0) + p["floor"], None)


History = tuple[tuple[int, tuple[int, ...]], ...]  # (time ns, values), oldest first; a value holds until the next


def slide(history: History, now_ns: int, values: tuple[int, ...], window_ns: int) -> History:
    """Add `values` and forget what left the window, but for the one item that held at its beginning."""
    if not history or history[-1][1] != values:
        history = (*history, (now_ns, values))
    first = 0
    while first + 1 < len(history) and history[first + 1][0] <= now_ns - window_ns:
        first += 1
    return history[first:]


def judge_window(history: History, window_ns: int, bad: list[bool]) -> tuple[bool, int]:
    """Verdict over the window, and when it turns into the other one by older values leaving the window alone.

    `bad`: the verdict if the window began with each value of the history.
    """
    if (not bad[0]) not in bad:
        return bad[0], NEVER_NS
    return bad[0], history[bad.index(not bad[0])][0] + window_ns


def rate(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when a value changed faster than `limit` per second, on average over `window_ms` (memory: history)."""
    window_ns, allowed = p["window_ms"] * NS_PER_MS, p["limit"] * p["window_ms"]
    history = slide(memory or (), now_ns, tuple(values), window_ns)
    bad, due_ns = judge_window(history, window_ns, [abs(values[0] - base[0]) * 1000 > allowed for _, base in history])
    return Verdict(bad, history, due_ns)


def window(p: Params, values: Sequence[int], memory: Any, now_ns: int) -> Verdict:
    """Bad when two counters gained different counts within `window_ms`: by more than `percent` of the larger gain and `floor`.

    `ratio` is counts of the second per count of the first. A counter that falls was set to zero for a new field; what it shows
    then was counted since, so each is summed on its own and one that keeps falling to zero still shows as a difference.
    Memory: (values as read, sums, history of sums).
    """
    (old1, old2), (sum1, sum2), history = memory or (values, (0, 0), ())
    new1, new2 = values
    sum1 += new1 - old1 if new1 >= old1 else new1
    sum2 += new2 - old2 if new2 >= old2 else new2
    window_ns = p["window_ms"] * NS_PER_MS
    history = slide(history, now_ns, (sum1, sum2), window_ns)
    share, floor, ratio = p["percent"] / 100.0, p["floor"], p.get("ratio", 1.0)
    gains = [((sum1 - base1) * ratio, sum2 - base2) for _, (base1, base2) in history]
    differ = [abs(a - b) > floor and abs(a - b) > share * max(a, b) for a, b in gains]
    bad, due_ns = judge_window(history, window_ns, differ)
    return Verdict(bad, ((new1, new2), (sum1, sum2), history), due_ns)


def offender(kind: str, p: Params, values: Sequence[int], wanted: Sequence[int], memory: Any) -> tuple[int, int, int]:
    """Of a row that is bad by its values: which input shows it (from 0), what, and what is allowed, in the row's unit."""
    if kind in CHANNEL:
        allowed = list(wanted)
        if kind != "equal":
            allowed = [p["limit"] if kind == "limit" else p["high"] if v > p["low"] else p["low"] for v in values]
        excess = [abs(v) - a if kind == "limit" else abs(v - a) for v, a in zip(values, allowed, strict=True)]
        index = excess.index(max(excess))
        return index, values[index], allowed[index]
    if kind == "rate":
        return 0, (values[0] - memory[0][1][0]) * 1000 // p["window_ms"], p["limit"]
    if kind == "window":
        a, b = (last - first for last, first in zip(memory[1], memory[2][0][1], strict=True))
        return int(b > a), round(abs(a * p.get("ratio", 1.0) - b)), round(max(p["floor"], p["percent"] / 100.0 * max(a, b)))
    if kind == "difference":
        return 0, apart(p, values[0], values[1]), p["limit"]
    if kind == "drift":
        moved = [apart(p, now, then) for now, then in zip(values, memory, strict=True)]
        return moved.index(max(moved)), max(moved), p["limit"]
    if kind == "above":
        return 0, values[0], round(values[1] * (1 + p["percent"] / 100.0) + p["floor"])
    if kind == "still":
        return 0, p["limit"], p["limit"]
    return 0, values[0], 0 if kind == "feedback" else values[-1]


CHANNEL: Mapping[str, Callable[[Params, int, bool, int], bool]] = {"equal": equal, "limit": limit, "band": band}
JOINT: Mapping[str, Callable[[Params, Sequence[int], Any, int], Verdict]] = {
    judge.__name__: judge for judge in (difference, drift, pattern, discrepancy, still, above, rate, window)
}
