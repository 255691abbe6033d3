"""What the system tests share: small plans, treatments in this process that are run once, and the command line in a process."""

import functools
import io
import subprocess
import sys
from pathlib import Path

import outputs
import pydicom
import pytest

import controller.assembly
from controller.admission import TreatOptions
from controller.plan.make import PlanSpec, make_plan
from controller.treatment import run_treatment
from drivers.hal.facility import load_facility
from simulators.people import Pace, ScriptedOperator

HURRIED = Pace(button_s=0.4, walk_out_s=0.4, door_s=0.4, walk_in_s=0.4, patient_s=0.5, prompt_s=0.2, estop_s=0.1)
SMALL = {"shape": "sphere", "diameter_mm": 12.0, "dose_gy": 4.0, "depth_mm": 90.0}  # 7 layers, a hundred spots


@pytest.fixture(scope="session")
def made():
    """Bytes of a made plan by spec, each made once."""
    cache = {}

    def make(facility="asan", **values):
        spec = PlanSpec(**{**SMALL, **values})
        key = facility, spec
        if key not in cache:
            cache[key] = make_plan(spec, load_facility(facility))
        return cache[key]

    return make


@pytest.fixture
def dataset(made):
    """A made plan as a dataset of its own, to be edited."""
    return lambda **values: pydicom.dcmread(io.BytesIO(made(**values)))


def run_hurried(options, listener=None):
    """Treat with an operator in a hurry: what is looked at does not depend on how long people take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller.assembly, "ScriptedOperator", functools.partial(ScriptedOperator, pace=HURRIED))
        return run_treatment(options, listener)


@pytest.fixture
def treat(tmp_path):
    """Treat a plan (path, bytes or dataset) in this process into a new directory; its outputs."""
    count = 0

    def run(plan, listener=None, **options):
        nonlocal count
        count += 1
        path = plan if isinstance(plan, Path) else tmp_path / f"plan-{count}.dcm"
        if isinstance(plan, bytes):
            path.write_bytes(plan)
        elif not isinstance(plan, Path):
            plan.save_as(path)
        options.setdefault("output", tmp_path / f"out-{count}")
        return outputs.Treated(run_hurried(TreatOptions(plan=path, **options), listener))

    return run


@pytest.fixture(scope="session")
def treated_once(made, tmp_path_factory):
    """The outputs of the small plan, treated once for all tests that only look."""
    folder = tmp_path_factory.mktemp("treated")
    (folder / "plan.dcm").write_bytes(made())
    return outputs.Treated(run_hurried(TreatOptions(plan=folder / "plan.dcm", output=folder / "out", seed=5)))


@pytest.fixture(scope="session")
def iongantry():
    """The command line in a process of its own."""
    program = Path(sys.executable).with_name("iongantry")

    def run(*arguments, cwd=None, timeout=100):
        return subprocess.run(
            [program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout
        )

    return run
