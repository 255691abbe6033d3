"""Plans for the scenarios: small ones, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from controller.plan.make import PlanSpec, write_plan
from drivers.hal.facility import load_facility


@pytest.fixture(scope="session")
def plan_of(tmp_path_factory) -> Callable[..., Path]:
    """Writes a plan, each only once: `plan_of(shape="sphere", ...)`."""
    made: dict[str, Path] = {}

    def make(facility: str = "asan", **spec) -> Path:
        key = f"{facility} {sorted(spec.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("plans")
            made[key] = write_plan(PlanSpec(**spec), load_facility(facility), folder / "plan.dcm")
        return made[key]

    return make


@pytest.fixture(scope="session")
def sphere(plan_of) -> Path:
    """16 mm of carbon at the angle where the gantry stands: six layers, 106 spots, 2 s of beam."""
    return plan_of(shape="sphere", species="C", diameter_mm=16.0, depth_mm=100.0, dose_gy=1.0, angles_deg=(0.0,))


@pytest.fixture(scope="session")
def turned(plan_of) -> Path:
    """The same at 2 degrees: the ring has to turn."""
    return plan_of(shape="sphere", species="C", diameter_mm=16.0, depth_mm=100.0, dose_gy=1.0, angles_deg=(2.0,))


@pytest.fixture(scope="session")
def grid(plan_of) -> Path:
    """One layer of nine spots."""
    return plan_of(shape="qa-grid", species="C", diameter_mm=60.0, spot_spacing_mm=20.0, spot_mu=2.0, angles_deg=(0.0,))
