"""Prometheus is told how rooms are, in its own format, and never who is treated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from shown_room import TRIP, alarm, beam, device, room_view, treatment

from controller.console import metrics as metrics_module
from controller.console.archive import Archive
from controller.console.metrics import CONTENT_TYPE, OTHER, Metrics
from controller.console.outward import Outward
from controller.room.states import State


def figures(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Read back by Prometheus' own parser."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


async def test_a_room_is_told_as_figures() -> None:
    metrics = Metrics(clients=lambda: {"G1": 4}, connected=lambda: {"G1": True, "G2": False})
    alarms = [alarm("high", "a"), alarm("high", "b", acknowledged_by="ana"), alarm("low", "c", shelved_by="ana", shelved_s=5.0)]
    devices = [device("G1-gantry"), device("G1-couch", connected=False)]
    view = room_view(state="ready.armed", alarms=alarms, devices=devices)
    view["interlocks"] |= {"active_trips": 2, "first_out": TRIP}
    metrics.take(view)
    metrics.take(room_view(2, room="F1", state="standby"))
    told = figures(metrics)
    assert {
        state for (name, *labels), value in told.items() if name == "iongantry_room_state" and value for state in labels
    } == {
        "G1",
        "ready.armed",
        "F1",
        "standby",
    }
    assert told["iongantry_permit", "a", "G1"] == 1.0
    assert told["iongantry_permit", "r", "G1"] == 0.0
    assert told["iongantry_interlocks_tripped", "G1"] == 2.0
    assert told["iongantry_alarms", "G1", "high", "unacknowledged"] == 1.0
    assert told["iongantry_alarms", "G1", "high", "acknowledged"] == 1.0
    assert told["iongantry_alarms", "G1", "low", "shelved"] == 1.0
    assert told["iongantry_alarms", "F1", "high", "unacknowledged"] == 0.0
    assert told["iongantry_device_connected", "G1-couch", "G1"] == 0.0
    assert told["iongantry_clients", "G1"] == 4.0
    assert told["iongantry_room_connected", "G2"] == 0.0
    assert "text/plain" in CONTENT_TYPE


async def test_every_state_is_told_and_only_one_is_the_rooms() -> None:
    metrics = Metrics()
    for state in State:
        metrics.take(room_view(state=state.value))
        told = {labels[1]: v for (name, *labels), v in figures(metrics).items() if name == "iongantry_room_state"}
        assert set(told) == {each.value for each in State}
        assert [name for name, value in told.items() if value] == [state.value]


async def test_who_is_treated_and_who_commands_is_in_no_line() -> None:
    metrics = Metrics()
    control = {"console": "console-7", "actor": "ana", "role": "operator", "heard_ms": 1.0}
    metrics.take(room_view(treatment=treatment(beam(1, "current"), current=1), control=control))
    metrics.count_command("G1", "load_plan", True)
    text = metrics.text().decode()
    assert not [s for s in ("4711", "Doe", "Secret", "abcdef", "1.2.3.4", "console-7", "ana") if s in text]
    assert figures(metrics)["iongantry_room_commanded", "G1"] == 1.0


async def test_commands_are_counted_by_name_and_outcome_and_made_up_names_are_one() -> None:
    metrics = Metrics()
    metrics.count_command("G1", "stop", True)
    metrics.count_command("G1", "stop", True)
    metrics.count_command("G1", "beam_on", False)
    for number in range(1000):
        metrics.count_command("G1", f"made-up-{number}\n{{", False)
    told = {key[1:]: value for key, value in figures(metrics).items() if key[0] == "iongantry_commands_total"}
    assert told == {("stop", "accepted", "G1"): 2.0, ("beam_on", "refused", "G1"): 1.0, (OTHER, "refused", "G1"): 1000.0}


async def test_a_device_that_is_gone_leaves_no_figure_behind() -> None:
    metrics = Metrics()
    metrics.take(room_view(devices=[device("old")]))
    metrics.take(room_view(devices=[device("new")]))
    assert [key[1] for key in figures(metrics) if key[0] == "iongantry_device_connected"] == ["new"]


async def test_the_worst_lag_of_a_minute_and_the_age_of_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    at_ns = [0]
    monkeypatch.setattr(metrics_module, "now_ns", lambda: at_ns[0])
    metrics = Metrics()
    metrics.take(room_view())
    for after_s, lag_ms in ((0.0, 150.0), (30.0, 40.0), (31.0, float("nan")), (32.0, "x")):
        at_ns[0] = round(after_s * 1e9)
        metrics.take_event("G1", {"kind": "loop.lag", "data": {"lag_ms": lag_ms}})
    assert figures(metrics)["iongantry_room_loop_lag_seconds", "G1"] == 0.15
    at_ns[0] = round(61e9)
    told = figures(metrics)
    assert told["iongantry_room_loop_lag_seconds", "G1"] == 0.04
    assert told["iongantry_view_age_seconds", "G1"] == 61.0
    assert (told["iongantry_views_total", "G1"], told["iongantry_events_total", "G1"]) == (1.0, 4.0)


def line(kind: str, content: Any) -> bytes:
    return json.dumps({"kind": kind, kind: content}).encode()


class Shelf:
    """Variables that only remember."""

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.lost: list[str] = []

    def show(self, view: Any) -> None:
        self.shown.append(view["seq"])

    def gone(self, room: str) -> None:
        self.lost.append(room)


async def test_a_line_of_a_room_reaches_archive_metrics_and_variables(tmp_path: Path) -> None:
    archive, metrics, shelf = Archive(tmp_path, reserve_bytes=0), Metrics(), Shelf()
    metrics.archive = archive
    archive.start()
    take = Outward(archive, metrics, shelf).listener("G1")
    take("view", line("view", room_view(5)))
    take("event", line("event", {"seq": 1, "t_ns": 0, "source": "x", "kind": "trip", "data": {}}))
    take("link", b"")
    take("spots", b"not even json")
    await archive.close()
    told = figures(metrics)
    assert told["iongantry_archive_rows_total",] == archive.rows > 0
    assert told["iongantry_archive_lost_total",] == 0.0
    assert (shelf.shown, shelf.lost) == ([5], ["G1"])


@pytest.mark.parametrize("bad", [b"", b"{}", b"[1]", b'{"view": {}}', b'{"view": 3}', b"\xff"])
async def test_a_line_that_is_none_is_counted_and_the_next_one_is_taken(bad: bytes) -> None:
    metrics = Metrics()
    outward = Outward(None, metrics)
    outward.take("G1", "view", bad)
    outward.take("G1", "view", line("view", room_view()))
    assert outward.unreadable == 1
    assert figures(metrics)["iongantry_views_total", "G1"] == 1.0
