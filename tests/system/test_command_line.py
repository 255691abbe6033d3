"""The program as its users call it: exit codes, words on the right stream, JSON, signals, and a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from controller import cli
from controller.cli import app

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("iongantry")


@pytest.fixture
def plan(tmp_path, made):
    path = tmp_path / "plan.dcm"
    path.write_bytes(made(diameter_mm=8.0))
    return path


@pytest.fixture
def run():
    """A command in this process: exit code, standard output, standard error."""
    runner = CliRunner()

    def call(*arguments):
        result = runner.invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.stdout + result.stderr
        return result.exit_code, result.stdout, result.stderr

    return call


# --- processes ----------------------------------------------------------------------------------------------------------


def test_a_treatment_from_the_shell(iongantry, plan, tmp_path):
    done = iongantry("treat", plan, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "complete: delivered as prescribed (NORMAL; simulated)"
    assert f"read first: {tmp_path / 'out' / 'report.html'}" in done.stdout
    lines = done.stderr.splitlines()
    assert all(re.match(r" *\d+\.\d s  ", line) for line in lines) and "\x1b" not in done.stderr
    assert any("irradiating.beam_on" in line for line in lines) and lines[-1].endswith("standby")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) >= ["events.jsonl"]


def test_without_output_a_new_directory_is_made_here_and_told(iongantry, plan, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    done = iongantry("treat", plan, "--json", cwd=here)
    summary = json.loads(done.stdout)
    assert done.returncode == 0 and summary["status"] == "complete"
    assert summary["output"] == str(here / "c-sphere-1") and (here / "c-sphere-1" / "record.dcm").exists()


def test_a_bad_plan_and_bad_options_from_the_shell(iongantry, tmp_path):
    (tmp_path / "plan.dcm").write_bytes(b"nothing")
    done = iongantry("treat", tmp_path / "plan.dcm", "--speed", "fast", "--fraction", "0", "--output", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "refused, 3 reasons:" and all(line.startswith("  - ") for line in lines[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["plan.dcm"]


def test_help_comes_quickly_and_without_the_heavy_libraries():
    code = (
        "import sys; from controller.cli import app\n"
        "heavy = {'numpy', 'pydicom', 'pyarrow', 'transitions', 'pydantic', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_ends_the_fraction_with_a_record_and_says_who_did_it(plan, tmp_path):
    arguments = [PROGRAM, "treat", plan, "--speed", "100", "--output", tmp_path / "out"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "preparatory.positioning" in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert process.returncode == 3, out + err
    assert (summary["status"], summary["termination"]) == ("partial", "OPERATOR")
    assert "SIGINT" in summary["reason"] and (tmp_path / "out" / "record.dcm").exists()
    assert summary["loop_lag_ms"]["max"] > 0


def test_a_reader_who_leaves_changes_neither_treatment_nor_exit_code(plan, tmp_path):
    arguments = [PROGRAM, "treat", plan, "--output", tmp_path / "out"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stderr.readline()
        process.stdout.close()
        process.stderr.close()
        assert process.wait(60) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["status"] == "complete"


def test_on_a_terminal_there_is_one_live_panel_and_the_verdict_stays(plan, tmp_path):
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    arguments = [PROGRAM, "treat", plan, "--speed", "300", "--output", tmp_path / "out"]
    process = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True)
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 1.0)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            shown += piece
        elif process.poll() is not None:
            break
    os.close(master)
    assert process.wait(10) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for word in ("state", "gantry", "layer", "spots", "meterset", "MU", "time"):
        assert word in text
    assert any(line.startswith("complete: delivered as prescribed") for line in text.splitlines()[-12:])
    assert "\x1b[?25h" in shown.decode()  # the cursor is back


# --- in this process ----------------------------------------------------------------------------------------------------


def test_the_version_is_the_package_s(run):
    from importlib.metadata import version

    assert run("--version") == (0, f"iongantry {version('iongantry')}\n", "")


def test_help_is_everywhere(run):
    code, shown, _ = run("--help")
    commands = set(typer.main.get_command(app).commands)
    assert code == 0 and all(command in shown for command in commands)
    assert {"treat", "check", "plan", "faults", "commission", "simulate", "interlock", "devices", "up", "replay"} <= commands
    for command in sorted(commands):
        code, out, _ = run(command, "--help")
        assert code == 0 and "--help" in out


def test_unknown_options_and_commands_are_refused(run):
    for arguments in (("treat",), ("treat", "x.dcm", "--nix"), ("nix",), ("treat", "x.dcm", "--fraction", "one")):
        code, _, err = run(*arguments)
        assert code == 2 and err


def test_exit_codes_follow_the_status_one_to_one():
    assert cli.EXIT_OF == {"complete": 0, "refused": 2, "partial": 3, "fault": 4}


@pytest.mark.parametrize(
    ("fault", "code", "status"), [("estop", 2, "refused"), ("wrong-energy", 3, "partial"), ("mu2-dead@beam", 3, "partial")]
)
def test_what_a_fault_makes_of_the_exit_code_and_what_the_operator_reads(run, plan, tmp_path, fault, code, status):
    got, out, _ = run("treat", plan, "--fault", fault, "--output", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (got, summary["status"]) == (code, status)
    assert "simulated" in out and "because: " in out and re.search(r"first out +\d+\.\d{3} s  \S+: .{20}", out)
    assert (tmp_path / "out" / "record.dcm").exists() == (code == 3)


def test_an_error_of_the_program_is_named_without_a_traceback(monkeypatch, capsys):
    from drivers.hal.errors import DeviceError

    for error, words in (
        (ValueError("planted"), "program fault: ValueError: planted"),
        (DeviceError("broken", code=3001, device="G1-x", hint="mend it"), "fault: [3001] G1-x: broken (mend it)"),
    ):

        def broken(error=error):
            raise error

        monkeypatch.setattr(cli, "app", broken)
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr()
        assert left.value.code == 4 and told.err.startswith(words) and "Traceback" not in told.err


def test_check_tells_what_a_plan_needs_and_what_is_wrong(run, plan, dataset, tmp_path):
    code, out, _ = run("check", plan)
    assert code == 0 and "can be delivered in G1 of asan" in out and "synchrotron cycles" in out
    code, out, _ = run("check", plan, "--json")
    report = json.loads(out)
    assert (code, report["status"], report["room"]) == (0, "deliverable", "G1")
    assert {"number", "species", "layers", "spots", "meterset", "estimated_s"} <= set(report["beams"][0])
    foreign = dataset()
    foreign.ApprovalStatus = "UNAPPROVED"
    foreign.save_as(tmp_path / "foreign.dcm")
    code, out, err = run("check", tmp_path / "foreign.dcm", "--override", "nix=x")
    assert code == 2 and out == "" and "refused, 2 reasons:" in err and "[6202]" in err and "no override 'nix'" in err
    code, out, _ = run("check", tmp_path / "foreign.dcm", "--json")
    assert code == 2 and json.loads(out) == {"status": "refused", "reasons": [json.loads(out)["reasons"][0]]}


@pytest.mark.parametrize("shape", ["sphere", "box", "pancreas", "liver", "lung", "prostate", "qa-grid"])
def test_every_shape_of_plan_that_is_offered_can_be_delivered(run, tmp_path, shape):
    code, out, _ = run("plan", "--shape", shape, "-o", tmp_path / "new" / "plan.dcm", "--json")
    written = json.loads(out)
    assert (code, written["status"], written["deliverable"], written["reasons"]) == (0, "written", True, [])


def test_a_plan_that_cannot_be_delivered_is_written_with_a_word(run, tmp_path):
    made = "plan", "--diameter-mm", "10", "--approval", "UNAPPROVED", "-o", tmp_path / "plan.dcm"
    code, out, err = run(*made)
    assert code == 0 and (tmp_path / "plan.dcm").stat().st_size > 1000
    assert "written" in out and "6202" not in out, "what reads standard output reads of a file that is there"
    assert err.startswith("warning: ") and "cannot be delivered as it is in G1 of asan" in err and "[6202]" in err
    code, out, err = run(*made, "--json")
    written = json.loads(out)
    assert (code, written["deliverable"], len(written["reasons"]), err) == (0, False, 1, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "cube"), "cube"),
        (("--species", "Fe"), "Fe"),
        (("--room", "G7"), "G7"),
        (("--facility", "nix"), "no facility 'nix'"),
        (("--diameter-mm", "-3"), "-3"),
        (("--depth-mm", "900"), "C reaches 310 mm"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(run, tmp_path, arguments, words):
    code, out, err = run("plan", "-o", tmp_path / "plan.dcm", *arguments)
    assert code == 2 and out == "" and words in err and not (tmp_path / "plan.dcm").exists()


def test_a_plan_is_not_written_where_nothing_can_be(run, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    code, _, err = run("plan", "-o", tmp_path / "file" / "plan.dcm")
    assert code == 2 and "cannot be written" in err


def test_a_plan_that_a_full_disk_cuts_leaves_the_one_before(tmp_path, monkeypatch):
    from controller.plan.make import PlanSpec, write_plan
    from drivers.hal.facility import load_facility

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    spec, plan = PlanSpec(shape="sphere", diameter_mm=10.0), tmp_path / "plan.dcm"
    plan.write_bytes(b"the one before")
    monkeypatch.setattr(type(plan), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_plan(spec, load_facility("asan"), plan)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.dcm"] and plan.read_bytes() == b"the one before"


def test_the_faults_that_are_offered(run):
    from drivers.wire.tap.faults import KINDS, PREFIX
    from simulators.faults import CATALOGUE

    names = [*CATALOGUE, *(f"{PREFIX}{name}" for name in KINDS)]
    code, out, _ = run("faults")
    assert code == 0 and all(f"\n{name}" in out for name in names)
    assert out.count("expected: ") == len(names)
    code, out, _ = run("faults", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["name"] for row in rows] == names
    assert all(row["does"] and row["expected"] for row in rows)


def facility(edit):
    return edit((ROOT / "drivers/hal/facilities/asan.toml").read_text(encoding="utf-8"))


def test_a_right_facility_is_said_to_be_right(run, tmp_path):
    for name in ("asan", "qst", "research"):
        code, out, _ = run("check-config", name)
        assert code == 0 and f"facility {name}" in out and ": right" in out
    code, out, _ = run("check-config", "asan", "--json")
    assert code == 0 and json.loads(out)["status"] == "ok" and "G1-gantry" in json.loads(out)["devices"]
    (tmp_path / "mine.toml").write_text(facility(lambda text: text), encoding="utf-8")
    assert run("check-config", tmp_path / "mine.toml")[0] == 0


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[:200] + "\n[[[", ["not TOML"]),
        (lambda _text: 'name = "bare"', ["accelerator", "rooms", "Field required"]),
        (lambda text: text.replace("field_x_mm = ", "field_x_mm = -", 1), ["field_x_mm", "greater than 0"]),
        (lambda text: text.replace("field_x_mm = ", "field_xx_mm = ", 1), ["field_x_mm", "field_xx_mm"]),
        (lambda text: re.sub(r"memory:G1-motion", "serial:///dev/ttyUSB0", text), ["G1-gantry", "simulated"]),
        (lambda text: re.sub(r"baud = \d+", "baud = 1200", text), ["1200 baud"]),
    ],
)
def test_a_wrong_facility_is_told_by_every_reason(run, tmp_path, edit, words):
    file = tmp_path / "wrong.toml"
    file.write_text(facility(edit), encoding="utf-8")
    code, out, err = run("check-config", file)
    assert code == 2 and out == "" and all(word in err for word in words), err
    code, out, _ = run("check-config", file, "--json")
    assert code == 2 and json.loads(out)["status"] == "refused"
    assert all(any(word in reason for reason in json.loads(out)["reasons"]) for word in words)


def test_a_facility_file_that_is_not_there(run):
    assert run("check-config", "absent.toml")[0] == 2
