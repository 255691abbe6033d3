"""The alarm list shows what a person has to take notice of: none is missed, none told twice, none lost by being shelved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from controller.console.alarm_table import CLEARINGS, RULES
from controller.console.alarms import ID_MAX, LOST, SHELVED_MAX_S, SHOWN_MAX, AlarmList
from controller.console.views import AlarmView
from controller.room.causes import Cause, Severity
from drivers.hal.clock import NS_PER_S
from drivers.hal.errors import CommandRejected
from drivers.hal.events import Event, EventBus

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Desk:
    """An alarm list, and a clock that is set."""

    def __init__(self, alarms_max: int = 1000) -> None:
        self.alarms = AlarmList(alarms_max)
        self.t_s = 0.0
        self._seq = 0

    def happens(self, source: str, kind: str, /, **data: Any) -> None:
        self._seq += 1
        self.alarms.take(Event(self._seq, round(self.t_s * NS_PER_S), source, kind, data))

    @property
    def rows(self) -> list[AlarmView]:
        return self.alarms.view(round(self.t_s * NS_PER_S))

    @property
    def only(self) -> AlarmView:
        (row,) = self.rows
        return row


def trip(severity: Severity = Severity.TERMINATE) -> dict[str, Any]:
    return Cause(
        "gantry.moved", severity, "the gantry moved", "G1-gantry", "0.31 deg", "0.2 deg", "look at the brake"
    ).as_data()


def door(*, first_out: bool = True) -> dict[str, Any]:
    return {"id": "DOOR", "code": 7, "cause": "door: 0; limit 1", "advice": "close and search", "first_out": first_out}


def test_a_trip_is_high_and_says_value_limit_and_what_to_do() -> None:
    desk = Desk()
    desk.happens("room.G1", "trip", **trip())
    row = desk.only
    assert (row.severity, row.active, row.acknowledged_by) == ("high", True, "")
    assert row.text == "G1-gantry: the gantry moved (0.31 deg; limit 0.2 deg); look at the brake"


def test_an_interruption_is_medium_and_ends_when_the_beam_goes_on() -> None:
    desk = Desk()
    desk.happens("room.G1", "trip", **trip(Severity.PAUSE))
    assert desk.only.severity == "medium"
    desk.happens("room.G1", "room.state", state="irradiating.beam_on", event="resume")
    assert not desk.only.active


def test_a_condition_that_returns_waits_until_somebody_has_seen_it() -> None:
    desk = Desk()
    desk.happens("room.G1", "trip", **trip())
    desk.happens("room.G1", "room.state", state="terminated.partial", event="trip")
    assert desk.only.active
    desk.happens("room.G1", "room.state", state="standby", event="release")
    assert not desk.only.active
    desk.alarms.acknowledge(desk.only.id, "ana")
    assert desk.rows == []


def test_an_acknowledged_condition_stays_until_it_is_over() -> None:
    desk = Desk()
    desk.happens("G1-gantry", "device.down", error="[2001] silent", code=2001)
    desk.alarms.acknowledge(desk.only.id, "ana")
    desk.alarms.acknowledge(desk.only.id, "ben")
    assert (desk.only.active, desk.only.acknowledged_by) == (True, "ana")
    desk.happens("G1-couch", "device.up")
    assert desk.only.active, "another device's news ends nothing"
    desk.happens("G1-gantry", "device.up")
    assert desk.rows == []


def test_what_comes_again_is_counted_and_has_to_be_seen_again() -> None:
    desk = Desk()
    for _ in range(2):
        desk.happens("G1-gantry", "device.down", error="silent")
        desk.happens("G1-gantry", "device.up")
    assert desk.only.count == 2
    desk.happens("G1-gantry", "device.down", error="silent")
    desk.alarms.acknowledge(desk.only.id, "ana")
    desk.happens("G1-gantry", "device.down", error="silent")
    assert (desk.only.count, desk.only.acknowledged_by) == (4, "ana"), "the same condition, still there"


def test_a_reset_ends_what_it_cleared_and_nothing_else() -> None:
    desk = Desk()
    desk.happens("G1-interlocks", "interlock.trip", **door())
    desk.happens("G1-interlocks", "interlock.trip", **{**door(first_out=False), "id": "ESTOP"})
    assert [row.severity for row in desk.rows] == ["high", "medium"]
    desk.happens("G1-interlocks", "interlock.reset", cleared=["ESTOP"], refused=[("DOOR", "it is active")], role="operator")
    assert {row.id: row.active for row in desk.rows} == {
        "interlock.trip:G1-interlocks:DOOR": True,
        "interlock.trip:G1-interlocks:ESTOP": False,
    }


def test_a_treatment_that_was_cut_off_stands_until_it_is_settled_and_says_who_does_what() -> None:
    desk = Desk()
    desk.happens("room.G1", "treatment.cut_off", id="T-1", state="open")
    assert desk.only.severity == "high"
    assert desk.only.text == (
        "treatment T-1 was cut off in beam: a physicist takes control and presses Reconcile under Treatments"
    )
    desk.alarms.acknowledge(desk.only.id, "Olga")
    desk.happens("room.G1", "treatment.settled", id="T-2")
    assert desk.only.active, "another treatment's end is not this one's"
    desk.happens("room.G1", "treatment.cut_off", id="T-1", state="locked")
    assert "signs it" in desk.only.text and desk.only.active
    desk.happens("room.G1", "treatment.settled", id="T-1")
    assert not desk.rows or not desk.only.active


def test_the_trip_of_a_start_is_no_high_alarm() -> None:
    desk = Desk()
    desk.happens("G1-interlocks", "interlock.trip", **{**door(), "id": "POWER_UP"})
    assert desk.only.severity == "medium"


def test_a_severity_that_grows_takes_back_acknowledgement_and_shelf(run_virtual: Run) -> None:
    desk = Desk()

    async def main() -> None:
        desk.happens("controller", "loop.lag", lag_ms=30.0)
        desk.alarms.acknowledge(desk.only.id, "ana")
        desk.alarms.shelve(desk.only.id, "ana", 60.0)
        desk.happens("controller", "loop.lag", lag_ms=150.0)
        assert (desk.only.severity, desk.only.acknowledged_by, desk.only.shelved_by) == ("high", "", "")
        desk.happens("controller", "loop.lag", lag_ms=4.0)
        assert not desk.only.active

    run_virtual(main())


def test_a_lag_within_the_limit_or_of_no_number_is_none() -> None:
    desk = Desk()
    for lag_ms in (20.0, float("nan"), None, "x", True):
        desk.happens("controller", "loop.lag", lag_ms=lag_ms)
    assert desk.rows == []


def test_refusals_are_an_alarm_when_they_repeat_within_a_minute() -> None:
    desk = Desk()
    for _ in range(2):
        desk.happens("room.G1", "room.refused", event="arm", reason="not searched")
    desk.t_s = 61.0
    desk.happens("room.G1", "room.refused", event="arm", reason="not searched")
    assert desk.rows == []
    desk.t_s = 62.0
    desk.happens("room.G1", "room.refused", event="identify", reason="other")
    desk.happens("room.G1", "room.refused", event="arm", reason="not searched")
    desk.happens("room.G1", "room.refused", event="arm", reason="not searched")
    assert (desk.only.count, desk.only.severity, desk.only.active) == (3, "low", False)


def test_a_shelved_alarm_comes_back_by_itself_and_has_to_be_acknowledged_anew(run_virtual: Run) -> None:
    desk = Desk()

    async def main() -> None:
        desk.happens("G1-gantry", "device.down", error="silent")
        desk.alarms.acknowledge(desk.only.id, "ana")
        desk.alarms.shelve(desk.only.id, "ben", SHELVED_MAX_S)
        start_s = asyncio.get_running_loop().time()
        for since_s, left_s in ((0.0, 28_800.0), (0.25, 28_800.0), (1.0, 28_799.0), (28_799.5, 1.0)):
            desk.t_s = start_s + since_s
            assert (desk.only.shelved_by, desk.only.shelved_s) == ("ben", left_s)
        desk.t_s = start_s + SHELVED_MAX_S
        assert (desk.only.shelved_by, desk.only.acknowledged_by, desk.only.active) == ("", "", True)

    run_virtual(main())


def test_on_the_shelf_an_alarm_comes_and_goes_unseen_but_a_high_one_does_not(run_virtual: Run) -> None:
    desk = Desk()

    async def main() -> None:
        desk.happens("G1-gantry", "device.down", error="silent")
        desk.alarms.acknowledge(desk.only.id, "ana")
        desk.alarms.shelve(desk.only.id, "ana", 60.0)
        desk.happens("G1-gantry", "device.up")
        desk.happens("G1-gantry", "device.down", error="silent")
        assert (desk.only.shelved_by, desk.only.count) == ("ana", 2)
        desk.alarms.shelve(desk.only.id, "ana", 0.0)
        assert desk.only.shelved_by == ""

        desk.happens("G1-gantry", "device.up")
        desk.alarms.acknowledge(desk.only.id, "ana")
        desk.happens("room.G1", "trip", **trip())
        desk.alarms.acknowledge(desk.only.id, "ana")
        desk.alarms.shelve(desk.only.id, "ana", 60.0)
        desk.happens("room.G1", "room.state", state="standby", event="release")
        desk.happens("room.G1", "trip", **trip())
        assert (desk.only.shelved_by, desk.only.acknowledged_by, desk.only.active) == ("", "", True)

    run_virtual(main())


@pytest.mark.parametrize("duration_s", [-1.0, SHELVED_MAX_S + 0.1, float("nan"), float("inf")])
def test_nothing_is_shelved_for_ever(duration_s: float) -> None:
    desk = Desk()
    desk.happens("G1-gantry", "device.down", error="silent")
    with pytest.raises(CommandRejected, match="28800") as refused:
        desk.alarms.shelve(desk.only.id, "ana", duration_s)
    assert refused.value.code == 4432


def test_a_high_alarm_that_nobody_has_read_is_not_shelved() -> None:
    desk = Desk()
    desk.happens("room.G1", "trip", **trip())
    with pytest.raises(CommandRejected, match="nobody has acknowledged"):
        desk.alarms.shelve(desk.only.id, "ana", 60.0)
    assert desk.only.shelved_by == ""


@pytest.mark.parametrize("alarm_id", ["", "device.down:G9", LOST, "x" * 100_000])
def test_an_alarm_that_is_not_there_is_refused_by_name(alarm_id: str) -> None:
    desk = Desk()
    for act in (lambda: desk.alarms.acknowledge(alarm_id, "ana"), lambda: desk.alarms.shelve(alarm_id, "ana", 1.0)):
        with pytest.raises(CommandRejected) as refused:
            act()
        assert refused.value.code == 4431
        assert len(str(refused.value)) < 300


def test_unacknowledged_then_severe_then_new_is_on_top() -> None:
    desk = Desk()
    for number, name in enumerate(("a", "b", "c")):
        desk.t_s = float(number)
        desk.happens(name, "device.down", error="silent")
    desk.happens("room.G1", "trip", **trip())
    desk.alarms.acknowledge("device.down:c", "ana")
    assert [row.source for row in desk.rows] == ["room.G1", "b", "a", "c"]


def test_a_flood_keeps_the_severe_and_says_what_went() -> None:
    desk = Desk(alarms_max=50)
    desk.happens("room.G1", "trip", **trip())
    desk.happens("unit", "finding", code="size.x", message="too wide", hint="")
    for number in range(10_000):
        desk.t_s = 1.0 + number / 1e4
        desk.happens(f"d{number}", "device.down", error="silent")
    assert len(desk.alarms) == 50
    rows = desk.rows
    assert rows[0].source == "room.G1"
    assert {row.source for row in rows[1:50]} == {f"d{number}" for number in range(9951, 10_000)}
    assert (rows[-1].id, rows[-1].count) == (LOST, 9952)
    desk.happens("x", "result.damaged", error="crc")
    assert len(desk.alarms) == 50 and all(row.source != "x" for row in desk.rows), "what is mild makes no room for itself"
    desk.alarms.acknowledge(LOST, "ana")
    assert LOST not in {row.id for row in desk.rows}


def test_repeats_of_one_alarm_fill_no_list() -> None:
    desk = Desk(alarms_max=3)
    for _ in range(5000):
        desk.happens("unit", "result.damaged", error="crc")
    assert (desk.only.count, desk.alarms.lost) == (5000, 0)


def test_more_than_is_shown_is_told() -> None:
    desk = Desk()
    for number in range(SHOWN_MAX + 40):
        desk.happens(f"d{number}", "device.down", error="silent")
    rows = desk.rows
    assert len(rows) == SHOWN_MAX + 1
    assert rows[-1].text == "40 more alarms are not shown"


def test_ids_and_words_stay_orderly_whatever_a_device_says() -> None:
    desk = Desk()
    desk.happens("room/G1 \n", "trip", cause="x" * 500 + "/ü", message="m" * 9000, severity=7, hint=["a"])
    row = desk.only
    assert len(row.id) <= ID_MAX and not set(row.id) & set("/ \nü")
    assert len(row.text) <= 400
    json.dumps(row.model_dump())


def test_no_event_however_bare_breaks_the_list_on_its_bus(run_virtual: Run) -> None:
    async def main() -> None:
        bus, alarms = EventBus(), AlarmList()
        bus.subscribe(alarms.take)
        for kind in [*RULES, *CLEARINGS]:
            bus.emit("x", kind)
            bus.emit("x", kind, **dict.fromkeys(("cleared", "state", "lag_ms", "id", "error", "cause", "event"), 3.5))
        assert not any(row.id.startswith("listener.removed:bus") for row in alarms.view(0))
        assert len(alarms) > 20

    run_virtual(main())


def test_every_kind_of_alarm_is_told_by_the_program() -> None:
    """A kind that nobody emits would be a promise. What the interlock system says is put together from its records."""
    root = Path(__file__).parents[2]
    text = "".join(path.read_text() for part in ("controller", "drivers") for path in (root / part).rglob("*.py"))
    elsewhere = {"interlock.trip", "interlock.reset"}
    table = (root / "controller/console/alarm_table.py").read_text()
    for kind in {*RULES, *CLEARINGS} - elsewhere:
        assert text.count(f'"{kind}"') > table.count(f'"{kind}"'), kind
