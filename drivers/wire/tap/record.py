"""Writes down everything that travels on the wires of a run, with its loop time, for `replay` and for people.

Each transport is wrapped by one that tells the `Recorder` and changes nothing. Lines are put together where they happen and
packed and written by a thread of its own (compression lets go of the interpreter), so that a loop in beam is not held up. What
was handed to the file is whole lines, so a crash leaves a readable file without its end line.

A recording that fails (disk full) never disturbs the run: it stops, and says why in `failure`. Not responsible for what is
recorded beside the wires: the caller notes it with `fact`.
"""

from __future__ import annotations

import gzip
import json
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from drivers.hal.clock import NS_PER_S, now_ns
from drivers.wire.channels import Channels, CountsConnections, PutValue, Sample
from drivers.wire.messages import Message, Messages
from drivers.wire.stream import Stream, StreamOpener
from drivers.wire.tap import Answers
from drivers.wire.tap.format import END, FACT, FORMAT, HEADER, VERSION, error_field, put_field, value_field

CHUNK_LINES = 2000  # lines that are packed together
FLUSH_NS = NS_PER_S  # a line waits no longer than this, as long as others follow
COMPRESSION = 1  # a recording is written in beam: quick rather than small


class Recorder:
    """A `Tap` that writes a file.

    Args:
        path: file to write, by custom ``NAME.jsonl.gz``; it is made anew.
        header: what the first line says beside format and version: program, facility, room, start, what was asked.

    Attributes:
        failure: why the file could not be written any further; empty while all is well.
        entries: things written down so far.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.failure = ""
        self.entries = 0
        self._lines: list[str] = []
        self._flushed_ns = 0
        self._asked = 0
        self._closed = False
        self._file: IO[bytes] = path.open("xb")
        self._chunks: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="wire recorder", daemon=True)
        self._writer.start()
        self._lines.append(json.dumps({"k": HEADER, "format": FORMAT, "version": VERSION, **header}))
        self._hand_over()

    # --- the tap --------------------------------------------------------------------------------------------------------

    def stream(self, name: str, opener: StreamOpener) -> StreamOpener:
        """A stream whose bytes are written down as they are written and read."""

        async def opened() -> Stream:
            number = self.ask(name, "open")
            try:
                stream = await opener()
            except BaseException as error:
                self.failed(name, number, error)
                raise
            self.put_down(name, "opened", f'"q":{number}')
            return _RecordedStream(self, name, stream)

        return opened

    def channels(self, name: str, channels: Channels) -> Channels:
        """Variables whose questions, answers and updates are written down."""
        return _RecordedChannels(self, name, channels)

    def messages(self, name: str, messages: Messages) -> Messages:
        """A client whose messages are written down."""
        return _RecordedMessages(self, name, messages)

    def operator(self, port: Answers) -> Answers:
        """A person whose answers are written down."""
        return _RecordedAnswers(self, port)

    # --- writing --------------------------------------------------------------------------------------------------------

    def fact(self, name: str, value: Any) -> None:
        """Note something that a replay needs and no wire carries; the last value of a name counts."""
        self._lines.append(json.dumps({"k": FACT, "name": name, "value": value}))

    def ask(self, wire: str, kind: str, fields: str = "") -> int:
        """Write down something outward that is answered later; returns its number."""
        self._asked = number = self._asked + 1
        self.put_down(wire, kind, f'"q":{number},{fields}' if fields else f'"q":{number}')
        return number

    def put_down(self, wire: str, kind: str, fields: str) -> None:
        """Write down one thing now; `fields` are JSON fields without braces."""
        t_ns = now_ns()
        self.entries += 1
        self._lines.append(f'{{"t":{t_ns},"w":"{wire}","k":"{kind}",{fields}}}')
        if len(self._lines) >= CHUNK_LINES or t_ns - self._flushed_ns >= FLUSH_NS:
            self._flushed_ns = t_ns
            self._hand_over()

    def failed(self, wire: str, number: int, error: BaseException) -> None:
        """Write down how a question ended that got no answer: an error, or that nobody waits for it any more."""
        if isinstance(error, Exception):
            self.put_down(wire, "error", f'"q":{number},{error_field(error)}')
        else:
            self.put_down(wire, "cancel", f'"q":{number}')

    def close(self, **end: Any) -> None:
        """Write the end line and let go of the file; a second close does nothing. `end`: what it says beside the number of
        entries."""
        if self._closed:
            return
        self._closed = True
        self._lines.append(json.dumps({"k": END, "entries": self.entries, **end}))
        self._hand_over()
        self._chunks.put(None)
        self._writer.join()

    def _hand_over(self) -> None:
        lines, self._lines = self._lines, []
        if lines and not self.failure:
            self._chunks.put(lines)

    def _write(self) -> None:
        """The thread: packs and writes; the first error ends it for good."""
        try:
            with self._file, gzip.GzipFile("", "wb", COMPRESSION, self._file, mtime=0) as packed:
                while (lines := self._chunks.get()) is not None:
                    packed.write(("\n".join(lines) + "\n").encode())
                    packed.flush()
                    self._file.flush()
        except OSError as error:
            self.failure = f"{self.path}: the recording ends early: {error.strerror or error}"


def _json(flag: bool) -> str:
    return "true" if flag else "false"


class _RecordedStream:
    """A stream that tells what passes."""

    def __init__(self, recorder: Recorder, wire: str, stream: Stream) -> None:
        self._recorder = recorder
        self._wire = wire
        self._stream = stream

    @property
    def name(self) -> str:
        """Endpoint, for messages."""
        return self._stream.name

    async def read(self, n: int = 4096, timeout_s: float | None = None) -> bytes:
        """Read; what came is written down, an empty read means that the other side is gone."""
        try:
            data = await self._stream.read(n, timeout_s)
        except TimeoutError:
            raise
        except OSError as error:
            self._recorder.put_down(self._wire, "error", error_field(error))
            raise
        self._recorder.put_down(self._wire, "read", f'"x":"{data.hex()}"')
        return data

    async def write(self, data: bytes) -> None:
        """Write; the bytes are written down before they leave."""
        number = self._recorder.ask(self._wire, "write", f'"x":"{data.hex()}"')
        try:
            await self._stream.write(data)
        except OSError as error:
            self._recorder.failed(self._wire, number, error)
            raise

    def discard_input(self) -> int:
        """Throw away what has arrived unread: nobody saw it, so nothing is written down."""
        return self._stream.discard_input()

    async def close(self) -> None:
        """Let go of the line."""
        self._recorder.ask(self._wire, "close")
        await self._stream.close()


class _Link:
    """Tells when the answer to "is it connected?", or "how often was it?", has changed since it was last asked."""

    def __init__(self, recorder: Recorder, wire: str) -> None:
        self._recorder = recorder
        self._wire = wire
        self._known: dict[str, bool] = {}
        self._times: dict[str, int] = {}

    def see(self, name: str, up: bool) -> bool:
        """Take an answer, and give it back."""
        if self._known.get(name) is not up:
            self._known[name] = up
            self._recorder.put_down(self._wire, "link", f'"n":{json.dumps(name)},"up":{_json(up)}')
        return up

    def count(self, name: str, times: int) -> int:
        """Take an answer, and give it back."""
        if self._times.get(name) != times:
            self._times[name] = times
            self._recorder.put_down(self._wire, "link", f'"n":{json.dumps(name)},"times":{times}')
        return times


class _RecordedChannels:
    """Variables that tell what passes."""

    def __init__(self, recorder: Recorder, wire: str, channels: Channels) -> None:
        self._recorder = recorder
        self._wire = wire
        self._channels = channels
        self._link = _Link(recorder, wire)

    async def get(self, name: str, timeout_s: float = 1.0) -> Sample:
        """Ask; question and answer are written down."""
        number = self._recorder.ask(self._wire, "get", f'"n":{json.dumps(name)}')
        try:
            sample = await self._channels.get(name, timeout_s)
        except BaseException as error:
            self._recorder.failed(self._wire, number, error)
            raise
        self._recorder.put_down(self._wire, "got", f'"q":{number},{value_field(sample.value)},"sev":{int(sample.severity)}')
        return sample

    async def put(self, name: str, value: PutValue, timeout_s: float = 1.0) -> None:
        """Write; value and completion are written down."""
        number = self._recorder.ask(self._wire, "put", f'"n":{json.dumps(name)},{put_field(name, value)}')
        try:
            await self._channels.put(name, value, timeout_s)
        except BaseException as error:
            self._recorder.failed(self._wire, number, error)
            raise
        self._recorder.put_down(self._wire, "done", f'"q":{number}')

    def monitor(self, name: str, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Watch; each value is written down before it is handed on."""
        recorder, wire = self._recorder, self._wire
        number = recorder.ask(wire, "monitor", f'"n":{json.dumps(name)}')

        def take(sample: Sample) -> None:
            recorder.put_down(wire, "value", f'"q":{number},{value_field(sample.value)},"sev":{int(sample.severity)}')
            callback(sample)

        end = self._channels.monitor(name, take)

        def cancel() -> None:
            recorder.ask(wire, "unmonitor", f'"of":{number}')
            end()

        return cancel

    def connected(self, name: str) -> bool:
        """Whether it is connected; written down when it has changed."""
        return self._link.see(name, self._channels.connected(name))

    def connections(self, name: str) -> int:
        """How often it was connected, where that is counted (else 0); written down when it has changed."""
        channels = self._channels
        return self._link.count(name, channels.connections(name)) if isinstance(channels, CountsConnections) else 0

    async def close(self) -> None:
        """End all monitors."""
        await self._channels.close()


class _RecordedMessages:
    """A client of a broker that tells what passes."""

    def __init__(self, recorder: Recorder, wire: str, messages: Messages) -> None:
        self._recorder = recorder
        self._wire = wire
        self._messages = messages
        self._link = _Link(recorder, wire)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Hand a message to the broker; message and outcome are written down."""
        fields = f'"n":{json.dumps(topic)},"x":"{payload.hex()}","retain":{_json(retain)}'
        number = self._recorder.ask(self._wire, "publish", fields)
        try:
            await self._messages.publish(topic, payload, retain=retain, timeout_s=timeout_s)
        except BaseException as error:
            self._recorder.failed(self._wire, number, error)
            raise
        self._recorder.put_down(self._wire, "done", f'"q":{number}')

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish without waiting; message and outcome are written down."""
        sent = self._messages.post(topic, payload, retain=retain)
        fields = f'"n":{json.dumps(topic)},"x":"{payload.hex()}","retain":{_json(retain)},"sent":{_json(sent)}'
        self._recorder.ask(self._wire, "post", fields)
        return sent

    def subscribe(self, pattern: str, callback: Callable[[Message], None], *, retained: bool = True) -> Callable[[], None]:
        """Subscribe; each message is written down before it is handed on."""
        recorder, wire = self._recorder, self._wire
        number = recorder.ask(wire, "subscribe", f'"n":{json.dumps(pattern)}')

        def take(message: Message) -> None:
            kept = _json(message.retained)
            fields = f'"q":{number},"n":{json.dumps(message.topic)},"x":"{message.payload.hex()}","retained":{kept}'
            recorder.put_down(wire, "message", fields)
            callback(message)

        end = self._messages.subscribe(pattern, take, retained=retained)

        def cancel() -> None:
            recorder.ask(wire, "unsubscribe", f'"of":{number}')
            end()

        return cancel

    def watch(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Be told of a lost broker and of its return; written down before it is handed on."""
        recorder, wire = self._recorder, self._wire
        number = recorder.ask(wire, "watch")

        def take(up: bool) -> None:
            recorder.put_down(wire, "notice", f'"q":{number},"up":{_json(up)}')
            callback(up)

        end = self._messages.watch(take)

        def cancel() -> None:
            recorder.ask(wire, "unwatch", f'"of":{number}')
            end()

        return cancel

    @property
    def dropped(self) -> int:
        """Messages that were dropped; a figure for display, not written down."""
        return self._messages.dropped

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable; written down when it has changed."""
        return self._link.see("", self._messages.connected)

    async def close(self) -> None:
        """Leave the broker in good order."""
        await self._messages.close()


class _RecordedAnswers:
    """A person whose answers are written down as the wire ``operator``."""

    wire = "operator"

    def __init__(self, recorder: Recorder, port: Answers) -> None:
        self._recorder = recorder
        self._port = port

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Ask; question and answer are written down."""
        asked = json.dumps(dict(facts), default=str, sort_keys=True)
        number = self._recorder.ask(self.wire, "ask", f'"n":{json.dumps(str(kind))},"facts":{asked}')
        try:
            answer = await self._port.confirm(kind, facts)
        except BaseException as error:
            self._recorder.failed(self.wire, number, error)
            raise
        self._recorder.put_down(self.wire, "answer", f'"q":{number},"yes":{_json(answer)}')
        return answer
