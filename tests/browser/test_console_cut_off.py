"""The program is killed in beam; after the next start the page says so, and everything that follows is done on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_desk import Desk, House
from playwright.sync_api import Browser, expect

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(200)]


def test_a_treatment_that_was_cut_off_is_told_and_settled_on_the_page(browser: Browser, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = House(state)
    try:
        with Desk(browser, first) as desk:
            desk.known().room().take_control()
            if desk.view()["interlocks"]["active_trips"]:
                desk.page.get_by_role("button", name="Have the key turned").first.click()
            desk.load_example()
            desk.prepare()
            desk.beam_on()
            first.process.kill()
            first.process.wait(10)
    finally:
        first.close()
    second = House(state, speed=2)  # nothing moves in it
    try:
        with Desk(browser, second) as desk:
            desk.known("physicist").room()
            told = re.compile("was cut off in beam: a physicist takes control and presses Reconcile under Treatments")
            desk.go("Alarms")
            expect(desk.page.locator(".alarm", has_text=told)).to_be_visible()
            desk.go("Plans")
            plan = desk.page.locator(".choice").first
            expect(plan).to_contain_text("fraction 1 to be reconciled")
            expect(desk.page.locator(".plan-detail .objections")).to_contain_text("presses Reconcile under Treatments")
            desk.go("Treatments")
            row = desk.page.locator(".choice", has_text="cut off in beam")
            expect(row).to_contain_text("– of")
            row.click()
            reconcile = desk.page.get_by_role("button", name="Reconcile", exact=True)
            expect(reconcile).to_be_disabled()
            expect(desk.page.locator(".settling")).to_contain_text("Take control as physicist first")
            desk.take_control()
            expect(reconcile).to_be_enabled()
            reconcile.click()
            expect(reconcile).to_be_hidden()
            if desk.get("/api/treatments")[0]["needs"] == "signature":
                desk.page.get_by_role("button", name="Sign", exact=True).click()
                expect(desk.page.get_by_text("Not signed: write first why this dose is accepted")).to_be_visible()
                assert desk.get("/api/treatments")[0]["needs"] == "signature"
                desk.page.get_by_label("Why this dose is accepted").fill("a phantom")
                desk.page.get_by_role("button", name="Sign", exact=True).click()
            expect(desk.page.locator(".choice", has_text="SIMULATED").first).to_contain_text("partial")
            expect(desk.page.get_by_role("button", name="Save salvage-record.dcm")).to_be_visible()
            expect(desk.page.locator(".report .standing")).to_contain_text("Next: for what is left of fraction 1")
            expect(desk.page.frame_locator("iframe.sheet").locator("body")).to_contain_text(
                re.compile("program died while treating")
            )
            (treated,) = desk.get("/api/treatments")
            assert "salvage-record.dcm" in treated["files"] and treated["needs"] == ""
            with desk.page.expect_download() as saved:
                desk.page.get_by_role("button", name="Save salvage-record.dcm").click()
            assert Path(saved.value.path()).read_bytes()[128:132] == b"DICM"
            assert not [a for a in desk.view()["alarms"] if "cut_off" in a["id"] and a["active"]]
            assert desk.wrong == []
    finally:
        second.close()
