"""What the plan tests share: facilities, the public plans, made plans, and a way to break a copy."""

import io
import sys
from pathlib import Path

import pydicom
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from controller.plan.make import PlanSpec, make_plan
from controller.plan.nominal import NominalLibrary
from controller.plan.reading import read_plan
from drivers.hal.facility import load_facility

PUBLIC = Path(__file__).parents[2] / ".." / "shared" / "plans"


@pytest.fixture(scope="session")
def shared_plans():
    if not PUBLIC.is_dir():
        pytest.skip("the public plans (../shared/plans) are not here")
    return PUBLIC


@pytest.fixture(scope="session")
def asan():
    return load_facility("asan")


@pytest.fixture(scope="session")
def research():
    return load_facility("research")


@pytest.fixture(scope="session")
def library(asan):
    return NominalLibrary(asan.meterset)


@pytest.fixture(scope="session")
def made(asan):
    """Bytes of a made plan by spec, each made once."""
    cache: dict[PlanSpec, bytes] = {}

    def make(**values):
        spec = PlanSpec(**values)
        if spec not in cache:
            cache[spec] = make_plan(spec, asan)
        return cache[spec]

    return make


SMALL = {"shape": "pancreas", "diameter_mm": 30.0, "dose_gy": 6.0}  # two beams, a few hundred spots


@pytest.fixture
def small(made):
    """A small two-beam carbon plan, as a pydicom dataset of its own."""
    return pydicom.dcmread(io.BytesIO(made(**SMALL)))


@pytest.fixture
def read(tmp_path):
    """Read a dataset, or bytes, as a plan file."""

    def run(content, name="plan.dcm"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save_as(path)
        return read_plan(path)

    return run
