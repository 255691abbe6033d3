"""After a crash every true count lies in the stated interval, and only an interval needs a signature."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.record.entries import BeamClaim, Kind, write_claim, write_closed, write_done, write_grant, write_started
from controller.record.journal import Journal, read_journal
from controller.record.memory_store import Loss, MemoryStore
from controller.record.reconcile import How, reconcile, record_outcomes
from drivers.hal.capabilities import PIECE_DTYPE, EndReason, Grant, PieceFlag, ScanMode, UnitLatch
from drivers.hal.errors import DataError

PATH = Path("/disk/journal.bin")
BOOT = 77
QUANTUM = 16


def make_grant(grant_id, layer, counts, boot=BOOT, mode=ScanMode.RASTER, first=0):
    n = len(counts)
    counts = np.asarray(counts, np.int32)
    spots = np.arange(first, first + n, dtype=np.int32)
    return Grant(
        boot,
        grant_id,
        5,
        1,
        4,
        layer,
        0,
        6012,
        200000,
        mode,
        10**8,
        QUANTUM,
        spots,
        spots * 3000,
        spots * 0,
        counts,
        counts + 50,
    )


def make_pieces(grant, counts):
    pieces = np.zeros(len(counts), PIECE_DTYPE)
    pieces["row"] = np.arange(len(counts))
    pieces["spot_index"] = grant.spot_index[: len(counts)]
    pieces["counts1"], pieces["counts2"] = counts, counts
    pieces["flags"] = int(PieceFlag.ROW_ENDED)
    return pieces


def journal_with(store, *, grants, done=(), base=1000, unstarted=()):
    journal = Journal.open(store, PATH, boot_id=1, clock=lambda: 0)
    sizes = np.array([4, 3], np.int32)
    write_claim(journal, BeamClaim("1.2", 1, 4, 5, BOOT, base, base, 1.0, sizes, np.full(7, 1000, np.int64)))
    for grant in grants:
        write_grant(journal, grant)
        if grant not in unstarted:
            write_started(journal, grant.grant_id, 9)
    for grant, counts, *ended in done:
        pieces = counts if isinstance(counts, np.ndarray) else make_pieces(grant, counts)
        write_done(journal, grant.grant_id, *(ended or [EndReason.FINISHED]), pieces)
    journal.close()
    return read_journal(store, PATH).records


def latch(grant_id, row, opened, total, boot=BOOT, total2=None):
    return UnitLatch(boot, grant_id, row, opened, opened, 1000 + total, 1000 + (total if total2 is None else total2))


FIRST, SECOND = make_grant(1, 0, [1000] * 4), make_grant(2, 1, [1000] * 3)
DONE = [(FIRST, [1000, 1010, 990, 1003])]


def beam(records, *args, **kwargs):
    return reconcile(records, *args, **kwargs)[-1]


def test_a_whole_journal_is_exact_without_the_unit():
    records = journal_with(MemoryStore(), grants=[FIRST], done=DONE)
    result = beam(records, None)
    assert not result.needs_signature
    lower, upper = result.received()
    np.testing.assert_array_equal(lower, [1000, 1010, 990, 1003, 0, 0, 0])
    np.testing.assert_array_equal(lower, upper)


def test_agreeing_counters_close_the_open_grant_by_themselves():
    records = journal_with(MemoryStore(), grants=[FIRST, SECOND], done=DONE)
    result = beam(records, latch(2, 0, 420, 4003 + 1000 + 7 + 420))
    assert result.outcomes[1].how is How.LATCH
    lower, upper = result.received()
    np.testing.assert_array_equal(upper[4:], [1007, 420, 0])
    assert int(lower.sum()) == 4003 + 1427, "the sum is the counter's own"
    assert not result.needs_signature


def test_a_grant_the_unit_never_took_delivered_nothing():
    records = journal_with(MemoryStore(), grants=[FIRST, SECOND], done=DONE, unstarted=[SECOND])
    result = beam(records, latch(1, 3, 0, 4003))
    assert result.outcomes[1].how is How.NOT_DELIVERED
    assert int(result.received()[1].sum()) == 4003


def test_a_unit_that_knows_nothing_of_a_grant_it_started_vouches_for_nothing():
    """Its memory was lost: a unit that begins anew under the same boot id shows the totals of nobody."""
    records = journal_with(MemoryStore(), grants=[FIRST], base=0)
    result = beam(records, UnitLatch(BOOT, 0, -1, 0, 0, 0, 0))
    assert result.outcomes[0].how is How.INTERVAL
    assert "memory was lost" in result.outcomes[0].reason
    assert result.needs_signature
    assert int(result.received()[1].sum()) >= 4000, "the whole grant may have been given"


def test_totals_below_what_was_accounted_for_are_those_of_another_memory():
    records = journal_with(MemoryStore(), grants=[FIRST, SECOND], done=DONE, unstarted=[SECOND])
    result = beam(records, UnitLatch(BOOT, 0, -1, 0, 0, 0, 0))
    assert result.outcomes[1].how is How.INTERVAL
    assert "below what is accounted for" in result.outcomes[1].reason


@pytest.mark.parametrize(
    ("what", "read"),
    [
        ("lost", None),
        ("of another boot", latch(2, 0, 420, 4003 + 1427, boot=BOOT + 1)),
        ("rows disagree with the counter", latch(2, 1, 420, 4003 + 1427)),
        ("monitors disagree", latch(2, 0, 420, 4003 + 1427, total2=4003 + 1600)),
        ("row beyond the grant", latch(2, 9, 420, 4003 + 1427)),
        ("open row above its grant", latch(2, 0, 1400, 4003 + 2400)),
        ("never taken, yet counted", latch(1, 3, 0, 4003 + 500)),
        ("went on without results", latch(3, 0, 420, 4003 + 1427)),
    ],
)
def test_a_latch_that_is_lost_or_disagrees_leaves_the_interval_of_the_grant(what, read):
    result = beam(journal_with(MemoryStore(), grants=[FIRST, SECOND], done=DONE), read)
    assert result.outcomes[1].how is How.INTERVAL, what
    assert result.needs_signature
    lower, upper = result.received()
    np.testing.assert_array_equal(lower[4:], 0)
    np.testing.assert_array_equal(upper[4:], 1000 + QUANTUM)  # its last row may have been cut off a reaction late
    assert "grant 2" in result.reasons[0]


def test_pieces_that_the_unit_still_holds_are_better_than_its_latch():
    records = journal_with(MemoryStore(), grants=[FIRST, SECOND], done=DONE)
    kept = {2: make_pieces(SECOND, [1001, 17])}
    result = beam(records, None, kept, boot_id=BOOT)
    assert result.outcomes[1].how is How.RESULTS
    np.testing.assert_array_equal(result.received()[1][4:], [1001, 17, 0])
    assert beam(records, None, kept, boot_id=BOOT + 1).needs_signature, "pieces of another boot prove nothing"


@pytest.mark.parametrize("ended", [EndReason.MONITORS_DISAGREE, EndReason.MONITOR_DEAD])
def test_a_grant_that_its_monitors_ended_lies_between_what_they_counted(ended):
    pieces = make_pieces(FIRST, [1000, 1010, 700, 0])
    pieces["counts2"] = [1003, 1001, 1400, 12]
    result = beam(journal_with(MemoryStore(), grants=[FIRST], done=[(FIRST, pieces, ended)]), None)
    assert result.needs_signature
    lower, upper = result.received()
    np.testing.assert_array_equal(lower[:4], [1000, 1001, 700, 0])
    np.testing.assert_array_equal(upper[:4], [1003, 1010, 1400, 12])
    assert "grant 1: the monitors disagree, 2710 and 3416 counts" in result.reasons[0]


def test_monitors_that_differ_over_a_whole_grant_are_doubted_whatever_ended_it():
    pieces = make_pieces(FIRST, [1000] * 4)
    pieces["counts2"] = [1060] * 4
    result = beam(journal_with(MemoryStore(), grants=[FIRST], done=[(FIRST, pieces, EndReason.PERMIT_LOST)]), None)
    np.testing.assert_array_equal(result.received()[1][:4], 1060)
    pieces["counts2"] = [1040] * 4  # within 5 %
    result = beam(journal_with(MemoryStore(), grants=[FIRST], done=[(FIRST, pieces, EndReason.PERMIT_LOST)]), None)
    assert not result.needs_signature
    np.testing.assert_array_equal(result.received()[1][:4], 1000)


def test_a_monitor_that_died_as_the_grant_ended_is_doubted():
    pieces = make_pieces(FIRST, [1000] * 4)
    pieces["counts2"][3] = 850  # 4 % of the grant, 15 % of this spot
    result = beam(journal_with(MemoryStore(), grants=[FIRST], done=[(FIRST, pieces, EndReason.FINISHED)]), None)
    assert result.needs_signature
    assert [int(bound[3]) for bound in result.received()] == [850, 1000]


def test_counts_beyond_every_grant_lock_the_beam():
    records = journal_with(MemoryStore(), grants=[FIRST], done=[])
    result = beam(records, latch(2, 0, 0, 9000))
    assert result.unexplained_counts1 == 9000 - 4 * (1000 + QUANTUM)
    assert result.needs_signature


def test_recovery_is_the_same_when_it_is_done_again():
    store = MemoryStore()
    records = journal_with(store, grants=[FIRST, SECOND], done=DONE)
    read = latch(2, 0, 420, 4003 + 1420)
    once = beam(records, read)
    for boot_id in (2, 3):
        with Journal.open(store, PATH, boot_id=boot_id, clock=lambda: 0) as journal:
            record_outcomes(journal, beam(journal.history, read), signed_by="")
    records = read_journal(store, PATH).records
    assert sum(r.kind == Kind.RECONCILED for r in records) == 1
    again = beam(records, None)  # the latch may be gone by now
    np.testing.assert_array_equal(again.received()[0], once.received()[0])
    assert not again.needs_signature


def test_a_closed_beam_ignores_what_the_unit_did_since():
    store = MemoryStore()
    journal_with(store, grants=[FIRST], done=DONE)
    with Journal.open(store, PATH, boot_id=2, clock=lambda: 0) as journal:
        write_closed(journal, 4, "complete", "")
    result = beam(read_journal(store, PATH).records, latch(9, 0, 0, 99999))
    assert result.closed
    assert not result.needs_signature


def test_a_grant_outside_a_beam_is_a_broken_journal():
    store = MemoryStore()
    with Journal.open(store, PATH, boot_id=1, clock=lambda: 0) as journal:
        write_grant(journal, FIRST)
    with pytest.raises(DataError, match="no claimed beam"):
        reconcile(read_journal(store, PATH).records, None)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 30),
    stop=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
    loss=st.sampled_from(["none", "latch", "boot"]),
    mode=st.sampled_from(list(ScanMode)),
)
def test_the_truth_is_never_outside_the_stated_interval_by_more_than_a_quantum(rows, stop, seed, loss, mode):
    """A model of the unit delivers rows with carried counts and loses power anywhere; what is stated must hold the truth."""
    rng = np.random.default_rng(seed)
    granted = rng.integers(200, 3000, rows)
    carried = rng.integers(0, QUANTUM, rows + 1)
    carried[0] = 0
    true = granted + np.diff(carried) if mode is ScanMode.RASTER else granted + carried[1:]
    cut = int(stop * true.sum())
    ends = np.cumsum(true)
    finished = int(np.searchsorted(ends, cut, side="right"))
    delivered = np.clip(cut - np.concatenate([[0], ends[:-1]]), 0, true)
    opened = int(delivered[finished]) if finished < rows else 0
    grant = make_grant(1, 0, granted, mode=mode)
    store = MemoryStore()
    journal = Journal.open(store, PATH, boot_id=1, clock=lambda: 0)
    sizes = np.array([rows], np.int32)
    write_claim(journal, BeamClaim("1.2", 1, 4, 5, BOOT, 1000, 1000, 1.0, sizes, granted.astype(np.int64)))
    write_grant(journal, grant)
    store = store.after_power_cut(Loss.LOST, rng)
    read = None if loss == "latch" else latch(1, finished - 1, opened, cut, boot=BOOT + (loss == "boot"))
    result = beam(read_journal(store, PATH).records, read)
    lower, upper = result.received()
    if loss == "none":
        assert result.outcomes[0].how is How.LATCH
        assert int(lower.sum()) == int(upper.sum()) == cut
        np.testing.assert_array_less(np.abs(delivered - lower), QUANTUM * (1 if mode is ScanMode.RASTER else rows) + 3)
        assert np.all(np.abs(np.cumsum(delivered - lower)) <= QUANTUM * (1 if mode is ScanMode.RASTER else rows) + 3)
    else:
        assert result.needs_signature
        assert np.all(lower <= delivered)
        assert np.all(delivered <= upper)
