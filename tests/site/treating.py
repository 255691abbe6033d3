"""A treatment in a process of its own, in a room that another process simulates, for tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from site_process import SiteProcess, until

COUNTS_PER_MU = 1000.0  # of the shipped facilities, both monitors' resolution
MU_TOLERANCE = 0.005  # of the prescribed meterset: a reaction quantum in the last spot of a layer
STATE_S = 90.0
END_S = 120.0
QUICK = ("--room", "G1", "--speed", "2", "--staff", "quick", "--route", "G1", "--at", "0")
ENVIRONMENT = {**os.environ, "COLUMNS": "400"}


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "controller", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
        env=ENVIRONMENT,
    )


def sphere(path, diameter_mm):
    """A carbon sphere at gantry angle 0."""
    done = command(
        *(
            "plan",
            "--shape",
            "sphere",
            "--diameter-mm",
            diameter_mm,
            "--depth-mm",
            100,
            "--dose-gy",
            1,
            "--angle",
            0,
            "-o",
            path,
        )
    )
    assert done.returncode == 0, done.stderr
    return path


def check_dark(site, seconds=4.0):
    """Beam is off, and nothing more is counted."""
    until(lambda: not site.room()["beam"], seconds, "beam off")
    before = site.room()["unit"]["total_counts1"]
    time.sleep(0.3)
    assert site.room()["unit"]["total_counts1"] == before


def check_whole(site, run, plan_counts1):
    """All sessions together gave the plan, and the unit counted what they say."""
    assert site.room()["unit"]["total_counts1"] == run.counts1()
    assert run.counts1() == pytest.approx(plan_counts1, rel=MU_TOLERANCE)


def planned(run):
    """Counts of monitor 1 of the first beam, as planned."""
    return run.summary()["beams"][0]["meterset_planned"] * COUNTS_PER_MU


def quick_site(directory, *arguments):
    """A simulator process for room G1 in which nobody walks far."""
    directory.mkdir(parents=True)
    return SiteProcess(directory, *QUICK, *arguments)


class Treating:
    """`treat` over the wires of a simulator process, while it runs and afterwards."""

    def __init__(self, site, plan, directory):
        self.output = Path(directory) / "output"
        self._log = Path(directory) / "treat.log"
        arguments = [
            sys.executable,
            "-m",
            "controller",
            "treat",
            str(plan),
            "--endpoints",
            str(site.file),
            "--output",
            str(self.output),
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT)

    def said(self):
        return self._log.read_text(encoding="utf-8", errors="replace")

    def until_said(self, words, seconds=STATE_S):
        """Wait for a line of progress."""
        until(lambda: words in self.said() or self.process.poll() is not None, seconds, f"{words!r} in {self.said()}")
        assert words in self.said(), self.said()

    def stop(self):
        """Ctrl-C at its console."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def end(self, seconds=END_S):
        """Wait for its end; the exit code. What does not end is killed and fails the test."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"treat does not end: {self.said()}") from None

    def kill(self):
        """For the end of a test."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def summary(self):
        return json.loads((self.output / "summary.json").read_text(encoding="utf-8"))

    def counts1(self):
        """Counts of monitor 1 in the spot tables of all sessions."""
        tables = [self.output / "spots.parquet", *sorted(self.output.glob("resume-*/spots.parquet"))]
        return sum(round(sum(pq.read_table(path)["mu_primary"].to_pylist()) * COUNTS_PER_MU) for path in tables)
