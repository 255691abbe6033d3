"""Ctrl-C and SIGTERM in the first second of a command: one line and an exit code, at whatever moment; never a trace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.early_end import WORDS
from drivers.hal.facility import load_facility

pytestmark = pytest.mark.xdist_group("wires")
PLAN = Path(__file__).parents[1] / "examples" / "carbon_sphere.dcm"
MOMENTS_S = (0.0, 0.1, 0.3)  # after the program listens; where in its start that is differs from machine to machine
ENDED = (0, 2, 130, 143)  # ended as asked, refused or not begun
TRACES = ("Traceback", "KeyboardInterrupt", "Exception ignored", "Fatal Python error")
LISTENS_S, ENDS_S = 20.0, 60.0


def commands(directory):
    """Each command, in a directory of its own."""
    return {
        "serve": ["--state", directory / "state", "--port", "0"],
        "up": ["--directory", directory / "up", "--port", "0"],
        "simulate": ["--directory", directory / "site"],
        "treat": [PLAN, "--output", directory / "output"],
        "watch": ["--url", "http://127.0.0.1:9", "--once", "--name", "nobody", "--password-file", os.devnull],
        "interlock": ["--endpoints", endpoints(directory), "--journal", directory / "journal.jsonl", "--unsigned"],
    }


def endpoints(directory):
    """A room whose safety line nobody answers."""
    lines = [f'backdoor = "http://127.0.0.1:9"\ntoken = "x"\n[interlock_buttons]\nG1 = "{directory}/buttons"\n']
    wires = {"stream": "tcp://127.0.0.1:9", "channels": "ca://127.0.0.1:9", "messages": "mqtt://127.0.0.1:9"}
    for name, device in load_facility("asan").devices_of("G1").items():
        lines.append(f'[devices.{name}]\nendpoint = "{wires[device.wire]}"\nsimulated = true\n')
    path = directory / "endpoints.toml"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def bits(process, field):
    """Signals of a process, as Linux tells them: SigCgt those it has a function for, SigBlk those that wait."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field):
                return int(line.split()[1], 16)
    return 0


def has(process, field, number):
    return bool(bits(process, field) >> (number - 1) & 1)


@contextlib.contextmanager
def started(arguments, **more):
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(holds):
    end_s = time.monotonic() + LISTENS_S
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def interrupted(directory, name, number, after_s):
    """Exit code and what was said, where a signal comes so long after the program's first line was read."""
    directory.mkdir()
    with started(["-m", "controller", name, *commands(directory)[name]]) as process:
        until(lambda: has(process, "SigCgt", signal.SIGTERM) or process.poll() is not None)  # no Python has one by itself
        time.sleep(after_s)
        process.send_signal(number)
        out, err = process.communicate(timeout=ENDS_S)
    return process.returncode, out, err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells which signals a process has a function for")
@pytest.mark.parametrize("name", ["serve", "up", "simulate", "treat", "watch", "interlock"])
def test_a_command_that_is_interrupted_as_it_starts_says_so(tmp_path, name):
    for turn, after_s in enumerate(MOMENTS_S):
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        directory = tmp_path / str(turn)
        code, out, err = interrupted(directory, name, number, after_s)
        where = f"{name}, {number.name} after {after_s} s: {code}\n{out}{err}"
        assert not any(trace in err for trace in TRACES), where
        assert code in ENDED or (name == "interlock" and code == -number), where
        if turn == 0:
            assert (code, err) == (128 + number, f"{WORDS}\n"), where
        if WORDS in err:
            left = {path.name for path in directory.iterdir()} - {"endpoints.toml"}
            assert left <= ({"state"} if name == "serve" else set()), "nothing was begun"


def test_an_interlock_system_that_is_interrupted_before_it_listens_ends_as_always(tmp_path):
    """Who became it held Ctrl-C back: it comes when it can be answered, and never in the middle of an import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        place = ["--buttons", tmp_path / "buttons", "--journal", tmp_path / "journal.jsonl"]
        with started(["-m", "interlocks.daemon", "--port", "9", *place]) as process:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=ENDS_S)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells which signals are held back")
def test_the_interlock_command_holds_ctrl_c_back_until_the_system_listens(tmp_path):
    with started(["-m", "controller", "interlock", *commands(tmp_path)["interlock"]]) as process:
        until(lambda: has(process, "SigBlk", signal.SIGINT) or (tmp_path / "buttons").exists())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=ENDS_S)
    assert (process.returncode, err) == (0, "")
