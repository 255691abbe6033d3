"""Plans that the tests of resuming treat: small, because each is treated two or three times, by an operator in a hurry."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sessions import make_plan

import controller.assembly
from simulators.people import Pace, ScriptedOperator

HURRIED = Pace(button_s=0.4, walk_out_s=0.4, door_s=0.4, walk_in_s=0.4, patient_s=0.5, prompt_s=0.2, estop_s=0.1)


@pytest.fixture(scope="module", autouse=True)
def hurried_operator() -> Iterator[None]:
    """Nothing here depends on how long people take; in processes of their own they take their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller.assembly, "ScriptedOperator", functools.partial(ScriptedOperator, pace=HURRIED))
        yield


@pytest.fixture(scope="session")
def one_beam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sphere from one side, 2 degrees from where the gantry stands."""
    return make_plan(tmp_path_factory.mktemp("plans") / "one.dcm")


@pytest.fixture(scope="session")
def two_beams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same from two sides, each layer painted twice."""
    return make_plan(tmp_path_factory.mktemp("plans") / "two.dcm", angles=(0.0, 10.0), paintings=2)
