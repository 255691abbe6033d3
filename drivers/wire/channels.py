"""The contract of named process variables: EPICS Channel Access, or its memory twin.

What is promised, and what is not, is the written list in docs/wire-semantics.md (C1 and on). In short: put with completion,
monitors that show the last value and may skip others, no order between variables, and a connection that says nothing about
life. Liveness is a counter in the data. Not responsible for what a variable means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drivers.hal.errors import DataError

Value = int | float | str | NDArray[np.int32] | NDArray[np.float64]
PutValue = Value | Sequence[int] | Sequence[float]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
STRING_BYTES_MAX = 39  # DBR_STRING holds 40 bytes with its terminating zero


class Severity(IntEnum):
    """Alarm severity as Channel Access numbers it."""

    NO_ALARM = 0
    MINOR = 1
    MAJOR = 2
    INVALID = 3


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One value of one variable.

    Attributes:
        value: int, float, str, or a one-dimensional array of int32 or float64 (not writeable).
        t_ns: loop time in ns at which the value reached this process.
        severity: alarm severity set by the server.
    """

    value: Value
    t_ns: int
    severity: Severity = Severity.NO_ALARM


class Channels(Protocol):
    """Named variables of one or many servers."""

    async def get(self, name: str, timeout_s: float = 1.0) -> Sample:
        """Ask the server for the present value.

        Raises:
            CommunicationError: unknown, not connected, or no answer within `timeout_s`.
        """
        ...

    async def put(self, name: str, value: PutValue, timeout_s: float = 1.0) -> None:
        """Write and wait until the server has processed it (put with completion).

        After a time-out or a cancellation the write may still take effect.

        Raises:
            CommunicationError: unknown, not connected, or no completion within `timeout_s`.
            CommandRejected: the server denies access.
            DataError: the value does not fit the wire.
        """
        ...

    def monitor(self, name: str, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Call `callback` with the present value, and again as it changes; returns the function that ends it.

        Only the last value is sure to come. The callback must not raise and must not block.
        """
        ...

    def connected(self, name: str) -> bool:
        """Whether the variable is connected. Never a proof of life."""
        ...

    async def close(self) -> None:
        """End all monitors and let go of the servers."""
        ...


@runtime_checkable
class CountsConnections(Protocol):
    """Channels that also tell how often a variable has been connected, so that no reconnection goes unseen."""

    def connections(self, name: str) -> int:
        """Connections of the variable so far. It has risen before any value of a new connection is told."""
        ...


def normalise(name: str, value: PutValue) -> Value:
    """Bring a value into one of the five types of the wire.

    Raises:
        DataError: a number beyond int32, a string beyond 39 bytes, or an array that is not one-dimensional numbers.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.int32 and value.ndim == 1:  # most of what travels
        copy = value.copy()
        copy.flags.writeable = False
        return copy
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | np.integer):
        if not INT32_MIN <= value <= INT32_MAX:
            raise DataError(f"{name}: {value} does not fit a 32-bit integer", code=5001)
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    if isinstance(value, str):
        if len(value.encode()) > STRING_BYTES_MAX:
            raise DataError(f"{name}: text of {len(value.encode())} bytes, the wire holds {STRING_BYTES_MAX}", code=5002)
        return value
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iufb":
        raise DataError(f"{name}: array of shape {array.shape}, type {array.dtype}; a row of numbers is expected", code=5003)
    if array.dtype.kind == "f":
        floats = array.astype(np.float64)
        floats.flags.writeable = False
        return floats
    if array.size and (int(array.min()) < INT32_MIN or int(array.max()) > INT32_MAX):
        raise DataError(f"{name}: an element does not fit a 32-bit integer", code=5001)
    integers = array.astype(np.int32)
    integers.flags.writeable = False
    return integers


def as_int(name: str, sample: Sample) -> int:
    """The sample's value as an integer; DataError when it is something else."""
    if isinstance(sample.value, int):
        return sample.value
    raise DataError(f"{name}: {sample.value!r} is not an integer", code=5004)


def as_float(name: str, sample: Sample) -> float:
    """The sample's value as a finite number; DataError otherwise (NaN travels on the wire, but decides nothing)."""
    if isinstance(sample.value, int | float) and math.isfinite(sample.value):
        return float(sample.value)
    raise DataError(f"{name}: {sample.value!r} is not a finite number", code=5005)


def as_text(name: str, sample: Sample) -> str:
    """The sample's value as text; DataError when it is something else."""
    if isinstance(sample.value, str):
        return sample.value
    raise DataError(f"{name}: {sample.value!r} is not text", code=5004)


def as_int_array(name: str, sample: Sample, size: int | None = None) -> NDArray[np.int32]:
    """The sample's value as int32 array (of `size` elements when given); DataError otherwise."""
    if isinstance(sample.value, np.ndarray) and sample.value.dtype == np.int32 and size in (None, sample.value.size):
        return sample.value.astype(np.int32, copy=False)
    raise DataError(f"{name}: {_shape(sample.value)} where {_expected('int32', size)} is expected", code=5003)


def as_float_array(name: str, sample: Sample, size: int | None = None) -> NDArray[np.float64]:
    """The sample's value as finite float64 array (of `size` elements when given); DataError otherwise."""
    if isinstance(sample.value, np.ndarray) and sample.value.dtype == np.float64 and size in (None, sample.value.size):
        if not np.isfinite(sample.value).all():
            raise DataError(f"{name}: an element is not finite", code=5005)
        return sample.value.astype(np.float64, copy=False)
    raise DataError(f"{name}: {_shape(sample.value)} where {_expected('float64', size)} is expected", code=5003)


def _shape(value: Value) -> str:
    return f"array of {value.size} {value.dtype}" if isinstance(value, np.ndarray) else repr(value)


def _expected(kind: str, size: int | None) -> str:
    return f"an array of {kind}" if size is None else f"an array of {size} {kind}"
