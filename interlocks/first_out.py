"""Which interlock was first, what followed from it, and what the inputs did in the 10 s before and after.

Trips are numbered from 1 without gaps. The first while nothing is tripped is the first-out; all until everything is clear again
are consequential. That the system has just started is no cause of anything: it is left out of this. Not responsible for
deciding (`engine`) nor for storing evidence on disk (`daemon` hands it to a journal).
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import NamedTuple

from interlocks.matrix import Interlock

SPAN_NS = 10_000_000_000  # assumed: ring buffer before and after
EPISODES_KEPT = 32

State = tuple[str, int | None, bool]  # input, value (None: never seen), believed
Change = tuple[int, tuple[State, ...]]  # time ns, inputs that changed
UNBELIEVED = 0x8000  # added to the index of an input that is missing, stale or of bad quality
NO_INPUT = (0xFFFF, 0, 0)  # a cause of our own
NOT_KNOWN = "not known", "Nothing was found bad: check the link to the room, and the computer for load; then reset."


def told_of(row: Interlock, shown: int) -> tuple[str, str]:
    """What is told of a trip, and to do: the row's own words, unless the input that shows it is only not believed."""
    return NOT_KNOWN if shown & UNBELIEVED and shown != NO_INPUT[0] and row.kind != "stale" else (row.what, row.advice)


class Trip(NamedTuple):
    """One interlock has tripped."""

    seq: int
    id: str
    code: int
    first_out: bool  # False: consequential
    t_ns: int
    what: str
    limit: str
    states: tuple[State, ...]  # of the row's inputs, at that time
    advice: str
    shown: tuple[int, int, int] = NO_INPUT  # index of the input that shows it, value, what is allowed; for the status line

    @property
    def cause(self) -> str:
        """What happened, the values, and the limit, in one line."""
        seen = [f"{name} {'missing' if v is None else v}{'' if ok else ' (not valid)'}" for name, v, ok in self.states]
        limit = self.limit.removeprefix("limit ").removeprefix("value ")
        return f"{self.what}: {', '.join(seen) or 'internal'}{'; limit ' if limit else ''}{limit}"


class Episode(NamedTuple):
    """Evidence of one first-out, complete 10 s after it. `digest`: SHA-256 over trips and both buffers."""

    trips: tuple[Trip, ...]
    before: tuple[Change, ...]
    after: tuple[Change, ...]
    digest: str


class FirstOut:
    """Numbers trips, keeps the ring buffer, closes episodes."""

    def __init__(self) -> None:
        self.first: Trip | None = None  # of the current episode; None when nothing is tripped
        self.episodes: deque[Episode] = deque(maxlen=EPISODES_KEPT)
        self._ring: deque[Change] = deque()
        self._open: list[tuple[list[Trip], tuple[Change, ...]]] = []
        self._seq = 0

    def note(self, now_ns: int, states: tuple[State, ...]) -> None:
        """Remember a change of inputs, and forget what is older than the span."""
        self._ring.append((now_ns, states))
        while self._ring[0][0] < now_ns - SPAN_NS:
            self._ring.popleft()

    def trip(self, now_ns: int, row: Interlock, states: tuple[State, ...], shown: tuple[int, int, int] = NO_INPUT) -> Trip:
        """Number a new trip; the first since all was clear opens an episode."""
        self._seq += 1
        limit = ", ".join(f"{k} {v}" for k, v in row.params.items()) + (f" {row.unit}" if row.unit else "")
        what, advice = told_of(row, shown[0])
        trip = Trip(self._seq, row.id, row.code, self.first is None, now_ns, what, limit, states, advice, shown)
        if row.kind == "boot":
            return trip
        if self.first is None:
            self.first = trip
            self._open.append(([], tuple(self._ring)))
        if self._open:
            self._open[-1][0].append(trip)
        return trip

    def all_clear(self) -> None:
        """Nothing is tripped any more: the next trip is a first-out again."""
        self.first = None

    def close_due(self, now_ns: int) -> None:
        """Complete the episodes whose 10 s are over."""
        while self._open and now_ns - self._open[0][0][0].t_ns >= SPAN_NS:
            trips, before = self._open.pop(0)
            start_ns = trips[0].t_ns
            after = tuple(c for c in self._ring if start_ns < c[0] <= start_ns + SPAN_NS)
            evidence = repr((trips, before, after)).encode()
            self.episodes.append(Episode(tuple(trips), before, after, hashlib.sha256(evidence).hexdigest()))
