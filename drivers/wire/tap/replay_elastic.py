"""Replay of a recording made on real wires, whose times jitter: what the program decides is compared, not when it looks.

What counts as the same:

- Commands are held to the letter, each kind of thing in its order: register writes per line (the command token in front of a
  controlword is a time and does not count), puts per device, published messages per topic (their ``id`` does not count),
  questions to the operator.
- Looking is answered from the recording as it is asked, as often as it is asked: reads of registers and variables get the
  newest recorded answer to the same question, at the same place between the same commands. So are the pulses that keep a
  permit alive (a write of one or two registers together with a read), whatever their number, and opening a line again.
- Values, messages and answers come in their recorded order, never before a command that preceded them.

A question that was never asked in the recording, another command, one more or one less is a difference. Time itself is not
compared; it is stretched to where the commands fall.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from drivers.hal.clock import NS_PER_S, now_ns
from drivers.wire.framing import READ_HOLDING, READ_WRITE
from drivers.wire.tap.format import Entry, Recording
from drivers.wire.tap.replay import Difference, Replay, differing
from drivers.wire.tap.words import in_words, request_of

PATIENCE_NS = 30 * NS_PER_S  # a command that is so much later than recorded does not come any more; assumed
LINK_EARLY_NS = 5 * NS_PER_S  # assumed
LOOK_EARLY_NS = NS_PER_S // 4  # assumed
NUMBERS_FROM = 10**9  # of questions that are asked more often than they were
SIGNS_OF_LIFE = 2  # docs/wires.md, registers 127 and 128 of the safety node: written together with a read, and nothing else is
TOKEN_REGISTER, TOKEN_WORDS = 14, 2  # docs/wires.md, command token
LISTENED = frozenset({"monitor", "subscribe", "watch", "open"})
LET_GO = frozenset({"unmonitor", "unsubscribe", "unwatch", "cancel", "post", "close"})
UNORDERED = LISTENED | LET_GO
PUSHED = frozenset({"value", "message", "notice", "stopped"})  # what comes by itself

Data = Mapping[str, Any]
Key = tuple[Any, ...]


@dataclass(slots=True)
class Question:
    """A recorded look, and what came of it: pairs of how much later (ns) and what."""

    entry: Entry
    answers: list[tuple[int, Entry]] = field(default_factory=list)


class ElasticReplay(Replay):
    """Recorded real wires; see the module."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self._questions: dict[Key, list[Question]] = {}
        self._served: dict[Key, int] = {}
        self._queues: dict[str, deque[Entry]] = {}  # commands that are to come, by what keeps their order
        self._last_line: dict[str, int] = {}  # of the last command seen, by queue
        self._pushed: deque[Entry] = deque()
        self._answers: dict[int, Entry] = {}
        self._unordered: dict[Key, deque[Entry]] = {}
        self._open_commands: dict[int, Entry] = {}  # all that are to come, by line
        self._number = NUMBERS_FROM
        self._listening: set[int] = set()
        self._link_index: dict[tuple[str, str, str], int] = {}
        self._held: dict[int, list[Entry]] = {}
        self._ids: dict[bytes, bytes] = {}
        self._shift_ns: int | None = None
        self._pump_timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._index()

    # --- reading the recording --------------------------------------------------------------------------------------------

    def _index(self) -> None:
        asked: dict[str, Question] = {}
        for entry in self._entries:
            kind, wire = entry.kind, entry.wire
            if kind in PUSHED:
                self._pushed.append(entry)
            elif kind in UNORDERED:
                self._unordered.setdefault((wire, kind, entry.data.get("n")), deque()).append(entry)
                asked.pop(wire, None)
            elif kind == "write":
                key = look_of(wire, entry.data)
                asked[wire] = question = Question(entry)
                if key is not None:
                    self._questions.setdefault(key, []).append(question)
                else:
                    self._command(entry)
                    self._questions[wire, "command", entry.line] = [question]
            elif kind == "get":
                self._questions.setdefault((wire, "get", entry.data["n"]), []).append(Question(entry))
            elif entry.outward:
                self._command(entry)
            elif kind in ("read", "error") and "q" not in entry.data:
                if wire in asked:
                    question = asked[wire]
                    question.answers.append((entry.t_ns - question.entry.t_ns, entry))
            elif "q" in entry.data:
                self._answers[entry.data["q"]] = entry

    def _command(self, entry: Entry) -> None:
        self._queues.setdefault(queue_of(entry.wire, entry.kind, entry.data), deque()).append(entry)
        self._open_commands[entry.line] = entry

    # --- running ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve; the recording's first time is now."""
        self._shift_ns = now_ns() - self._entries[0].t_ns if self._entries else 0
        self._await_next()
        self._pump()

    def sent(self, wire: str, kind: str, data: Data) -> Entry | None:
        """The present program does something."""
        if self.difference is not None:
            return None
        if kind in UNORDERED:
            return self._listened(wire, kind, data)
        if kind == "write" and (key := look_of(wire, data)) is not None:
            return self._looked(key, wire, kind, data)
        if kind == "get":
            return self._looked((wire, "get", data["n"]), wire, kind, data)
        return self._commanded(wire, kind, data)

    def link_state(self, wire: str, name: str, what: str) -> int:
        """What the wire answered at this place of the recording; never what it answered before that again.

        That was only seen when somebody asked: a connection may have been there earlier than its first line says.
        """
        key = (wire, name, what)
        answers, at_ns = self._links.get(key, []), self._position_ns()
        index = self._link_index.get(key, 1 if answers and not answers[0][1] else 0)  # before the first answer there is none
        while index < len(answers) and answers[index][0] <= at_ns + (LINK_EARLY_NS if answers[index][1] else 0):
            index += 1
        self._link_index[key] = index
        return answers[index - 1][1] if index else 0

    def finish(self) -> None:
        """The run has ended: a command that was recorded and did not come is a difference."""
        if self.difference is None and self._open_commands:
            self._miss(self._open_commands[min(self._open_commands)])

    def stop(self) -> None:
        """Serve nothing any more."""
        for timer in (self._pump_timer, self._patience):
            if timer is not None:
                timer.cancel()
        super().stop()

    # --- what the program does --------------------------------------------------------------------------------------------

    def _commanded(self, wire: str, kind: str, data: Data) -> Entry | None:
        queue = queue_of(wire, kind, data)
        awaited = self._queues.get(queue)
        if not awaited:
            self._set(Difference(self._recorded_ns(), wire, 0, "surplus", "", in_words(kind, data)))
            return None
        entry = awaited[0]
        detail = "another kind of action" if kind != entry.kind else differing(kind, bare(kind, entry.data), bare(kind, data))
        if detail is not None:
            words = in_words(entry.kind, entry.data), in_words(kind, data)
            self._set(Difference(entry.t_ns, wire, entry.line, "content", *words, detail=detail))
            return None
        awaited.popleft()
        first = entry.line == min(self._open_commands)
        del self._open_commands[entry.line]
        self._last_line[queue] = entry.line
        self.matched[kind] = self.matched.get(kind, 0) + 1
        if first:
            self._shift_ns = now_ns() - entry.t_ns
            self._await_next()
            self._pump_soon()
        if kind == "publish":
            self._learn_id(entry.data["x"], data["x"])
        if kind == "write":
            self._answer_stream(self._questions[wire, "command", entry.line][0], bytes.fromhex(data["x"]))
        else:
            self._answer_later(entry)
        return entry

    def _looked(self, key: Key, wire: str, kind: str, data: Data) -> Entry | None:
        """A look: the newest recorded one like it, between the same two commands, and never an older one than before."""
        questions = self._questions.get(key)
        if not questions:
            self._set(
                Difference(self._recorded_ns(), wire, 0, "surplus", "", in_words(kind, data), "never asked in the recording")
            )
            return None
        queue = queue_of(wire, kind, data)
        after = self._last_line.get(queue, 0)
        awaited = self._queues.get(queue)
        before = awaited[0].line if awaited else len(self._entries) + 2
        between = [i for i, q in enumerate(questions) if after < q.entry.line < before]
        at_ns = self._position_ns()
        if between:
            past = [i for i in between if questions[i].entry.t_ns - early_ns(questions, i) <= at_ns]
            index = past[-1] if past else between[0]
        else:
            index = max(0, bisect_right([q.entry.line for q in questions], after) - 1)
        index = self._served[key] = max(index, self._served.get(key, 0))
        question = questions[index]
        self.matched[kind] = self.matched.get(kind, 0) + 1
        if kind == "write":
            self._answer_stream(question, bytes.fromhex(data["x"]))
            return question.entry
        return self._numbered(question.entry)

    def _listened(self, wire: str, kind: str, data: Data) -> Entry | None:
        """A monitor, a subscription, an opening: the next recorded one like it, or the last one again."""
        known = self._unordered.get((wire, kind, data.get("n")))
        if not known:
            if kind in LET_GO:
                return None
            what = in_words(kind, data)
            self._set(Difference(self._recorded_ns(), wire, 0, "surplus", "", what, "never asked in the recording"))
            return None
        entry = known.popleft() if len(known) > 1 else known[0]
        if kind == "open":
            return self._numbered(entry)
        if kind in LISTENED:
            number = entry.data["q"]
            if number not in self._listening:  # once in a run: it says where in the recording the program is
                self._shift_ns = now_ns() - entry.t_ns
                self._pump_soon()
            self._listening.add(number)
            for came in self._held.pop(number, ()):
                self._at(now_ns() / NS_PER_S, self._hand_over, came)
        return entry

    # --- what comes to the program ----------------------------------------------------------------------------------------

    def _answer_later(self, entry: Entry, number: int | None = None) -> None:
        """The recorded answer, as much later as it was then."""
        answer = self._answers.get(entry.data["q"])
        if answer is not None:
            if number is not None:
                answer = replace(answer, data={**answer.data, "q": number})
            self._at((now_ns() + max(0, answer.t_ns - entry.t_ns)) / NS_PER_S, self._hand_over, answer)

    def _numbered(self, entry: Entry) -> Entry:
        """A recorded question under a number of its own: it may be asked more often now than then. Its answer comes later."""
        self._number += 1
        self._answer_later(entry, self._number)
        return replace(entry, data={**entry.data, "q": self._number})

    def _answer_stream(self, question: Question, frame: bytes) -> None:
        """The recorded bytes; under the number of the present question, where the frames are numbered."""
        start_ns = now_ns()
        first = True
        for late_ns, entry in question.answers:
            data = dict(entry.data)
            if first and "x" in data and is_tcp(frame) and len(data["x"]) >= 4:
                data["x"] = frame[:2].hex() + data["x"][4:]
            first = False
            answer = Entry(entry.line, entry.t_ns, entry.wire, entry.kind, data)
            self._at((start_ns + late_ns) / NS_PER_S, self._hand_over, answer)

    def _hand_over(self, entry: Entry) -> None:
        if self.difference is None:
            self._exchange.deliver(entry)

    def _pump_soon(self) -> None:
        if self._pump_timer is not None:
            self._pump_timer.cancel()
        self._pump_timer = asyncio.get_running_loop().call_later(0.0, self._pump)

    def _pump(self) -> None:
        """Hand over what came by itself, up to the place in the recording where the program is."""
        self._pump_timer = None
        barrier = min(self._open_commands, default=len(self._entries) + 2)
        while self._pushed and self.difference is None:
            entry = self._pushed[0]
            due_ns = entry.t_ns + (self._shift_ns or 0)
            if entry.line > barrier:
                return  # the command before it has to come first
            if due_ns > now_ns():
                self._pump_timer = asyncio.get_running_loop().call_at(due_ns / NS_PER_S, self._pump)
                return
            self._pushed.popleft()
            number = entry.data.get("q")
            if number is None or number in self._listening:
                self._exchange.deliver(self._with_id(entry))
            else:  # who listens then does not listen yet
                self._held.setdefault(number, []).append(self._with_id(entry))

    def _await_next(self) -> None:
        """Lose patience when the next command does not come."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._open_commands:
            entry = self._open_commands[min(self._open_commands)]
            due_ns = entry.t_ns + (self._shift_ns or 0) + PATIENCE_NS
            self._patience = asyncio.get_running_loop().call_at(due_ns / NS_PER_S, self._give_up, entry)

    def _give_up(self, entry: Entry) -> None:
        if self.difference is None and entry.line in self._open_commands:
            self._miss(entry)

    def _position_ns(self) -> int:
        """Where in the recording the program is: never past a command that has not come."""
        at_ns = now_ns() - (self._shift_ns or 0)
        if self._open_commands:
            at_ns = min(at_ns, self._open_commands[min(self._open_commands)].t_ns)
        return at_ns

    def _recorded_ns(self) -> int:
        return now_ns() - (self._shift_ns or 0)

    def _learn_id(self, recorded: str, present: str) -> None:
        """A request carries an id with the time in it: its answer has to carry the present one."""
        then, now = _id_of(recorded), _id_of(present)
        if then and now:
            self._ids[then] = now

    def _with_id(self, entry: Entry) -> Entry:
        if entry.kind != "message":
            return entry
        payload = bytes.fromhex(entry.data["x"])
        for then, now in self._ids.items():
            payload = payload.replace(then, now)
        return Entry(entry.line, entry.t_ns, entry.wire, entry.kind, {**entry.data, "x": payload.hex()})


def early_ns(questions: Sequence[Question], index: int) -> int:
    """How much earlier than recorded a look may come and still be that one: half of what lies between it and the one before."""
    if not index:
        return 0
    return min((questions[index].entry.t_ns - questions[index - 1].entry.t_ns) // 2, LOOK_EARLY_NS)


def queue_of(wire: str, kind: str, data: Data) -> str:
    """Within what commands keep their order: a line, a device's variables, a topic, the operator."""
    if kind in ("put", "get"):
        return f"{wire}/{str(data['n']).rsplit(':', 2)[0]}"
    if kind == "publish":
        return f"{wire}/{data['n']}"
    return wire


def look_of(wire: str, data: Data) -> Key | None:
    """What a frame looks at, when it commands nothing: a plain read, or a sign of life together with a read."""
    request = request_of(bytes.fromhex(data["x"]))
    if request is None:
        return None
    if request.function == READ_HOLDING:
        return (wire, "read", request.unit, request.read_address, request.read_count)
    if request.function == READ_WRITE and len(request.write_values) <= SIGNS_OF_LIFE:
        signs = len(request.write_values)
        return (wire, "pulse", request.unit, request.read_address, request.read_count, request.write_address, signs)
    return None


def is_tcp(frame: bytes) -> bool:
    """Whether a Modbus frame is numbered."""
    return len(frame) >= 8 and frame[2:4] == b"\x00\x00" and int.from_bytes(frame[4:6], "big") == len(frame) - 6


def bare(kind: str, data: Data) -> Data:
    """A command without what only tells the time: transaction number, command token, id of a request, facts of a question."""
    if kind == "ask":
        return {"n": data["n"]}
    if kind == "publish":
        return {**data, "x": _without_id(data["x"])}
    if kind != "write":
        return data
    frame = bytes.fromhex(data["x"])
    request = request_of(frame)
    if request is None:
        return data
    if is_tcp(frame):
        frame = bytes(2) + frame[2:]
    first, values = request.write_address, request.write_values
    if first == TOKEN_REGISTER and len(values) > TOKEN_WORDS:
        start = frame.index(b"".join(value.to_bytes(2, "big") for value in values))
        frame = frame[:start] + bytes(2 * TOKEN_WORDS) + frame[start + 2 * TOKEN_WORDS :]
        frame = frame if is_tcp(frame) else frame[:-2]  # the checksum of another token is another
    return {**data, "x": frame.hex()}


def _id_of(payload: str) -> bytes:
    try:
        found = json.loads(bytes.fromhex(payload)).get("id")
    except (ValueError, AttributeError):
        return b""
    return found.encode() if isinstance(found, str) else b""


def _without_id(payload: str) -> str:
    found = _id_of(payload)
    return bytes.fromhex(payload).replace(found, b"").hex() if found else payload
