"""What failed is run a second time only where a late computer can have been the reason."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from second_run import LATE, run_again

HERE = Path(__file__).parent
LATE_ONES = """
import os, pytest

@pytest.mark.xdist_group("wires")
@pytest.mark.parametrize("at", ["mu1-gain:1.2@beam+2", "a ]b"])
def test_late(at):
    assert "IN_TIME" in os.environ

@pytest.fixture
def server():
    assert "IN_TIME" in os.environ

@pytest.mark.xdist_group("wires")
def test_without(server):
    pass

def test_in_virtual_time():
    assert "WRONG" not in os.environ
"""


@pytest.mark.parametrize(
    ("failed", "again"),
    [
        (["tests/site/test_a.py::test_x"], ["tests/site/test_a.py::test_x"]),
        (["tests/drivers/test_a.py::test_x[b@c+2]@sites_wires"], ["tests/drivers/test_a.py::test_x[b@c+2]"]),
        (["tests/wires/test_a.py::test_y@wires", "tests/browser/test_b.py::test_z[1]@browser"], 2),
        (["tests/room/test_a.py::test_x"], []),
        (["tests/room/test_a.py::test_x@state graph"], []),
        (["tests/room/test_a.py::test_x[wires]"], []),
        (["tests/site/test_a.py::test_x", "tests/plan/test_b.py::test_y"], []),
        ([f"tests/site/test_a.py::test_x[{n}]" for n in range(LATE)], LATE),
        ([f"tests/site/test_a.py::test_x[{n}]" for n in range(LATE + 1)], []),
        ([], []),
    ],
)
def test_only_few_and_only_those_that_wait_on_clocks_run_again(failed, again):
    found = run_again(failed)
    assert (len(found) if isinstance(again, int) else found) == again


def test_the_list_of_a_run_names_to_the_next_what_failed(tmp_path):
    (tmp_path / "conftest.py").write_text("from second_run import pytest_addoption, pytest_sessionfinish\n", encoding="utf-8")
    (tmp_path / "test_late_ones.py").write_text(LATE_ONES, encoding="utf-8")
    listed = tmp_path / "kept" / "failed"

    def run(*arguments, **variables):
        told = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(HERE), **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return told.returncode, told.stdout.splitlines()[-1]

    beside = ("-n", "1", "--dist", "loadgroup", f"--failed-to={listed}", ".")
    code, said = run(*beside)
    assert code == 1 and "2 failed, 1 passed, 1 error" in said
    code, said = run(f"@{listed}", IN_TIME="yes")
    assert code == 0 and "3 passed" in said, "the three that failed, and not the fourth"
    assert run(f"@{listed}")[0] == 1, "what fails by itself has failed"
    assert run(*beside, WRONG="yes")[0] == 1
    assert not listed.exists(), "a failure that no clock explains is the last word"
