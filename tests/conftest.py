"""What tests of all parts share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from simulators import clock


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real wires wait more than they compute: one process begins with them while the other computes."""
    items.sort(key=lambda item: not any(mark.args[:1] == ("wires",) for mark in item.iter_markers("xdist_group")))


@pytest.fixture(scope="session")
def shared_plans() -> Path:
    """The folder of real plan files by others, beside the project; the test is skipped where it is absent."""
    folder = Path(__file__).parents[1] / ".." / "shared" / "plans"
    if not folder.is_dir():
        pytest.skip("the real plan files (../shared/plans) are not here")
    return folder.resolve()


@pytest.fixture
def run_virtual() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end in virtual time."""
    return clock.run
