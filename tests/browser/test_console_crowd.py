"""Twenty browsers look on while a field is delivered: nothing of it reaches the delivery.

A simulated room is never late by its own clock: what the computer does not hold makes that clock run slower than the wall's,
which is measured from outside while the field runs. In life twenty desks have computers of their own; here all of them draw
on the processors that the room is on. So the pages of those who look on are in one Chromium (each in a context of its own:
its own sign-in, its own stream) that keeps to one processor while the field runs: what their drawing costs falls on them,
what their connections cost falls on the console and the room as it would. How quickly those pages draw is then the machine's
matter; that each of them ends on what is true is not.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import pytest
from browser_desk import ARGUMENTS, Desk, House
from playwright.sync_api import Browser, Playwright, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from witness import system_program

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser"), pytest.mark.timeout(900)]

ONLOOKERS = 20
SPEED = 2  # the gantry's two minutes are one
SHOWN_S = 60.0  # within which every page shows the end of the field, on two cores
FIELD_MS = 300_000
SLIP_S = 0.1  # by which the room's clock may fall behind the wall's during the field: within it no beat is lost
SAMPLE_S = 0.05
EDGE_S = 1.0  # at both ends of the field: the answer that came quickest tells where the clock was
SAME = ("grant_id", "spill", "attempt", "x_mm", "y_mm", "mu_primary", "mu_secondary", "gate", "interlock")


class Treated(NamedTuple):
    """A fraction that was given at the page."""

    summary: dict[str, Any]
    beam: dict[str, Any]
    spots: dict[str, list[Any]]
    states: list[str]  # the room's, from one to the next
    slip_s: float  # of the room's clock behind the wall's, from the begin of the field to its end


@pytest.fixture
def playwright() -> Iterator[Playwright]:
    """For two browsers of this test."""
    with sync_playwright() as started:
        yield started


@pytest.fixture
def browser(playwright: Playwright) -> Iterator[Browser]:
    """The operator's."""
    launched = playwright.chromium.launch(executable_path=system_program("chromium", "chromium"), args=ARGUMENTS)
    yield launched
    launched.close()


class Onlooking(NamedTuple):
    """The browser of those who look on; `pid` is a file with its process."""

    browser: Browser
    pid: Path

    def keep_to_one_processor(self) -> None:
        """Chromium sets the priorities of its processes itself; where they run it leaves to others."""
        children: dict[int, list[int]] = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                children.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(int(status.parent.name))
        processor, waiting = max(os.sched_getaffinity(0)), [int(self.pid.read_text())]
        while waiting:
            waiting += children.get(waiting[0], [])
            for task in Path(f"/proc/{waiting.pop(0)}/task").glob("*"):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), {processor})


@pytest.fixture
def onlooking(playwright: Playwright, tmp_path: Path) -> Iterator[Onlooking]:
    """Started with its number told."""
    told, program = tmp_path / "chromium.pid", tmp_path / "chromium"
    chromium = system_program("chromium", "chromium")
    program.write_text(f'#!/bin/sh\necho $$ > {told}\nexec {chromium} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    launched = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
    yield Onlooking(launched, told)
    launched.close()


def treated(browser: Browser, state: Path, onlooking: Onlooking | None) -> Treated:
    """A fraction at the page; with `onlooking`, twenty others open the room and see its end."""
    with ExitStack() as stack:
        house = House(state, speed=SPEED)
        stack.callback(house.close)
        desk = stack.enter_context(Desk(browser, house)).known().room()
        desk.page.get_by_role("button", name="Have the key turned").click()
        expect(desk.page.locator(".room .interlocks")).to_contain_text("no trip")
        desk.take_control()
        desk.load_example()
        desk.asks("identify").click()  # the gantry turns for a while: time to look around
        desks = []
        for number in range(ONLOOKERS if onlooking is not None else 0):
            assert onlooking is not None
            console = f"onlooker-{number}"
            desks.append(stack.enter_context(Desk(onlooking.browser, house)))
            desks[-1].page.set_default_timeout(FIELD_MS)
            come(desks[-1], console)
        for one in desks:
            expect(one.page.locator(".state[data-tone]:not([data-tone=unknown])")).to_be_visible(timeout=FIELD_MS)
        expect(desk.page.locator(".question[data-asks=positioned]")).to_be_visible(timeout=FIELD_MS)
        desk.asks("positioned").click()
        expect(desk.page.locator(".question[data-asks=beam_on]")).to_be_visible(timeout=FIELD_MS)
        if onlooking is not None:
            assert clients(desk) == ONLOOKERS + 1
            onlooking.keep_to_one_processor()
        desk.beam_on()
        slip_s = watched(house)
        shown_until_s = time.monotonic() + SHOWN_S
        for one in desks:
            expect(one.page.locator(".beam-row")).to_contain_text("100 %", timeout=1e3 * (shown_until_s - time.monotonic()))
            expect(one.page.locator(".dose-head output")).to_have_text(desk.page.locator(".dose-head output").inner_text())
            expect(one.page.locator(".banner", has_text="STALE")).to_have_count(0)
            assert one.wrong == []
        expect(desk.page.locator(".plan-status")).to_have_text("complete")
        assert desk.wrong == []
        assert desk.view()["interlocks"]["active_trips"] == 0
        (found,) = desk.get("/api/treatments")
        output = state / "treatments" / found["id"]
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
        events = [json.loads(line) for line in (output / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        states = [str(event["data"]["state"]) for event in events if event["kind"] == "room.state"]
        spots = pyarrow.parquet.read_table(output / "spots.parquet", columns=list(SAME)).to_pydict()
        return Treated(summary, summary["beams"][0], spots, states, slip_s)


def come(desk: Desk, console: str) -> None:
    """Open the room; anew where the browser was too busy to ask in time: the console hangs up after 10 s."""
    for _ in range(4):
        with suppress(PlaywrightError):
            desk.open("#/room/G1", "observer", console)
            return
    desk.open("#/room/G1", "observer", console)


def watched(house: House) -> float:
    """Look on until the field has ended; how far the room's clock fell behind the wall's meanwhile, s."""
    kept = house.signed_in("observer", "witness")
    headers = {"Authorization": f"Bearer {kept['token']}", "X-Console": kept["console"]}
    request = urllib.request.Request(f"{house.url}/api/rooms/G1", headers=headers)
    samples: list[tuple[float, float]] = []  # wall s, and by how much the view is behind it, s
    until_s = time.monotonic() + FIELD_MS / 1e3
    while time.monotonic() < until_s:
        with urllib.request.urlopen(request, timeout=30) as answer:
            view = json.load(answer)
        if view["state"].startswith("irradiating"):
            samples.append((time.monotonic(), time.monotonic() - view["t_ns"] / 1e9 / SPEED))
        elif samples:
            first_s, last_s = samples[0][0] + EDGE_S, samples[-1][0] - EDGE_S
            assert first_s < last_s
            begun_s = min(behind_s for at_s, behind_s in samples if at_s <= first_s)
            return min(behind_s for at_s, behind_s in samples if at_s >= last_s) - begun_s
        time.sleep(SAMPLE_S)
    raise AssertionError(f"the field did not end: {view['state']}")


def clients(desk: Desk) -> int:
    """To how many the room's views go, as Prometheus is told."""
    text = desk.page.request.get(f"{desk.house.url}/metrics").text()
    found = re.search(r'^iongantry_clients{room="G1"} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return round(float(found[1]))


def test_twenty_browsers_do_not_touch_the_delivery(browser: Browser, onlooking: Onlooking, tmp_path: Path) -> None:
    alone = treated(browser, tmp_path / "alone", None)
    looked_at = treated(browser, tmp_path / "looked-at", onlooking)
    for one in (alone, looked_at):
        assert one.summary["status"] == "complete"
        assert one.summary["interlocks"] == []
        assert "interrupted" not in one.states and "fault" not in one.states
        assert one.beam["spots_delivered"] == one.beam["spots"]
        assert one.slip_s <= SLIP_S
    assert looked_at.states == alone.states
    assert looked_at.spots == alone.spots  # every spot: its dose by both monitors, its place, its spill
    for figure in ("irradiation_s", "beam_on_s"):
        assert looked_at.beam[figure] == pytest.approx(alone.beam[figure], abs=1e-3)
