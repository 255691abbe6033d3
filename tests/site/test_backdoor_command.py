"""The backdoor on the command line: what is asked wrongly is refused in words. `simulate` ends with 4 when its plant failed."""

import json
import subprocess
import sys

import pytest
from site_process import descendants, until
from typer.testing import CliRunner

from controller.cli import app
from controller.cli_simulate import _request

MAP = "format = 1\nfacility = 'asan'\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "endpoints.toml"
    path.write_text(MAP + "backdoor = 'http://127.0.0.1:9'\ntoken = 'x'\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explode"], "no action 'explode'"),
        (["speed"], "expected FACTOR, got nothing"),
        (["speed", "fast"], "not a number"),
        (["server", "ioc"], "expected NAME start|stop|kill|suspend|resume|silent, got ioc"),
        (["pause", "now"], "expected no arguments, got now"),
        (["clock"], "not there"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_words(file, arguments, words):
    done = CliRunner().invoke(app, ["backdoor", str(file), *arguments])
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize(("content", "words"), [(MAP, "names no backdoor"), ("x", "not TOML"), (None, "cannot be read")])
def test_a_file_without_a_backdoor_is_refused(tmp_path, content, words):
    path = tmp_path / "map.toml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    done = CliRunner().invoke(app, ["backdoor", str(path), "clock"])
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("action", "given", "request_"),
    [
        ("state", [], ("GET", "/state")),
        ("fault", ["mu1-dead@beam", "G1"], ("POST", "/faults", {"spec": "mu1-dead@beam", "room": "G1"})),
        ("clear", ["mu1-dead", "G1"], ("DELETE", "/faults/mu1-dead?room=G1")),
        ("clear", ["a/b?c"], ("DELETE", "/faults/a%2Fb%3Fc")),
        ("server", ["ioc", "kill"], ("POST", "/servers/ioc/kill")),
        ("press", ["G1", "key"], ("POST", "/people/G1/press", {"role": "key"})),
        ("speed", ["2"], ("POST", "/speed", {"factor": 2.0})),
    ],
)
def test_each_action_is_one_request(action, given, request_):
    assert _request(action, given) == request_


FAILING = """
import asyncio, sys
from simulators.site import Site
start = Site.start
async def failing(self):
    await start(self)
    print("pids", *(s.pid for s in self.servers.values() if s.pid), flush=True)
    self.plant.kernel.after(200_000_000, lambda _t: 1 / 0)
Site.start = failing
from controller.cli import main
sys.argv = ["iongantry", "simulate", "--room", "F1", "--directory", sys.argv[1]]
main()
"""


@pytest.mark.xdist_group("wires")
def test_a_plant_that_has_failed_is_not_served_any_longer(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "ZeroDivisionError" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    pids = next(line for line in done.stdout.splitlines() if line.startswith("pids")).split()[1:]
    assert len(pids) == 3
    until(lambda: not any(descendants(pid) for pid in pids))
    assert not (tmp_path / "endpoints.toml").exists()
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["F1-interlocks.jsonl"]'
