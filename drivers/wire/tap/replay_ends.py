"""The program's ends of recorded wires: streams, variables, messages, answers that come from a recording.

They ask whoever replays (`Exchange.sent`) which recorded action the present one is, and wait for what was recorded to follow.
Not responsible for comparing, nor for when something is delivered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError
from drivers.wire.channels import PutValue, Sample, Severity
from drivers.wire.inbox import Inbox
from drivers.wire.messages import Message
from drivers.wire.stream import Stream, StreamOpener
from drivers.wire.tap.format import Entry, error_of, put_field, value_of

Sent = Callable[[str, str, Mapping[str, Any]], Entry | None]


class Exchange:
    """Brings recorded questions and answers together.

    Args:
        sent: tells what the present program does; answers the recorded entry, or None when nothing is served any more.
        link: whether a wire was connected at this time (``"up"``), or how often it had been (``"times"``).

    Attributes:
        failures: how recorded actions failed that are not answered later, by their number.
    """

    def __init__(self, sent: Sent, link: Callable[[str, str, str], int]) -> None:
        self.sent = sent
        self.link = link
        self.failures: dict[int, Exception] = {}
        self._waiting: dict[int, asyncio.Future[Entry]] = {}
        self._early: dict[int, Entry] = {}
        self._callbacks: dict[int, Callable[[Entry], None]] = {}
        self._streams: dict[str, Callable[[Entry], None]] = {}
        self._ends: dict[str, Callable[[], None]] = {}
        self._over: Exception | None = None

    def deliver(self, entry: Entry) -> None:
        """Something recorded comes to the program."""
        number = entry.data.get("q")
        if number is None:
            if (stream := self._streams.get(entry.wire)) is not None:
                stream(entry)
        elif (callback := self._callbacks.get(number)) is not None:
            callback(entry)
        elif (waiter := self._waiting.get(number)) is not None:
            if not waiter.done():
                waiter.set_result(entry)
        else:
            self._early[number] = entry

    async def ask(self, wire: str, kind: str, data: Mapping[str, Any]) -> Entry:
        """Do something that is answered, and wait for the answer. Raises what was recorded."""
        question = self.sent(wire, kind, data)
        if question is None:
            raise self._over or CommunicationError("the replay serves nothing any more", code=2201)
        number = question.data["q"]
        try:
            answer = await self.answer(number)
        except asyncio.CancelledError:
            self.sent(wire, "cancel", {"q": number})
            raise
        if answer.kind == "error":
            raise error_of(answer.data)
        return answer

    async def answer(self, number: int) -> Entry:
        """Wait for the answer to a recorded question."""
        if (early := self._early.pop(number, None)) is not None:
            return early
        if self._over is not None:
            raise self._over
        waiter: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        try:
            return await waiter
        finally:
            self._waiting.pop(number, None)

    @property
    def over(self) -> Exception | None:
        """Why nothing is served any more; None while it is."""
        return self._over

    def call(self, number: int, callback: Callable[[Entry], None]) -> None:
        """Hand every delivery of a recorded monitor or subscription to a callback."""
        self._callbacks[number] = callback

    def end_call(self, number: int) -> None:
        """Hand over nothing any more."""
        self._callbacks.pop(number, None)

    def feed(self, wire: str, take: Callable[[Entry], None], gone: Callable[[], None] | None = None) -> None:
        """Hand what arrives on a stream to its newest end; `gone` is called when nothing is served any more."""
        self._streams[wire] = take
        if gone is not None:
            self._ends[wire] = gone

    def end(self, error: Exception) -> None:
        """Whoever still waits is told so, and whoever asks from now on."""
        self._over = error
        for stream in tuple(self._ends.values()):
            stream()
        for waiter in tuple(self._waiting.values()):
            if not waiter.done():
                waiter.set_exception(error)


def replay_stream_opener(exchange: Exchange, wire: str) -> StreamOpener:
    """Opens the recorded stream of a wire, or fails as it failed then."""

    async def opened() -> Stream:
        await exchange.ask(wire, "open", {})
        return ReplayStream(exchange, wire)

    return opened


class ReplayStream:
    """A stream whose reads come from a recording."""

    def __init__(self, exchange: Exchange, wire: str) -> None:
        self.name = wire
        self._exchange = exchange
        self._inbox = Inbox(wire)
        self._gone = False
        self._error: Exception | None = None
        exchange.feed(wire, self._take, self._end)

    async def read(self, n: int = 4096, timeout_s: float | None = None) -> bytes:
        """What was read then, when it was read then; TimeoutError after `timeout_s` of nothing."""
        if not self._inbox.data and not self._gone and self._error is None:
            await self._inbox.wait(timeout_s)
        if self._inbox.data:
            return self._inbox.take(n)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._gone:
            return b""
        raise TimeoutError(f"{self.name}: nothing within {timeout_s} s")

    async def write(self, data: bytes) -> None:
        """Compare with what was written then; fails as it failed then."""
        entry = self._exchange.sent(self.name, "write", {"x": data.hex()})
        if self._exchange.over is not None:
            raise ConnectionResetError(str(self._exchange.over))
        if entry is not None and (error := self._exchange.failures.get(entry.data["q"])) is not None:
            raise error

    def discard_input(self) -> int:
        """Nothing: what was thrown away then was never recorded, and what was recorded was read."""
        return 0

    async def close(self) -> None:
        """Compare."""
        self._exchange.sent(self.name, "close", {})

    def _end(self) -> None:
        self._gone = True
        self._inbox.wake()

    def _take(self, entry: Entry) -> None:
        if entry.kind == "error":
            self._error = error_of(entry.data)
        elif entry.data["x"]:
            self._inbox.data += bytes.fromhex(entry.data["x"])
        else:
            self._gone = True
        self._inbox.wake()


class ReplayChannels:
    """Variables whose answers and updates come from a recording."""

    def __init__(self, exchange: Exchange, wire: str) -> None:
        self._exchange = exchange
        self._wire = wire

    async def get(self, name: str, timeout_s: float = 1.0) -> Sample:
        """What was answered then."""
        return _sample(await self._exchange.ask(self._wire, "get", {"n": name}))

    async def put(self, name: str, value: PutValue, timeout_s: float = 1.0) -> None:
        """Compare with what was put then, and end as it ended then."""
        await self._exchange.ask(self._wire, "put", {"n": name, **_fields(put_field(name, value))})

    def monitor(self, name: str, callback: Any) -> Callable[[], None]:
        """What came then."""
        exchange, wire = self._exchange, self._wire
        entry = exchange.sent(wire, "monitor", {"n": name})
        if entry is None:
            return _nothing
        number = entry.data["q"]
        exchange.call(number, lambda came: callback(_sample(came)))

        def cancel() -> None:
            exchange.sent(wire, "unmonitor", {"of": number})
            exchange.end_call(number)

        return cancel

    def connected(self, name: str) -> bool:
        """What was answered then."""
        return bool(self._exchange.link(self._wire, name, "up"))

    def connections(self, name: str) -> int:
        """What was answered then."""
        return self._exchange.link(self._wire, name, "times")

    async def close(self) -> None:
        """Nothing to let go of."""


class ReplayMessages:
    """Messages that come from a recording."""

    def __init__(self, exchange: Exchange, wire: str) -> None:
        self._exchange = exchange
        self._wire = wire
        self.dropped = 0

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Compare with what was published then, and end as it ended then."""
        await self._exchange.ask(self._wire, "publish", {"n": topic, "x": payload.hex(), "retain": retain})

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Compare with what was posted then; whether it left then."""
        entry = self._exchange.sent(self._wire, "post", {"n": topic, "x": payload.hex(), "retain": retain})
        return bool(entry is not None and entry.data["sent"])

    def subscribe(self, pattern: str, callback: Any, *, retained: bool = True) -> Callable[[], None]:
        """What came then."""

        def take(came: Entry) -> None:
            callback(Message(came.data["n"], bytes.fromhex(came.data["x"]), now_ns(), bool(came.data["retained"])))

        return self._listen("subscribe", "unsubscribe", {"n": pattern}, take)

    def watch(self, callback: Any) -> Callable[[], None]:
        """What was told then of the broker."""
        return self._listen("watch", "unwatch", {}, lambda came: callback(bool(came.data["up"])))

    @property
    def connected(self) -> bool:
        """What was answered then."""
        return bool(self._exchange.link(self._wire, "", "up"))

    async def close(self) -> None:
        """Nothing to let go of."""

    def _listen(self, kind: str, end: str, data: Mapping[str, Any], take: Callable[[Entry], None]) -> Callable[[], None]:
        exchange, wire = self._exchange, self._wire
        entry = exchange.sent(wire, kind, data)
        if entry is None:
            return _nothing
        number = entry.data["q"]
        exchange.call(number, take)

        def cancel() -> None:
            exchange.sent(wire, end, {"of": number})
            exchange.end_call(number)

        return cancel


class ReplayAnswers:
    """A person who answers as then."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """What was answered then, when it was answered."""
        asked = json.loads(json.dumps(dict(facts), default=str, sort_keys=True))
        return bool((await self._exchange.ask("operator", "ask", {"n": str(kind), "facts": asked})).data["yes"])


def _sample(entry: Entry) -> Sample:
    return Sample(value_of(entry.data), now_ns(), Severity(entry.data.get("sev", 0)))


def _fields(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads("{" + text + "}")
    return fields


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _nothing() -> None:
    """What ends a monitor that never was."""
