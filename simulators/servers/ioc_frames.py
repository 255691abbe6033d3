"""What travels between the plant's process and its IOC: frames of a length and a body, values in binary.

| frame | from | body |
|---|---|---|
| CONFIGURE | plant | JSON: the variables (name, kind, elements at most, writable) in the order of their numbers |
| POST | plant | number, severity, value, once or more: present values |
| DONE | plant | put number, taken 1 or refused 0: the plant has processed a client's put |
| READY | IOC | nothing: clients are served from now on |
| PUT | IOC | put number, variable number, value: a client writes |
| FAILED | IOC | text: why it cannot serve |

Both ends run the same version, so there is no version in it. Not responsible for what is done with a frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Value = int | float | str | NDArray[np.int32] | NDArray[np.float64]

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
TEXT_BYTES_MAX: Final = 39  # an EPICS string holds 40 bytes with its terminating zero
_LENGTH = struct.Struct("<I")
_INT = struct.Struct("<i")
_DOUBLE = struct.Struct("<d")
_COUNT = struct.Struct("<I")
_POST = struct.Struct("<HB")  # variable, severity
_DONE = struct.Struct("<IB")  # put, taken
_PUT = struct.Struct("<IH")  # put, variable


class Frame(IntEnum):
    """Kinds of frames."""

    CONFIGURE = 1
    POST = 2
    DONE = 3
    READY = 4
    PUT = 5
    FAILED = 6


def frame(kind: Frame, body: bytes = b"") -> bytes:
    """A frame, ready to send."""
    return _LENGTH.pack(len(body) + 1) + bytes((kind,)) + body


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Frame, memoryview]]:
        """Frames that are complete now. Raises ValueError for bytes that are no frames."""
        self._bytes += data
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            if not 1 <= length <= FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._bytes) < end:
                break
            body = memoryview(bytes(self._bytes[start + _LENGTH.size : end]))
            start = end
            yield Frame(body[0]), body[1:]
        del self._bytes[:start]


def encode_post(number: int, value: Value, severity: int = 0) -> bytes:
    """One entry of a POST body."""
    return _POST.pack(number, severity) + encode_value(value)


def decode_posts(body: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Variable number, severity and value of each entry."""
    at = 0
    while at < len(body):
        number, severity = _POST.unpack_from(body, at)
        value, at = decode_value(body, at + _POST.size)
        yield number, severity, value


def encode_done(put: int, taken: bool) -> bytes:
    """A DONE frame."""
    return frame(Frame.DONE, _DONE.pack(put, taken))


def decode_done(body: memoryview) -> tuple[int, bool]:
    """Put number, and whether the plant took the value."""
    put, taken = _DONE.unpack(body)
    return put, bool(taken)


def encode_put(put: int, number: int, value: Value) -> bytes:
    """A PUT frame."""
    return frame(Frame.PUT, _PUT.pack(put, number) + encode_value(value))


def decode_put(body: memoryview) -> tuple[int, int, Value]:
    """Put number, variable number, value."""
    put, number = _PUT.unpack_from(body, 0)
    value, _ = decode_value(body, _PUT.size)
    return put, number, value


def encode_value(value: Value) -> bytes:
    """A value with its type; text is cut at what an EPICS string holds. Raises struct.error for an int beyond 32 bits."""
    if isinstance(value, str):
        text = value.encode()[:TEXT_BYTES_MAX]
        return b"s" + _COUNT.pack(len(text)) + text
    if isinstance(value, bool | int | np.integer):
        return b"i" + _INT.pack(int(value))
    if isinstance(value, float | np.floating):
        return b"d" + _DOUBLE.pack(float(value))
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return b"D" + _COUNT.pack(array.size) + array.astype("<f8", copy=False).tobytes()
    return b"I" + _COUNT.pack(array.size) + array.astype("<i4", copy=False).tobytes()


def decode_value(body: memoryview, at: int) -> tuple[Value, int]:
    """The value that begins at byte `at`, and where the next one begins. Arrays cannot be written to."""
    kind = bytes(body[at : at + 1])
    at += 1
    if kind == b"i":
        return int(_INT.unpack_from(body, at)[0]), at + _INT.size
    if kind == b"d":
        return float(_DOUBLE.unpack_from(body, at)[0]), at + _DOUBLE.size
    (count,) = _COUNT.unpack_from(body, at)
    at += _COUNT.size
    if kind == b"s":
        return bytes(body[at : at + count]).decode(errors="replace"), at + count
    if kind == b"I":
        return np.frombuffer(body, dtype=np.int32, count=count, offset=at), at + 4 * count
    if kind == b"D":
        return np.frombuffer(body, dtype=np.float64, count=count, offset=at), at + 8 * count
    raise ValueError(f"a value of unknown type {kind!r}")
