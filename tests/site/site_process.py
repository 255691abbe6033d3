"""A simulator process as people start it, for tests: started, asked through its backdoor, ended, and what it left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from drivers.hal.endpoints import load_endpoints, parse_endpoint
from simulators.backdoor_client import call_door

READY_S = 40.0


def alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descendants(pid):
    """Process ids of children and their children."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                found += [int(child), *descendants(int(child))]
    return found


def until(holds, seconds=10.0, what="in time"):
    """Wait for something to become true; what it was. `what`: words, or a function that says them when it did not."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.02)
    return value


class SiteProcess:
    """`iongantry simulate` in a directory of its own."""

    def __init__(self, directory, *arguments, log="simulate.log"):
        self.directory = Path(directory)
        self.file = self.directory / "endpoints.toml"
        self.log = self.directory / log
        command = [sys.executable, "-m", "controller", "simulate", "--directory", str(directory), *arguments]
        with self.log.open("wb") as words:
            self.process = subprocess.Popen(command, stdout=words, stderr=words, start_new_session=True)
        self.endpoints = None

    def ready(self):
        """Wait until it has written where it stands."""
        until(lambda: self.file.exists() or self.process.poll() is not None, READY_S, self.said())
        assert self.process.poll() is None, self.said()
        self.endpoints = load_endpoints(self.file)
        return self

    def said(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ask(self, method, path, body=None):
        return call_door(self.endpoints.backdoor, self.endpoints.token, method, path, body)

    def room(self, name="G1"):
        return self.ask("GET", "/state")["rooms"][name]

    def servers(self):
        return self.ask("GET", "/state")["servers"]

    def at(self, device):
        return parse_endpoint(self.endpoints.devices[device].endpoint)

    def end(self, number=signal.SIGINT, seconds=20.0):
        """Signal it, wait, kill what does not end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
