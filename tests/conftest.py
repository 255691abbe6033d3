"""What tests of all parts share."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from second_run import CLOCKS, pytest_addoption, pytest_sessionfinish

from simulators import clock

__all__ = ["pytest_addoption", "pytest_sessionfinish"]  # hooks as well

SITE = ("site", "rig")  # folders whose tests start whole simulators, and take as long as all others on real wires


def pytest_configure() -> None:
    """What runs behind a shell's `&` ignores Ctrl-C, and so would every program that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real wires wait more than they compute: two processes begin with them while the others compute.

    One of the two has whole simulators, the other single servers and brokers.
    """
    for item in items:
        if _on_wires(item) and item.path.parent.name in SITE:
            item.add_marker(pytest.mark.xdist_group("sites"), append=False)
    items.sort(key=lambda item: not (_on_wires(item) or _in_group(item, "browser")))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests that share wires, a browser or a long preparation stay in one process: checked, as it was lost unnoticed once."""
    if not session.config.getoption("loadgroup", default=False):
        return
    apart = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
    if apart:
        raise pytest.UsageError(f"this pytest-xdist keeps no groups together with pytest {pytest.__version__}: {apart[0]}")


@pytest.hookimpl(tryfirst=True)  # before the test's fixtures start their processes
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What must answer in time goes first, what only computes last; the processes that a test starts go with it."""
    on_clocks = _on_wires(item) or item.path.parent.name in CLOCKS
    niceness = 10 if not on_clocks else 0 if _in_group(item, "browser") else -5
    with contextlib.suppress(PermissionError):  # who may not go before others goes beside them
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def _on_wires(item: pytest.Item) -> bool:
    return _in_group(item, "wires")


def _in_group(item: pytest.Item, name: str) -> bool:
    return any(mark.args[:1] == (name,) for mark in item.iter_markers("xdist_group"))


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
