"""Grants, results, status and latch of the delivery unit as arrays of signed 32-bit integers (docs/wires.md), with CRC-32C.

Whatever does not fit, or does not hold together, is a DataError that says where; nothing is clipped or guessed. Not responsible
for what is granted, for the echo, or for asking again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from drivers.hal.capabilities import (
    PIECE_DTYPE,
    EndReason,
    Grant,
    Hold,
    PieceFlag,
    UnitLatch,
    UnitState,
    UnitStatus,
)
from drivers.hal.errors import DataError

PROTOCOL = 1
GRANT_HEADER = 14
GRANT_ROW = 5
ROWS_MAX = 4000
RESULT_HEADER = 5
PIECE_WORDS = 16
PIECES_MAX = 256
STATUS_WORDS = 16
LATCH_WORDS = 12
INT32_MAX = 2**31 - 1

DOES_NOT_FIT = 5001
DAMAGED = 5121

_ALL_FLAGS = int(sum(PieceFlag))
# Position of a field in the words of a piece; 64-bit fields give that of their high word.
_NARROW = {"row": 0, "spot_index": 1, "spill": 2, "x_um": 3, "y_um": 4, "sigma_x_um": 5, "sigma_y_um": 6, "flags": 15}
_WIDE = {"counts1": 7, "counts2": 9, "t_start_ns": 11, "t_end_ns": 13}

Words = Sequence[int] | NDArray[np.int32]
_STATES = {int(state): state for state in UnitState}
_REASONS = {int(reason): reason for reason in EndReason}


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """One answer of the unit: `pieces` (dtype PIECE_DTYPE) of a grant, beginning with piece number `first`."""

    boot_id: int
    grant_id: int
    first: int
    pieces: NDArray[np.void]


@dataclass(frozen=True, slots=True)
class UnitReport:
    """The unit's status array: its liveness counter, its status, and which results of the last grants it holds."""

    counter: int
    status: UnitStatus
    results_from: int
    results_to: int


def crc32c(words: NDArray[np.int32]) -> int:
    """CRC-32C (Castagnoli) of words as little-endian int32, as a signed 32-bit integer."""
    crc = int(google_crc32c.value(words.astype("<i4", copy=False).tobytes()))
    return crc - 0x1_0000_0000 if crc & 0x8000_0000 else crc


def encode_grant(grant: Grant) -> tuple[NDArray[np.int32], int]:
    """The array of a grant, shape (14 + 5 n + 1,), and the CRC that ends it and starts the grant.

    Raises:
        DataError: a number does not fit the wire, no rows or too many, arrays of different lengths, or counts below zero.
    """
    where = f"grant {grant.grant_id}"
    columns = [np.asarray(c) for c in (grant.spot_index, grant.x_um, grant.y_um, grant.counts1_max, grant.counts2_max)]
    rows = grant.rows
    if not 1 <= rows <= ROWS_MAX:
        raise DataError(f"{where}: {rows} rows, allowed 1 to {ROWS_MAX}", code=DOES_NOT_FIT)
    if any(column.shape != (rows,) or column.dtype.kind not in "iu" for column in columns):
        raise DataError(f"{where}: columns are not {rows} integers each", code=DOES_NOT_FIT)
    header = (
        PROTOCOL,
        grant.unit_boot_id,
        grant.grant_id,
        grant.plan_hash,
        grant.fraction,
        grant.beam_number,
        grant.layer_index,
        grant.painting,
        grant.species_token,
        grant.energy_kev_u,
        int(grant.scan_mode),
        grant.intensity_per_s,
        grant.quantum_counts,
        rows,
    )
    for value in header:
        if not 0 <= value <= INT32_MAX:
            raise DataError(f"{where}: header value {value} does not fit 31 bits", code=DOES_NOT_FIT)
    table = np.stack([column.astype(np.int64) for column in columns], axis=1)
    if table.min() < -INT32_MAX - 1 or table.max() > INT32_MAX:
        raise DataError(f"{where}: a row does not fit 32 bits", code=DOES_NOT_FIT)
    if table[:, 0].min() < 0 or table[:, 3:].min() < 0:
        raise DataError(f"{where}: a spot index or a count is below zero", code=DOES_NOT_FIT)
    words = np.empty(GRANT_HEADER + GRANT_ROW * rows + 1, dtype=np.int32)
    words[:GRANT_HEADER] = header
    words[GRANT_HEADER:-1] = table.reshape(-1)
    crc = crc32c(words[:-1])
    words[-1] = crc
    return words, crc


def decode_results(words: Words, *, boot_id: int | None = None) -> Results:
    """One answer of the unit, with every check that a single answer allows.

    Args:
        words: int32 array, 5 + 16 m + 1 words.
        boot_id: when given, the boot id that the answer must carry.

    Raises:
        DataError: wrong length, checksum, protocol or boot id; rows that fall or leave gaps; times that run backwards or
            overlap; counts or sizes below zero; unknown flags; a row that goes on after its end.
    """
    array = _checked("results", words)
    protocol, boot, grant_id, first, count = (int(w) for w in array[:RESULT_HEADER])
    where = f"results of grant {grant_id} from {first}"
    if protocol != PROTOCOL:
        raise DataError(f"{where}: protocol {protocol}, expected {PROTOCOL}", code=DAMAGED)
    if boot_id is not None and boot != boot_id:
        raise DataError(f"{where}: boot id {boot}, expected {boot_id}: the unit restarted", code=DAMAGED)
    if not 0 <= count <= PIECES_MAX or array.size != RESULT_HEADER + PIECE_WORDS * count + 1 or first < 0:
        raise DataError(f"{where}: {array.size} words for {count} pieces", code=DAMAGED)
    raw = array[RESULT_HEADER:-1].reshape(count, PIECE_WORDS)
    pieces = np.zeros(count, dtype=PIECE_DTYPE)
    for name, column in _NARROW.items():
        pieces[name] = raw[:, column]
    for name, column in _WIDE.items():
        pieces[name] = raw[:, column].astype(np.int64) << 32 | raw[:, column + 1].view(np.uint32).astype(np.int64)
    _check_pieces(where, pieces, first)
    return Results(boot, grant_id, first, pieces)


def decode_status(words: Words, t_ns: int) -> UnitReport:
    """The unit's status array (16 words), received at `t_ns`. DataError when it is not one."""
    w = words if isinstance(words, list) else [int(word) for word in words]
    if len(w) != STATUS_WORDS:
        raise DataError(f"unit status: {len(w)} words, expected {STATUS_WORDS}", code=5003)
    try:
        status = UnitStatus(
            t_ns=t_ns,
            boot_id=w[1],
            state=_STATES[w[2]],
            last_grant_id=w[3],
            open_grant_id=w[4],
            open_row=w[5],
            reason=_REASONS[w[6]],
            hold=_hold(w[7]),
            counts1_total=_wide(w[8], w[9]),
            counts2_total=_wide(w[10], w[11]),
            rows_finished=w[12],
            latched=bool(w[15]),
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"unit status: state {w[2]}, reason {w[6]}, hold {w[7]}: {error} is unknown", code=5004) from None
    return UnitReport(w[0], status, w[13], w[14])


@lru_cache(maxsize=64)
def _hold(bits: int) -> Hold:
    return Hold(bits)


def decode_latch(words: Words) -> UnitLatch:
    """The latch that survives a power loss (12 words). DataError when its checksum does not hold."""
    array = _checked("latch", words)
    if array.size != LATCH_WORDS:
        raise DataError(f"latch: {array.size} words, expected {LATCH_WORDS}", code=DAMAGED)
    w = [int(word) for word in array]
    return UnitLatch(w[0], w[1], w[2], _wide(w[3], w[4]), _wide(w[5], w[6]), _wide(w[7], w[8]), _wide(w[9], w[10]))


def _checked(what: str, words: Words) -> NDArray[np.int32]:
    """The words as int32 array whose last one is the CRC of the others."""
    array = np.asarray(words)
    if array.ndim != 1 or array.dtype.kind != "i" or array.size <= RESULT_HEADER:
        raise DataError(f"{what}: not a row of integers ({array.size} of {array.dtype})", code=DAMAGED)
    if array.dtype != np.int32:
        if array.max() > INT32_MAX or array.min() < -INT32_MAX - 1:
            raise DataError(f"{what}: a word does not fit 32 bits", code=DAMAGED)
        array = array.astype(np.int32)
    array = np.ascontiguousarray(array)
    stated, own = int(array[-1]), crc32c(array[:-1])
    if stated != own:
        raise DataError(f"{what}: checksum {stated:#x} does not hold, computed {own:#x}", code=DAMAGED)
    return array


def _check_pieces(where: str, pieces: NDArray[np.void], first: int) -> None:
    """Rows in order and without gaps, time forward, nothing below zero."""
    if pieces.size == 0:
        return
    rows, flags = pieces["row"].astype(np.int64), pieces["flags"]
    ended = (flags & int(PieceFlag.ROW_ENDED)) != 0
    faults = (
        (rows < 0, "row below zero"),
        (pieces["spot_index"] < 0, "spot index below zero"),
        ((pieces["counts1"] < 0) | (pieces["counts2"] < 0), "counts below zero"),
        ((pieces["sigma_x_um"] < 0) | (pieces["sigma_y_um"] < 0), "size below zero"),
        (pieces["t_end_ns"] < pieces["t_start_ns"], "ends before it starts"),
        ((flags < 0) | ((flags & ~_ALL_FLAGS) != 0), "unknown flags"),
        (np.r_[False, rows[1:] != rows[:-1] + ended[:-1]], "row does not follow the piece before"),
        (np.r_[False, pieces["t_start_ns"][1:] < pieces["t_end_ns"][:-1]], "starts before the piece before has ended"),
    )
    for wrong, what in faults:
        if wrong.any():
            index = int(np.argmax(wrong))
            raise DataError(f"{where}: piece {first + index} (row {rows[index]}): {what}", code=DAMAGED)
    if first == 0 and rows[0] != 0:
        raise DataError(f"{where}: begins with row {rows[0]}", code=DAMAGED)


def _wide(high: int, low: int) -> int:
    """Two words as a 64-bit integer, the low word unsigned."""
    return (high << 32) | (low & 0xFFFF_FFFF)
