"""The journal keeps every record whose append returned, through power cuts at any instant, and never invents one."""

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.record.journal import Anchor, Journal, read_journal
from controller.record.memory_store import Loss, MemoryStore, PowerCut
from controller.record.store import Busy, DiskStore, StorageError, write_atomic
from drivers.hal.errors import DataError

PATH = Path("/disk/journal.bin")


def open_journal(store, boot_id=1, **kwargs):
    return Journal.open(store, PATH, boot_id=boot_id, clock=lambda: 7, **kwargs)


def append_some(journal, count, start=0):
    for n in range(start, start + count):
        journal.append(2, {"n": n}, {"counts": np.arange(n, dtype=np.int64)})


def numbers(records):
    return [r.data["n"] for r in records if "n" in r.data]


def test_records_come_back_as_they_were_written():
    store = MemoryStore()
    with open_journal(store, identity={"room": "G1"}) as journal:
        journal.append(3, {"x_mm": 1.5, "ä": [1, None]}, {"a": np.arange(6, dtype=np.int32).reshape(2, 3)}, t_ns=123)
    records = read_journal(store, PATH).records
    assert [r.seq for r in records] == [1, 2]
    assert records[0].data["room"] == "G1"
    assert records[1].data == {"x_mm": 1.5, "ä": [1, None]}
    assert records[1].t_ns == 123
    np.testing.assert_array_equal(records[1].arrays["a"], [[0, 1, 2], [3, 4, 5]])


def test_what_cannot_be_written_canonically_is_refused_and_leaves_no_trace():
    store = MemoryStore()
    with open_journal(store) as journal:
        with pytest.raises(DataError, match="cannot be recorded"):
            journal.append(2, {"x": float("nan")})
        append_some(journal, 1)
    assert numbers(read_journal(store, PATH).records) == [0]


@pytest.mark.parametrize("loss", list(Loss))
def test_a_power_cut_at_any_primitive_loses_no_acknowledged_record(loss):
    total = MemoryStore()
    append_some(open_journal(total), 5)
    assert total.operations >= 14
    for crash_at in range(1, total.operations + 1):
        store = MemoryStore(crash_at=crash_at)
        acknowledged = []
        with pytest.raises(PowerCut):
            journal = open_journal(store)
            for n in range(5):
                journal.append(2, {"n": n}, {"counts": np.arange(n)})
                acknowledged.append(n)
        after = store.after_power_cut(loss, np.random.default_rng(crash_at))
        second = open_journal(after, boot_id=2)
        kept = numbers(second.history)
        assert kept[: len(acknowledged)] == acknowledged
        assert len(kept) <= len(acknowledged) + 1, "one record may be durable although its append did not return"
        second.append(2, {"n": 99})
        assert numbers(read_journal(after, PATH).records) == [*kept, 99]


@settings(max_examples=60, deadline=None)
@given(crashes=st.lists(st.integers(1, 12), max_size=5), seed=st.integers(0, 2**32 - 1), losses=st.sampled_from(list(Loss)))
def test_power_cuts_during_recovery_change_nothing(crashes, seed, losses):
    rng = np.random.default_rng(seed)
    store, acknowledged, n = MemoryStore(), [], 0
    for boot_id, crash_at in enumerate([*crashes, 0]):
        store.crash_at = crash_at
        try:
            journal = open_journal(store, boot_id)
            kept = numbers(journal.history)
            assert [k for k in kept if k in acknowledged] == acknowledged
            assert len(kept) == len(set(kept))
            acknowledged = kept
            for _ in range(3):
                n += 1
                journal.append(2, {"n": n})
                acknowledged.append(n)
        except PowerCut:
            pass
        store = store.after_power_cut(losses, rng)
    assert numbers(open_journal(store, 99).history) == acknowledged


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_or_sync_is_the_end_of_the_journal(error):
    for ahead in (1, 2):  # the write, then the sync of the next append
        store = MemoryStore()
        journal = open_journal(store)
        store.errors = {store.operations + ahead: error}
        with pytest.raises(StorageError, match="this session gets no more beam"):
            append_some(journal, 1)
        with pytest.raises(StorageError):  # the disk would take it now; the journal does not ask
            append_some(journal, 1)
        after = store.after_power_cut(Loss.LOST, np.random.default_rng(0))
        assert numbers(open_journal(after, 2).history) == []


def test_a_damaged_record_inside_is_refused_and_the_message_says_where():
    store = MemoryStore()
    append_some(open_journal(store), 4)
    size = len(store.read(PATH))
    step = max(1, size // 150)
    for byte in range(0, size, step):
        probe = MemoryStore()
        append_some(open_journal(probe), 4)
        last_starts = [i for i in range(size) if probe.read(PATH)[i : i + 4] == b"IGJ1"][-1]
        probe.flip_bit(PATH, byte, byte % 8)
        if byte < last_starts:
            with pytest.raises(DataError, match=r"record \d+ at byte \d+"):
                read_journal(probe, PATH)
        else:  # without an anchor the last record cannot be told from a torn one
            assert numbers(read_journal(probe, PATH).records) == [0, 1, 2]


def test_an_anchor_tells_a_rolled_back_file_from_a_torn_one():
    store = MemoryStore()
    journal = open_journal(store)
    append_some(journal, 1)
    size = len(store.read(PATH))
    append_some(journal, 1, start=1)
    anchor = journal.head
    journal.close()
    assert read_journal(store, PATH, anchor=anchor).torn_bytes == 0
    store.cut_file(PATH, size)
    assert numbers(read_journal(store, PATH).records) == [0]
    with pytest.raises(DataError, match="anchored record 3"):
        open_journal(store, 2, anchor=anchor)


def test_records_taken_from_another_journal_break_the_chain():
    first, second = MemoryStore(), MemoryStore()
    append_some(open_journal(first), 2)
    append_some(open_journal(second, boot_id=5), 2)
    theirs = second.read(PATH)
    ours = first.read(PATH)
    cut = [i for i in range(len(ours)) if ours[i : i + 4] == b"IGJ1"][2]
    write_atomic(first, PATH, ours[:cut] + theirs[cut:])
    with pytest.raises(DataError, match="does not continue the chain"):
        read_journal(first, PATH)


def test_a_second_writer_is_refused_until_the_first_has_gone(tmp_path):
    for store, path in ((MemoryStore(), PATH), (DiskStore(), tmp_path / "journal.bin")):
        first = Journal.open(store, path, boot_id=1, clock=lambda: 0)
        with pytest.raises(Busy, match="another process"):
            Journal.open(store, path, boot_id=2, clock=lambda: 0)
        first.close()
        Journal.open(store, path, boot_id=2, clock=lambda: 0).close()


def test_the_real_disk_gives_back_what_was_written_and_cuts_a_torn_end(tmp_path):
    path = tmp_path / "journal.bin"
    with Journal.open(DiskStore(), path, boot_id=1, clock=lambda: 0) as journal:
        append_some(journal, 3)
    with path.open("ab") as file:
        file.write(b"IGJ1 torn")
    with Journal.open(DiskStore(), path, boot_id=2, clock=lambda: 0) as journal:
        assert numbers(journal.history) == [0, 1, 2]
        assert journal.head.seq == 5
    opened = read_journal(DiskStore(), path).records[-1]
    assert opened.data["torn_bytes"] == 9


def test_atomic_replacement_shows_the_old_or_the_new_content_after_any_crash():
    path = Path("/disk/head")
    for loss in Loss:
        for crash_at in range(1, 6):
            store = MemoryStore()
            write_atomic(store, path, b"old")
            store.operations, store.crash_at = 0, crash_at
            with pytest.raises(PowerCut):
                write_atomic(store, path, b"new content")
            after = store.after_power_cut(loss, np.random.default_rng(crash_at))
            assert after.read(path) in (b"old", b"new content")


def test_a_journal_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StorageError, match="journal"):
        read_journal(DiskStore(), tmp_path / "journal.bin")


def test_an_anchor_of_nothing_asks_for_nothing():
    store = MemoryStore()
    append_some(open_journal(store), 1)
    assert read_journal(store, PATH, anchor=Anchor(0, bytes(32))).records
