"""Plans that the tests of resuming treat: small, because each is treated two or three times."""

from __future__ import annotations

from pathlib import Path

import pytest
from sessions import make_plan


@pytest.fixture(scope="session")
def one_beam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sphere from one side."""
    return make_plan(tmp_path_factory.mktemp("plans") / "one.dcm")


@pytest.fixture(scope="session")
def two_beams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same from two sides, each layer painted twice."""
    return make_plan(tmp_path_factory.mktemp("plans") / "two.dcm", angles=(0.0, 60.0), paintings=2)
