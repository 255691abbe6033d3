"""The tests are tested: planted faults must be noticed. All of them by `make mutants`; here that each still fits, and some."""

import subprocess
import sys
from collections import Counter

import pytest
from mutant_list import MUTANTS
from mutants import LEFT_OUT, PACKAGE, TESTS, stages, unfitting

NEEDS_NO_FAULTS = {"__init__.py"}


def test_every_planted_fault_fits_its_file_and_still_makes_a_program():
    assert list(unfitting(MUTANTS)) == []


def test_there_are_many_faults_in_every_file_and_each_is_a_fault_of_its_own():
    files = Counter(mutant.file for mutant in MUTANTS)
    assert files.keys() == {file.name for file in PACKAGE.glob("*.py")} - NEEDS_NO_FAULTS
    assert min(files.values()) >= 4, files
    assert len(MUTANTS) >= 60
    assert len({mutant.name for mutant in MUTANTS}) == len({mutant.source() for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS[::40], ids=lambda mutant: mutant.file)
def test_every_test_file_is_asked(mutant):
    own, others = stages(mutant)
    assert own
    assert {*own, *others} == {file.name for file in TESTS.glob("test_*.py")} - set(LEFT_OUT)


def test_a_few_planted_faults_are_noticed():
    """Some from everywhere; `make mutants` plants all."""
    command = [
        sys.executable,
        str(TESTS / "mutants.py"),
        "--every",
        str(len(MUTANTS) // 8),
        "--processes",
        "1",
        "--faults-only",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " noticed, in " in run.stdout
