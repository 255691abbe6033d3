"""Grants, results and the latch as the delivery unit's own firmware reads and writes them: arrays of int32 with a
CRC-32C.

The plant's own decoder of docs/wires.md, written apart from the drivers' encoder. Not responsible for what the unit
then does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import google_crc32c
import numpy as np
from numpy.typing import NDArray

PROTOCOL = 1
HEADER_WORDS = 14
ROW_WORDS = 5
ROWS_MAX = 4000
PIECES_MAX = 256
LOW_WORD = 0xFFFFFFFF

Int32s = NDArray[np.int32]


class Refusal(IntEnum):
    """Why a grant or its start was refused."""

    NONE = 0
    CRC = 1
    PROTOCOL = 2
    BOOT_ID = 3
    ID = 4
    OPEN = 5
    AGE = 6
    SPECIES = 7
    ENERGY = 8
    ROWS = 9
    MAP = 10
    NOT_PERMITTED = 11
    LATCHED = 12
    INTENSITY = 13
    FIELD = 14


class ScanMode(IntEnum):
    """How the unit goes from row to row."""

    RASTER = 0
    SPOT = 1


@dataclass(frozen=True, slots=True, eq=False)
class GrantMessage:
    """A grant as received; arrays have shape (rows,)."""

    boot_id: int
    grant_id: int
    plan_hash: int
    fraction: int
    beam: int
    layer: int
    painting: int
    species: int
    kev_u: int
    scan_mode: ScanMode
    intensity_per_s: int
    quantum_counts: int
    spot_index: Int32s
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    counts1_max: NDArray[np.int64]
    counts2_max: NDArray[np.int64]
    crc: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.spot_index.size)


# What was delivered of one row without interruption, as the results ring keeps it; x, y, sigma as measured, at the isocentre.
PIECE = np.dtype(
    [
        ("row", np.int64),
        ("spot_index", np.int64),
        ("spill", np.int64),
        ("x_um", np.int64),
        ("y_um", np.int64),
        ("sigma_x_um", np.int64),
        ("sigma_y_um", np.int64),
        ("counts1", np.int64),
        ("counts2", np.int64),
        ("t_start_ns", np.int64),
        ("t_end_ns", np.int64),
        ("flags", np.int64),
    ]
)


def crc32c(words: Int32s) -> int:
    """CRC-32C of int32 words in little-endian order, as a signed int32."""
    value = int(google_crc32c.value(np.ascontiguousarray(words, dtype="<i4").tobytes()))
    return value - (1 << 32) if value >= 1 << 31 else value


def split64(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """High and low words of 64-bit integers; the low word as it looks in a signed int32."""
    low = values & LOW_WORD
    return values >> 32, np.where(low >= 1 << 31, low - (1 << 32), low)


def words64(value: int) -> list[int]:
    """High and low word of one 64-bit integer, both as signed int32."""
    low = value & LOW_WORD
    return [value >> 32, low - (1 << 32) if low >= 1 << 31 else low]


def decode_grant(words: Int32s) -> GrantMessage | Refusal:
    """Read a grant, or say why it is none (CRC, PROTOCOL or ROWS). Meaning is judged elsewhere."""
    if words.size < HEADER_WORDS + 1 or crc32c(words[:-1]) != int(words[-1]):
        return Refusal.CRC
    head = [int(word) for word in words[:HEADER_WORDS]]
    if head[0] != PROTOCOL or head[10] not in (ScanMode.RASTER, ScanMode.SPOT):
        return Refusal.PROTOCOL
    rows = head[13]
    if not 1 <= rows <= ROWS_MAX or words.size != HEADER_WORDS + ROW_WORDS * rows + 1:
        return Refusal.ROWS
    body = words[HEADER_WORDS:-1].reshape(rows, ROW_WORDS)
    return GrantMessage(
        boot_id=head[1],
        grant_id=head[2],
        plan_hash=head[3],
        fraction=head[4],
        beam=head[5],
        layer=head[6],
        painting=head[7],
        species=head[8],
        kev_u=head[9],
        scan_mode=ScanMode(head[10]),
        intensity_per_s=head[11],
        quantum_counts=head[12],
        spot_index=body[:, 0].copy(),
        x_mm=body[:, 1].astype(np.float64) * 1e-3,
        y_mm=body[:, 2].astype(np.float64) * 1e-3,
        counts1_max=body[:, 3].astype(np.int64),
        counts2_max=body[:, 4].astype(np.int64),
        crc=int(words[-1]),
    )


def encode_results(boot_id: int, grant_id: int, first: int, pieces: NDArray[np.void]) -> Int32s:
    """One answer: header, up to `PIECES_MAX` pieces from number `first` on, CRC."""
    part = pieces[first : first + PIECES_MAX]
    columns: list[NDArray[np.int64]] = []
    for name in PIECE.names or ():
        if name in ("counts1", "counts2", "t_start_ns", "t_end_ns"):
            columns.extend(split64(part[name]))
        else:
            columns.append(part[name])
    body = np.stack(columns, axis=1).astype(np.int32).reshape(-1)
    words = np.concatenate([np.array([PROTOCOL, boot_id, grant_id, first, part.size], dtype=np.int32), body])
    return np.append(words, np.int32(crc32c(words)))


def encode_latch(boot_id: int, grant_id: int, last_row: int, row1: int, row2: int, total1: int, total2: int) -> Int32s:
    """The dose memory that survives a power loss, with its CRC."""
    words = np.array(
        [boot_id, grant_id, last_row, *words64(row1), *words64(row2), *words64(total1), *words64(total2)], dtype=np.int32
    )
    return np.append(words, np.int32(crc32c(words)))
