"""A fraction of the example plan at the page: signing in, beam, pause, an interlock, recovery, what is left, the report."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from browser_desk import Desk, House
from playwright.sync_api import Browser, expect

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(240)]

Picture = Callable[[str], Path]


# Time runs twenty times as fast: a finger on F8 that is as quick as the page.
PAUSE_AT_LAYER_2 = """() => {
  const now = document.querySelector(".ladder-now");
  const watch = new MutationObserver(() => {
    if (!/^[2-9] of/.test(now.textContent)) return;
    watch.disconnect();
    window.dispatchEvent(new KeyboardEvent("keydown", { key: "F8", bubbles: true, cancelable: true }));
  });
  watch.observe(now, { childList: true, characterData: true, subtree: true });
}"""


def shoot(desk: Desk, path: Path) -> None:
    """Keep what the page shows, drawn to the end; where nobody asked for pictures they would prove nothing."""
    if "IONGANTRY_SCREENSHOTS" in os.environ:
        desk.page.wait_for_timeout(250)
        desk.page.screenshot(path=path)


def drawn(desk: Desk) -> tuple[str, list[list[str]]]:
    """What the map says that it shows, and of each layer's bar its length, what was given before and what by this session."""
    bars = desk.page.locator(".bar").evaluate_all(
        """(bars) => bars.map((bar) => ["planned", "before", "delivered"].map(
          (part) => bar.querySelector(`.bar-${part}`).getAttribute("width")))"""
    )
    return desk.page.locator(".spots-canvas").get_attribute("aria-label") or "", bars


def test_a_fraction_is_treated_at_the_page(browser: Browser, tripping_house: House, picture: Picture) -> None:
    """Somebody opens the door at the ninth grant; what is left is delivered afterwards."""
    with ExitStack() as stack:
        desk = stack.enter_context(Desk(browser, tripping_house))
        page = desk.page
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.post_data or "") if request.url.endswith("/commands") else None)
        page.goto(tripping_house.url)
        expect(page.locator("form.sign-in")).to_be_visible()
        shoot(desk, picture("sign-in"))
        desk.sign_in("operator", console="desk-1")
        shoot(desk, picture("facility"))
        desk.room()
        shoot(desk, picture("start"))
        page.get_by_role("button", name="Have the key turned").click()
        expect(page.locator(".room .interlocks")).to_contain_text("no trip")
        desk.take_control()

        desk.go("Plans")
        expect(page.locator(".choice", has_text="carbon sphere")).to_contain_text("can be treated")
        shoot(desk, picture("plans"))
        desk.load_example()
        desk.asks("identify")
        assert len([body for body in sent if "load_plan" in body]) == 1  # although it was pressed twice
        expect(page.locator(".said")).to_be_hidden()
        shoot(desk, picture("identify"))
        page.keyboard.press("F9")
        button = desk.asks("positioned")
        expect(page.locator(".question-facts div").first).to_contain_text("Remaining deviation")  # in sight, not below an edge
        shoot(desk, picture("position"))
        button.click()

        desk.asks("beam_on")
        shoot(desk, picture("ready"))
        page.evaluate(PAUSE_AT_LAYER_2)
        desk.beam_on()
        desk.state("Interrupted")
        expect(page.locator(".state-meaning")).to_have_text(re.compile("^Paused by operator at desk-1", re.IGNORECASE))
        button = desk.asks("resume")
        page.get_by_role("slider", name="Layer shown").press("Home")
        expect(page.locator(".spots-canvas")).to_have_attribute(
            "aria-label", re.compile(r"(\d+) spots planned, \1 delivered, 0 with too little, 0 with too much")
        )
        shoot(desk, picture("paused"))
        expect(page.locator(".breathing h2")).to_contain_text(" mm")
        given = desk.view()["treatment"]["beams"][0]["meterset_delivered"]
        assert given > 0
        button.click()  # a touch is not deliberate, nor is half a second
        desk.hold("F9", 400)
        assert desk.view()["state"] == "interrupted"
        button.hover()
        page.mouse.down()
        page.wait_for_timeout(1300)
        page.mouse.up()
        desk.state("Beam on", "Beam held")
        page.get_by_role("button", name="Follow beam").click()
        shoot(desk, picture("beam"))

        # the door is opened
        expect(page.locator(".trip-strip")).to_contain_text("Room door not closed")
        desk.state("Ended early", "Standby")
        first = page.locator(".room .trip").first
        for words in ("first out", "Room door not closed", "door_a_closed 0", "limit 1", "Search the room again", "operator"):
            expect(first).to_contain_text(words)
        shoot(desk, picture("interlock"))
        expect(first.locator(".trip-time")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d UTC$"))
        other = stack.enter_context(Desk(browser, tripping_house))
        other.known("physicist").room()  # looks on from here to the end, and knows who commands
        expect(other.page.locator(".control")).to_contain_text("operator at desk-1 commands")
        no_reset = other.page.locator(".room").get_by_role("button", name="Reset")
        expect(no_reset).to_be_disabled()  # a row is reset by its own role
        assert "by operator" in (no_reset.get_attribute("title") or "")
        assert desk.view()["interlocks"]["active_trips"] >= 2
        page.locator(".room").get_by_role("button", name="Reset").click()  # nobody has searched the room yet
        expect(page.locator(".said")).to_contain_text("Still stands: Room door not closed")

        # what is left
        desk.state("Standby")
        desk.go("Treatments")
        expect(page.locator(".choice:visible", has_text="carbon sphere, fraction 1")).to_contain_text("partial", timeout=30_000)
        desk.load_example(remainder=True)
        expect(page.locator(".plan-line")).to_contain_text("what is left of it")
        (beam,) = desk.view()["treatment"]["beams"]
        plan = desk.get(f"/api/plans/{desk.view()['treatment']['plan_id']}")["beams"][0]
        assert 0 < beam["layers"] < plan["layers"]
        given = f"given before: {plan['meterset'] - beam['meterset_planned']:.2f} of {plan['meterset']:.2f}"
        expect(page.locator(".earlier")).to_contain_text(given)
        expect(page.locator(".ladder-now")).to_have_text(f"– of {plan['layers']}")  # nothing of this session yet
        expect(page.locator(".bar")).to_have_count(plan["layers"])
        desk.asks("identify").click()
        desk.asks("positioned").click()
        reset = page.locator(".room").get_by_role("button", name="Reset")
        expect(page.locator(".checks li[data-done]", has_text="Room searched and closed")).to_be_visible()
        reset.click()
        expect(page.locator(".room .trip")).to_have_count(0)
        desk.beam_on()
        page.get_by_role("button", name="All", exact=True).click()
        desk.state("Complete", "Standby", timeout_ms=90_000)
        expect(page.locator(".plan-status")).to_have_text("complete")
        expect(page.locator(".beam-row")).to_contain_text("100 %")
        expect(page.locator(".spots-canvas")).to_have_attribute("aria-label", re.compile(r"[1-9]\d* given before"))
        expect(page.locator(".ladder-now")).to_have_text(f"{plan['layers']} of {plan['layers']}")
        assert other.page.locator(".bar").count() == plan["layers"]
        other.page.get_by_role("button", name="All", exact=True).click()
        expect(other.page.locator(".spots-canvas")).to_have_attribute("aria-label", re.compile(r"[1-9]\d* given before"))
        there = drawn(other)
        assert there == drawn(desk)
        told = desk.get("/api/rooms/G1/spots")
        assert {(layer["session"], layer["earlier"]) for layer in told} == {(1, True), (1, False)}
        other.page.reload()  # a page that comes late is told the layers of all sessions, of which they are, and shows the same
        other.page.get_by_role("button", name="All", exact=True).click()
        expect(other.page.locator(".spots-canvas")).to_have_attribute("aria-label", there[0])
        assert drawn(other) == there
        shoot(desk, picture("complete"))

        desk.go("Treatments")
        row = page.locator(".choice:visible", has_text="carbon sphere, fraction 1")
        row.click()
        expect(page.get_by_role("button", name="Session 1: partial")).to_be_visible()
        expect(page.get_by_role("button", name="Session 2: complete")).to_have_attribute("aria-pressed", "true")
        report = page.frame_locator("iframe.sheet")
        expect(report.get_by_role("heading", name=re.compile("carbon sphere"))).to_be_visible()
        expect(report.locator("body")).to_have_css("background-color", "rgb(20, 24, 28)")  # its own style, dark
        shoot(desk, picture("report"))
        (treated,) = desk.get("/api/treatments")
        whole = desk.get(f"/api/treatments/{treated['id']}")
        given = [whole["summary"], *(session["summary"] for session in whole["sessions"])]
        for summary, earlier in zip(given, (True, False), strict=True):  # the map says of each session what its record says
            of_map = sum(sum(layer["mu_delivered"]) for layer in told if layer["earlier"] is earlier)
            assert of_map == pytest.approx(summary["beams"][0]["meterset_delivered_primary"], rel=0.005)
        assert {layer["treatment"] for layer in told} == {treated["id"]}
        total = sum(summary["beams"][0]["meterset_delivered_primary"] for summary in given)
        assert total == pytest.approx(treated["meterset_planned"], rel=0.005)
        desk.go("Log")
        for name in ("Load plan", "Identify", "Accept position", "Beam on", "Pause", "Resume", "Reset interlock"):
            expect(page.locator("tbody:visible tr", has_text=name).first).to_be_visible()
        desk.hold("Escape", 700)
        expect(page.locator(".stop-said")).to_have_text("STOP G1 received")
        assert desk.wrong == [] and other.wrong == []
