"""Twenty browsers look on while a field is delivered: nothing of it reaches the delivery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser_desk import Desk, House
from playwright.sync_api import Browser, expect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser"), pytest.mark.timeout(900)]

ONLOOKERS = 20
SMALL = {"width": 480, "height": 320}  # without a graphics card every point is drawn by the processor that the room is on


def treated(browser: Browser, state: Path, onlookers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fraction at the page; its summary, and how many of those who looked on saw its end."""
    house = House(state)
    desks = []
    try:
        with Desk(browser, house) as desk:
            desk.sign_in().room()
            desk.page.get_by_role("button", name="Have the key turned").click()
            expect(desk.page.locator(".room .interlocks")).to_contain_text("no trip")
            desk.take_control()
            for number in range(onlookers):
                desks.append(Desk(browser, house, size=SMALL).known("observer", f"onlooker-{number}").room())
            desk.load_example()
            desk.prepare()
            desk.beam_on()
            desk.state("Complete", "Standby", timeout_ms=300_000)
            expect(desk.page.locator(".plan-status")).to_have_text("complete")
            for one in desks:
                expect(one.page.locator(".beam-row")).to_contain_text("100 %")
                assert one.wrong == []
            (found,) = desk.get("/api/treatments")
            output = state / "treatments" / found["id"]
            return json.loads((output / "summary.json").read_text(encoding="utf-8")), desk.view()
    finally:
        for one in desks:
            one.context.close()
        house.close()


def test_twenty_browsers_do_not_touch_the_delivery(browser: Browser, tmp_path: Path) -> None:
    alone, _ = treated(browser, tmp_path / "alone", 0)
    watched, view = treated(browser, tmp_path / "watched", ONLOOKERS)
    assert view["interlocks"]["active_trips"] == 0
    for summary in (alone, watched):
        assert summary["status"] == "complete"
        assert summary["interlocks"] == []
    (before,), (after,) = alone["beams"], watched["beams"]
    assert after["spots_delivered"] == before["spots_delivered"] == before["spots"]
    assert after["irradiation_s"] == pytest.approx(before["irradiation_s"], rel=0.02)  # s of the room
    assert after["meterset_delivered_primary"] == pytest.approx(before["meterset_delivered_primary"], rel=1e-3)
