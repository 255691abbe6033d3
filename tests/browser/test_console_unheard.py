"""What the page says of who is not heard: the console that commands, the interlock system; and which row is the first-out."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(60)]

TRIP = {
    "cause": "c",
    "value": "",
    "limit": "",
    "advice": "a",
    "reset_role": "operator",
    "latched": True,
    "first_out": False,
    "t_ns": 0,
    "source": "interlock system",
}
SHOWN = """async ([view, scrolled]) => {
  const { interlockPanel } = await import("/page/interlocks.js");
  const none = () => null;
  const desk = { send: none, say: none, holds: none, may: () => true, why: () => "", person: () => ({ role: "operator" }) };
  const panel = interlockPanel(desk);
  document.body.append(panel.element);
  const list = panel.element.querySelector(".trips");
  list.style.cssText = "height: 60px; overflow: auto; display: block";
  panel.update({ ...view, interlocks: { ...view.interlocks, trips: view.interlocks.trips.slice(1), first_out: null } }, true);
  list.scrollTop = scrolled;
  panel.update(view, true);
  const told = (row) => [".trip-id", ".chip"].map((of) => row.querySelector(of).innerText);
  return {
    head: panel.element.querySelector("h2").innerText, clear: panel.element.querySelector(".clear").innerText,
    rows: [...panel.element.querySelectorAll(".trip")].map(told),
    may: !panel.element.querySelector(".reset button").matches("[disabled], [aria-disabled=true]"),
    top: list.scrollTop, rest: panel.element.querySelector(".trips-rest").innerText,
  };
}"""


def view_of(*trips: str, first: str = "", silent: bool = False) -> dict[str, Any]:
    rows = [{**TRIP, "id": name} for name in trips]
    return {
        "t_ns": 1,
        "utc": "2031-01-01T00:00:00Z",
        "speed": 1,
        "interlocks": {
            "relay_closed": False,
            "active_trips": len(rows),
            "trips": rows,
            "first_out": next((row for row in rows if row["id"] == first), None),
            "rest_unknown": "the interlock system does not answer at its socket" if silent else "",
            "silent": silent,
            "withheld": [],
            "room_causes": [],
            "bypasses": [],
        },
    }


def test_a_console_that_is_not_heard_commands_no_more_and_control_is_offered(modules: Page) -> None:
    words = "async (control) => (await import('/page/words.js')).commanderOf(control)"
    control = {"console": "api2", "actor": "operator", "role": "operator", "heard_ms": 63_400.0}
    assert modules.evaluate(words, control) == "operator at api2 not heard for 63 s; control may be taken"
    assert modules.evaluate(words, {**control, "heard_ms": 900.0}) == "operator at api2 commands"
    why = "async ([view, person]) => (await import('/page/actions.js')).whyNot(view, person, false, 'load_plan', false)"
    view = {"commands": {"load_plan": ["operator"]}, "control": control}
    assert modules.evaluate(why, [view, {"role": "operator"}]) == "take control first"


def test_the_first_out_is_one_row_on_top_and_in_sight(modules: Page) -> None:
    shown = modules.evaluate(SHOWN, [view_of("SEARCH", "PERMIT_A", "AREA", "VACUUM", "DOOR", first="DOOR"), 200])
    assert shown["rows"][0] == ["DOOR", "first out"]
    assert [chip for _, chip in shown["rows"][1:]] == ["follows"] * 4
    assert shown["top"] == 0, "a list that was scrolled down does not hide it"


def test_the_head_of_the_panel_says_that_the_interlock_system_does_not_answer(modules: Page) -> None:
    shown = modules.evaluate(SHOWN, [view_of(silent=True), 0])
    assert "the interlock system does not answer" in shown["head"].lower()
    assert shown["clear"] == "not known" and "does not answer at its socket" in shown["rest"]


def test_reset_is_left_to_who_commands_but_for_a_role_that_is_not_there(modules: Page) -> None:
    view = view_of("DOOR", first="DOOR")
    control = {"console": "api2", "actor": "ana", "role": "operator", "heard_ms": 90.0}
    for more, may in (
        (None, True),
        (control, False),
        ({**control, "role": "physicist"}, True),
        ({**control, "heard_ms": 2e3}, True),
    ):
        assert modules.evaluate(SHOWN, [{**view, "control": more}, 0])["may"] is may, more
