"""What the page promises whatever the room does: text is text, what is not known is not shown, nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_desk import SIZE, Alter, Desk, House
from playwright.sync_api import Browser, expect

import controller.console
from controller.room.states import State

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(120)]

PAGE = Path(controller.console.__file__).parent / "page"
TAG = '<img src=x onerror="document.body.dataset.hit=1">'
PAGES = ("Facility", "G1", "Interlocks", "Devices", "Alarms", "Plans", "Treatments", "Trends", "Log")
TRIP = {
    "id": "DOOR",
    "code": 11,
    "cause": "Room door not closed.",
    "value": "door_b_closed 0",
    "limit": "1",
    "advice": "Search the room again, close the door, reset.",
    "reset_role": "operator",
    "latched": True,
    "first_out": True,
    "t_ns": 1,
    "source": "interlocks",
}
LATER = {**TRIP, "id": "SEARCH", "code": 13, "cause": "Room not searched and secured.", "first_out": False}
TREATMENT = {
    "id": "x",
    "plan_id": "0123456789ab",
    "plan_uid": "1.2",
    "plan_label": "sphere",
    "plan_sha256": "ab" * 32,
    "patient_id": "P-1",
    "patient_name": "Phantom^Water",
    "fraction": 1,
    "remainder": False,
    "beams": [
        {
            "number": 1,
            "name": "30 deg",
            "gantry_angle_deg": 30.0,
            "meterset_planned": 100.0,
            "meterset_delivered": 50.0,
            "unit": "MU",
            "layers": 4,
            "layer": 2,
            "spots_planned": 40,
            "spots_delivered": 20,
            "status": "current",
        }
    ],
    "current": 1,
    "status": "running",
    "reason": "",
    "overrides": {},
    "started_utc": "",
}


@pytest.fixture(scope="module")
def opened(browser: Browser, house: House) -> Iterator[tuple[Desk, Alter]]:
    """One page for all tests that only lay something over what the room shows."""
    alter = Alter()
    with Desk(browser, house, alter=alter) as desk:
        yield desk.known(), alter


@pytest.fixture
def alter(opened: tuple[Desk, Alter]) -> Iterator[Alter]:
    """What the page is shown; as it is again afterwards."""
    yield opened[1]
    opened[1].patch, opened[1].silent = {}, False


@pytest.fixture
def desk(opened: tuple[Desk, Alter], alter: Alter) -> Iterator[Desk]:
    """The page."""
    yield opened[0]
    assert opened[0].wrong == []


def test_a_name_that_is_a_tag_is_shown_as_it_is_written(desk: Desk, alter: Alter) -> None:
    beams = [{**TREATMENT["beams"][0], "name": TAG}]
    alarm = {"id": "a", "severity": "high", "text": TAG, "source": TAG, "raised_t_ns": 0, "active": True, "count": 1}
    alarms = [{**alarm, "acknowledged_by": "", "shelved_by": "", "shelved_s": 0.0}]
    question = {"kind": "move_on", "command": "move_on", "text": TAG, "facts": {TAG: TAG}, "challenge": "c", "asked_t_ns": 0}
    trip = {**TRIP, "cause": TAG, "advice": TAG}
    signal = {"name": TAG, "value": TAG, "unit": TAG, "quality": "good", "age_ms": 1.0, "simulated": True}
    device = {"name": TAG, "driver": TAG, "endpoint": TAG, "simulated": True, "identity": TAG, "connected": True, "error": ""}
    alter.patch = dict(
        treatment={**TREATMENT, "patient_name": TAG, "patient_id": TAG, "plan_label": TAG, "reason": TAG, "beams": beams},
        why=TAG,
        question=question,
        alarms=alarms,
        nozzle={TAG: TAG},
        devices=[{**device, "signals": [signal]}],
        checklist=[{"name": TAG, "label": TAG, "done": False, "detail": TAG}],
        interlocks={"first_out": trip, "trips": [trip], "active_trips": 1},
    )
    desk.room()
    expect(desk.page.locator(".patient-name")).to_have_text(TAG)
    expect(desk.page.locator(".question-text")).to_have_text(TAG)
    for name in PAGES:
        desk.go(name)
        expect(desk.page.locator(".trip-words")).to_contain_text(TAG)
        assert desk.page.locator("img").count() == 0
    assert desk.page.evaluate("() => document.body.dataset.hit ?? 'no'") == "no"
    assert desk.wrong == []


def test_nothing_is_asked_of_anybody_else_and_no_policy_is_broken(desk: Desk, house: House) -> None:
    for name in PAGES:
        desk.go(name)
        expect(desk.page.get_by_role("navigation").locator("[aria-current=page]")).to_contain_text(name)
    desk.page.keyboard.press("?")
    expect(desk.page.get_by_role("dialog")).to_be_visible()
    desk.page.keyboard.press("Escape")
    expect(desk.page.get_by_role("dialog")).to_be_hidden()
    host = house.url.removeprefix("http://").rstrip("/")
    fetched = {url.rsplit("/", 1)[1] for url in desk.asked if url.endswith(".js")}
    assert {path.name for path in PAGE.glob("*.js")} == fetched  # nothing is kept that nobody loads
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"modulepreload. href=./page/([a-z]+.js)", page)) == fetched - {"main.js", "ticker.js"}
    elsewhere = [url for url in desk.asked if re.sub(r"^(https?|wss?)://", "", url).split("/")[0] != host]
    assert elsewhere == []
    assert desk.wrong == []


def test_what_is_not_known_is_a_dash_and_never_a_number(desk: Desk, alter: Alter) -> None:
    couch = [
        {"name": "lateral_mm", "unit": "mm", "value": 12.3, "target": None, "lower": -250.0, "upper": 250.0, "quality": "stale"}
    ]
    alter.patch = dict(
        gantry={"angle_deg": 30.0, "fixed_deg": None, "quality": "stale", "moving": False},
        couch=couch,
        delivery={"energy_mev_u": None, "counts1": None},
        devices=[
            {
                "name": "gantry",
                "driver": "",
                "endpoint": "",
                "simulated": True,
                "identity": "",
                "connected": True,
                "error": "",
                "signals": [
                    {"name": "angle", "value": 31.25, "unit": "deg", "quality": "stale", "age_ms": 900.0, "simulated": True}
                ],
            }
        ],
    )
    desk.room()
    page = desk.page
    expect(page.locator(".gantry output")).to_have_text("–")
    expect(page.locator(".gantry")).to_contain_text("not known")
    expect(page.locator(".axis-value")).to_have_text("–")
    expect(page.locator(".monitor output").first).to_have_text("–")
    desk.go("Devices")
    row = page.get_by_role("row").filter(has_text="angle")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("✕ stale")
    expect(row).not_to_contain_text("31.25")
    alter.patch = {**alter.patch, "gantry": {**alter.patch["gantry"], "quality": "good"}}
    desk.go("G1")
    expect(page.locator(".gantry output")).to_have_text("30.0°")


def test_a_view_that_does_not_come_makes_the_page_stale_and_silent(desk: Desk, alter: Alter) -> None:
    alarm = {"id": "a", "severity": "high", "text": "x", "source": "x", "raised_t_ns": 0, "active": True, "count": 1}
    alarms = [{**alarm, "acknowledged_by": "", "shelved_by": "", "shelved_s": 0.0}]
    alter.patch = {"treatment": TREATMENT, "alarms": alarms, "state": "irradiating.beam_on"}
    desk.room()
    page = desk.page
    expect(page.locator(".banner", has_text="STALE")).to_have_count(0)
    expect(page.locator(".state")).to_contain_text("Beam on")
    begins = page.locator("main").bounding_box()
    alter.silent = True
    expect(page.locator(".banner", has_text="STALE")).to_be_visible(timeout=2_500)
    assert page.locator("main").bounding_box() == begins  # nothing moves under a hand while beam is on
    expect(page.locator(".state")).to_contain_text("Not known")
    expect(page.locator(".patient-name")).to_have_css("text-decoration-line", "line-through")
    expect(page.locator(".badge:visible").first).to_have_css("text-decoration-line", "line-through")
    expect(page.locator(".room .clear use")).to_have_attribute("href", "#sign-unknown")
    for value in (".gantry output", ".dose-head output", ".monitor output >> nth=0"):
        expect(page.locator(value)).to_have_text("–")
    expect(page.get_by_role("button", name=re.compile("Pause"))).to_be_disabled()
    expect(page.get_by_role("button", name="Take control")).to_be_disabled()
    expect(page.get_by_role("button", name=re.compile("^STOP"))).to_be_enabled()
    alter.silent = False
    expect(page.locator(".banner", has_text="STALE")).to_have_count(0)


def test_a_view_that_repeats_itself_is_as_good_as_none(desk: Desk, alter: Alter) -> None:
    desk.room()
    alter.patch = {"seq": 5}
    expect(desk.page.locator(".banner", has_text="STALE")).to_be_visible(timeout=5_000)


def test_the_first_out_stands_on_top_with_value_limit_advice_and_who_may_reset(browser: Browser, house: House) -> None:
    """And where only the first-out is known the page says so, and why."""
    interlocks = {"first_out": TRIP, "trips": [LATER, TRIP], "active_trips": 2, "relay_closed": False, "room_causes": []}
    alter = Alter(interlocks=interlocks)
    with Desk(browser, house, alter=alter) as desk:
        desk.known("observer").room()
        page = desk.page
        expect(page.locator(".room .trip")).to_have_count(2)
        first = page.locator(".room .trip").first
        expect(first).to_contain_text("first out")
        for words in (TRIP["cause"], "value door_b_closed 0", "limit 1", TRIP["advice"], "reset: operator"):
            expect(first).to_contain_text(words)
        expect(page.locator(".trip-strip")).to_contain_text(TRIP["cause"])
        expect(page.get_by_role("alert").filter(has_text="First out")).to_have_count(1)
        expect(first).to_contain_text("latched")
        expect(page.locator(".room .trip").last).to_contain_text("follows")
        expect(page.locator(".room .trips-rest")).to_be_hidden()
        reset = page.locator(".room").get_by_role("button", name="Reset")
        expect(reset).to_be_disabled()
        expect(reset).to_have_attribute("title", "by operator")

        why = "the interlock system does not answer at its socket"
        alter.patch = {"interlocks": {**interlocks, "trips": [TRIP], "rest_unknown": why}}
        expect(page.locator(".room .trip")).to_have_count(1)
        expect(page.locator(".room .interlocks")).to_contain_text(f"Only the first-out is known, the rest is not: {why}.")
        expect(page.locator(".room .interlocks h2")).to_contain_text("2 active")
        assert desk.wrong == []


def test_every_state_has_its_own_word_and_a_shape_that_the_page_has(desk: Desk) -> None:
    said = desk.page.evaluate(
        """async (names) => {
          const { stateOf } = await import("/page/words.js");
          const there = ({ shape }) => document.getElementById(`sign-${shape}`) !== null;
          return names.map((name) => ({ name, ...stateOf(name), there: there(stateOf(name)) }));
        }""",
        [state.value for state in State],
    )
    assert all(one["there"] and one["meaning"] and one["word"] != one["name"] for one in said)
    groups = {(one["word"], one["tone"]) for one in said}
    assert len({word for word, _ in groups}) == len(groups)  # a colour never stands for two words, nor a word for two


@pytest.mark.parametrize("size", [(1280, 800), (3840, 2160)], ids="{0[0]}".format)
def test_the_room_fits_its_screen(desk: Desk, alter: Alter, size: tuple[int, int]) -> None:
    interlocks = {"first_out": TRIP, "trips": [TRIP, LATER], "active_trips": 2, "relay_closed": False, "room_causes": []}
    banners = ["SIMULATED", "SERVICE", "BYPASS", "RESEARCH"]
    alter.patch = {"treatment": TREATMENT, "interlocks": interlocks, "banners": banners, "deadline_s": 42.0}
    desk.page.set_viewport_size({"width": size[0], "height": size[1]})
    desk.room()
    expect(desk.page.locator(".room .trip")).to_have_count(2)
    told = desk.page.evaluate(
        """() => {
          const root = document.documentElement, wide = [];
          for (const one of document.querySelectorAll(".room .panel, .room .panel *, .top, .rail, .strip")) {
            if (one.closest("svg") || getComputedStyle(one).overflow !== "visible") continue;
            const panel = one.closest(".panel, .top, .rail, .strip").getBoundingClientRect();
            const box = one.getBoundingClientRect();
            const out = box.right > panel.right + 1 || box.bottom > innerHeight + 1;
            if (box.width && out) wide.push(`${one.className} ${one.textContent.slice(0, 30)}`);
          }
          const scrolls = root.scrollHeight > innerHeight || root.scrollWidth > innerWidth;
          return { scrolls, wide, rem: parseFloat(getComputedStyle(root).fontSize) };
        }"""
    )
    assert told["scrolls"] is False
    assert told["wide"] == []
    assert told["rem"] >= (13 if size[0] == 1280 else 26)
    if size[0] == 1280:
        rows = [TRIP, LATER, *({**LATER, "id": f"ROW_{i}"} for i in range(4))]
        alter.patch = {**alter.patch, "interlocks": {**interlocks, "trips": rows, "active_trips": len(rows)}}
        expect(desk.page.locator(".room .trip")).to_have_count(len(rows))
        expect(desk.page.locator(".room .more")).to_have_text(re.compile("^[1-9] more$"))  # none is hidden without a word
    desk.page.set_viewport_size({"width": SIZE["width"], "height": SIZE["height"]})


def test_letters_stand_out_from_what_is_behind_them(desk: Desk, alter: Alter) -> None:
    interlocks = {"first_out": TRIP, "trips": [TRIP, LATER], "active_trips": 2, "relay_closed": False, "room_causes": []}
    banners = ["SIMULATED", "SERVICE", "BYPASS", "RESEARCH"]
    alter.patch = {"treatment": TREATMENT, "interlocks": interlocks, "banners": banners}
    desk.room()
    for name in PAGES:
        desk.go(name)
        expect(desk.page.get_by_role("navigation").locator("[aria-current=page]")).to_contain_text(name)
        assert desk.page.evaluate(CONTRAST) == [], name


# WCAG 2.2: text 4.5 to 1, large text 3 to 1; what cannot be pressed is exempt
CONTRAST = """() => {
  const parse = (color) => {
    const numbers = color.match(/[\\d.]+/g).map(Number);
    return { rgb: numbers.slice(0, 3), a: numbers[3] ?? 1 };
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.reduce((sum, v, i) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      const paint = parse(getComputedStyle(one).backgroundColor);
      if (paint.a > 0) layers.push(paint);
      if (paint.a === 1) break;
    }
    return layers.reverse().reduce((below, { rgb, a }) => rgb.map((v, i) => v * a + below[i] * (1 - a)), [14, 19, 23]);
  };
  const exempt = "svg, button:disabled, select:disabled, option, .unseen, noscript, [data-stale]";
  const weak = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest(exempt)) continue;
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(style.color).rgb), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const words = walker.currentNode.data.slice(0, 30);
    if (ratio < (large ? 3 : 4.5)) weak.push(`${ratio.toFixed(2)} ${element.className} ${words}`);
  }
  return weak;
}"""


def test_layers_of_what_is_left_are_those_of_the_plan_and_what_was_given_before_is_kept_apart(desk: Desk) -> None:
    """Of eleven layers an earlier session gave seven and half of the eighth; four are left, the first of them has begun."""
    told = desk.page.evaluate(LEFT)
    for name in ("live", "late"):
        page = told[name]
        assert (page["number"], page["count"]) == (8, 11), name
        assert [layer["own"] for layer in page["layers"]] == [False] * 7 + [True], name
        assert [layer["delivered"] for layer in page["layers"]] == [0.0] * 7 + [5.0], name
        assert [layer["before"] for layer in page["layers"]] == [10.0] * 7 + [5.0], name
        assert [layer["whole"] for layer in page["layers"]] == [10.0] * 8, name
    assert told["late"] == told["live"]  # whoever comes late sees what the others see
    assert told["loaded"] == []  # what the session before gave is never shown as of this one
    assert told["refused"] == []  # nor when the one after it ended before its first layer
    assert told["another"] == []  # nor layers of another treatment


# A page that was there all the time; one that came late and was given everything that was held.
LEFT = """async () => {
  const { RoomStore } = await import("/page/store.js");
  const layer = (index, planned, delivered, session = 0, earlier = false) => ({
    treatment: "a", session, earlier, beam_number: 1, layer_index: index, energy_mev_u: 200, painting: 0, x_mm: [0], y_mm: [0],
    mu_planned: [planned], mu_delivered: [delivered], complete: delivered >= planned,
  });
  const beam = { number: 1, layers: 11, layer: 8, meterset_planned: 110, meterset_delivered: 75, unit: "MU" };
  const rest = { ...beam, layers: 4, layer: 1, meterset_planned: 35, meterset_delivered: 5 };
  const view = (seq, one, more) => ({
    boot_id: 1, seq, t_ns: seq, delivery: { layer: 7, breathing: null },
    treatment: {
      id: "a", plan_id: "p", plan_uid: "1.2", fraction: 1, remainder: false, started_utc: "1", beams: [one],
      current: 1, ...more,
    },
  });
  const later = { remainder: true, started_utc: "2" };
  const plan = { id: "p", beams: [{ number: 1, layers: 11, meterset: 110 }] };
  const first = Array.from({ length: 8 }, (_, index) => layer(index, 10, index < 7 ? 10 : 5));
  const before = first.map((spots) => ({ ...spots, session: 1, earlier: true }));
  const told = (store, one) => ({
    number: store.layerNumber(one), count: store.layerCount(one),
    layers: store.layersOf(1).map(({ own, delivered, before, whole }) => ({ own, delivered, before, whole })),
  });
  const live = new RoomStore("G1");
  live.plan = plan;
  live.takeView(view(1, beam), 0);
  for (const spots of first) live.takeSpots(spots);
  live.takeView(view(2, beam), 0);
  const shown = live.layersOf(1).length;
  live.takeView(view(3, { ...rest, layer: 0, meterset_delivered: 0 }, later), 0);
  const loaded = shown === 8 ? live.layersOf(1) : `${shown} layers`;
  live.takeView(view(4, rest, { ...later, started_utc: "3" }), 0);
  const refused = live.layersOf(1);
  for (const spots of [...before, layer(7, 5, 5, 1)]) live.takeSpots(spots);
  live.takeView(view(5, rest, { ...later, started_utc: "3" }), 0);
  const late = new RoomStore("G1");
  late.plan = plan;
  for (const spots of [...before, layer(7, 5, 5, 1)]) late.takeSpots(spots);
  late.takeView(view(1, rest, { ...later, started_utc: "3" }), 0);
  const another = new RoomStore("G1");
  for (const spots of first) another.takeSpots(spots);
  another.takeView(view(1, { ...beam, layer: 0, meterset_delivered: 0 }, { id: "b" }), 0);
  return { live: told(live, rest), late: told(late, rest), loaded, refused, another: another.layersOf(1) };
}"""


def test_stop_is_in_reach_without_a_sign_in(browser: Browser, house: House) -> None:
    with Desk(browser, house) as desk:
        desk.page.goto(house.url)
        stop = desk.page.get_by_role("button", name=re.compile("^STOP"))
        expect(stop).to_be_enabled()
        expect(stop).to_contain_text("G1")
        sent: list[str] = []
        desk.page.route("**/api/rooms/*/stop", lambda route: (sent.append(route.request.url), route.abort()))
        desk.page.locator("form.sign-in input").first.focus()
        desk.hold("Escape", 200)
        assert sent == []  # a touch of the key is no stop
        desk.page.keyboard.press("Control+Shift+X")
        expect(desk.page.locator(".stop-said")).to_contain_text("STOP G1 sent")
        expect(desk.page.locator(".stop-said")).to_contain_text(
            "emergency stop", timeout=15_000
        )  # nobody heard it: said loudly
        assert len(sent) > 2  # and it was said again and again
        expect(desk.page.locator(".stop-said")).to_have_attribute("data-tone", "bad")


def test_the_page_comes_back_by_itself_when_the_console_process_died(browser: Browser, house: House) -> None:
    with Desk(browser, house) as desk:
        desk.known("observer").room()
        before = house.console_pid()
        os.kill(before, signal.SIGKILL)
        expect(desk.page.locator(".banner", has_text="STALE")).to_be_visible()
        expect(desk.page.get_by_role("button", name=re.compile("^STOP"))).to_be_enabled()
        # Tokens died with the process: whoever was signed in signs in again, at the same address.
        expect(desk.page.locator("form.sign-in")).to_be_visible()
        expect(desk.page.locator(".farewell")).to_have_text("The console was started again: sign in anew.")
        expect(desk.page.locator(".said")).to_be_hidden()
        house.known.clear()
        desk.sign_in("observer").room()
        assert house.console_pid() != before
