"""A line of a recording in words, for people: which node, register and value, which variable, which message.

Not responsible for what a register or variable means at this facility.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from drivers.wire.framing import READ_HOLDING, Request, ServerFramer
from drivers.wire.tap.format import value_of

SHOWN = 12  # values of a row that are shown


def in_words(kind: str, data: Mapping[str, Any]) -> str:
    """What one entry says, in one line."""
    if kind == "write":
        return request_in_words(bytes.fromhex(data["x"]))
    if kind == "read":
        return f"bytes {data['x']}" if data["x"] else "the other side is gone"
    if kind in ("put", "got", "value"):
        name = f"{data['n']} = " if "n" in data else ""
        return f"{kind} {name}{value_in_words(data)}"
    if kind in ("publish", "post", "message"):
        return f"{kind} {data['n']} {_text(bytes.fromhex(data['x']))}{' retained' if data.get('retain') else ''}"
    if kind == "ask":
        return f"ask the operator: {data['n']}"
    if kind == "error":
        return f"error {data['error']['message']}"
    return f"{kind} {data['n']}" if "n" in data else kind


def request_of(frame: bytes) -> Request | None:
    """The Modbus request that some bytes are, RTU or TCP; None when they are neither."""
    tcp = len(frame) >= 8 and frame[2:4] == b"\x00\x00" and int.from_bytes(frame[4:6], "big") == len(frame) - 6
    requests = ServerFramer("tcp" if tcp else "rtu").feed(frame)
    return requests[0] if len(requests) == 1 else None


def request_in_words(frame: bytes) -> str:
    """A Modbus request: node, what is read, what is written; anything else as bytes."""
    request = request_of(frame)
    if request is None:
        return f"bytes {frame.hex()}"
    parts = []
    if request.write_values:
        first, values = request.write_address, request.write_values
        where = f"register {first}" if len(values) == 1 else f"registers {first} to {first + len(values) - 1}"
        parts.append(f"write {where} = {', '.join(str(value) for value in values)}")
    if request.read_count:
        parts.append(f"read registers {request.read_address} to {request.read_address + request.read_count - 1}")
    what = " and ".join(parts) or f"function {request.function}"
    return f"node {request.unit}: {what} (function {request.function})"


def is_plain_read(request: Request) -> bool:
    """Whether a request changes nothing."""
    return request.function == READ_HOLDING and not request.write_values


def value_in_words(data: Mapping[str, Any]) -> str:
    """The value of an entry; of a long row its beginning."""
    if "?" in data:
        return str(data["?"])
    value = value_of(data)
    if not isinstance(value, np.ndarray):
        return repr(value)
    shown = ", ".join(str(item) for item in value[:SHOWN].tolist())
    return f"[{shown}{f', ... {value.size} in all' if value.size > SHOWN else ''}]"


def rows_that_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where two rows of numbers differ first: ``word 21 is 5, was 4``; empty when they are no rows of one kind."""
    if "?" in one or "?" in other or not {"I", "B", "F"} & set(one) or not {"I", "B", "F"} & set(other):
        return ""
    then, now = np.atleast_1d(np.asarray(value_of(one))), np.atleast_1d(np.asarray(value_of(other)))
    if then.size != now.size:
        return f"{now.size} words, recorded {then.size}"
    places = np.flatnonzero(then != now)
    if not places.size:
        return ""
    first = int(places[0])
    more = f", and {places.size - 1} more" if places.size > 1 else ""
    return f"word {first} (from 0) is {now[first]}, recorded {then[first]}{more}"


def _text(payload: bytes) -> str:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return f"({len(payload)} bytes)"
    return text if len(text) <= 120 else f"{text[:120]}..."
