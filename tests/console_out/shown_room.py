"""A room's view as a test wants it: whole and valid, with what the test cares about put in."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from controller.console.views import RoomView

START = datetime(2031, 1, 1, 8, 0, tzinfo=UTC)


def signal(name: str, value: Any, unit: str = "", quality: str = "good", age_ms: float | None = 5.0) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "quality": quality, "age_ms": age_ms, "simulated": True}


def device(name: str, *signals: dict[str, Any], connected: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "driver": "cia402",
        "endpoint": "memory",
        "simulated": True,
        "identity": "x",
        "connected": connected,
        "signals": list(signals),
    }


def alarm(severity: str, text: str, **more: Any) -> dict[str, Any]:
    told = {"id": f"trip:{text}", "severity": severity, "text": text, "source": "room.G1", "raised_t_ns": 0, "active": True}
    return told | more


def beam(number: int, status: str, **more: Any) -> dict[str, Any]:
    return {
        "number": number,
        "name": f"beam {number}",
        "gantry_angle_deg": 30.0,
        "meterset_planned": 100.0,
        "meterset_delivered": 0.0,
        "unit": "MU",
        "layers": 9,
        "layer": 0,
        "spots_planned": 500,
        "spots_delivered": 0,
        "status": status,
    } | more


def treatment(*beams: dict[str, Any], current: int | None = None, status: str = "running") -> dict[str, Any]:
    return {
        "id": "20310101T080000Z-G1-secret-f1",
        "plan_id": "abcdefabcdef",
        "plan_uid": "1.2.3.4",
        "plan_label": "Secret plan",
        "plan_sha256": "0" * 64,
        "patient_id": "PAT-4711",
        "patient_name": "Doe^Jane",
        "fraction": 3,
        "remainder": False,
        "beams": list(beams),
        "current": current,
        "status": status,
    }


TRIP = {
    "id": "DOOR",
    "code": 7,
    "cause": "the door is open",
    "value": "0",
    "limit": "1",
    "advice": "close the door and search",
    "reset_role": "operator",
    "latched": True,
    "first_out": True,
    "t_ns": 5,
    "source": "G1-interlocks",
}


def room_view(seq: int = 1, after_s: float = 0.0, **more: Any) -> dict[str, Any]:
    """A view in standby, `after_s` after START; `more` replaces top-level fields. Valid by the model."""
    view: dict[str, Any] = {
        "facility": "asan",
        "room": "G1",
        "boot_id": 77,
        "seq": seq,
        "t_ns": round(after_s * 1e9),
        "utc": (START + timedelta(seconds=after_s)).isoformat().replace("+00:00", "Z"),
        "speed": 1.0,
        "simulated": True,
        "real": [],
        "banners": ["SIMULATED"],
        "mode": "treat",
        "state": "standby",
        "control": None,
        "question": None,
        "treatment": None,
        "checklist": [{"name": "plan", "label": "Plan loaded", "done": False, "detail": "no plan"}],
        "gantry": {"angle_deg": 30.0, "lower_deg": -180.0, "upper_deg": 180.0},
        "couch": [{"name": "lateral", "unit": "mm", "value": 1.5}],
        "nozzle": {},
        "delivery": {
            "permit_a": True,
            "permit_b": True,
            "permit_r": False,
            "beam_enabled": False,
            "beam_present": False,
            "counts1": 0,
            "counts2": 0,
        },
        "interlocks": {
            "relay_closed": True,
            "active_trips": 0,
            "first_out": None,
            "trips": [],
            "room_causes": [],
            "bypasses": [],
        },
        "devices": [device("G1-gantry", signal("angle", 30.0, "deg"))],
        "alarms": [],
        "commands": {"stop": ["operator"]},
    } | more
    return json.loads(RoomView.model_validate(view).model_dump_json())  # type: ignore[no-any-return]


def as_bytes(view: dict[str, Any]) -> bytes:
    return json.dumps(view).encode()
