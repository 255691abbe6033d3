"""Integers wider than a Modbus register: high word first, two's complement (docs/wires.md).

Not responsible for addresses or units; the callers name those.
"""

from __future__ import annotations

from collections.abc import Sequence

from drivers.hal.errors import DataError


def int16(word: int) -> int:
    """A register read as a signed 16-bit integer."""
    return word - 0x10000 if word & 0x8000 else word


def int32(words: Sequence[int], offset: int = 0) -> int:
    """Two registers from `offset` as a signed 32-bit integer."""
    value = words[offset] << 16 | words[offset + 1]
    return value - 0x1_0000_0000 if value & 0x8000_0000 else value


def uint64(words: Sequence[int], offset: int = 0) -> int:
    """Four registers from `offset` as an unsigned 64-bit integer."""
    return words[offset] << 48 | words[offset + 1] << 32 | words[offset + 2] << 16 | words[offset + 3]


def words_of_int32(value: int) -> tuple[int, int]:
    """The two registers of a signed 32-bit integer; DataError when it does not fit."""
    if not -0x8000_0000 <= value <= 0x7FFF_FFFF:
        raise DataError(f"{value} does not fit two registers (signed 32 bit)", code=5001)
    return value >> 16 & 0xFFFF, value & 0xFFFF


def words_of_int32s(values: Sequence[int]) -> list[int]:
    """The registers of several signed 32-bit integers, one after the other; DataError when one does not fit."""
    return [word for value in values for word in words_of_int32(value)]


def words_of_milli(value: float) -> tuple[int, int]:
    """The two registers of a number in thousandths (deg to mdeg, mm to um), rounded; DataError when it does not fit."""
    if not abs(value) < 2**31 / 1000:
        raise DataError(f"{value} does not fit two registers in thousandths", code=5001)
    return words_of_int32(round(value * 1000.0))
