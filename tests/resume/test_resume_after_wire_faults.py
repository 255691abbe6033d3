"""A wire that failed in beam is resumed: all sessions together give the plan, whatever was known of the first."""

from __future__ import annotations

from pathlib import Path

import pytest
from sessions import treat, truth_of, watching
from typer.testing import CliRunner

from controller.cli import app
from controller.intake import Refused
from controller.recover import run_recovery
from controller.replay import run_replay
from controller.resume import ResumeOptions, run_resume
from drivers.wire.tap.format import read_recording


def test_variables_that_failed_leave_an_interval_that_is_signed_and_then_resumed(one_beam: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with watching(truth_of(one_beam)) as truth:
        assert treat(one_beam, run, "wire-disconnect:epics@beam+1.5").status == "partial"
        with pytest.raises(Refused, match="sign"):
            run_resume(ResumeOptions(run))
        assert run_recovery(run).locked
        assert not run_recovery(run, sign="A. Physicist", reason="film").locked
        run_resume(ResumeOptions(run))
    truth.assert_never_over(1)
    assert -0.1 < truth.error_of_beam(1) < 0.005  # what is only known as an interval counts as given in full


def test_lines_that_failed_are_resumed_at_once_also_twice(one_beam: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with watching(truth_of(one_beam)) as truth:
        first = treat(one_beam, run, "wire-silence:G1-motion@beam+1.0")
        # Looking behind the trouble takes 0.6 s on a silent line, without a pulse: no task of ours hangs meanwhile.
        assert first.status == "partial" and first.outcome.reason.startswith("status.stale: G1: gantry"), first.outcome.reason
        second = run_resume(ResumeOptions(run, faults=("wire-disconnect:G1-safety@beam+0.5",)))
        assert second.status == "partial"
        assert run_resume(ResumeOptions(run)).status == "complete"
    truth.assert_as_planned(1)
    truth.assert_never_over(1)


def test_exit_codes_and_what_is_refused(one_beam: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(
        app, ["treat", str(one_beam), "--output", str(tmp_path / "run"), "--fault", "wire-garbage:G1-safety@beam+1"]
    )
    assert done.exit_code == 3, done.output
    assert "what is left: iongantry resume" in done.output
    for fault, words in (
        ("wire-nan:G1-motion", "no such thing on G1-motion"),
        ("wire-silence:G7-motion@t=1+2", "there is no wire G7-motion"),
        ("wire-silence", "needs a wire"),
        ("wire-silence:G1-motion@noon", "when 'noon'"),
        ("wire-silence:G1-motion@beam+1+0", "above 0"),
    ):
        wrong = runner.invoke(app, ["treat", str(one_beam), "--output", str(tmp_path / "no"), "--fault", fault])
        assert wrong.exit_code == 2
        assert words in wrong.output
        assert not (tmp_path / "no").exists()


def test_a_resumed_session_is_recorded_to_be_read(one_beam: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "resumed.jsonl.gz"
    assert treat(one_beam, run, "quench@beam+1.5").status == "partial"
    assert run_resume(ResumeOptions(run, record=file)).status == "complete"
    recording = read_recording(file)
    assert recording.facts["session"] == 1 and recording.end["status"] == "complete"
    assert any(entry.kind == "put" and entry.data["n"].endswith("GRANT:SP") for entry in recording.entries)
    with pytest.raises(Refused, match="resumed session"):
        run_replay(file)
