"""Two processes never set one patient up: the second is told at once who is there; a dead one keeps nobody away."""

import json
import subprocess
import sys
import time

import pytest

from controller.record.ledger import Ledger
from controller.record.session_lock import occupied, occupy
from controller.record.store import Busy, DiskStore, StorageError

PLAN, OTHER = "1.2.3", "1.2.4"
HOLDS = """
import pathlib, sys
from controller.record.session_lock import occupy
from controller.record.store import DiskStore
held = occupy(DiskStore(), pathlib.Path(sys.argv[1]), "1.2.3", since_utc="2026-01-02T03:04:05+00:00", outputs="/there")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the plan in the ledger `tmp_path`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_is_there_since_when_and_where(tmp_path, other):
    for words in (f"process {other.pid} on ", "since 2026-01-02T03:04:05+00:00", "outputs /there", "plan 1.2.3", "[4191]"):
        assert words in occupied(DiskStore(), tmp_path, PLAN)
    with pytest.raises(Busy, match=f"process {other.pid} on .* since 2026-01-02"):
        occupy(DiskStore(), tmp_path, PLAN, since_utc="now", outputs="")
    assert occupied(DiskStore(), tmp_path, OTHER) == ""
    occupy(DiskStore(), tmp_path, OTHER, since_utc="now", outputs="").release()


def test_a_process_that_was_killed_keeps_nobody_away(tmp_path, other):
    other.kill()
    other.wait()
    assert occupied(DiskStore(), tmp_path, PLAN) == ""
    (file,) = (tmp_path / "sessions").iterdir()
    assert json.loads(file.read_bytes())["pid"] == other.pid, "its words are still there, and nobody minds"
    with occupy(DiskStore(), tmp_path, PLAN, since_utc="now", outputs=""):
        assert occupied(DiskStore(), tmp_path, PLAN)


def test_the_words_of_a_dead_process_are_not_taken_for_the_holders(tmp_path, other):
    (file,) = (tmp_path / "sessions").iterdir()
    said = json.loads(file.read_bytes())
    for stale in ({**said, "host_boot_id": "before the last start"}, {**said, "pid": 2**22 + 1}, {}, []):
        file.write_text(json.dumps(stale))
        assert "by another process" in occupied(DiskStore(), tmp_path, PLAN)


def test_what_was_released_is_free_and_says_nothing(tmp_path):
    with occupy(DiskStore(), tmp_path, PLAN, since_utc="now", outputs=""):
        pass
    assert occupied(DiskStore(), tmp_path, PLAN) == ""
    (file,) = (tmp_path / "sessions").iterdir()
    assert file.read_bytes() == b""


def test_a_full_disk_is_told_and_leaves_nothing_locked(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("controller.record.store._DiskFile.write", full)
        with pytest.raises(StorageError, match="cannot write to"):
            occupy(DiskStore(), tmp_path, PLAN, since_utc="now", outputs="")
    assert occupied(DiskStore(), tmp_path, PLAN) == ""


def test_a_ledger_knows_its_sessions(tmp_path):
    with Ledger(DiskStore(), tmp_path, boot_id=1, clock=time.monotonic_ns) as ledger:
        with ledger.begin_session(PLAN, since_utc="now", outputs="out"):
            assert "outputs out" in ledger.in_session(PLAN)
        assert ledger.in_session(PLAN) == ""
