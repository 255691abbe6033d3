"""What a hand does at the page beside treating: jog an axis, acknowledge and shelve an alarm, service mode, a bypass by two.

One room serves all of it, in the order of a day: each test leaves it as the next one expects it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser_desk import Alter, Desk, House
from playwright.sync_api import Browser, Locator, expect

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(120)]

STILL_S = 3.0  # wall time within which a drive that nobody holds any more stands


@pytest.fixture(scope="module")
def physicist(browser: Browser, house: House) -> Iterator[Desk]:
    """A second person, at a desk of their own."""
    with Desk(browser, house, alter=Alter()) as desk:
        yield desk.known("physicist").room()


def hold(desk: Desk, button: Locator, angle: Callable[[], float], way: int) -> None:
    """Put a finger on a button and leave it there until the gantry has turned `way`.

    Anew where the computer was too slow for 200 ms: the drive stops then, as it must, and takes a new press.
    """
    begun = angle()
    for _ in range(5):
        button.hover()
        desk.page.mouse.down()
        until_s = time.monotonic() + STILL_S
        while time.monotonic() < until_s:
            if (angle() - begun) * way > 0.1:
                return
            desk.page.wait_for_timeout(50)
        desk.page.mouse.up()
        desk.page.wait_for_timeout(300)
    raise AssertionError(f"it turned from {begun} to {angle()}")


def stands(angle: Callable[[], float]) -> float:
    """Wait until it stands; where."""
    until_s, before = time.monotonic() + STILL_S, angle()
    while time.monotonic() < until_s:
        time.sleep(0.2)
        now = angle()
        if abs(now - before) < 0.05:
            return now
        before = now
    raise AssertionError(f"it still moves: {before}")


def test_an_alarm_is_acknowledged_and_put_away(browser: Browser, house: House) -> None:
    with Desk(browser, house) as desk:
        desk.known().go("Alarms")
        page = desk.page
        alarm = page.locator(".alarms:not(.away) .alarm", has_text="POWER_UP")
        badge = page.get_by_role("navigation").get_by_role("link", name="Alarms").locator(".badge")
        expect(badge).to_have_text("1")
        alarm.get_by_role("button", name="Acknowledge").click()
        expect(alarm).to_contain_text("acknowledged by operator")
        expect(alarm.get_by_role("button", name="Acknowledge")).to_be_hidden()
        expect(badge).to_be_hidden()
        alarm.get_by_label("Shelve for").select_option("10 min")
        expect(page.locator(".alarms.away .alarm")).to_contain_text(
            re.compile(r"POWER_UP.*shelved by operator for another (10:00|9:\d\d)")
        )
        expect(alarm).to_have_count(0)
        (told,) = desk.view()["alarms"]
        assert (told["acknowledged_by"], told["shelved_by"], told["active"]) == ("operator", "operator", True)
        assert desk.wrong == []


def test_an_axis_moves_while_its_button_is_held_and_no_longer(browser: Browser, house: House, physicist: Desk) -> None:
    def angle() -> float:
        return float(physicist.view()["gantry"]["angle_deg"])

    with Desk(browser, house) as desk:
        desk.known().room()
        page = desk.page
        forth = page.get_by_role("button", name="hold to move clockwise")
        expect(forth).to_be_hidden()  # nobody moves a room that somebody else may command
        page.get_by_role("button", name="Have the key turned").click()
        expect(page.locator(".room .interlocks")).to_contain_text("no trip")
        desk.take_control()
        quality = physicist.page.locator(".rail").get_by_role("button", name="Service: QA")
        expect(quality).to_be_disabled()  # whoever enters service would command the room
        expect(quality).to_have_attribute("title", "desk-operator commands this room")
        turning = page.locator(".gantry .chip")

        hold(desk, forth, angle, 1)
        page.mouse.up()
        held = stands(angle)
        expect(turning).to_have_text("standing still")
        for one in (desk, physicist):  # it goes nowhere: where the jog would have ended is no target
            expect(one.page.locator(".dial .target")).to_have_attribute("hidden", "")
            expect(one.page.locator(".dial .way")).to_have_attribute("hidden", "")
            expect(one.page.locator(".gantry .facts div", has_text="Target").locator("dd")).to_have_text("–")

        hold(desk, forth, angle, 1)
        page.evaluate("() => window.dispatchEvent(new Event('blur'))")  # the window behind another one, the finger still down
        away = stands(angle)
        assert away > held
        page.mouse.up()
        page.wait_for_timeout(300)

        hold(desk, page.get_by_role("button", name="hold to move anticlockwise"), angle, -1)
        assert desk.wrong == []
    lost = stands(angle)  # the page is gone with the finger on the button
    time.sleep(0.5)
    assert angle() == pytest.approx(lost, abs=0.1)


def test_a_bypass_takes_two_persons_in_service_mode_and_nothing_is_treated_with_it(
    browser: Browser, house: House, physicist: Desk
) -> None:
    def banner(desk: Desk, name: str) -> Locator:
        return desk.page.locator(f".banner[data-name={name}]")

    def act(name: str) -> None:
        owner.page.locator(".rail").get_by_role("button", name=name).click()

    with Desk(browser, house) as owner:
        owner.known("service").room()
        expect(banner(owner, "SERVICE")).to_have_count(0)
        act("Service: beam tuning")
        act("Yes")
        for desk in (owner, physicist):
            expect(banner(desk, "SERVICE")).to_be_visible()
        expect(owner.page.locator(".control")).to_contain_text("you command")

        for desk in (owner, physicist):
            desk.go("Interlocks")
        form = owner.page.locator(".bypass-panel form")
        form.get_by_label("Interlock").fill("VACUUM")
        form.get_by_label("Reason").fill("pump is exchanged")
        form.get_by_label("Minutes").fill("30")
        form.get_by_role("button", name="Ask for bypass").click()
        asked, second = (desk.page.locator(".bypasses li") for desk in (owner, physicist))
        expect(asked).to_contain_text("VACUUM: pump is exchanged (service, waits for a physicist)")
        expect(asked.get_by_role("button", name="Approve")).to_be_disabled()
        for desk in (owner, physicist):
            expect(banner(desk, "BYPASS")).to_have_count(0)  # one person is not enough

        second.get_by_role("button", name="Approve").click()
        for desk in (owner, physicist):
            expect(banner(desk, "BYPASS")).to_be_visible()
        expect(asked).to_contain_text("service, approved by physicist")
        expect(asked.locator(".number")).to_have_text(re.compile(r"^(30:00|2\d:\d\d)$"))

        act("Leave service")
        expect(owner.page.locator(".said")).to_contain_text("bypassed: VACUUM")
        assert owner.page.evaluate(LAID_ON) == []
        physicist.go("Plans")
        physicist.page.locator(".choice", has_text="carbon sphere").first.click()
        expect(physicist.page.get_by_role("button", name="Load in G1")).to_be_disabled()

        physicist.go("Interlocks")
        second.get_by_role("button", name="End").click()
        for desk in (owner, physicist):
            expect(banner(desk, "BYPASS")).to_have_count(0)
        act("Leave service")
        expect(owner.page.locator(".said")).to_be_hidden()  # what was refused is past once it is accepted
        for desk in (owner, physicist):
            expect(banner(desk, "SERVICE")).to_have_count(0)
            assert desk.wrong == []
        assert physicist.view()["mode"] == "treat"


# What can be pressed and lies under the message.
LAID_ON = """() => {
  const said = document.querySelector(".said").getBoundingClientRect();
  return [...document.querySelectorAll("a[href], button, input, select, [role=slider]")].filter((one) => {
    const box = one.getBoundingClientRect();
    const across = box.left < said.right && box.right > said.left;
    return box.width > 0 && !one.disabled && across && box.top < said.bottom && box.bottom > said.top;
  }).map((one) => one.textContent);
}"""

# Whole, inside the window, and what a finger meets at its middle is it.
REACHED = """(element) => {
  const box = element.getBoundingClientRect();
  const inside = box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight && box.width > 0;
  const met = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  const out = [...element.querySelectorAll("b, .stop-word")].filter((one) => one.getBoundingClientRect().right > box.right + 1);
  return inside && (met === element || element.contains(met)) && out.length === 0;
}"""


@pytest.mark.parametrize("zoom", [1, 2], ids=["100 %", "200 %"])
def test_the_top_bar_wraps_and_hides_neither_banner_nor_stop(
    browser: Browser, house: House, physicist: Desk, picture: Any, zoom: int
) -> None:
    trip = {"id": "DOOR", "cause": "Room door not closed", "advice": "Search the room again, close the door, reset"}
    crowded = Alter(
        control={"console": "a-desk-with-a-long-name-in-room-3", "actor": "somebody", "role": "operator", "heard_ms": 1.0},
        interlocks={"first_out": {**trip, "reset_role": "operator", "source": "x"}, "active_trips": 1},
        banners=["SIMULATED", "SERVICE", "BYPASS", "RESEARCH"],
    )
    with ExitStack() as stack:
        if zoom == 1:
            desk = physicist
            desk.alter.patch = crowded.patch
        else:
            size = {"width": 1280 // zoom, "height": 800 // zoom}
            desk = stack.enter_context(Desk(browser, house, size=size, alter=crowded, scale=zoom)).known()
        desk.go("G1")
        page = desk.page
        expect(page.locator(".banner")).to_have_count(4)
        expect(page.locator(".control")).to_contain_text("somebody at a-desk-with-a-long-name-in-room-3 commands")
        shot: Path = picture(f"bar-{zoom}")
        page.screenshot(path=shot)
        for name in (".banner", ".trip-strip", ".stop", ".top nav a:visible", ".person", ".control button:visible"):
            for one in page.locator(name).all():
                assert one.evaluate(REACHED), f"{one.inner_text()!r} is hidden: {shot}"
        assert desk.wrong == []
