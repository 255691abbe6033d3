"""Recordings of wires: what travelled is in the file bit by bit, a crash leaves what was, and no damage is read as truth."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drivers.hal.errors import CommandRejected
from drivers.wire.framing import ClientFramer
from drivers.wire.memory import MemoryBroker, MemoryChannels, MemoryLine
from drivers.wire.tap.format import BadRecording, error_of, read_recording, same_value, value_of
from drivers.wire.tap.record import Recorder
from drivers.wire.tap.words import in_words, rows_that_differ
from simulators import clock


class Table:
    """A few variables."""

    def __init__(self) -> None:
        self.values = {
            "X:INT": 7,
            "X:NAN": math.nan,
            "X:TENTH": 0.1,
            "X:TEXT": 'says "no"',
            "X:INTS": np.arange(-3, 200, dtype=np.int32),
            "X:FLOATS": np.array([0.1, math.inf, -0.0, math.nan]),
        }
        self.listener = None

    def names(self):
        return tuple(self.values)

    def read(self, name):
        return self.values[name]

    def write(self, name, value):
        if name == "X:TEXT":
            raise PermissionError(name)
        self.values[name] = value
        self.listener(name, value)

    def subscribe(self, listener, names=()):
        self.listener = listener


def record(path: Path, body, **header) -> Recorder:
    """Run something with a recorder in virtual time."""
    recorder = Recorder(path, header)

    async def main() -> None:
        await body(recorder)

    clock.run(main())
    recorder.close(status="complete")
    assert recorder.failure == ""
    return recorder


async def a_little(recorder: Recorder) -> None:
    """A write and its echo on a stream."""
    line = MemoryLine("G1-motion", baud=115200)
    line.server.serve(lambda data: [data[::-1]])
    stream = await recorder.stream("G1-motion", line.connect)()
    await stream.write(bytes.fromhex("0a0300200010"))
    assert await stream.read(64, 1.0) == bytes.fromhex("10002000030a")
    with pytest.raises(TimeoutError):
        await stream.read(64, 0.5)
    line.cut()
    assert await stream.read(64, 0.5) == b""
    with pytest.raises(ConnectionResetError):
        await stream.write(b"x")
    await stream.close()


def test_bytes_are_written_down_with_their_time_and_direction(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    record(path, a_little, room="G1")
    recording = read_recording(path)
    assert recording.header["room"] == "G1"
    kinds = [(entry.kind, entry.data.get("x")) for entry in recording.entries]
    assert kinds == [
        ("open", None),
        ("opened", None),
        ("write", "0a0300200010"),
        ("read", "10002000030a"),
        ("read", ""),
        ("write", "78"),
        ("error", None),
        ("close", None),
    ]
    travel_ns = 2 * (round(6 * 11 / 115200 * 1e9) + 250_000)
    assert recording.entries[3].t_ns == pytest.approx(travel_ns, abs=2)
    assert isinstance(error_of(recording.entries[6].data), ConnectionResetError)
    assert [entry.outward for entry in recording.entries] == [True, False, True, False, False, True, False, True]


def test_values_come_back_bit_by_bit(tmp_path: Path) -> None:
    table = Table()

    async def body(recorder: Recorder) -> None:
        channels = recorder.channels("epics", MemoryChannels(table))
        for name in table.names():
            await channels.get(name)
        await channels.put("X:FLOATS", np.array([math.pi, 5e-324]))
        with pytest.raises(CommandRejected):
            await channels.put("X:TEXT", "other")
        await channels.close()

    path = tmp_path / "a.jsonl.gz"
    before = dict(table.values)
    record(path, body)
    recording = read_recording(path)
    got = [value_of(entry.data) for entry in recording.entries if entry.kind == "got"]
    for name, value in zip(before, got, strict=True):
        assert same_value(value, before[name]), name
    put = next(entry for entry in recording.entries if entry.kind == "put")
    assert struct.pack("<2d", *value_of(put.data)) == struct.pack("<2d", math.pi, 5e-324)
    refused = next(entry for entry in recording.entries if entry.kind == "error")
    assert isinstance(error_of(refused.data), CommandRejected)
    assert not same_value(1, 1.0) and not same_value(np.zeros(2, np.int32), np.zeros(2))


def test_monitors_messages_and_links_are_written_down(tmp_path: Path) -> None:
    table = Table()

    async def body(recorder: Recorder) -> None:
        below = MemoryChannels(table)
        channels = recorder.channels("epics", below)
        end = channels.monitor("X:INT", lambda sample: None)
        await channels.put("X:INT", 8)
        await asyncio.sleep(0.1)
        assert channels.connected("X:INT")
        below.disconnect()
        assert not channels.connected("X:INT") and not channels.connected("X:INT")
        end()
        broker = MemoryBroker()
        client, other = recorder.messages("mqtt", broker.client()), broker.client()
        client.subscribe("a/#", lambda message: None)
        await asyncio.sleep(0.1)
        await other.publish("a/b", b"\x00\xff")
        await client.publish("c", b"state", retain=True)
        await asyncio.sleep(0.1)
        await client.close()
        await other.close()

    path = tmp_path / "a.jsonl.gz"
    record(path, body)
    entries = read_recording(path).entries
    assert [value_of(e.data) for e in entries if e.kind == "value"] == [7, 8]
    assert [e.data["up"] for e in entries if e.kind == "link" and e.wire == "epics"] == [True, False]
    message = next(e for e in entries if e.kind == "message")
    assert (message.data["n"], bytes.fromhex(message.data["x"])) == ("a/b", b"\x00\xff")
    publish = next(e for e in entries if e.kind == "publish")
    assert in_words("publish", publish.data) == "publish c state retained"
    assert sum(e.kind in ("monitor", "unmonitor", "subscribe") for e in entries) == 3


CRASH = """
import asyncio, os, sys, time
from pathlib import Path
from drivers.wire.tap.record import Recorder
from simulators import clock

recorder = Recorder(Path(sys.argv[1]), {"room": "G1"})

async def main():
    for number in range(10):
        recorder.put_down("epics", "link", f'"n":"A","up":true')
        await asyncio.sleep(1.5)

clock.run(main())
size, since = 0, time.monotonic()
while time.monotonic() - since < 5 and (recorder._chunks.qsize() or size != os.path.getsize(sys.argv[1])):
    size = os.path.getsize(sys.argv[1])
    time.sleep(0.05)
os._exit(9)
"""


def test_a_crash_leaves_a_file_that_can_be_read_so_far(tmp_path: Path) -> None:
    """A line waits a second at most while others follow: what a dead process leaves is all but the last second."""
    path = tmp_path / "a.jsonl.gz"
    assert subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False, timeout=60).returncode == 9
    with pytest.raises(BadRecording, match=r"ends after line (10|11) in the middle"):
        read_recording(path)


def test_a_file_cut_anywhere_is_never_taken_for_whole(tmp_path: Path) -> None:
    path, cut = tmp_path / "a.jsonl.gz", tmp_path / "cut.jsonl.gz"
    record(path, a_little)
    data = path.read_bytes()
    for size in [*range(0, len(data) - 8, 7), len(data) - 1]:
        cut.write_bytes(data[:size])
        with pytest.raises(BadRecording):
            read_recording(cut)


def damaged(path: Path, change) -> Path:
    """A copy whose text was changed."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    copy = path.with_name("damaged.jsonl.gz")
    copy.write_bytes(gzip.compress("".join(change(lines)).encode()))
    return copy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[:-1], "without its end line"),
        (lambda lines: lines[:3] + lines[4:], "lines are missing"),
        (lambda lines: [*lines[:4], '{"t":1,\n', *lines[4:]], "line 5 is no JSON"),
        (lambda lines: [*lines[:4], "[1]\n", *lines[4:]], "line 5 is no object"),
        (lambda lines: [*lines[:4], '{"t":1,"w":"a","k":"shout"}\n', *lines[4:]], "'shout' is no kind of entry"),
        (lambda lines: [*lines[:4], '{"t":"1","w":"a","k":"read"}\n', *lines[4:]], "line 5: time"),
        (lambda lines: [lines[0].replace('"version": 1', '"version": 2'), *lines[1:]], "format version 2"),
        (lambda lines: lines[1:], "is no recording"),
        (lambda lines: [], "is empty"),
        (lambda lines: [*lines, *lines], "follows the end line"),
    ],
)
def test_a_damaged_file_is_told_with_its_place(tmp_path: Path, change, reason: str) -> None:
    path = tmp_path / "a.jsonl.gz"
    record(path, a_little)
    with pytest.raises(BadRecording, match=reason):
        read_recording(damaged(path, change))


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"k": "header"}) + "\n")
    with pytest.raises(BadRecording, match="cannot be read as a gzip file"):
        read_recording(plain)
    with pytest.raises(BadRecording, match="No such file"):
        read_recording(tmp_path / "nothing")
    path = tmp_path / "a.jsonl.gz"
    record(path, a_little)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BadRecording):
        read_recording(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_recording_that_cannot_be_written_says_why_and_disturbs_nothing(tmp_path: Path, monkeypatch) -> None:
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **kw: real_open(Path("/dev/full"), "wb", buffering=0))
    recorder = Recorder(tmp_path / "a.jsonl.gz", {})

    async def main() -> None:
        for _ in range(20):
            await a_little(recorder)
            await asyncio.sleep(2.0)

    clock.run(main())
    recorder.close()
    assert "the recording ends early: No space left on device" in recorder.failure


def test_an_entry_reads_as_words() -> None:
    pulse = ClientFramer("tcp").read_write(1, 8, 7, 128, [4660]).frame
    assert in_words("write", {"x": pulse.hex()}) == "node 1: write register 128 = 4660 and read registers 8 to 14 (function 23)"
    assert in_words("write", {"x": "0a0300"}) == "bytes 0a0300"
    assert in_words("write", {"x": "0a030020001044b7"}) == "node 10: read registers 32 to 47 (function 3)"
    assert in_words("put", {"n": "A:B:SP", "I": [1, 2]}) == "put A:B:SP = [1, 2]"
    assert rows_that_differ({"I": [1, 2, 3]}, {"I": [1, 5, 4]}) == "word 1 (from 0) is 5, recorded 2, and 1 more"
    assert rows_that_differ({"I": [1]}, {"I": [1, 2]}) == "2 words, recorded 1"
