"""summary.json keeps its contract; events.jsonl keeps every event in order, byte for byte the same for the same run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from record_example import COUNTS_PER_MU, make_beam, make_fraction

from controller.record.event_file import EventFile, event_line
from controller.record.spots import build_spots
from controller.record.summary import Summary, build_summary, write_summary
from drivers.hal.events import Event, EventBus
from simulators import clock


def test_the_summary_has_the_promised_fields_and_sums(tmp_path):
    fraction = make_fraction((make_beam(1, 3, 30),), stop_after=40, overrides=True)
    write_summary(build_summary(fraction, build_spots(fraction.beams)), tmp_path / "summary.json")
    data = json.loads((tmp_path / "summary.json").read_text())
    assert (data["status"], data["termination"], data["simulated"], data["seed"]) == ("partial", "MACHINE", True, 7)
    assert data["plan"] == {"uid": fraction.plan.uid, "label": "PANC", "species": "C"}
    beam = data["beams"][0]
    counts = int(fraction.beams[0].pieces["counts1"].sum())
    assert beam["meterset_delivered_primary"] * COUNTS_PER_MU == pytest.approx(counts, abs=0.5)
    assert (beam["spots"], beam["spots_delivered"], beam["layers"]) == (90, 40, 3)
    assert beam["unit"] == "MU"
    assert 0 < beam["beam_on_s"] < beam["irradiation_s"]
    assert [i["name"] for i in data["interlocks"]] == ["position", "request"]
    assert data["loop_lag_ms"] == {"p50": 0.1, "p99": 1.5, "max": 3.0}
    assert Summary.model_validate(data).beams[0].machine_limited_s == 90.0


def test_first_out_comes_first_whatever_the_order():
    fraction = make_fraction((make_beam(1),), stop_after=10)
    trips = [replace(trip, t_ns=1000) for trip in fraction.interlocks]
    fraction = replace(fraction, interlocks=tuple(trips[::-1]))
    assert build_summary(fraction, build_spots(fraction.beams)).interlocks[0].first_out


def test_events_are_written_in_order_with_integer_times(tmp_path):
    async def run():
        bus = EventBus()
        with EventFile(bus, tmp_path / "events.jsonl"):
            for n in range(3000):
                bus.emit("room.G1", "state", n=n, angle_deg=np.float64(1.5), counts=np.arange(3), bad=float("nan"))
        bus.emit("room.G1", "late")

    clock.run(run())
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["data"]["n"] for e in events] == list(range(3000))
    assert [e["seq"] for e in events] == list(range(1, 3001))
    assert all(type(e["t_ns"]) is int for e in events)
    assert events[0]["data"] == {"angle_deg": 1.5, "bad": None, "counts": [0, 1, 2], "n": 0}
    assert lines[0].startswith(b'{"data":{"angle_deg":1.5,')


def test_a_value_without_a_canonical_form_does_not_lose_the_event():
    line = event_line(Event(1, 5, "a", "b", {"what": object(), "inner": {"x": [float("inf")]}}))
    data = json.loads(line)["data"]
    assert data["inner"] == {"x": [None]}
    assert "object" in data["what"]


def test_closing_twice_is_harmless(tmp_path):
    file = EventFile(EventBus(), tmp_path / "events.jsonl")
    file.close()
    file.close()
    assert (tmp_path / "events.jsonl").read_bytes() == b""
