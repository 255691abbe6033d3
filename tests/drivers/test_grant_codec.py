"""Grants and results on the wire: what was granted is what arrives, and damage is never taken for dose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.hal.capabilities import PIECE_DTYPE, EndReason, Grant, Hold, ScanMode, UnitState
from drivers.hal.errors import DataError
from drivers.wire.codecs.grant import crc32c, decode_latch, decode_results, decode_status, encode_grant


def grant(rows: int = 2) -> Grant:
    index = np.arange(rows, dtype=np.int32)
    return Grant(
        unit_boot_id=411001,
        grant_id=7,
        plan_hash=0x7FFF_FFFF,
        fraction=3,
        beam_number=2,
        layer_index=11,
        painting=1,
        species_token=6012,
        energy_kev_u=283_760,
        scan_mode=ScanMode.RASTER,
        intensity_per_s=400_000_000,
        quantum_counts=25,
        spot_index=index,
        x_um=index * 2000 - 1000,
        y_um=-index,
        counts1_max=index + 500,
        counts2_max=index + 600,
    )


def results(pieces: list[list[int]], first: int = 0, grant_id: int = 7) -> np.ndarray:
    """An answer as the unit would write it, from the interface document."""
    words = np.array([1, 411001, grant_id, first, len(pieces), *[w for piece in pieces for w in piece], 0], dtype=np.int32)
    words[-1] = crc32c(words[:-1])
    return words


# row, spot, spill, x, y, sigma x, sigma y, counts 1 hi lo, counts 2 hi lo, start hi lo, end hi lo, flags
CUT = [0, 40, 2, -1000, 5, 2500, 2600, 0, 300, 0, 310, 1, 0, 1, 900, 4]
REST = [0, 40, 3, -1000, 5, 2500, 2600, 0, 200, 0, 190, 1, 1000, 1, 1900, 33]
NEXT = [1, 41, 3, 1000, 5, 2500, 2600, 1, -1, 0, 480, 1, 2000, 1, 2900, 33]


def test_crc_is_castagnoli() -> None:
    # The check value of CRC-32C (RFC 3720, appendix B.4): 32 bytes of zeros give 0x8A9136AA.
    assert crc32c(np.zeros(8, dtype=np.int32)) == 0x8A9136AA - 2**32


def test_a_grant_is_laid_out_as_the_interface_document_says() -> None:
    words, crc = encode_grant(grant())
    header = [1, 411001, 7, 0x7FFF_FFFF, 3, 2, 11, 1, 6012, 283_760, 0, 400_000_000, 25, 2]
    rows = [0, -1000, 0, 500, 600, 1, 1000, -1, 501, 601]
    assert words.tolist() == [*header, *rows, crc]
    assert words.dtype == np.int32
    assert crc == crc32c(words[:-1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"intensity_per_s": 2**31}, "31 bits"),
        ({"grant_id": -1}, "31 bits"),
        ({"counts1_max": np.array([5, -1], dtype=np.int32)}, "below zero"),
        ({"counts2_max": np.array([5, 2**31], dtype=np.int64)}, "32 bits"),
        ({"x_um": np.array([1.0, 2.0])}, "integers"),
        ({"x_um": np.array([1], dtype=np.int32)}, "integers"),
        ({"spot_index": np.zeros(0, dtype=np.int32)}, "0 rows"),
    ],
)
def test_a_grant_that_does_not_fit_is_never_sent(change: dict[str, object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        encode_grant(dataclasses.replace(grant(), **change))  # type: ignore[arg-type]


def test_more_rows_than_the_unit_takes_are_refused() -> None:
    assert encode_grant(grant(4000))[0].size == 14 + 5 * 4000 + 1
    with pytest.raises(DataError, match="4001 rows"):
        encode_grant(grant(4001))


def test_results_come_back_as_pieces() -> None:
    answer = decode_results(results([CUT, REST, NEXT]), boot_id=411001)
    assert (answer.grant_id, answer.first, answer.pieces.dtype) == (7, 0, PIECE_DTYPE)
    assert answer.pieces["row"].tolist() == [0, 0, 1]
    assert answer.pieces["x_um"].tolist() == [-1000, -1000, 1000]
    assert answer.pieces["counts1"].tolist() == [300, 200, 2**33 - 1]
    assert answer.pieces["t_start_ns"].tolist() == [2**32, 2**32 + 1000, 2**32 + 2000]
    assert answer.pieces["flags"].tolist() == [4, 33, 33]


def test_an_answer_without_pieces_says_there_are_no_more() -> None:
    assert decode_results(results([], first=3)).pieces.size == 0


def changed(piece: list[int], column: int, value: int) -> list[int]:
    return [*piece[:column], value, *piece[column + 1 :]]


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([changed(CUT, 0, -1)], "row below zero"),
        ([changed(CUT, 1, -1)], "spot index"),
        ([changed(CUT, 5, -1)], "size below zero"),
        ([changed(CUT, 7, -1)], "counts below zero"),
        ([changed(CUT, 14, -1), REST], "starts before"),
        ([changed(CUT, 13, 0)], "ends before"),
        ([changed(CUT, 15, 1024)], "unknown flags"),
        ([CUT, NEXT], "does not follow"),  # the row was not ended
        ([CUT, REST, REST], "does not follow"),  # the row was ended
        ([CUT, REST, changed(NEXT, 0, 2)], "does not follow"),  # a row is missing
        ([NEXT], "begins with row 1"),
    ],
)
def test_pieces_that_contradict_themselves_are_not_taken(pieces: list[list[int]], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_results(results(pieces))


@settings(max_examples=100, deadline=None)
@given(index=st.integers(0, 5 + 3 * 16), bit=st.integers(0, 30))
def test_no_flipped_bit_becomes_dose(index: int, bit: int) -> None:
    words = results([CUT, REST, NEXT])
    words[index] ^= 1 << bit
    with pytest.raises(DataError):
        decode_results(words)


@pytest.mark.parametrize("words", [np.zeros(3, dtype=np.int32), np.zeros(40), np.zeros((2, 20), dtype=np.int32)])
def test_what_is_no_answer_is_refused(words: np.ndarray) -> None:
    with pytest.raises(DataError):
        decode_results(words)


def test_an_answer_of_a_restarted_unit_is_refused() -> None:
    with pytest.raises(DataError, match="restarted"):
        decode_results(results([CUT]), boot_id=5)


def test_truncated_results_are_refused() -> None:
    words = results([CUT, REST])[:-4]
    words[-1] = crc32c(words[:-1])
    with pytest.raises(DataError, match="words for 2 pieces"):
        decode_results(words)


def test_status_and_latch_carry_64_bit_counts() -> None:
    status = decode_status([9, 411001, 3, 6, 7, 12, 0, 5, 1, -2, 0, -1, 11, 0, 2, 0], 123)
    assert status.counter == 9
    assert status.status.state is UnitState.HELD
    assert status.status.hold == Hold.GATE | Hold.SPILL
    assert status.status.reason is EndReason.NONE
    assert status.status.counts1_total == 2**33 - 2
    assert status.status.counts2_total == 2**32 - 1
    assert (status.results_from, status.results_to, status.status.rows_finished) == (0, 2, 11)
    words = np.array([411001, 7, 10, 0, 55, 0, 56, 1, 0, 1, -1, 0], dtype=np.int32)
    words[-1] = crc32c(words[:-1])
    latch = decode_latch(words)
    assert (latch.last_finished_row, latch.open_row_counts1, latch.total_counts1) == (10, 55, 2**32)
    assert latch.total_counts2 == 2**33 - 1
    words[4] += 1
    with pytest.raises(DataError, match="checksum"):
        decode_latch(words)


@pytest.mark.parametrize("words", [[0] * 15, [0, 0, 17] + [0] * 13, [0] * 6 + [99] + [0] * 9])
def test_a_status_that_is_none_is_refused(words: list[int]) -> None:
    with pytest.raises(DataError):
        decode_status(words, 0)
