"""A program that serves, and a browser; both are started once for all tests of this folder that follow each other.

Never for longer: Playwright keeps a loop running in the thread while it is there, and a test of another folder that runs in the
same process could not start one of its own; and a room that stands by costs something.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browser_desk import ARGUMENTS, House
from playwright.sync_api import Browser, Page, Playwright, Route, sync_playwright
from witness import system_program

import controller.console

PAGE = Path(controller.console.__file__).parent / "page"

SPEED = 3  # of the room for all


class Kept:
    """What is kept from test to test."""

    def __init__(self) -> None:
        self.ends, self.house_ends = ExitStack(), ExitStack()
        self.playwright: Playwright | None = None
        self.browser: Browser | None = None
        self.house: House | None = None

    def put_away(self, before: pytest.Item | None, folder: Path) -> None:
        """What the next test has no use for."""
        if before is None or "house" not in getattr(before, "fixturenames", ()):
            self.house = None
            self.house_ends.close()
        if before is None or before.path.parent != folder:
            self.playwright = self.browser = None
            self.ends.close()


KEPT = Kept()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """After the fixtures of the test."""
    try:
        yield
    finally:
        KEPT.put_away(nextitem, item.path.parent)


@pytest.fixture(scope="module")
def playwright() -> Playwright:
    """One for all: a second one cannot be in the same thread."""
    if KEPT.playwright is None:
        KEPT.playwright = KEPT.ends.enter_context(sync_playwright())
    return KEPT.playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Browser:
    """Debian's Chromium; the tests are skipped where it is not installed, and fail in continuous integration."""
    program = system_program("chromium", "chromium")
    if KEPT.browser is None:
        KEPT.browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        KEPT.ends.callback(KEPT.browser.close)
    return KEPT.browser


@pytest.fixture(scope="module")
def house(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> House:
    """One room of the simulated facility for all files in which nothing is treated; not started where there is no browser.

    Its time runs three times as fast, as bodies move in it. A test leaves it in standby, commanded by nobody.
    """
    if KEPT.house is None:
        KEPT.house = House(tmp_path_factory.mktemp("house") / "state", speed=SPEED)
        KEPT.house_ends.callback(KEPT.house.close)
    return KEPT.house


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


@pytest.fixture(scope="module")
def modules(browser: Browser) -> Iterator[Page]:
    """The console's modules alone, without a server: what they make of values."""

    def served(route: Route) -> None:
        name = route.request.url.rsplit("/", maxsplit=1)[-1]
        if name.endswith(".js"):
            route.fulfill(path=PAGE / name, content_type="text/javascript")
        else:
            route.fulfill(body="<!doctype html>", content_type="text/html")

    opened = browser.new_page()
    opened.route("**/*", served)
    opened.goto("http://page.invalid/")
    yield opened
    opened.close()
