"""Simulators, interlock system and controller under one roof: Ctrl-C ends all of them in order, and none outlives another."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from site_process import alive, descendants, until
from typer.testing import CliRunner

from controller.cli import app

pytestmark = [pytest.mark.xdist_group("wires"), pytest.mark.timeout(200)]


class Up:
    """`iongantry up` in a directory of its own."""

    def __init__(self, directory, *arguments):
        self.log = directory / "up.log"
        command = [
            sys.executable,
            "-m",
            "controller",
            "up",
            "--staff",
            "quick",
            "--directory",
            str(directory / "up"),
            *arguments,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "300"},
            )

    def said(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stands(self):
        until(lambda: "G1-gantry  device.up" in self.said() or self.process.poll() is not None, 60.0, "the room stands by")
        assert self.process.poll() is None, self.said()
        return descendants(self.process.pid)


@pytest.fixture
def up(tmp_path):
    started = []

    def start(*arguments):
        started.append(Up(tmp_path, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_ctrl_c_ends_everything_in_order(up, tmp_path):
    one = up()
    family = one.stands()
    assert len(family) >= 5, "plant, IOC, broker, interlock system, controller"
    assert (tmp_path / "up" / "endpoints.toml").exists()
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(60) == 0, one.said()
    until(lambda: not any(alive(pid) for pid in family), 5.0, "no process is left")
    assert not (tmp_path / "up" / "endpoints.toml").exists()


def test_a_process_that_dies_takes_the_others_down_and_is_named(up):
    one = up()
    family = one.stands()
    interlock = next(pid for pid in family if b"interlocks.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(interlock, signal.SIGKILL)
    assert one.process.wait(60) == 4, one.said()
    assert "the interlock process ended by itself (SIGKILL)" in one.said()
    until(lambda: not any(alive(pid) for pid in family), 5.0, "no process is left")


def test_nothing_outlives_a_supervisor_that_is_killed(up):
    one = up()
    family = one.stands()
    one.process.kill()
    one.process.wait()
    until(lambda: not any(alive(pid) for pid in family), 20.0, "no process is left")


def test_what_the_simulators_refuse_is_told_with_their_reasons(tmp_path):
    done = CliRunner().invoke(app, ["up", "--speed", "fast", "--directory", str(tmp_path)])
    assert done.exit_code == 2
    assert "--speed 'fast'" in done.output


def test_an_unknown_room_is_refused_before_anything_starts(tmp_path):
    done = CliRunner().invoke(app, ["up", "--room", "G9", "--directory", str(tmp_path / "up")])
    assert done.exit_code == 2
    assert "no room 'G9'" in done.stderr
    assert not (tmp_path / "up").exists()
