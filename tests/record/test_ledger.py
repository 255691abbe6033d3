"""The ledger never promises more than the plan: not after a crash, not to two processes, not from a rolled-back file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.record.ledger import BeamKey, BeamState, Ledger
from controller.record.memory_store import Loss, MemoryStore, PowerCut
from controller.record.store import Busy, DiskStore
from drivers.hal.errors import CommandRejected, DataError

STATE = Path("/state/ledger")
KEY = BeamKey("1.2.3", 1, 4)
PLANNED = np.array([500, 1000, 1500], np.int64)


def open_ledger(store, directory=STATE, boot_id=1, **kwargs):
    return Ledger(store, directory, boot_id=boot_id, clock=lambda: 0, **kwargs)


def test_a_delivered_beam_is_refused_and_its_sum_is_known():
    ledger = open_ledger(MemoryStore())
    claim = ledger.claim(KEY, PLANNED)
    ledger.close_claim(claim, PLANNED, PLANNED, complete=True)
    received = ledger.delivered("1.2.3", 1, 4)
    assert received.state is BeamState.COMPLETE
    np.testing.assert_array_equal(received.remaining(PLANNED), [0, 0, 0])
    with pytest.raises(CommandRejected, match="delivered already"):
        ledger.claim(KEY, PLANNED)
    ledger.claim(BeamKey("1.2.3", 2, 4), PLANNED)  # the next fraction is another matter


def test_an_open_beam_counts_in_full_and_is_refused():
    store = MemoryStore()
    ledger = open_ledger(store)
    ledger.claim(KEY, PLANNED)
    with pytest.raises(Busy):  # its process lives
        ledger.claim(KEY, PLANNED)
    after = open_ledger(store.after_power_cut(Loss.LOST, np.random.default_rng(0)))
    received = after.delivered("1.2.3", 1, 4)
    assert received.state is BeamState.OPEN
    np.testing.assert_array_equal(received.upper, PLANNED)
    np.testing.assert_array_equal(received.lower, 0)
    with pytest.raises(CommandRejected, match="recover it first"):
        after.claim(KEY, PLANNED)


def test_a_partial_beam_resumes_with_the_plan_less_the_upper_bound():
    ledger = open_ledger(MemoryStore())
    got = np.array([500, 400, 0], np.int64)
    ledger.close_claim(ledger.claim(KEY, PLANNED), got, got, complete=False, reason="operator stop")
    with pytest.raises(CommandRejected, match="resume it"):
        ledger.claim(KEY, PLANNED)
    remaining = ledger.delivered(KEY.plan_uid, 1, 4).remaining(PLANNED)
    np.testing.assert_array_equal(remaining, [0, 600, 1500])
    ledger.close_claim(ledger.claim(KEY, remaining, resume=True), remaining, remaining, complete=True)
    received = ledger.delivered(KEY.plan_uid, 1, 4)
    assert received.state is BeamState.COMPLETE
    np.testing.assert_array_equal(received.upper, PLANNED)


def test_an_interval_locks_the_beam_until_it_is_signed():
    store = MemoryStore()
    ledger = open_ledger(store)
    ledger.claim(KEY, PLANNED, journal="run/journal.bin")
    ledger = open_ledger(store.after_power_cut(Loss.KEPT, np.random.default_rng(0)), boot_id=2)
    assert ledger.delivered(KEY.plan_uid, 1, 4).journal == "run/journal.bin"
    adopted = ledger.adopt(KEY)
    np.testing.assert_array_equal(adopted.claimed_counts1, PLANNED)
    ledger.close_claim(adopted, np.array([500, 0, 0]), np.array([500, 1000, 0]), complete=False, reason="latch lost")
    for resume in (False, True):
        with pytest.raises(CommandRejected, match="latch lost"):
            ledger.claim(KEY, PLANNED, resume=resume)
    with pytest.raises(CommandRejected, match="needs a name"):
        ledger.sign(KEY, " ", "seen")
    ledger.sign(KEY, "a physicist", "film agrees")
    received = ledger.delivered(KEY.plan_uid, 1, 4)
    assert received.state is BeamState.PARTIAL
    np.testing.assert_array_equal(received.remaining(PLANNED), [0, 0, 1500])
    with pytest.raises(CommandRejected, match="waits for no signature"):
        ledger.sign(KEY, "a physicist", "again")


def test_a_claim_is_closed_once():
    ledger = open_ledger(MemoryStore())
    claim = ledger.claim(KEY, PLANNED)
    ledger.close_claim(claim, PLANNED, PLANNED, complete=True)
    with pytest.raises(CommandRejected, match="closed already"):
        ledger.close_claim(claim, PLANNED, PLANNED, complete=True)
    with pytest.raises(CommandRejected, match="no open claim"):
        ledger.adopt(KEY)


@pytest.mark.parametrize("loss", list(Loss))
def test_a_power_cut_at_any_primitive_never_makes_the_ledger_promise_dose_again(loss):
    got = np.array([500, 400, 0], np.int64)

    def treat(store, progress):
        ledger = open_ledger(store)
        claim = ledger.claim(KEY, PLANNED)
        progress.append("claimed")  # beam from here on
        ledger.close_claim(claim, got, got, complete=False)
        progress.append("closed")

    total = MemoryStore()
    treat(total, [])
    for crash_at in range(1, total.operations + 1):
        store, progress = MemoryStore(crash_at=crash_at), []
        with pytest.raises(PowerCut):
            treat(store, progress)
        after = store.after_power_cut(loss, np.random.default_rng(crash_at))
        received = open_ledger(after, boot_id=2).delivered(KEY.plan_uid, 1, 4)
        if progress == ["claimed"]:
            assert received.state in (BeamState.OPEN, BeamState.PARTIAL)
        if progress:
            assert np.all(received.remaining(PLANNED) <= PLANNED - got)
        else:
            assert received.state in (BeamState.UNTOUCHED, BeamState.OPEN)


def test_a_ledger_that_was_rolled_back_or_whose_arrays_changed_is_refused():
    store = MemoryStore()
    ledger = open_ledger(store)
    size = len(store.read(STATE / "chain.bin"))
    claim = ledger.claim(KEY, PLANNED)
    ledger.close_claim(claim, PLANNED, PLANNED, complete=True)
    arrays = next(p for p in store._names if p.parent.name == "spots")
    store.flip_bit(arrays, 60, 0)
    with pytest.raises(DataError, match="does not match the ledger"):
        for _ in range(2):
            ledger.delivered(KEY.plan_uid, 1, 4)
            arrays = [p for p in store._names if p.parent.name == "spots"][1]
            store.flip_bit(arrays, 60, 0)
    store.cut_file(STATE / "chain.bin", size)
    with pytest.raises(DataError, match="rolled back"):
        open_ledger(store, boot_id=2)


def test_losing_even_the_last_record_is_noticed():
    store = MemoryStore()
    ledger = open_ledger(store)
    size = len(store.read(STATE / "chain.bin"))
    ledger.claim(KEY, PLANNED)
    store.cut_file(STATE / "chain.bin", size)
    with pytest.raises(DataError, match="rolled back"):
        open_ledger(store, boot_id=2)


def test_two_rooms_use_one_ledger_on_the_real_disk(tmp_path):
    first, second = (open_ledger(DiskStore(), tmp_path / "state" / "ledger", boot_id=b) for b in (1, 2))
    one = first.claim(KEY, PLANNED)
    other = BeamKey("9.9", 1, 1)
    two = second.claim(other, PLANNED[:1])
    with pytest.raises(Busy):
        second.claim(KEY, PLANNED)
    first.close_claim(one, PLANNED, PLANNED, complete=True)
    second.close_claim(two, PLANNED[:1], PLANNED[:1], complete=True)
    assert second.delivered(KEY.plan_uid, 1, 4).state is BeamState.COMPLETE
    assert first.delivered("9.9", 1, 1).state is BeamState.COMPLETE
    assert first.keys() == second.keys() == (KEY, other)
    with pytest.raises(DataError, match="not the plan"):
        first.delivered("9.9", 1, 1).remaining(PLANNED)


CLAIMS_MANY = """
import pathlib, sys
import numpy as np
from controller.record.ledger import BeamKey, Ledger
from controller.record.store import DiskStore
ledger = Ledger(DiskStore(), pathlib.Path(sys.argv[1]), boot_id=int(sys.argv[2]), clock=lambda: 0)
counts = np.ones(3, np.int64)
print("ready", flush=True)
sys.stdin.readline()
for fraction in range(1, 26):
    claim = ledger.claim(BeamKey("plan of process " + sys.argv[2], fraction, 1), counts)
    ledger.close_claim(claim, counts, counts, complete=True)
"""


def test_rooms_that_write_in_the_same_instant_wait_for_each_other(tmp_path):
    """A transaction that meets another one must not end a treatment."""
    directory = tmp_path / "state" / "ledger"
    open_ledger(DiskStore(), directory).close()
    command = [sys.executable, "-c", CLAIMS_MANY, str(directory)]
    rooms = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in (1, 2)
    ]
    try:
        assert [room.stdout.readline() for room in rooms] == ["ready\n"] * 2
        for room in rooms:
            room.stdin.write("go\n")
            room.stdin.flush()
        told = [room.communicate(timeout=60) for room in rooms]
    finally:
        for room in rooms:
            room.kill()
            room.wait()
    assert [room.returncode for room in rooms] == [0, 0], told
    with open_ledger(DiskStore(), directory, boot_id=3) as ledger:
        assert len(ledger.keys()) == 50


class Treatments(RuleBasedStateMachine):
    """Claims, closes, crashes and signatures in any order, against a plain sum of what was truly delivered."""

    @initialize()
    def begin(self):
        self.store = MemoryStore()
        self.ledger = open_ledger(self.store)
        self.true = np.zeros(3, np.int64)
        self.claim = None
        self.rng = np.random.default_rng(1)

    @rule(part=st.floats(0, 1), end=st.sampled_from(["close", "crash", "leave"]), loss=st.sampled_from(list(Loss)))
    def treat(self, part, end, loss):
        if self.claim is not None:
            return
        received = self.ledger.delivered(KEY.plan_uid, 1, 4)
        remaining = received.remaining(PLANNED)
        try:
            claim = self.ledger.claim(KEY, remaining, resume=received.claims > 0)
        except CommandRejected:
            assert received.state not in (BeamState.UNTOUCHED, BeamState.PARTIAL)
            return
        given = (remaining * part).astype(np.int64)
        self.true += given
        if end == "close":
            self.ledger.close_claim(claim, given, given, complete=bool(np.all(given == remaining)))
        elif end == "crash":
            self.store.crash_at = self.store.operations + int(self.rng.integers(1, 12))
            try:
                self.ledger.close_claim(claim, given, given, complete=False)
            except PowerCut:
                self.restart(loss)
            self.store.crash_at = 0
        else:
            self.restart(loss)

    def restart(self, loss):
        self.store = self.store.after_power_cut(loss, self.rng)
        self.ledger = open_ledger(self.store, boot_id=2)

    @precondition(lambda self: self.ledger.delivered(KEY.plan_uid, 1, 4).state is BeamState.OPEN)
    @rule()
    def recover_without_a_latch(self):
        claim = self.ledger.adopt(KEY)
        self.ledger.close_claim(claim, np.zeros(3, np.int64), claim.claimed_counts1, complete=False, reason="lost")

    @precondition(lambda self: self.ledger.delivered(KEY.plan_uid, 1, 4).state is BeamState.LOCKED)
    @rule()
    def sign(self):
        self.ledger.sign(KEY, "a physicist", "accepted")

    @invariant()
    def the_truth_lies_between_the_bounds_and_never_above_the_plan(self):
        received = self.ledger.delivered(KEY.plan_uid, 1, 4)
        assert np.all(self.true <= PLANNED)
        if received.claims:
            assert np.all(received.lower <= self.true)
            assert np.all(self.true <= received.upper)


TestTreatments = Treatments.TestCase
TestTreatments.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
