"""What the tests of a served room share: small plans, and a loop in virtual time."""

from pathlib import Path

import pytest

from controller.plan.make import PlanSpec, make_plan
from drivers.hal.facility import load_facility
from simulators import clock

SMALL = {"shape": "sphere", "diameter_mm": 12.0, "dose_gy": 4.0, "depth_mm": 90.0, "angles_deg": (0.0,), "fractions": 5}


@pytest.fixture(scope="session")
def made():
    """Bytes of small plans (seven layers, a hundred spots, gantry at 0), each made once."""
    cache = {}

    def make(**values):
        spec = PlanSpec(**{**SMALL, **values})
        if spec not in cache:
            cache[spec] = make_plan(spec, load_facility("asan"))
        return cache[spec]

    return make


@pytest.fixture
def virtually():
    """Run a coroutine to its end in virtual time."""
    return clock.run


@pytest.fixture
def state(tmp_path) -> Path:
    """The state directory of a facility."""
    path = tmp_path / "state"
    path.mkdir()
    return path
