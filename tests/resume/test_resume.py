"""A fraction that ended early is finished by resuming it: all sessions together give the plan, and never more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from sessions import at_pass, fractions, iongantry, make_plan, treat, truth_of, watching

from controller.intake import Refused
from controller.record.ledger import BeamKey, BeamState, Ledger
from controller.record.memory_store import MemoryStore
from controller.recover import run_recovery
from controller.request import read_request
from controller.resume import ResumeOptions, run_resume
from controller.standing import open_state, received_of
from drivers.hal.errors import CommandRejected

KEY = BeamKey("1.2.3", 1, 4)
QUENCH = "quench@beam+1.5"  # ends the beam within milliseconds, both monitors sound


def received(directory: Path):
    request = read_request(directory)
    with open_state(request, directory) as ledger:
        return received_of(ledger, request)


def reasons_of(directory: Path, **more) -> str:
    with pytest.raises(Refused) as refused:
        run_resume(ResumeOptions(directory, **more))
    return "; ".join(refused.value.reasons)


@pytest.fixture(scope="module")
def ended_early(one_beam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One beam that a fault ended. Tests copy it."""
    directory = tmp_path_factory.mktemp("early") / "run"
    assert treat(one_beam, directory, QUENCH).status == "partial"
    return directory


@pytest.fixture
def early(ended_early: Path, tmp_path: Path) -> Path:
    return shutil.copytree(ended_early, tmp_path / "run")


def test_a_beam_that_a_fault_ended_and_one_not_begun_are_finished(two_beams: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with watching(truth_of(two_beams)) as truth:
        assert treat(two_beams, run, QUENCH).status == "partial"
        assert truth.error_of_beam(1) < -0.3
        resumed = run_resume(ResumeOptions(run))
    assert resumed.status == "complete"
    truth.assert_as_planned(1, 2)
    truth.assert_never_over(1, 2)
    assert [beam.state for beam in resumed.beams] == [BeamState.COMPLETE, BeamState.COMPLETE]
    out = run / "resume-1"
    assert sorted(p.name for p in out.iterdir()) == [
        "events.jsonl", "journal.bin", "record.dcm", "report.html", "spots.parquet", "summary.json"
    ]  # fmt: skip
    first, second = (pydicom.dcmread(d / "record.dcm") for d in (run, out))
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert [b.TreatmentDeliveryType for b in second.TreatmentSessionIonBeamSequence] == ["CONTINUATION", "TREATMENT"]
    given = [float(d.TreatmentSessionIonBeamSequence[0].DeliveredPrimaryMeterset) for d in (first, second)]
    assert sum(given) == pytest.approx(float(resumed.treated.outcome.plan.beam(1).meterset), rel=0.005)


def test_a_beam_that_the_operator_stopped_and_stopped_again_is_finished_in_the_third_session(one_beam, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with watching(truth_of(one_beam)) as truth, fractions() as made:
        stop_in = lambda n: at_pass(n, 0.15, lambda: made[-1].stop("operator"))  # noqa: E731
        assert treat(one_beam, run, listener=stop_in(3)).status == "partial"
        part = truth.error_of_beam(1)
        second = run_resume(ResumeOptions(run, seed=5), stop_in(3))
        assert second.status == "partial" and truth.error_of_beam(1) > part
        third = run_resume(ResumeOptions(run, seed=6))
    assert third.status == "complete" and third.session == 2
    truth.assert_as_planned(1)
    truth.assert_never_over(1)
    assert received(run)[1].claims == 3
    assert "nothing is left" in reasons_of(run)


def test_the_command_resumes_a_moved_directory_once_and_refuses_the_second_time(early: Path, tmp_path: Path) -> None:
    early = early.rename(tmp_path / "elsewhere")
    first = iongantry("resume", str(early), "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["status"] == "complete" and report["session"] == 1
    beam = report["over_all_sessions"][0]
    assert beam["state"] == "complete" and beam["counts1_lower"] == pytest.approx(beam["counts1_planned"], rel=0.005)
    second = iongantry("resume", str(early))
    assert second.returncode == 2 and "nothing is left to deliver" in second.stderr
    assert not (early / "resume-2").exists()


def test_another_plan_is_not_resumed(early: Path, tmp_path: Path) -> None:
    make_plan(early / "plan.dcm", diameter_mm=26.0)
    assert "another plan" in reasons_of(early)
    (early / "plan.dcm").unlink()
    assert "cannot be read" in reasons_of(early)


def test_a_directory_that_is_no_treatment_is_not_resumed(early: Path, tmp_path: Path) -> None:
    assert "there is no journal.bin" in reasons_of(tmp_path)
    result = iongantry("resume", str(tmp_path / "nowhere"))
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_every_wrong_option_is_told_at_once(early: Path) -> None:
    text = reasons_of(early, seed=-1, faults=("no-such-fault",))
    assert "--seed" in text and "no-such-fault" in text


def test_a_journal_damaged_in_its_middle_is_refused_in_words(early: Path) -> None:
    journal = early / "journal.bin"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    assert "is damaged" in reasons_of(early)


def test_a_ledger_that_was_rolled_back_is_refused(early: Path) -> None:
    chain = early / "state" / "ledger" / "chain.bin"
    chain.write_bytes(chain.read_bytes()[: chain.stat().st_size // 3])
    assert "anchored record" in reasons_of(early)
    chain.unlink()
    assert "anchored record" in reasons_of(early)
    shutil.rmtree(early / "state")
    assert "there is no ledger" in reasons_of(early)


def test_counts_that_mean_something_else_today_are_refused(early: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import controller.fraction

    counts = controller.fraction.planned_counts
    monkeypatch.setattr(controller.fraction, "planned_counts", lambda *a: counts(*a) + 1)
    assert "library was changed" in reasons_of(early)


def ignore_what_was_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: the whole beam again."""
    import controller.resume

    monkeypatch.setattr(controller.resume, "remaining_schedule", lambda _beam, schedule, _received: schedule)


def test_a_resume_that_ignores_what_was_received_is_refused_by_the_ledger_before_beam(one_beam, early, monkeypatch) -> None:
    ignore_what_was_received(monkeypatch)
    with watching(truth_of(one_beam)) as truth:
        resumed = run_resume(ResumeOptions(early))
    assert resumed.status in ("fault", "partial")
    assert truth.flat(1).sum() == 0
    assert "are left" in resumed.treated.outcome.reason


def test_and_without_that_by_an_invariant_of_the_plant(early: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import controller.record.ledger

    ignore_what_was_received(monkeypatch)
    monkeypatch.setattr(controller.record.ledger, "_refuse_excess", lambda *_: None)
    resumed = run_resume(ResumeOptions(early))
    assert resumed.treated.violation is not None
    assert resumed.treated.violation.name in ("B3", "B5")
    assert resumed.status == "fault"


def test_the_ledger_refuses_a_remainder_that_others_changed_or_that_is_too_large() -> None:
    planned = np.array([500, 1000, 1500], np.int64)
    half, left = planned // 2, planned - planned // 2
    ledger = Ledger(MemoryStore(), Path("/ledger"), boot_id=1, clock=lambda: 0)
    ledger.close_claim(ledger.claim(KEY, planned), half, half, complete=False)
    with pytest.raises(CommandRejected, match="claimed 1 times, not 0"):
        ledger.claim(KEY, left, resume=True, after_claims=0)
    with pytest.raises(CommandRejected, match="spot 2, 750 are left"):
        ledger.claim(KEY, left + np.array([0, 0, 40]), resume=True, after_claims=1)
    claim = ledger.claim(KEY, left + np.array([10, 0, 0]), resume=True, after_claims=1)  # a quantum may have been carried
    np.testing.assert_array_equal(ledger.delivered(KEY.plan_uid, 1, 4).planned, planned)
    ledger.close_claim(claim, left, left, complete=True)


def test_results_that_were_lost_are_bounded_by_the_latch_and_never_taken_for_nothing(one_beam, tmp_path, monkeypatch) -> None:
    lose_results(monkeypatch, grant_id=3)
    run = tmp_path / "run"
    with watching(truth_of(one_beam)) as truth:
        assert treat(one_beam, run).status != "complete"
        monkeypatch.undo()
    known = received(run)[1]
    assert known.state is BeamState.PARTIAL  # the unit's latch says it all
    assert int(known.lower.sum()) == pytest.approx(float(truth.flat(1).sum()), rel=0.01)
    with watching(truth):
        assert run_resume(ResumeOptions(run)).status == "complete"
    truth.assert_never_over(1)
    assert abs(truth.error_of_beam(1)) < 0.005


def test_results_and_latch_lost_lock_the_beam_until_signed(one_beam, tmp_path, monkeypatch) -> None:
    from drivers.devices.delivery_unit import DeliveryUnitClient
    from drivers.hal.errors import DataError

    async def unreadable(_self):
        raise DataError("its checksum does not hold", code=5131)

    lose_results(monkeypatch, grant_id=3)
    monkeypatch.setattr(DeliveryUnitClient, "read_latch", unreadable)
    run = tmp_path / "run"
    with watching(truth_of(one_beam)) as truth:
        assert treat(one_beam, run).status != "complete"
        monkeypatch.undo()
        known = received(run)[1]
        assert known.state is BeamState.LOCKED
        assert known.lower.sum() < truth.flat(1).sum() <= known.upper.sum() * 1.01
        assert "is locked" in reasons_of(run)
        signed = iongantry(
            "recover", str(run), "--sign", "A. Physicist", "--reason", "the whole grant was given, says the film"
        )
        assert signed.returncode == 0, signed.stderr
        resumed = run_resume(ResumeOptions(run))
    truth.assert_never_over(1)
    assert resumed.status == resumed.treated.status == "partial"  # a grant of it is known as an interval only
    assert len(resumed.treated.summary["intervals"]) == 1
    np.testing.assert_array_less(received(run)[1].upper, truth.planned(1) * 1.02 + 20)


def lose_results(monkeypatch: pytest.MonkeyPatch, grant_id: int) -> None:
    from drivers.devices.delivery_unit import DeliveryUnitClient
    from drivers.hal.errors import DataError

    results = DeliveryUnitClient.results

    async def losing(self, wanted: int):
        if wanted == grant_id:
            raise DataError(f"results of grant {wanted} damaged 5 times", code=5121)
        return await results(self, wanted)

    monkeypatch.setattr(DeliveryUnitClient, "results", losing)


def test_a_raster_file_keeps_its_name_and_its_overrides_in_the_next_session(shared_plans: Path, tmp_path: Path) -> None:
    plan = shared_plans / "pytrip" / "tst003001.rst"
    reasons = {"machine": "made elsewhere", "approval": "a phantom"}
    early = treat(plan, tmp_path / "run", "estop@beam+0.5", facility="research", overrides=reasons, seed=3)
    with fractions() as made:
        resumed = run_resume(ResumeOptions(tmp_path / "run"), at_pass(2, 0.1, lambda: made[-1].stop("enough")))
    first, second = early.outcome, resumed.treated.outcome
    assert (second.plan.uid, second.plan.label) == (first.plan.uid, first.plan.label) == (first.plan.uid, "tst003001")
    assert [b.beam.name for b in second.beams] == [b.beam.name for b in first.beams]
    assert {o.name: o.reason for o in second.overrides} == reasons


@pytest.mark.parametrize("fault", ["mu1-dead@beam+0.8", "mu2-dead@beam+0.8", "mu1-gain:1.2@beam+0.8", "mu2-gain:0.8@beam+0.8"])
def test_of_two_monitors_that_disagree_neither_is_believed_before_a_physicist_has_signed(
    one_beam: Path, tmp_path: Path, fault: str
) -> None:
    run = tmp_path / "run"
    with watching(truth_of(one_beam)) as truth:
        early = treat(one_beam, run, fault)
        assert early.status == "partial"
        known, true = received(run)[1], truth.flat(1)
        assert known.state is BeamState.LOCKED
        assert known.lower.sum() < known.upper.sum()
        assert known.lower.sum() * 0.999 <= true.sum() <= known.upper.sum() * 1.001
        doubted = known.lower != known.upper
        assert doubted.any() and not doubted.all(), "only the grant that the monitors ended is in doubt"
        assert "known only between" in reasons_of(run)
        assert run_recovery(run).locked, "the journal says the same as the ledger"
        run_recovery(run, sign="A. Physicist", reason="the chamber was tested")
        resumed = run_resume(ResumeOptions(run))
    assert resumed.status == "partial"
    (interval,) = resumed.treated.summary["intervals"]
    assert interval["counts1_upper"] - interval["counts1_lower"] == known.upper.sum() - known.lower.sum()
    assert truth.error_of_beam(1) == pytest.approx(0.0, abs=0.01)
    truth.assert_never_over(1)


def test_spots_in_the_wrong_place_need_a_physicist_before_anything_follows(one_beam: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    early = treat(one_beam, run, "scanner-scale:1.02")
    assert early.status == "partial"
    text = reasons_of(run)
    assert "is locked" in text and "something was wrong" in text
    signed = iongantry("recover", str(run), "--sign", "A. Physicist", "--reason", "within tolerance, supply repaired")
    assert signed.returncode == 0, signed.stderr
    assert received(run)[1].state is BeamState.PARTIAL
