"""Serves recorded wires to the present program, and finds the first thing that it does differently.

A recording made in virtual time is held to the letter: what leaves on each wire is the same, in the same order, at the same
nanosecond. What came is delivered at its recorded time and in its recorded order; what another wire or a timer of the program
did at the same instant keeps its place, because a delivery is prepared as long before as the wire's own latency.

Recordings of real wires jitter and need `replay_elastic`. Not responsible for building drivers or for running a treatment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommunicationError
from drivers.wire.channels import Channels
from drivers.wire.messages import Messages
from drivers.wire.stream import StreamOpener
from drivers.wire.tap import Answers
from drivers.wire.tap.format import Entry, Recording, error_of
from drivers.wire.tap.replay_ends import Exchange, ReplayAnswers, ReplayChannels, ReplayMessages, replay_stream_opener
from drivers.wire.tap.words import in_words, request_of, rows_that_differ

LEAD_NS = 250_000  # latency of the memory twins: a delivery's timer was set so long before it
TURNS_MAX = 300  # how often a delivery waits for what preceded it in the same instant
SETTLE_TURNS = 5  # turns of the loop after which a thing of this instant has not happened
REPLAY_OVER = 2201
_NOT_COMPARED = ("q", "of", "facts", "sent")  # numbers of questions; facts are compared by themselves; what came of it

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that the present program does otherwise.

    Attributes:
        t_ns: loop time in the recording (of a surplus: in the replay), ns.
        wire: name of the wire.
        line: of the recording; 0 for a surplus at the end.
        what: in one word: ``content``, ``time``, ``missing``, ``surplus``.
        recorded, present: in words; empty where there is nothing.
        detail: where exactly they differ, as far as that can be said.
    """

    t_ns: int
    wire: str
    line: int
    what: str
    recorded: str
    present: str
    detail: str = ""

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "t_s": self.t_ns / NS_PER_S,
            "wire": self.wire,
            "line": self.line,
            "what": self.what,
            "recorded": self.recorded,
            "present": self.present,
            "detail": self.detail,
        }


def differing(kind: str, recorded: Data, present: Data) -> str | None:
    """Where two outward entries of one kind differ, in words; None when they are the same. Numbers of questions do not count.

    A Modbus TCP transaction number counts: one question more or less shifts it.
    """
    one = {key: value for key, value in recorded.items() if key not in _NOT_COMPARED}
    other = {key: value for key, value in present.items() if key not in _NOT_COMPARED}
    if repr(one) == repr(other) and recorded.get("facts") == present.get("facts"):
        return None
    if kind == "write":
        was, now = request_of(bytes.fromhex(one["x"])), request_of(bytes.fromhex(other["x"]))
        if was is not None and now is not None:
            names = ("unit", "function", "read_address", "read_count", "write_address", "write_values", "transaction")
            pairs = [(name, getattr(was, name), getattr(now, name)) for name in names]
            return "; ".join(f"{name.replace('_', ' ')} {b}, recorded {a}" for name, a, b in pairs if a != b)
    if recorded.get("facts") != present.get("facts"):
        then, at_present = dict(recorded.get("facts") or {}), dict(present.get("facts") or {})
        keys = [key for key in {**then, **at_present} if then.get(key) != at_present.get(key)]
        return "; ".join(f"{key} is {at_present.get(key)}, recorded {then.get(key)}" for key in keys)
    return rows_that_differ(one, other)


class Replay:
    """Recorded wires; a `Tap` that ignores the transports handed to it.

    Args:
        recording: what was recorded.

    Attributes:
        difference: the first one; None while there is none.
        matched: outward entries that were the same, by kind.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.difference: Difference | None = None
        self.matched: dict[str, int] = {}
        self._entries = recording.entries
        self._awaited: dict[str, deque[Entry]] = {}  # outward entries that have not been seen yet, by wire
        for entry in self._entries:
            if entry.outward:
                self._awaited.setdefault(entry.wire, deque()).append(entry)
        self._suspect: Difference | None = None  # until the instant is over in which it showed
        self._seen: set[int] = set()  # lines of outward entries that were seen
        self._first_unseen = 0
        self._next = 0  # index of the next entry to deliver
        self._turns = 0
        self._exchange = Exchange(self.sent, self.link_state)
        self._links: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for entry in self._entries:
            if entry.kind == "link":
                what = "up" if "up" in entry.data else "times"
                self._links.setdefault((entry.wire, entry.data["n"], what), []).append((entry.t_ns, int(entry.data[what])))
        self._inward = [index for index, entry in enumerate(self._entries) if not entry.outward and entry.kind != "link"]
        failed = {e.data["q"]: e for e in self._entries if e.kind == "error" and "q" in e.data}
        self._exchange.failures = {number: error_of(entry.data) for number, entry in failed.items()}
        self._timers: set[asyncio.TimerHandle] = set()

    # --- the tap --------------------------------------------------------------------------------------------------------

    def stream(self, name: str, opener: StreamOpener) -> StreamOpener:
        """The recorded stream of that name."""
        return replay_stream_opener(self._exchange, name)

    def channels(self, name: str, channels: Channels) -> Channels:
        """The recorded variables."""
        return self.recorded_channels(name)

    def messages(self, name: str, messages: Messages) -> Messages:
        """The recorded messages."""
        return self.recorded_messages(name)

    def operator(self, port: Answers) -> Answers:
        """The recorded answers."""
        return self.recorded_operator()

    # --- the same without anything to replace -----------------------------------------------------------------------------

    def recorded_channels(self, name: str) -> Channels:
        """The recorded variables of a wire."""
        return ReplayChannels(self._exchange, name)

    def recorded_messages(self, name: str) -> Messages:
        """The recorded messages of a wire."""
        return ReplayMessages(self._exchange, name)

    def recorded_operator(self) -> Answers:
        """The recorded answers."""
        return ReplayAnswers(self._exchange)

    def on_stop(self, stop: Callable[[str], None]) -> None:
        """Call `stop` with its reason when somebody ended the run then."""
        self._exchange.feed("operator", lambda entry: stop(str(entry.data["why"])))

    # --- running --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver, in the running loop. The loop's time must be what it was when the recording began."""
        self._prepare()

    def finish(self) -> None:
        """The run has ended: whatever was recorded and did not happen is a difference."""
        if self.difference is None and self._suspect is not None:
            self._set(self._suspect)
        if self.difference is None and (entry := self._unseen_before(len(self._entries))) is not None:
            self._miss(entry)

    def stop(self) -> None:
        """Deliver nothing any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._exchange.end(CommunicationError("the replay is over", code=REPLAY_OVER))

    def sent(self, wire: str, kind: str, data: Data) -> Entry | None:
        """The present program does something; the recorded entry that it equals, or None after a difference."""
        t_ns = now_ns()
        if self.difference is not None or (self._suspect is not None and self._suspect.wire == wire):
            return None
        awaited = self._awaited.get(wire)
        if not awaited:
            self._differ(Difference(t_ns, wire, 0, "surplus", "", in_words(kind, data)), t_ns)
            return None
        entry = awaited[0]
        detail = "another kind of action" if kind != entry.kind else differing(kind, entry.data, data)
        if detail is not None:
            words = in_words(entry.kind, entry.data), in_words(kind, data)
            at_ns = min(t_ns, entry.t_ns)
            self._differ(Difference(at_ns, wire, entry.line, "content", *words, detail=detail), at_ns)
            return None
        if t_ns != entry.t_ns:
            words = in_words(entry.kind, entry.data), in_words(kind, data)
            late_ms = (t_ns - entry.t_ns) / 1e6
            detail = f"{abs(late_ms):.6g} ms {'later' if late_ms > 0 else 'earlier'} than recorded"
            at_ns = min(t_ns, entry.t_ns)
            self._differ(Difference(at_ns, wire, entry.line, "time", *words, detail=detail), at_ns)
            return None
        awaited.popleft()
        self._seen.add(entry.line)
        self.matched[kind] = self.matched.get(kind, 0) + 1
        return entry

    def link_state(self, wire: str, name: str, what: str) -> int:
        """What the wire answered at this time to "is it connected?" (``up``) and "how often was it?" (``times``)."""
        state = 0
        for t_ns, answer in self._links.get((wire, name, what), ()):
            if t_ns > now_ns():
                break
            state = answer
        return state

    # --- delivering -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Set the timers of everything that is delivered within the lead, and one for the next look."""
        loop = asyncio.get_running_loop()
        while self._next < len(self._inward):
            entry = self._entries[self._inward[self._next]]
            if entry.t_ns - LEAD_NS > now_ns():
                self._at((entry.t_ns - LEAD_NS) / NS_PER_S, self._prepare)
                return
            index, self._next = self._inward[self._next], self._next + 1
            timer = loop.call_at(entry.t_ns / NS_PER_S, self._deliver, index)
            self._timers.add(timer)
            if len(self._timers) > 1000:
                self._timers = {timer for timer in self._timers if not timer.cancelled() and timer.when() >= loop.time()}

    def _at(self, t_s: float, function: Any, *args: Any) -> None:
        self._timers.add(asyncio.get_running_loop().call_at(t_s, function, *args))

    def _deliver(self, index: int) -> None:
        """One recorded thing comes; but first everything outward that was recorded before it must have been seen."""
        if self.difference is not None:
            return
        entry = self._entries[index]
        if (missing := self._unseen_before(index)) is not None:
            self._turns += 1
            if missing.t_ns < entry.t_ns or self._turns > TURNS_MAX:
                self._miss(missing)
                return
            asyncio.get_running_loop().call_soon(self._deliver, index)
            return
        self._turns = 0
        self._exchange.deliver(entry)

    def _unseen_before(self, index: int) -> Entry | None:
        """The first outward entry before `index` that was not seen."""
        while self._first_unseen < index:
            entry = self._entries[self._first_unseen]
            if entry.outward and entry.line not in self._seen:
                return entry
            self._first_unseen += 1
        return None

    def _miss(self, entry: Entry) -> None:
        self._set(Difference(entry.t_ns, entry.wire, entry.line, "missing", in_words(entry.kind, entry.data), ""))

    def _differ(self, found: Difference, at_ns: int) -> None:
        """Tell a difference; but one recorded earlier on another wire that does not come in this instant is the first."""
        if self._suspect is None:
            self._suspect = found
            asyncio.get_running_loop().call_soon(self._settle, at_ns, SETTLE_TURNS)

    def _settle(self, at_ns: int, turns: int) -> None:
        if self.difference is not None or self._suspect is None:
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._settle, at_ns, turns - 1)
            return
        entry, found = self._unseen_before(len(self._entries)), self._suspect
        if entry is not None and entry.t_ns <= at_ns and (not found.line or entry.line < found.line):
            self._miss(entry)
        else:
            self._set(found)

    def _set(self, difference: Difference) -> None:
        """From here on every wire is gone: the program winds up by itself, and what it does is not compared."""
        self.difference = difference
        self._exchange.end(CommunicationError("the replay is over", code=REPLAY_OVER))
