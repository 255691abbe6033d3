"""After a crash at any instant: the truth lies in the stated interval, nothing is destroyed, and nobody is given too much."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from sessions import PlantTruth, at_pass, fractions, iongantry, treat, truth_of, watching
from witness import dciodvfy_errors

import controller.recover
from controller.console.verdict import verdict_lines
from controller.intake import Refused
from controller.record.entries import Kind, beam_histories
from controller.record.journal import read_journal
from controller.record.ledger import BeamState, Ledger
from controller.record.memory_store import PowerCut
from controller.record.store import DiskStore
from controller.recover import Survived, ask_unit, run_recovery
from controller.request import read_request
from controller.resume import ResumeOptions, run_resume
from controller.standing import open_state, received_of
from drivers.hal.capabilities import PIECE_DTYPE
from drivers.hal.errors import DataError
from drivers.wire.codecs.grant import decode_latch


@dataclass
class Crash:
    """What a process leaves that dies in the third grant of a beam, and what the unit of that plant remembers afterwards."""

    directory: Path
    truth: PlantTruth
    survived: Survived


@pytest.fixture(scope="module")
def crash(one_beam: Path, tmp_path_factory: pytest.TempPathFactory) -> Crash:
    """Every write of journal and ledger is synced, so a copy at an instant is what a kill at that instant leaves."""
    base = tmp_path_factory.mktemp("crash")
    kept: list[PlantTruth] = []
    with watching(truth_of(one_beam)) as truth, fractions() as made:

        def die() -> None:
            shutil.copytree(base / "run", base / "dead")
            made[-1].stop("the copy is made")

        treat(one_beam, base / "run", listener=at_pass(3, 0.15, die))
        unit = truth.worlds[-1].plant.rooms["G1"].unit
        latch = decode_latch(unit.memory.latch())
        pieces = unit.memory.pieces(latch.grant_id)
        kept.append(truth)
    return Crash(base / "dead", kept[0], Survived(latch, {latch.grant_id: pieces.astype(PIECE_DTYPE)}, unit.boot_id))


@pytest.fixture
def dead(crash: Crash, tmp_path: Path) -> Path:
    return shutil.copytree(crash.directory, tmp_path / "dead")


def received(directory: Path):
    request = read_request(directory)
    with open_state(request, directory) as ledger:
        return received_of(ledger, request)[1]


def content(directory: Path) -> dict[str, str]:
    """Every file but locks, by its digest."""
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and "lock" not in p.name)
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def reasons_of(directory: Path, **more) -> str:
    before = content(directory)
    with pytest.raises(Refused) as refused:
        run_recovery(directory, **more)
    assert content(directory) == before, "a refused recovery changed something"
    return "; ".join(refused.value.reasons)


def test_without_a_latch_the_open_grant_is_an_interval_and_the_beam_is_locked(crash: Crash, dead: Path) -> None:
    journal = (dead / "journal.bin").read_bytes()
    with pytest.raises(Refused, match="recover"):
        run_resume(ResumeOptions(dead))
    recovered = run_recovery(dead)
    assert recovered.locked
    known, true = received(dead), crash.truth.flat(1)
    assert (known.lower <= true + 0.02 * true + 12).all()
    assert (true <= known.upper * 1.02 + 12).all()
    assert known.lower.sum() < true.sum() < known.upper.sum()
    assert (dead / "journal.bin").read_bytes() == journal
    text = " ".join(recovered.lines())
    assert f"between {int(known.lower.sum())} and {int(known.upper.sum())} counts" in text
    assert "latch is not known" in text and "--sign NAME" in text
    with pytest.raises(Refused, match="locked"):
        run_resume(ResumeOptions(dead))


def test_the_salvage_record_says_what_was_given_and_that_the_end_is_unknown(dead: Path) -> None:
    (salvage,) = run_recovery(dead).salvage
    record = pydicom.dcmread(salvage / "record.dcm").TreatmentSessionIonBeamSequence[0]
    assert record.TreatmentTerminationStatus == "UNKNOWN"
    assert "died" in record.TreatmentTerminationDescription and "between" in record.TreatmentTerminationDescription
    summary = json.loads((salvage / "summary.json").read_text())
    assert summary["status"] == "partial" and summary["termination"] == "UNKNOWN"
    counts_per_mu = 1000.0
    delivered = summary["beams"][0]["meterset_delivered_primary"] * counts_per_mu
    assert delivered == pytest.approx(float(received(dead).lower.sum()), abs=1.0)


def test_twice_gives_the_same_as_once(dead: Path) -> None:
    first = run_recovery(dead).report()
    after = content(dead)
    assert run_recovery(dead).report() == first
    assert content(dead) == after


def test_killed_at_any_primitive_of_the_disk_and_recovered_again_gives_the_same(
    dead: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(controller.recover, "_intake", lambda *_: (None, []))
    whole = shutil.copytree(dead, tmp_path / "whole")
    reference = run_recovery(whole)
    bounds = received(whole)
    steps = 0
    while True:
        steps += 1
        again = shutil.copytree(dead, tmp_path / f"cut{steps}")
        with monkeypatch.context() as patch:
            cut_power_after(patch, steps)
            try:
                run_recovery(again)
                break
            except PowerCut:
                pass
        second = run_recovery(again)
        assert [b.state for b in second.beams] == [b.state for b in reference.beams], f"cut at {steps}"
        known = received(again)
        np.testing.assert_array_equal(known.lower, bounds.lower)
        np.testing.assert_array_equal(known.upper, bounds.upper)
        assert known.claims == bounds.claims and known.reason == bounds.reason
        shutil.rmtree(again)
    assert steps > 15


def cut_power_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """The n-th primitive that changes the disk is the last thing this process does; half of what it writes arrives."""
    from controller.record.store import _DiskFile

    left = [steps]

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut

    write, rename, sync = _DiskFile.write, DiskStore.rename, _DiskFile.sync

    def half(self, data: bytes) -> None:
        if left[0] == 1:
            write(self, data[: len(data) // 2])
        step()
        write(self, data) if left[0] > 0 else step()

    patch.setattr(_DiskFile, "write", half)
    patch.setattr(_DiskFile, "sync", lambda self: (step(), sync(self))[1])
    patch.setattr(DiskStore, "rename", lambda self, a, b: (step(), rename(self, a, b))[1])


def test_a_signature_needs_a_name_and_a_reason_and_then_the_rest_is_delivered_never_more(crash: Crash, one_beam, dead) -> None:
    run_recovery(dead)
    uncertain = float(received(dead).upper.sum() - crash.truth.flat(1).sum())
    assert "--reason" in reasons_of(dead, sign="A. Physicist")
    assert "--sign" in reasons_of(dead, reason="film")
    assert not run_recovery(dead, sign="A. Physicist", reason="film").locked
    assert not run_recovery(dead, sign="A. Physicist", reason="film").locked  # nothing waits any more
    truth = PlantTruth(crash.truth.intake, {k: v.copy() for k, v in crash.truth.given.items()})
    with watching(truth):
        resumed = run_resume(ResumeOptions(dead))
    assert resumed.status == "partial", "what lies in an interval is not known to be as prescribed"
    assert_says_the_interval(resumed.treated, received(dead))
    truth.assert_never_over(1)
    missing = float(truth.planned(1).sum() - truth.flat(1).sum())
    assert missing == pytest.approx(uncertain, abs=0.005 * truth.planned(1).sum()), "only the uncertain part is missing"


def assert_says_the_interval(treated, known) -> None:
    """Summary, verdict, report and record say the bounds, who accepted them, and why; none is green."""
    low, high = int(known.lower.sum()), int(known.upper.sum())
    assert low < high
    summary = json.loads((treated.output / "summary.json").read_text())
    assert (summary["status"], summary["termination"]) == ("partial", "NORMAL")
    (interval,) = summary["intervals"]
    assert (interval["counts1_lower"], interval["counts1_upper"]) == (low, high)
    assert (interval["signed_by"], interval["reason"]) == ("A. Physicist", "film")
    assert "latch is not known" in interval["doubt"]
    verdict = list(verdict_lines(treated.outcome, treated.summary))
    assert "known only within a signed interval" in verdict[0]
    report = (treated.output / "report.html").read_text()
    assert "known only within a signed interval" in report
    record = pydicom.dcmread(treated.output / "record.dcm").TreatmentSessionIonBeamSequence[0]
    assert record.TreatmentTerminationStatus == "NORMAL"
    for text in ("\n".join(verdict), report, record.TreatmentTerminationDescription):
        for words in (f"between {low} and {high} counts", "accepted by A. Physicist: film"):
            assert words in text
    assert "Delivered as prescribed" not in report


def test_a_unit_that_survived_gives_the_truth_by_its_results_and_nothing_needs_a_signature(crash: Crash, dead: Path) -> None:
    recovered = run_recovery(dead, survived=crash.survived)
    assert not recovered.locked
    known = received(dead)
    np.testing.assert_array_equal(known.lower, known.upper)
    np.testing.assert_allclose(known.lower, crash.truth.flat(1), rtol=0.02, atol=12)
    truth = PlantTruth(crash.truth.intake, {k: v.copy() for k, v in crash.truth.given.items()})
    with watching(truth):
        assert run_resume(ResumeOptions(dead)).status == "complete"
    truth.assert_as_planned(1)
    truth.assert_never_over(1)


def test_its_latch_alone_is_enough(crash: Crash, dead: Path) -> None:
    assert not run_recovery(dead, survived=Survived(latch=crash.survived.latch)).locked
    known = received(dead)
    np.testing.assert_array_equal(known.lower, known.upper)
    assert float(known.upper.sum()) == pytest.approx(float(crash.truth.flat(1).sum()), rel=0.005)


def test_a_latch_that_counted_more_than_was_granted_locks_the_beam(crash: Crash, dead: Path) -> None:
    latch = crash.survived.latch
    more = type(latch)(
        latch.boot_id,
        latch.grant_id,
        latch.last_finished_row,
        latch.open_row_counts1,
        latch.open_row_counts2,
        latch.total_counts1 + 10**7,
        latch.total_counts2 + 10**7,
    )
    recovered = run_recovery(dead, survived=Survived(latch=more))
    assert recovered.locked
    assert run_recovery(dead).report() == recovered.report()


async def test_a_unit_is_asked_only_after_its_open_grant_was_ended(crash: Crash, dead: Path) -> None:
    done = []

    class Unit:
        status = SimpleNamespace(open_grant_id=3, last_grant_id=3, boot_id=crash.survived.boot_id)

        async def abort(self):
            done.append("abort")

        async def wait_ended(self, grant_id: int):
            done.append(f"ended {grant_id}")
            return self.status

        async def read_latch(self):
            done.append("latch")
            raise DataError("checksum", code=5131)

        async def results(self, grant_id: int):
            done.append(f"results {grant_id}")
            return crash.survived.kept[grant_id]

    survived = await ask_unit(Unit(), dead)
    assert done == ["abort", "ended 3", "latch", "results 3"]
    assert survived.latch is None and list(survived.kept) == [3]


def test_a_torn_end_is_cut_on_a_copy_and_the_evidence_stays(dead: Path) -> None:
    journal = dead / "journal.bin"
    whole = journal.read_bytes()
    records = read_journal(DiskStore(), journal).records
    journal.write_bytes(whole + whole[:70])  # half a record, as a dying process leaves it
    torn = journal.read_bytes()
    assert run_recovery(dead).locked
    assert journal.read_bytes() == torn
    copy = read_journal(DiskStore(), dead / "recovery.bin").records
    assert [r.sha256 for r in copy[: len(records)]] == [r.sha256 for r in records]
    assert copy[len(records)].data["journal_torn_bytes"] == 70


def test_a_torn_grant_was_never_sent(dead: Path) -> None:
    """Durable first, then sent: what tore was not in the unit, so the beam is known exactly."""
    journal = dead / "journal.bin"
    data, records = journal.read_bytes(), read_journal(DiskStore(), journal).records
    last_grant = max(i for i, r in enumerate(records) if r.kind == Kind.GRANT)
    sizes = [data.find(b"IGJ1", 0)]
    for _ in records[1:]:
        sizes.append(data.find(b"IGJ1", sizes[-1] + 4))
    journal.write_bytes(data[: sizes[last_grant] + 300])
    recovered = run_recovery(dead)
    assert not recovered.locked
    known = received(dead)
    np.testing.assert_array_equal(known.lower, known.upper)
    assert len(beam_histories(read_journal(DiskStore(), dead / "recovery.bin").records)[0].done) == 2


def test_damage_inside_journal_or_ledger_is_refused_in_words(dead: Path, tmp_path: Path) -> None:
    for name, words in (("journal.bin", "is damaged"), ("state/ledger/chain.bin", "anchored record")):
        copy = shutil.copytree(dead, tmp_path / name.replace("/", "-"))
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 3] ^= 4
        (copy / name).write_bytes(data)
        assert words in reasons_of(copy)
        result = iongantry("recover", str(copy)) if name == "journal.bin" else None
        if result is not None:
            assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr


def test_a_journal_rolled_back_before_its_claim_is_refused(dead: Path) -> None:
    journal = dead / "journal.bin"
    journal.write_bytes(journal.read_bytes()[:40])
    assert "holds no record" in reasons_of(dead)


def test_a_journal_of_another_treatment_of_the_same_plan_is_refused(one_beam: Path, dead: Path, tmp_path: Path) -> None:
    with fractions() as made:
        treat(one_beam, tmp_path / "other", seed=7, listener=at_pass(1, 0.05, lambda: made[-1].stop("enough")))
    shutil.copy(tmp_path / "other" / "journal.bin", dead / "journal.bin")
    assert "no journal in" in reasons_of(dead)


def test_a_treatment_whose_state_was_moved_is_recovered_and_resumed_where_the_state_is_now(
    one_beam: Path, tmp_path: Path
) -> None:
    run, site, dead, moved = tmp_path / "run", tmp_path / "site", tmp_path / "dead", tmp_path / "elsewhere"

    def die() -> None:
        shutil.copytree(run, dead)
        shutil.copytree(site, moved)
        made[-1].stop("the copy is made")

    with fractions() as made:
        treat(one_beam, run, listener=at_pass(2, 0.1, die), state=site)
    shutil.rmtree(site)
    for command in ("recover", "resume"):
        refused = iongantry(command, str(dead))
        assert refused.returncode == 2 and f"{site / 'ledger'}: there is no ledger" in refused.stderr
        assert "name it with --state" in refused.stderr
    signed = iongantry("recover", str(dead), "--state", str(moved), "--sign", "A. Physicist", "--reason", "film")
    assert signed.returncode == 0, signed.stderr
    assert run_resume(ResumeOptions(dead, state=moved)).beams[0].state is BeamState.COMPLETE
    assert not site.exists()
    assert f"{tmp_path / 'nothing'}: there is no journal.bin" in reasons_of(tmp_path / "nothing")


def test_while_its_process_lives_nothing_is_recovered(dead: Path) -> None:
    lock = DiskStore().lock(dead / "journal.bin")
    try:
        assert "in use by another process" in reasons_of(dead)
    finally:
        lock.release()


def test_a_full_disk_is_told_and_changes_nothing_that_matters(dead: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from controller.record.store import _DiskFile

    def full(_self, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_DiskFile, "write", full)
        with pytest.raises(Refused, match="No space left"):
            run_recovery(dead)
    assert run_recovery(dead).locked


def test_a_beam_that_died_with_its_last_grant_is_complete_once_signed(one_beam: Path, tmp_path: Path) -> None:
    run, dead = tmp_path / "run", tmp_path / "dead"
    last = len(truth_of(one_beam).intake.schedules[0].passes)
    treat(one_beam, run, listener=at_pass(last, 0.02, lambda: shutil.copytree(run, dead)))
    assert run_recovery(dead).locked
    cut_short = shutil.copytree(dead, tmp_path / "cut")
    for directory in (dead, cut_short):
        with pytest.MonkeyPatch.context() as patch:
            if directory == cut_short:
                patch.setattr(Ledger, "close_claim", lambda *_, **__: (_ for _ in ()).throw(PowerCut))
                with pytest.raises(PowerCut):
                    run_recovery(directory, sign="A. Physicist", reason="film")
                patch.undo()
                release_claims(directory)
            signed = run_recovery(directory, sign="A. Physicist", reason="film")
        assert [b.state for b in signed.beams] == [BeamState.COMPLETE]
        with pytest.raises(Refused, match="nothing is left to deliver"):
            run_resume(ResumeOptions(directory))


def release_claims(directory: Path) -> None:
    """What the end of a process does: its locks are gone. Here a new file takes the place of the locked one."""
    for path in (directory / "state" / "ledger" / "claims").iterdir():
        path.unlink()


def test_a_resumed_session_that_dies_is_recovered_and_all_sessions_count(one_beam: Path, tmp_path: Path) -> None:
    run, dead = tmp_path / "run", tmp_path / "dead"

    def die() -> None:
        shutil.copytree(run, dead)
        truth_then.append(truth.with_beam_on())
        made[-1].stop("the copy is made")

    truth_then: list[PlantTruth] = []
    with watching(truth_of(one_beam)) as truth, fractions() as made:
        treat(one_beam, run, "quench@beam+1.0")
        first = received(run)
        run_resume(ResumeOptions(run), at_pass(2, 0.1, die))
    recovered = run_recovery(dead)
    known, true = received(dead), truth_then[0].flat(1)
    assert recovered.locked and known.claims == 2
    assert (first.lower <= known.lower).all() and (known.lower <= true * 1.02 + 12).all()
    assert known.lower.sum() < true.sum() < known.upper.sum()
    (salvage,) = recovered.salvage
    assert salvage == dead / "resume-1" / "salvage"
    record = pydicom.dcmread(salvage / "record.dcm").TreatmentSessionIonBeamSequence[0]
    assert record.TreatmentDeliveryType == "CONTINUATION"


@pytest.mark.parametrize("number", [1, 2])
def test_every_session_that_was_cut_off_has_a_record_however_early_in_its_beam(
    one_beam: Path, tmp_path: Path, number: int
) -> None:
    """Also one that died in its first grant, of which the journal holds no pieces; and the next one after it."""
    run, records = tmp_path / "run", []
    treat(one_beam, run, "quench@beam+1.0")
    for session in range(1, number + 1):
        left = json.loads((run / "summary.json").read_text())["beams"][0]
        assert left["spots_delivered"] < left["spots"]
        dead, before = tmp_path / f"dead{session}", int(received(run).upper.sum())

        def die(run: Path = run, dead: Path = dead) -> None:
            shutil.copytree(run, dead)
            made[-1].stop("the copy is made")

        with fractions() as made:
            run_resume(ResumeOptions(run), at_pass(1, 0.05, die))
        run = dead
        recovered = run_recovery(run, sign="A. Physicist", reason="film")
        assert recovered.salvage == tuple(run / f"resume-{n}" / "salvage" for n in range(1, session + 1))
        salvage = recovered.salvage[-1]
        assert dciodvfy_errors(salvage / "record.dcm") == []
        record = pydicom.dcmread(salvage / "record.dcm")
        records.append(record.SOPInstanceUID)
        (beam,) = record.TreatmentSessionIonBeamSequence
        assert (beam.TreatmentDeliveryType, beam.TreatmentTerminationStatus) == ("CONTINUATION", "UNKNOWN")
        assert "between 0.00 and" in beam.TreatmentTerminationDescription and beam.DeliveredPrimaryMeterset == 0
        (history,) = beam_histories(read_journal(DiskStore(), salvage.parent / "journal.bin").records)
        (granted,) = history.grants.values()
        assert not history.done, "the case that is meant: no pieces of it are known"
        assert beam.IonControlPointDeliverySequence[0].ReferencedControlPointIndex == 2 * granted.layer_index
        assert "between 0.00 and" in (salvage / "report.html").read_text() and (salvage / "spots.parquet").exists()
        known = received(run)
        assert int(known.lower.sum()) <= before < int(known.upper.sum())
    assert len(set(records)) == number


def test_a_process_that_died_before_beam_left_everything_to_do(one_beam: Path, tmp_path: Path) -> None:
    def die(event) -> None:
        if event.kind == "room.state" and event.data["state"] == "ready.armed":
            shutil.copytree(tmp_path / "run", tmp_path / "dead")
            made[-1].stop("the copy is made")

    with fractions() as made:
        treat(one_beam, tmp_path / "run", listener=die)
    recovered = run_recovery(tmp_path / "dead")
    assert [b.state for b in recovered.beams] == [BeamState.UNTOUCHED] and recovered.salvage == ()
    assert "not begun" in " ".join(recovered.lines())


def test_a_process_that_died_before_its_outputs_leaves_a_full_salvage_record(one_beam, tmp_path, monkeypatch) -> None:
    import controller.outputs

    def die(*_):
        raise PowerCut

    monkeypatch.setattr(controller.outputs, "write_outputs", die)
    with pytest.raises(PowerCut):
        treat(one_beam, tmp_path / "run", "quench@beam+1.0")
    recovered = run_recovery(tmp_path / "run")
    assert [b.state for b in recovered.beams] == [BeamState.PARTIAL]
    assert (recovered.salvage[0] / "record.dcm").exists()
    assert not (tmp_path / "run" / "recovery.bin").exists(), "the journal says it all"


def test_kill_9_in_mid_beam_then_recover_sign_and_resume_by_the_commands(one_beam: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from controller.cli import main; main()", "treat", str(one_beam), "--speed", "60"]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen([*command, "--output", str(run)], stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + 90.0
            while granted(run) < 3 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert iongantry("resume", str(run)).returncode == 2
    first = iongantry("recover", str(run), "--json")
    report = json.loads(first.stdout)
    assert first.returncode == (3 if report["status"] == "locked" else 0)
    if report["status"] == "locked":
        signed = iongantry("recover", str(run), "--sign", "A. Physicist", "--reason", "taken as given in full")
        assert signed.returncode == 0, signed.stderr
    resumed = iongantry("resume", str(run), "--json")
    assert resumed.returncode in (0, 3), resumed.stderr
    beam = json.loads(resumed.stdout)["over_all_sessions"][0]
    assert beam["state"] == "complete"
    known, planned = received(run), truth_of(one_beam).planned(1)
    assert (known.upper <= planned * 1.02 + 12).all()
    assert int(known.upper.sum()) == pytest.approx(planned.sum(), rel=0.005)


def granted(run: Path) -> int:
    try:
        records = read_journal(DiskStore(), run / "journal.bin").records
    except Exception:  # noqa: BLE001 - it is being written
        return 0
    return sum(r.kind == Kind.STARTED for r in records)
