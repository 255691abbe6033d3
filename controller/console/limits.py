"""How often somebody may ask: token buckets by peer and by sign-in, waits after wrong passwords. Stop passes none of them.

Pure but for the clock that is handed in. Bounded: what is forgotten first is what was not seen for longest.
Not responsible for answering (`guard`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

# Requests of nobody known, by address. All browsers of one computer share it, and a page is about 20 files. Assumed.
PEER_PER_S, PEER_BURST = 300.0, 1500.0
SIGNED_PER_S, SIGNED_BURST = 50.0, 150.0  # requests of one sign-in. Assumed
FREE_FAILURES = 3
WAIT_MAX_S = 30.0  # a colleague's wrong passwords must not keep somebody out for long. Assumed
FORGET_S = 15 * 60.0
KEYS_MAX = 4096


@dataclass(slots=True)
class _Level:
    tokens: float
    at_s: float


class Buckets:
    """One token bucket for each key.

    Args:
        per_s, burst: refill and size.
        clock_s: loop time, s.
    """

    def __init__(self, per_s: float, burst: float, clock_s: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock_s = clock_s
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def take(self, key: str) -> float:
        """0 when it may pass, else how long to wait, s."""
        now_s = self._clock_s()
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = _Level(self._burst, now_s)
            while len(self._levels) > KEYS_MAX:
                self._levels.popitem(last=False)
        else:
            self._levels.move_to_end(key)
        level.tokens = min(self._burst, level.tokens + (now_s - level.at_s) * self._per_s)
        level.at_s = now_s
        if level.tokens < 1.0:
            return (1.0 - level.tokens) / self._per_s
        level.tokens -= 1.0
        return 0.0


@dataclass(slots=True)
class _Failures:
    count: int
    next_s: float
    at_s: float


class Failures:
    """Waits after wrong passwords: none for the first three, then 1, 2, 4 ... 30 s.

    Args:
        clock_s: loop time, s.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._known: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def wait_s(self, name: str, peer: str) -> float:
        """0 when a password may be tried, else how long to wait, s."""
        found = self._known.get((name, peer))
        return 0.0 if found is None else max(0.0, found.next_s - self._clock_s())

    def failed(self, name: str, peer: str) -> None:
        """It was wrong."""
        now_s = self._clock_s()
        found = self._known.get((name, peer))
        if found is None or now_s - found.at_s > FORGET_S:
            found = _Failures(0, now_s, now_s)
        found.count += 1
        found.at_s = now_s
        extra = found.count - FREE_FAILURES
        found.next_s = now_s + (min(2.0 ** (extra - 1), WAIT_MAX_S) if extra > 0 else 0.0)
        self._known[(name, peer)] = found
        self._known.move_to_end((name, peer))
        while len(self._known) > KEYS_MAX:
            self._known.popitem(last=False)

    def succeeded(self, name: str, peer: str) -> None:
        """It was right."""
        self._known.pop((name, peer), None)
