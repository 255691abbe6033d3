"""A treatment in a process of its own, in a room that another process simulates, for tests."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from iongantry_process import END_S, IongantryProcess, environment
from site_process import SiteProcess, until

COUNTS_PER_MU = 1000.0  # of the shipped facilities, both monitors' resolution
MU_TOLERANCE = 0.005  # of the prescribed meterset: a reaction quantum in the last spot of a layer
QUICK = ("--room", "G1", "--staff", "quick", "--route", "G1", "--at", "0")
LATE_S = 0.010  # a tenth of what the relays hold


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "controller", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
        env=environment(),
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


def bearable(most):
    """Plant seconds per second, up to `most`: half of it while this computer wakes late who waits.

    Deadlines are of the plant's time. What misses them because something else runs here is no finding of a test.
    """
    late_s = 0.0
    for _ in range(100):
        before_s = time.perf_counter()
        time.sleep(0.005)
        late_s = max(late_s, time.perf_counter() - before_s - 0.005)
    return most if late_s < LATE_S else most / 2


def quick_site(directory, *arguments, speed=2.0):
    """A simulator process for room G1 in which nobody walks far."""
    directory.mkdir(parents=True)
    return SiteProcess(directory, *QUICK, "--speed", bearable(speed), *arguments)


class Treating(IongantryProcess):
    """`treat` over the wires of a simulator process, while it runs and afterwards."""

    def __init__(self, site, plan, directory):
        self.output = Path(directory) / "output"
        super().__init__(Path(directory) / "treat.log", "treat", plan, "--endpoints", site.file, "--output", self.output)

    def summary(self):
        return json.loads((self.output / "summary.json").read_text(encoding="utf-8"))

    def counts1(self):
        """Counts of monitor 1 in the spot tables of all sessions."""
        tables = [self.output / "spots.parquet", *sorted(self.output.glob("resume-*/spots.parquet"))]
        return sum(round(sum(pq.read_table(path)["mu_primary"].to_pylist()) * COUNTS_PER_MU) for path in tables)
