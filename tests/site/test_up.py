"""Simulators, interlock system and controller under one roof: Ctrl-C ends all of them in order, and none outlives another."""

import os
import signal
from pathlib import Path

import pytest
from iongantry_process import IongantryProcess
from site_process import alive, descendants, until
from typer.testing import CliRunner

from controller.cli import app

pytestmark = [pytest.mark.xdist_group("wires"), pytest.mark.timeout(200)]

PLAN = Path(__file__).parents[2] / "examples" / "carbon_sphere.dcm"


class Up(IongantryProcess):
    """`iongantry up` in a directory of its own."""

    def __init__(self, directory, *arguments):
        super().__init__(directory / "up.log", "up", "--staff", "quick", "--directory", directory / "up", *arguments)

    def stands(self):
        self.until_said("G1-gantry  device.up")
        return descendants(self.process.pid)


@pytest.fixture
def up(tmp_path):
    started = []

    def start(*arguments):
        started.append(Up(tmp_path, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_ctrl_c_ends_everything_in_order(up, tmp_path):
    one = up()
    family = one.stands()
    assert len(family) >= 5, "plant, IOC, broker, interlock system, controller"
    assert (tmp_path / "up" / "endpoints.toml").exists()
    assert one.end() == 0, one.said()
    until(lambda: not any(alive(pid) for pid in family), 5.0, "no process is left")
    assert not (tmp_path / "up" / "endpoints.toml").exists()


def test_a_process_that_dies_takes_the_others_down_and_is_named(up):
    one = up()
    family = one.stands()
    interlock = next(pid for pid in family if b"interlocks.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(interlock, signal.SIGKILL)
    assert one.wait() == 4, one.said()
    assert "the interlock process ended by itself (SIGKILL)" in one.said()
    until(lambda: not any(alive(pid) for pid in family), 5.0, "no process is left")


def test_nothing_outlives_a_supervisor_that_is_killed(up):
    one = up()
    family = one.stands()
    one.kill()
    until(lambda: not any(alive(pid) for pid in family), 20.0, "no process is left")


def test_a_plan_that_is_interrupted_before_anything_is_treated_is_not_told_as_given(up, tmp_path):
    one = up(PLAN, "--output", tmp_path / "output")
    until((tmp_path / "up" / "simulators.log").exists, 60.0, one.said)
    assert one.end() == 130, one.said()
    assert "stopped before the controller began anything" in one.said()
    assert "Traceback" not in one.said() + (tmp_path / "up" / "simulators.log").read_text(encoding="utf-8")
    assert not (tmp_path / "output").exists() and not descendants(one.process.pid)


def test_what_the_simulators_refuse_is_told_with_their_reasons(tmp_path):
    done = CliRunner().invoke(app, ["up", "--speed", "fast", "--directory", str(tmp_path)])
    assert done.exit_code == 2
    assert "--speed 'fast'" in done.output


def test_a_second_one_in_the_same_directory_is_refused_before_it_touches_a_file(up, tmp_path):
    one = up()
    one.stands()
    log = tmp_path / "up" / "simulators.log"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "up").glob("*.log")}
    words = log.read_bytes()
    assert words and b"refused" not in words
    done = CliRunner().invoke(app, ["up", "--directory", str(tmp_path / "up"), "--port", "0"])
    assert done.exit_code == 2
    assert f"another `up` runs there (process {one.process.pid})" in done.output
    assert {path: path.stat().st_mtime_ns for path in before} == before and log.read_bytes() == words
    assert one.runs and one.end() == 0, one.said()


def test_an_unknown_room_is_refused_before_anything_starts(tmp_path):
    done = CliRunner().invoke(app, ["up", "--room", "G9", "--directory", str(tmp_path / "up")])
    assert done.exit_code == 2
    assert "no room 'G9'" in done.stderr
    assert not (tmp_path / "up").exists()
