"""Facility files: those that ship are right, real plans fit the research room, wrong ones are told by every reason."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.hal.errors import ConfigError
from drivers.hal.facility import SHIPPED, Facility, facility_text, load_facility, parse_facility
from drivers.hal.facility_check import check_facility, scan_time_s

BAD = sorted((Path(__file__).parent / "bad_facilities").glob("*.toml"))
ABSENT = "absent"


def overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A facility with some entries changed; the text ``absent`` takes an entry away."""
    merged = dict(base)
    for key, value in over.items():
        if value == ABSENT:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = overlaid(merged[key], value)
        else:
            merged[key] = value
    return merged


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_facilities_have_no_fault(name: str) -> None:
    assert check_facility(load_facility(name)) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_tag_of_a_source_is_explained_and_nothing_is_real(name: str) -> None:
    text, _ = facility_text(name)
    facility = load_facility(name)
    tags = {tag for comment in re.findall(r"#\s*(S\d+)\b", text) for tag in [comment]}
    assert tags <= set(facility.sources)
    assert {"R", "C", "A"} <= set(facility.sources)
    assert all(device.simulated for device in facility.devices.values())


def test_rooms_and_species_are_those_of_the_contract() -> None:
    asan, qst, research = (load_facility(name) for name in SHIPPED)
    assert {n: r.kind for n, r in asan.rooms.items()} == {"G1": "gantry", "G2": "gantry", "F1": "fixed"}
    assert asan.rooms["F1"].ports_deg == (0.0, 90.0)
    assert sorted(r.kind for r in qst.rooms.values()) == ["fixed", "fixed", "gantry"]
    assert {n: r.kind for n, r in research.rooms.items()} == {"R1": "gantry"}
    for facility in (asan, qst):
        ranges = {s.symbol: (s.energy_min_mev_u, s.energy_max_mev_u, s.energy_step_mev_u) for s in facility.accelerator.species}
        assert ranges == {
            "C": (56.0, 430.0, 0.5),
            "He": (56.0, 230.0, 0.5),
            "O": (56.0, 430.0, 0.5),
            "Ne": (56.0, 430.0, 0.5),
        }
        for room in facility.rooms.values():
            assert (room.nozzle.field_x_mm, room.nozzle.field_y_mm, room.nozzle.spot_min_mu) == (200.0, 200.0, 0.5)
            assert room.machine_names == (room.name,) or facility is qst
    assert not set(asan.machine_names) & set(qst.machine_names), "a plan names a machine and no facility"
    ranges = {s.symbol: (s.energy_min_mev_u, s.energy_max_mev_u, s.energy_step_mev_u) for s in research.accelerator.species}
    ions = (56.0, 430.0, None)
    assert ranges == {"p": (70.0, 230.0, None), "C": ions, "He": ions, "O": ions, "Ne": ions}


def test_protons_per_mu_are_of_the_size_of_the_published_table(shared_plans: Path) -> None:
    lines = (shared_plans / "dcpt" / "beam_model_particles_per_mu.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in lines if line and not line.startswith(("#", '"'))]
    published = np.array([[float(row[0]), float(row[3])] for row in rows])
    ours = np.array(load_facility("research").meterset.protons_per_mu)
    assert ours[0, 0] <= 70.0
    assert ours[-1, 0] >= 230.0
    expected = np.interp(ours[:, 0], published[:, 0], published[:, 1])
    assert np.abs(ours[:, 1] / expected - 1.0).max() < 0.05


def test_real_plans_fit_the_research_room(shared_plans: Path) -> None:
    import pydicom

    room = load_facility("research").rooms["R1"]
    files = [f for f in sorted(shared_plans.glob("*/*.dcm")) if f.parent.name not in ("pydicom", "tdwii")]
    assert len(files) >= 7
    for file in files:
        for beam in pydicom.dcmread(file).IonBeamSequence:
            first = beam.IonControlPointSequence[0]
            assert room.beam_angle_deg(float(first.GantryAngle)) is not None, file
            assert room.couch.angle_deg.holds(float(first.PatientSupportAngle)), file
            for axis, keyword in (
                ("lateral_mm", "TableTopLateralPosition"),
                ("longitudinal_mm", "TableTopLongitudinalPosition"),
                ("vertical_mm", "TableTopVerticalPosition"),
            ):
                value = first.get(keyword)
                assert value is None or getattr(room.couch, axis).holds(float(value)), (file, keyword)
            if first.get("SnoutPosition") is not None:
                assert room.nozzle.snout_mm.holds(float(first.SnoutPosition)), file
            for point in beam.IonControlPointSequence:
                spots = np.asarray(point.ScanSpotPositionMap, dtype=float).reshape(-1, 2)
                assert np.abs(spots[:, 0]).max() <= room.nozzle.field_x_mm / 2, file
                assert np.abs(spots[:, 1]).max() <= room.nozzle.field_y_mm / 2, file


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_wrong_facility_is_told_by_every_reason(file: Path) -> None:
    overlay = tomllib.loads(file.read_text(encoding="utf-8"))
    expected = overlay.pop("expect")
    text, _ = facility_text("asan")
    raw = overlaid(tomllib.loads(text), overlay)
    for name, room in raw["rooms"].items():
        room["name"] = name
    reasons = check_facility(Facility.model_validate(raw))
    for pattern in expected:
        assert any(re.search(pattern, reason) for reason in reasons), (pattern, reasons)


def test_a_scan_of_a_bus_takes_the_time_of_its_bytes() -> None:
    devices = [d for d in load_facility("asan").devices.values() if d.endpoint == "memory:G1-motion"]
    # Bytes of question, answer and gaps: ring and nozzle 13 + 24 + 7, couch 13 + 36 + 7; 2 ms a node.
    assert scan_time_s(19200, devices) == pytest.approx((3 * 44 + 56 + 44) * 11 / 19200 + 5 * 0.002)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = ", "not TOML"),
        ("name = 'x'", "rooms: Field required"),
        ("surprise = 1", "surprise: Extra inputs are not permitted"),
    ],
)
def test_a_file_of_the_wrong_form_is_refused_with_every_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_facility(text, "test.toml")


def test_an_unknown_facility_or_room_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="asan, qst, research"):
        load_facility("no such facility")
    with pytest.raises(ConfigError, match="G1, G2, F1"):
        load_facility("asan").room("G9")


@pytest.mark.parametrize(
    ("room", "angle", "near", "place"),
    [
        ("G1", 270.0, 0.0, -90.0),
        ("G1", -180.0, 170.0, 180.0),
        ("G1", 180.0, -170.0, -180.0),
        ("G1", 30.0, -100.0, 30.0),
        ("G1", 1000.0, 0.0, None),
        ("F1", 360.0, 0.0, 0.0),
        ("F1", 90.05, 0.0, 90.0),
        ("F1", 91.0, 0.0, None),
        ("F1", -90.0, 0.0, None),
    ],
)
def test_a_beam_angle_is_brought_to_where_the_room_can_go(room: str, angle: float, near: float, place: float | None) -> None:
    assert load_facility("asan").rooms[room].beam_angle_deg(angle, near) == place
