"""`iongantry hil check` as a process: exit codes, words, files, and Ctrl-C while the axis moves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from foreign_rig import RIG, foreign_drives, kill_drives
from typer.testing import CliRunner

from controller.cli import app

pytestmark = pytest.mark.xdist_group("wires")
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 30}
PROGRAM = [sys.executable, "-m", "controller", "hil", "check"]


@pytest.fixture(scope="module")
def ttys() -> Iterator[Mapping[str, str]]:
    with foreign_drives(["sound", "other-product"]) as found:
        yield found


def overlay_file(folder: Path, tty: str, **rig: object) -> Path:
    lines = ["[devices.G1-drive-A]", f'endpoint = "serial://{tty}?baudrate=115200"', "[rig]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in {**RIG, **rig}.items()]
    path = folder / "overlay.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, output and errors of a run in this process."""
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["hil", "check", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_another_device_is_exit_3_with_a_report(ttys: Mapping[str, str], tmp_path: Path) -> None:
    overlay = overlay_file(tmp_path, ttys["other-product"])
    ran = subprocess.run([*PROGRAM, overlay, "--output", tmp_path / "out"], check=False, **CAPTURED)
    assert ran.returncode == 3, ran.stderr
    assert "local stop: red button beside the drive" in ran.stderr
    assert "fail      Identity: another device answers" in ran.stdout
    assert "check endpoint and node number" in ran.stdout
    assert "left: never enabled" in ran.stdout
    assert "another device answers" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "hil.json").read_text(encoding="utf-8"))["verdict"] == "fail"


def checked_until_it_moves(overlay: Path, out: Path, then: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
    """Exit code and words of a check with which `then` does something as soon as the axis moves.

    Again, up to four times, where an answer was lost before: beside other tests this computer may stand still for 50 ms.
    """
    for _ in range(4):
        shutil.rmtree(out, ignore_errors=True)
        command = [*PROGRAM, str(overlay), "--output", str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as process:
            assert process.stdout is not None
            text, moves = "", False
            for line in process.stdout:
                text += line
                if "Move to" in line and not moves:
                    moves = True
                    then(process)
            code = process.wait(20)
        if moves or "does not answer within" not in text:
            break
    return code, text


def test_ctrl_c_stops_the_axis_and_writes_what_was_done(ttys: Mapping[str, str], tmp_path: Path) -> None:
    overlay = overlay_file(tmp_path, ttys["sound"], speed_deg_s=0.5)  # 4 s for each way
    out = tmp_path / "out"
    code, text = checked_until_it_moves(overlay, out, lambda process: process.send_signal(signal.SIGINT))
    assert code == 3, text
    assert "Stopped by the technician" in text, text
    assert "left: at rest, brake applied, not enabled" in text
    told = json.loads((out / "hil.json").read_text(encoding="utf-8"))
    assert told["interrupted"]
    rows = {row["id"]: row for row in told["checks"]}
    assert rows["enable"]["verdict"] == "pass"
    assert rows["quick_stop"] == {**rows["quick_stop"], "verdict": "not done", "reason": "stopped by the technician"}
    assert (out / "report.html").is_file()


def test_a_line_that_is_lost_in_motion_is_told_with_the_local_stop(tmp_path: Path) -> None:
    """The hardware's process is killed: the tty hangs up, as an adapter does that is pulled out."""
    with foreign_drives(["sound"]) as found:
        overlay = overlay_file(tmp_path, found["sound"], speed_deg_s=0.5)
        code, text = checked_until_it_moves(overlay, tmp_path / "out", lambda _: kill_drives(found))
        assert code == 3, text
    assert "left: NOT SAFE: the line cannot be opened" in text, text
    assert "use the local stop now: red button beside the drive" in text
    assert json.loads((tmp_path / "out" / "hil.json").read_text(encoding="utf-8"))["verdict"] == "fail"


@pytest.mark.parametrize(
    ("rig", "words"),
    [
        ({"local_stop": ""}, "names no local stop"),
        ({"travel_deg": -1.0}, "rig.travel_deg"),
        ({"local_stp": "x"}, "rig.local_stp"),
    ],
)
def test_a_bad_overlay_is_refused_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rig: dict[str, object], words: str
) -> None:
    overlay = overlay_file(tmp_path, "/dev/pts/none", **rig)
    code, _, told = run([str(overlay)], tmp_path, monkeypatch)
    assert code == 2
    assert words in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.toml"]


def test_a_line_that_is_not_there_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = overlay_file(tmp_path, "/dev/pts/none")
    code, said, _ = run([str(overlay), "--json"], tmp_path, monkeypatch)
    assert code == 3
    told = json.loads(said)
    assert told["checks"][0]["id"] == "identity"
    assert "there is no such serial line" in told["checks"][0]["reason"]
    assert told["output"] == "hil-G1-drive-A"


def test_a_report_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = overlay_file(tmp_path, "/dev/pts/none")
    code, _, told = run([str(overlay), "--output", str(tmp_path)], tmp_path, monkeypatch)
    assert code == 2
    assert "is not empty" in told
