"""The file of a recording: gzip-compressed JSON lines, documented in docs/tap.md.

The first line is the header, the last one the end; between them each line is one thing that travelled, in the order in which
it passed the tap. Lines are written as text by hand, because a treatment writes a hundred thousand of them.

Not responsible for what is recorded (`record`) nor for what a replay makes of it (`replay`).
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drivers.hal.errors import (
    BeamlineError,
    CommandRejected,
    CommunicationError,
    ConfigError,
    DataError,
    DeviceError,
)
from drivers.wire.channels import PutValue, Value, normalise

FORMAT = "iongantry-tap"
VERSION = 1
HEADER, END, FACT = "header", "end", "fact"
LIST_MAX = 64  # longer rows of integers are written as base64: a result of 256 pieces has 4,102 words
BAD_RECORDING = 5401

# Kinds that leave the program, and kinds that come to it.
STREAM_OUT = frozenset({"open", "write", "close"})
CHANNELS_OUT = frozenset({"get", "put", "monitor", "unmonitor"})
MESSAGES_OUT = frozenset({"publish", "post", "subscribe", "unsubscribe", "watch", "unwatch"})
OUT = STREAM_OUT | CHANNELS_OUT | MESSAGES_OUT | {"cancel", "ask"}
IN = frozenset({"opened", "read", "got", "done", "value", "error", "link", "message", "notice", "answer", "stopped"})

_ERRORS: dict[str, type[BeamlineError]] = {
    kind.__name__: kind for kind in (ConfigError, CommunicationError, DeviceError, CommandRejected, DataError)
}


class BadRecording(Exception):
    """A file that cannot be replayed. `reasons`: one sentence each."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a recording that is no header, fact or end.

    Attributes:
        line: number in the file, from 1.
        t_ns: loop time in ns at which it passed the tap.
        wire: name of the wire.
        kind: one of `OUT` and `IN`.
        data: the other fields.
    """

    line: int
    t_ns: int
    wire: str
    kind: str
    data: Mapping[str, Any]

    @property
    def outward(self) -> bool:
        """Whether it left the program."""
        return self.kind in OUT


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole file.

    Attributes:
        header: the first line.
        facts: what was noted beside the wires, by name; one that was noted again replaces the first.
        entries: what travelled, in order.
        end: the last line; empty when the file was cut off.
    """

    header: Mapping[str, Any]
    facts: Mapping[str, Any]
    entries: tuple[Entry, ...]
    end: Mapping[str, Any]


def value_field(value: Value) -> str:
    """One value of the wire as a JSON field: ``i`` int, ``f`` float, ``s`` text, ``I`` int32 row, ``B`` the same as base64,
    ``F`` float64 row as base64; both little-endian."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.int32:
            if value.size <= LIST_MAX:
                return f'"I":{value.tolist()}'
            return f'"B":"{base64.b64encode(value.astype("<i4", copy=False).tobytes()).decode()}"'
        return f'"F":"{base64.b64encode(value.astype("<f8", copy=False).tobytes()).decode()}"'
    if isinstance(value, str):
        return f'"s":{json.dumps(value)}'
    if isinstance(value, float):
        return f'"f":{json.dumps(value)}'  # repr: exact; NaN and Infinity as Python writes them
    return f'"i":{value}'


def put_field(name: str, value: PutValue) -> str:
    """A value as it was put. One that no wire can carry is written as what it looks like: ``?``."""
    try:
        return value_field(normalise(name, value))
    except DataError:
        return f'"?":{json.dumps(repr(value)[:200])}'


def value_of(data: Mapping[str, Any]) -> Value:
    """The value in a line. Raises KeyError when there is none, ValueError when it makes no sense."""
    if "i" in data:
        return int(data["i"])
    if "f" in data:
        return float(data["f"])
    if "s" in data:
        return str(data["s"])
    if "I" in data:
        integers = np.array(data["I"], dtype=np.int32)
        integers.flags.writeable = False
        return integers
    if "B" in data:
        integers = np.frombuffer(base64.b64decode(data["B"], validate=True), dtype="<i4").astype(np.int32)
        integers.flags.writeable = False
        return integers
    floats = np.frombuffer(base64.b64decode(data["F"], validate=True), dtype="<f8").astype(np.float64)
    floats.flags.writeable = False
    return floats


def error_field(error: BaseException) -> str:
    """An error that a wire raised, so that a replay can raise it again."""
    if isinstance(error, BeamlineError):
        told: dict[str, Any] = {
            "type": type(error).__name__,
            "message": error.message,
            "code": error.code,
            "device": error.device,
            "hint": error.hint,
            "retryable": error.retryable,
        }
    else:
        told = {"type": type(error).__name__, "message": str(error)}
    return f'"error":{json.dumps(told)}'


def error_of(data: Mapping[str, Any]) -> Exception:
    """The error in a line, to be raised again."""
    told = data["error"]
    if (known := _ERRORS.get(told["type"])) is not None:
        return known(
            told["message"],
            code=told.get("code", 0),
            device=told.get("device", ""),
            hint=told.get("hint", ""),
            retryable=told.get("retryable", False),
        )
    if told["type"] in ("TimeoutError", "ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError"):
        return {
            "TimeoutError": TimeoutError,
            "ConnectionRefusedError": ConnectionRefusedError,
            "ConnectionResetError": ConnectionResetError,
            "BrokenPipeError": BrokenPipeError,
        }[told["type"]](told["message"])
    return ConnectionError(f"{told['type']}: {told['message']}")


def same_value(one: Value, other: Value) -> bool:
    """Whether two values are the same bit by bit, with their types; NaN is NaN."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return (
            isinstance(one, np.ndarray)
            and isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return type(one) is type(other) and one == other


def read_recording(path: Path) -> Recording:
    """Read a whole file.

    Raises:
        BadRecording: it is not there, no recording, of another version, damaged, or without an end.
    """
    lines = _lines(path)
    header = _header(path, next(lines, None))
    facts: dict[str, Any] = {}
    entries: list[Entry] = []
    end: Mapping[str, Any] = {}
    for number, line in lines:
        data = _parsed(path, number, line)
        if end:
            raise BadRecording(f"{path}: line {number} follows the end line: two recordings in one file?")
        kind = data.pop("k", None)
        if kind == END:
            end = data
        elif kind == FACT:
            facts[str(data.get("name"))] = data.get("value")
        else:
            entries.append(_entry(path, number, kind, data))
    if not end:
        raise BadRecording(
            f"{path}: ends after {len(entries)} entries without its end line: the run that wrote it crashed, or the file was "
            "cut off; record again"
        )
    if end.get("entries") != len(entries):
        raise BadRecording(f"{path}: holds {len(entries)} entries, its end line says {end.get('entries')}: lines are missing")
    return Recording(header, facts, tuple(entries), end)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Whole lines with their numbers; what follows the last one of a file that was cut off is told."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):
                    yield number, line
    except EOFError:
        raise BadRecording(
            f"{path}: ends after line {number} in the middle: the run that wrote it crashed, or the file was cut off; "
            "record again"
        ) from None
    except (OSError, zlib.error, UnicodeDecodeError) as error:
        if number:
            raise BadRecording(f"{path}: damaged after line {number}: {error}") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadRecording(f"{path}: cannot be read as a gzip file: {reason}") from None


def _header(path: Path, first: tuple[int, str] | None) -> Mapping[str, Any]:
    if first is None:
        raise BadRecording(f"{path}: is empty")
    header = _parsed(path, *first)
    if header.get("format") != FORMAT or header.get("k") != HEADER:
        raise BadRecording(f"{path}: is no recording of the wires; `treat --record FILE` writes one")
    if header.get("version") != VERSION:
        wrote = header.get("program", "another program")
        raise BadRecording(
            f"{path}: has format version {header.get('version')} (written by {wrote}), this program reads {VERSION}; replay it "
            "with the program that wrote it"
        )
    return header


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise BadRecording(f"{path}: line {number} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRecording(f"{path}: line {number} is no object")
    return data


def _entry(path: Path, number: int, kind: Any, data: dict[str, Any]) -> Entry:
    t_ns, wire = data.pop("t", None), data.pop("w", None)
    if kind not in OUT and kind not in IN:
        raise BadRecording(f"{path}: line {number}: {kind!r} is no kind of entry")
    if not isinstance(t_ns, int) or not isinstance(wire, str):
        raise BadRecording(f"{path}: line {number}: time (t, ns) or wire (w) is missing")
    return Entry(number, t_ns, wire, kind, data)
