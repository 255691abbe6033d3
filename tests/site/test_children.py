"""A child process is told when it dies, ends when asked, is killed when it does not listen, and never outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulators.children import Child
from simulators.clock import SteerableLoop, wall_limit
from simulators.leash import leashed

pytestmark = pytest.mark.xdist_group("wires")
SLEEP = "import time\nwhile True: time.sleep(1)"
DEAF = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', file=sys.stderr, flush=True)\n"
    + SLEEP
)


def python(program):
    return lambda: [sys.executable, "-S", "-c", program]


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def soon(holds, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return False


async def until(holds, seconds=5.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def run(main, factor=1.0):
    with asyncio.Runner(loop_factory=lambda: SteerableLoop(factor)) as runner:
        return runner.run(main())


def never(name, code, words):
    raise AssertionError(f"{name} {code} {words}")


@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_a_child_ends_when_asked_also_in_a_pause(factor):
    async def main():
        child = Child("sleeper", python(SLEEP), never)
        await child.start()
        pid = child.pid
        assert child.alive
        assert os.getsid(pid) == pid, "Ctrl-C at the terminal does not reach it"
        await child.stop()
        assert not child.alive
        return pid

    assert not exists(run(main, factor))


def test_one_that_does_not_listen_is_killed():
    async def main():
        child = Child("deaf", python(DEAF), never)
        await child.start()
        await until(lambda: "deaf" in child.words)
        await child.stop(patience_s=0.2)
        assert not child.alive

    run(main)


def test_one_that_dies_is_told_with_its_last_words_and_can_be_started_again():
    told = []

    async def main():
        child = Child("mortal", python("import sys; sys.exit('out of paper')"), lambda *what: told.append(what))
        await child.start()
        await until(lambda: told)
        assert told == [("mortal", 1, "out of paper")]
        assert not child.alive
        await child.start()
        await until(lambda: len(told) == 2)
        await child.stop()

    run(main)


def test_suspended_it_lives_and_stands_still():
    async def main():
        child = Child("sleeper", python(SLEEP), never)
        await child.start()
        child.suspend()
        await until(lambda: Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T")
        assert child.alive
        assert child.suspended
        child.resume()
        assert not child.suspended
        child.suspend()
        await child.stop()
        assert not child.alive

    run(main)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_its_parent(number):
    program = (
        "import subprocess, sys, time\nfrom simulators.leash import leashed\n"
        f"child = subprocess.Popen(leashed([sys.executable, '-S', '-c', {SLEEP!r}]), start_new_session=True)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert soon(lambda: "leash" not in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")), "it becomes the command"
        parent.send_signal(number)
        parent.wait()
        assert soon(lambda: not exists(pid))


def test_a_leash_without_a_parent_runs_nothing():
    command = leashed([sys.executable, "-c", "print('ran')"])
    command[4] = "1"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_wall_limit_holds_while_simulated_time_stands_still():
    async def main():
        with pytest.raises(TimeoutError):
            await wall_limit(asyncio.sleep(1.0), 0.05)
        return await wall_limit(asyncio.sleep(0, "done"), 5.0)

    assert run(main, 0.0) == "done"
    assert asyncio.run(wall_limit(asyncio.sleep(0, "done"), 5.0)) == "done"
