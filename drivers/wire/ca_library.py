"""libca as Python sees it: signatures, how values lie in its memory, its environment, and one client context of its own.

pyepics ships the library and knows the numbers of its types; the calls made here are those that never wait. Values are copied
out of the library's memory in its callback and decoded later. Not responsible for when anything is asked (`epics_channels`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from drivers.hal.errors import ConfigError, DataError
from drivers.wire.channels import INT32_MAX, INT32_MIN, Value

NORMAL: Final = 1  # ECA_NORMAL
DISCONNECTED: Final = 192  # ECA_DISCONN
NO_WRITE_ACCESS: Final = 376  # ECA_NOWTACCESS
CONNECTION_UP: Final = 6  # CA_OP_CONN_UP
VALUE_OR_ALARM: Final = 1 | 4  # DBE_VALUE | DBE_ALARM
STRING, SHORT, FLOAT, ENUM, CHAR, LONG, DOUBLE = range(7)  # DBR types
TIME: Final = 14  # DBR_TIME_STRING: the same types with alarm and time stamp
STRING_BYTES: Final = 40
_SEVERITY = struct.Struct("<xxh")
# Of DBR_TIME types: where the value begins, and what an element is (db_access.h).
_LAYOUT: Final[Mapping[int, tuple[int, str]]] = {
    STRING: (12, "S40"),
    SHORT: (14, "<i2"),
    FLOAT: (12, "<f4"),
    ENUM: (14, "<u2"),
    CHAR: (15, "<u1"),
    LONG: (12, "<i4"),
    DOUBLE: (16, "<f8"),
}
_RANGE: Final = {SHORT: (-(2**15), 2**15 - 1), ENUM: (0, 15), CHAR: (0, 255), LONG: (INT32_MIN, INT32_MAX)}


class EventArguments(ctypes.Structure):
    """struct event_handler_args: what a get, put or monitor callback is given."""

    _fields_ = [
        ("usr", ctypes.c_void_p),
        ("chid", ctypes.c_void_p),
        ("type", ctypes.c_long),
        ("count", ctypes.c_long),
        ("dbr", ctypes.c_void_p),
        ("status", ctypes.c_int),
    ]


class ConnectionArguments(ctypes.Structure):
    """struct connection_handler_args."""

    _fields_ = [("chid", ctypes.c_void_p), ("op", ctypes.c_long)]


class ExceptionArguments(ctypes.Structure):
    """struct exception_handler_args: what the library says about a request without a callback, or about a circuit."""

    _fields_ = [
        ("usr", ctypes.c_void_p),
        ("chid", ctypes.c_void_p),
        ("type", ctypes.c_long),
        ("count", ctypes.c_long),
        ("addr", ctypes.c_void_p),
        ("stat", ctypes.c_long),
        ("op", ctypes.c_long),
        ("ctx", ctypes.c_char_p),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_uint),
    ]


EVENT_CALLBACK = ctypes.CFUNCTYPE(None, EventArguments)
CONNECTION_CALLBACK = ctypes.CFUNCTYPE(None, ConnectionArguments)
EXCEPTION_CALLBACK = ctypes.CFUNCTYPE(None, ExceptionArguments)
_environment_lock = threading.Lock()


def load() -> Any:
    """The library, loaded by pyepics, with its own record of signatures.

    Must be called first in the main thread: two threads that load it at once corrupt it (measured).

    Raises:
        ConfigError: it is called first in another thread, or pyepics has no library for this machine.
    """
    import epics.ca

    if epics.ca.libca is None:
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("EPICS must be started in the main thread", code=1061, hint="make the EpicsChannels there")
        try:
            epics.ca.initialize_libca()
        except epics.ca.ChannelAccessException as error:
            raise ConfigError(f"the EPICS client library cannot be used: {error}", code=1062, hint="install pyepics") from None
    library = ctypes.CDLL(epics.ca.find_libca())
    pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong
    for name, result, arguments in (
        ("ca_context_create", integer, (integer,)),
        ("ca_context_destroy", None, ()),
        ("ca_current_context", pointer, ()),
        ("ca_attach_context", integer, (pointer,)),
        ("ca_detach_context", None, ()),
        ("ca_flush_io", integer, ()),
        ("ca_create_channel", integer, (ctypes.c_char_p, CONNECTION_CALLBACK, pointer, ctypes.c_uint, pointer)),
        ("ca_clear_channel", integer, (pointer,)),
        ("ca_puser", pointer, (pointer,)),
        ("ca_field_type", ctypes.c_short, (pointer,)),
        ("ca_element_count", size, (pointer,)),
        ("ca_host_name", ctypes.c_char_p, (pointer,)),
        ("ca_write_access", ctypes.c_uint, (pointer,)),
        ("ca_array_get_callback", integer, (ctypes.c_long, size, pointer, EVENT_CALLBACK, pointer)),
        ("ca_array_put_callback", integer, (ctypes.c_long, size, pointer, pointer, EVENT_CALLBACK, pointer)),
        (
            "ca_create_subscription",
            integer,
            (ctypes.c_long, size, pointer, ctypes.c_long, EVENT_CALLBACK, pointer, pointer),
        ),
        ("ca_clear_subscription", integer, (pointer,)),
        ("ca_add_exception_event", integer, (EXCEPTION_CALLBACK, pointer)),
        ("ca_message", ctypes.c_char_p, (ctypes.c_long,)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def message(library: Any, status: int) -> str:
    """The library's words for a status."""
    return str(library.ca_message(status).decode(errors="replace"))


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables are set inside: the library reads them when a context and its first channel are made, and never again."""
    with _environment_lock:
        before = {key: os.environ.get(key) for key in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def copy_event(event: EventArguments) -> tuple[int, int, bytes]:
    """Type, count and bytes of a value, copied out of the library's memory (in its callback, where it is valid)."""
    kind = event.type - TIME
    offset, element = _LAYOUT[kind]
    return kind, event.count, ctypes.string_at(event.dbr, offset + event.count * np.dtype(element).itemsize)


def decode(kind: int, count: int, data: bytes, *, array: bool) -> tuple[Value, int]:
    """Value and alarm severity; small integers and enumerations are int32, floats float64. Arrays cannot be written to.

    Raises:
        DataError: an array of text, which this wire's contract does not know (5003).
    """
    (severity,) = _SEVERITY.unpack_from(data)
    offset, element = _LAYOUT[kind]
    if kind == STRING:
        if array:
            raise DataError("an array of text, where numbers or one text are expected", code=5003)
        return data[offset : offset + STRING_BYTES].split(b"\0", 1)[0].decode(errors="replace"), severity
    values = np.frombuffer(data, dtype=element, count=count, offset=offset)
    wanted = np.float64 if kind in (FLOAT, DOUBLE) else np.int32
    if array:
        if values.dtype != wanted:
            values = values.astype(wanted)
            values.flags.writeable = False
        return values, severity
    if values.size == 0:
        raise DataError("a number without a value", code=5003)
    return (float(values[0]) if wanted is np.float64 else int(values[0])), severity


def encode(name: str, value: Value, kind: int, elements: int) -> tuple[int, int, bytes]:
    """Type, count and bytes of a normalised value for a variable of a native type and a number of elements.

    The server would convert what does not fit into something else (2.5 into 2, a long array into its beginning), so it is
    not sent.

    Raises:
        DataError: text where a number belongs or the reverse, a fraction or a number too large for an integer (5006), more
            elements than the variable holds, or none (5007).
    """
    if isinstance(value, str):
        if kind not in (STRING, ENUM):
            raise DataError(f"{name}: {value!r} where a number belongs", code=5006)
        return STRING, 1, value.encode().ljust(STRING_BYTES, b"\0")
    if kind == STRING:
        raise DataError(f"{name}: {value!r} where text belongs", code=5006)
    numbers = np.atleast_1d(np.asarray(value))
    if not 1 <= numbers.size <= elements:
        raise DataError(f"{name}: {numbers.size} elements, the variable takes 1 to {elements}", code=5007)
    if kind in (FLOAT, DOUBLE):
        return DOUBLE, numbers.size, numbers.astype("<f8").tobytes()
    low, high = _RANGE[kind]
    if not np.all((numbers >= low) & (numbers <= high)) or (numbers.dtype.kind == "f" and np.any(numbers != np.round(numbers))):
        raise DataError(f"{name}: {value!r} where integers of {low} to {high} belong", code=5006)
    return LONG, numbers.size, numbers.astype("<i4").tobytes()


class QuietRepeater:
    """Answers the library's call for a CA repeater, so that it neither starts a daemon of its own nor complains.

    A repeater passes on the beacons of servers, which find a restarted one sooner; `epics_channels` searches anew instead.
    """

    CONFIRM: Final = struct.Struct(">HHHHII").pack(17, 0, 0, 0, 0, 0x7F000001)  # CA_PROTO repeater confirm

    def __init__(self, add_reader: Callable[[int, Callable[[], None]], object]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        add_reader(self._socket.fileno(), self._answer)

    def close(self, remove_reader: Callable[[int], object]) -> None:
        """Answer no more."""
        remove_reader(self._socket.fileno())
        self._socket.close()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            _, sender = self._socket.recvfrom(64)
            self._socket.sendto(self.CONFIRM, sender)
