"""Bad options are refused before anything is written, all at once; good ones do what they say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from outputs import Treated

from controller.admission import (
    VIRTUAL,
    TreatOptions,
    new_directory,
    output_objections,
    parse_overrides,
    parse_speed,
)
from controller.intake import Refused
from controller.record.entries import Kind
from controller.record.journal import read_journal
from controller.record.store import DiskStore
from controller.treatment import check_plan, run_treatment


@pytest.fixture
def plan(tmp_path, made):
    path = tmp_path / "plan.dcm"
    path.write_bytes(made(diameter_mm=8.0))
    return path


def reasons_for(plan, objections=(), **options):
    with pytest.raises(Refused) as caught:
        run_treatment(TreatOptions(plan=plan, **options), objections=objections)
    return caught.value.reasons


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"facility": "nowhere"}, ["[1001] no facility 'nowhere'", "shipped: asan, qst, research"]),
        ({"room": "G9"}, ["--room G9: facility asan has no such room", "G1, G2, F1"]),
        ({"beams": (4,)}, ["[6223]", "no treatment beam of this number: 4 (limit 1)"]),
        ({"fraction": 0}, ["--fraction 0: fractions count from 1"]),
        ({"fraction": 44}, ["--fraction 44: the plan has"]),
        ({"seed": -1}, ["--seed -1: expected 0 or more"]),
        ({"faults": ("no-such-fault",)}, ["fault 'no-such-fault' is unknown", "iongantry faults"]),
        ({"faults": ("mu1-dead:3",)}, ["fault mu1-dead: takes no value, got '3'"]),
        ({"faults": ("mu1-gain:much",)}, ["fault mu1-gain: value 'much' is not a number"]),
        ({"faults": ("mu1-gain@never",)}, ["fault mu1-gain: when 'never': expected start, t=SECONDS"]),
        ({"room": "G1", "scenario": Path("absent.toml")}, ["scenario absent.toml", "No such file"]),
    ],
)
def test_a_bad_option_is_refused_by_name(plan, tmp_path, options, words):
    (reason,) = reasons_for(plan, output=tmp_path / "out", **options)
    assert all(word in reason for word in words), reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.dcm"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("faults = [", "scenario"),
        ('faults = "mu1-dead"', "expected title and faults"),
        ('title = "x"\nfault = ["mu1-dead"]', "expected title and faults"),
        ('faults = ["mu1-dead@beam", "nix"]', "fault 'nix' is unknown"),
    ],
)
def test_a_broken_scenario_is_refused(plan, tmp_path, text, words):
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(text, encoding="utf-8")
    (reason,) = reasons_for(plan, scenario=scenario, output=tmp_path / "out")
    assert words in reason and not (tmp_path / "out").exists()


def test_a_fault_that_a_room_cannot_have_is_refused(tmp_path, made):
    plan = tmp_path / "plan.dcm"
    plan.write_bytes(made(room="F1", angles_deg=(90.0,)))
    (reason,) = reasons_for(plan, faults=("drive-fault@t=9",))
    assert reason == "fault drive-fault cannot be planted in F1: room F1 is fixed: it has no ring"


def test_a_facility_without_a_simulated_plant_is_refused(plan, tmp_path):
    text = (Path(__file__).parents[2] / "drivers/hal/facilities/asan.toml").read_text(encoding="utf-8")
    own = tmp_path / "own.toml"
    own.write_text(text.replace('name = "asan"', 'name = "elsewhere"', 1), encoding="utf-8")
    reasons = reasons_for(plan, facility=str(own))
    assert any("no beam library for elsewhere" in reason for reason in reasons)


def test_outputs_never_mix_with_what_is_there(plan, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "record.dcm").write_bytes(b"yesterday's")
    assert reasons_for(plan, output=full) == (f"--output {full}: is not empty; name a new directory",)
    assert reasons_for(plan, output=plan) == (f"--output {plan}: {plan} is not a directory",)
    assert reasons_for(plan, output=plan / "below") == (f"--output {plan / 'below'}: {plan} is not a directory",)
    assert (full / "record.dcm").read_bytes() == b"yesterday's"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_refused(plan, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert reasons_for(plan, output=closed / "out") == (f"--output {closed / 'out'}: {closed} cannot be written to",)


def test_a_directory_that_cannot_be_written_is_known_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert output_objections(tmp_path / "out") == [f"--output {tmp_path / 'out'}: {tmp_path} cannot be written to"]


def test_a_directory_that_cannot_be_made_after_all_is_refused(plan, tmp_path, monkeypatch):
    def mkdir(self, *_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert reasons_for(plan, output=tmp_path / "out") == (
        f"--output {tmp_path / 'out'}: cannot be made: No space left on device",
    )


def test_everything_wrong_with_plan_and_options_is_told_together(plan, tmp_path, dataset):
    broken = dataset()
    broken.ApprovalStatus = "UNAPPROVED"
    broken.save_as(plan)
    objections = ["--speed 'soon': expected max, real, or a factor above 0"]
    reasons = reasons_for(
        plan,
        objections,
        fraction=0,
        seed=-7,
        faults=("nix", "no-spill:2"),
        scenario=tmp_path / "no.toml",
        output=plan / "x",
        state=plan,
    )
    for start in (
        "--speed",
        "--fraction 0",
        "--seed -7",
        "fault 'nix'",
        "fault no-spill",
        "scenario",
        "--output",
        "--state",
        "[6202]",
    ):
        assert any(reason.startswith(start) for reason in reasons), (start, reasons)
    assert len(reasons) == len(set(reasons)) == 9


@pytest.mark.parametrize("text", ["", "fast", "0", "-3", "nan", "inf", "-inf", "1e999"])
def test_a_speed_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected max, real, or a factor above 0"):
        parse_speed(text)


def test_speeds():
    assert [parse_speed(text) for text in ("max", "real", "20", "0.5")] == [VIRTUAL, 1.0, 20.0, 0.5]


def test_overrides_need_a_known_name_and_a_reason():
    assert parse_overrides(["machine=built elsewhere = yes", "approval= a phantom "]) == {
        "machine": "built elsewhere = yes",
        "approval": "a phantom",
    }
    with pytest.raises(ValueError) as caught:
        parse_overrides(["machine", "approval=  ", "dose=more", "machine=x", "machine=y"])
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "--override 'machine'",
        "--override 'approval=  '",
        "--override 'dose=more'",
        "--override 'machine=y'",
    ]


def test_check_names_what_an_override_would_lift(plan, dataset):
    foreign = dataset()
    foreign.IonBeamSequence[0].TreatmentMachineName = "Gantry 7"
    foreign.ApprovalStatus = "UNAPPROVED"
    foreign.save_as(plan)
    with pytest.raises(Refused):
        check_plan(plan, "asan", "G1", (), {"machine": "moved"})
    report = check_plan(plan, "asan", "G1", (), {"machine": "moved", "approval": "phantom"})
    assert report["status"] == "deliverable" and len(report["overridden"]) == 2


def test_a_new_directory_is_named_after_the_plan_and_never_one_that_was_there(tmp_path):
    names = [new_directory(tmp_path, label).name for label in ("Prostate, boost 2", "Prostate, boost 2", "", "../../etc", "ß")]
    assert names == ["prostate-boost-2-1", "prostate-boost-2-2", "plan-1", "etc-1", "plan-2"]


# --- the facility's state -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def facility_state(made, tmp_path_factory):
    """A directory with the small plan, its first fraction delivered, and the facility's state after it."""
    folder = tmp_path_factory.mktemp("facility")
    (folder / "plan.dcm").write_bytes(made(diameter_mm=8.0))
    options = TreatOptions(plan=folder / "plan.dcm", output=folder / "first", state=folder / "state")
    assert run_treatment(options).status == "complete"
    return folder


@pytest.fixture
def state(tmp_path, facility_state):
    """A copy of that state."""
    return Path(shutil.copytree(facility_state / "state", tmp_path / "state"))


def test_a_fraction_is_given_once_and_the_next_one_is_free(plan, state, facility_state, tmp_path):
    (reason,) = reasons_for(plan, state=state, output=tmp_path / "again")
    assert reason.startswith("beam 1 of fraction 1 is complete in the ledger")
    assert str(facility_state / "first" / "journal.bin") in reason
    assert not (tmp_path / "again").exists()
    second = Treated(run_treatment(TreatOptions(plan=plan, output=tmp_path / "second", state=state, fraction=2)))
    assert second.status == "complete" and second.summary["fraction"] == 2
    assert second.record.SOPInstanceUID != pydicom.dcmread(facility_state / "first" / "record.dcm").SOPInstanceUID


def test_a_ledger_in_use_by_another_process_is_refused(plan, state, tmp_path):
    lock = f"import fcntl, sys; f = open({str(state / 'ledger' / 'lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    code = f"{lock}; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        (reason,) = reasons_for(plan, state=state, output=tmp_path / "again", fraction=2)
        other.stdin.close()
    assert "is in use by another process" in reason
    assert not (tmp_path / "again").exists()


def test_a_plan_that_another_process_treats_is_refused_before_anything_is_set_up(plan, state, tmp_path):
    """The other one is still setting the patient up: it has claimed nothing yet."""
    said = []

    def at_set_up(event):
        if event.kind == "room.state" and event.data["state"] == "preparatory.positioning" and not said:
            said.append(reasons_for(plan, state=state, output=tmp_path / "second", fraction=2))

    first = Treated(
        run_treatment(TreatOptions(plan=plan, output=tmp_path / "first", state=state, fraction=2), listener=at_set_up)
    )
    ((reason,),) = said
    assert f"is being treated by process {os.getpid()} on " in reason
    assert f"outputs {tmp_path / 'first'}" in reason
    assert not (tmp_path / "second").exists()
    assert first.status == "complete"


def test_a_plan_for_a_room_of_one_facility_is_not_taken_for_the_like_named_room_of_another(made, tmp_path):
    """Same room name, same ions, same energies: only the machine's name tells them apart."""
    (tmp_path / "asan.dcm").write_bytes(made())
    (tmp_path / "qst.dcm").write_bytes(made(facility="qst"))
    for plan, elsewhere in (("asan.dcm", "qst"), ("qst.dcm", "asan")):
        with pytest.raises(Refused, match="is no room of facility"):
            check_plan(tmp_path / plan, elsewhere, None, (), {})
        with pytest.raises(Refused, match="made for another machine"):
            check_plan(tmp_path / plan, elsewhere, "G1", (), {})
    assert check_plan(tmp_path / "qst.dcm", "qst", None, (), {})["room"] == "G1"


def test_a_ledger_that_was_changed_is_refused(plan, state, tmp_path):
    chain = state / "ledger" / "chain.bin"
    content = bytearray(chain.read_bytes())
    content[len(content) // 2] ^= 1
    chain.write_bytes(content)
    (reason,) = reasons_for(plan, state=state, output=tmp_path / "again", fraction=2)
    assert reason.startswith(f"--state {state}: [51")


def test_a_library_that_was_changed_is_refused(plan, state, tmp_path):
    shipped = Path(__file__).parents[2] / "controller/beam/libraries/asan.json"
    text = shipped.read_text(encoding="utf-8")
    (state / "library.json").write_text(text.replace('"released"', '"withdrawn"', 1), encoding="utf-8")
    (reason,) = reasons_for(plan, state=state, output=tmp_path / "again", fraction=2)
    assert "library.json" in reason and "rows were changed" in reason


def test_outputs_switched_off_leave_nothing_but_the_ledger(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_treatment(TreatOptions(plan=plan, state=tmp_path / "state"))
    assert (result.status, result.output) == ("complete", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.dcm", "state"]
    assert "complete in the ledger" in reasons_for(plan, state=tmp_path / "state")[0]


def test_overrides_reach_record_and_summary_only_where_they_were_needed(treat, dataset):
    plan = dataset(diameter_mm=8.0)
    plan.IonBeamSequence[0].TreatmentMachineName = "Gantry 7"
    done = treat(plan, room="G1", overrides={"machine": "the gantry moved house", "approval": "not needed"})
    assert (done.summary["research"], done.summary["overrides"]) == (True, ["machine"])
    (override,) = done.record.TreatmentSessionIonBeamSequence[0].IonControlPointDeliverySequence[0].OverrideSequence
    assert "the gantry moved house" in override.OverrideReason and "Gantry 7" in override.OverrideReason
    assert [event["data"]["name"] for event in done.of("override")] == ["machine"]
    records = read_journal(DiskStore(), done.output / "journal.bin").records
    (kept,) = [r for r in records if r.kind == Kind.OVERRIDE]
    assert (kept.data["name"], kept.data["reason"]) == ("machine", "the gantry moved house") and "Gantry 7" in kept.data[
        "detail"
    ]
    assert kept.seq < next(r.seq for r in records if r.kind == Kind.CLAIMED), "durable before beam"
    assert "research" in done.record.SeriesDescription
