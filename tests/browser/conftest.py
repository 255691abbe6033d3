"""A program that serves, and a browser; both are started once for the tests of one file.

Never for longer: Playwright keeps a loop running in the thread while it is there, and a test of another file that runs in the
same process could not start one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser_desk import ARGUMENTS, House
from playwright.sync_api import Browser, sync_playwright
from witness import system_program


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; the tests are skipped where it is not installed, and fail in continuous integration."""
    program = system_program("chromium", "chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def house(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One room of the simulated facility, served; not started where there is no browser."""
    served = House(tmp_path_factory.mktemp("house") / "state")
    yield served
    served.close()


@pytest.fixture
def tripping_house(browser: Browser, tmp_path: Path) -> Iterator[House]:
    """A room of its own, whose door somebody opens while beam is on."""
    served = House(tmp_path / "state", "--fault", "door-opened@grant=9")
    yield served
    served.close()


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a screenshot is kept: IONGANTRY_SCREENSHOTS, or a folder of the test run."""
    chosen = os.environ.get("IONGANTRY_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: folder / f"console-{name}.png"
