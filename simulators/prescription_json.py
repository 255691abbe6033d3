"""A prescription, and a violation, as JSON: what a controller tells a simulator process, and what it hears back.

Arrays travel as base64 of little-endian float64: exact, and quickly read. Not responsible for what an invariant makes of them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

from simulators.invariant_monitor import Floats, PrescribedLayer, Prescription, Violation


def prescription_to_json(prescription: Prescription) -> dict[str, Any]:
    """As JSON values."""
    return {
        "plan_hash": prescription.plan_hash,
        "room": prescription.room,
        "gantry_angle_deg": {str(beam): angle for beam, angle in prescription.gantry_angle_deg.items()},
        "layers": [
            {
                "beam": beam,
                "layer": index,
                "species_token": layer.species_token,
                "energy_mev_u": layer.energy_mev_u,
                "x_mm": _packed(layer.x_mm),
                "y_mm": _packed(layer.y_mm),
                "counts1": _packed(layer.counts1),
            }
            for (beam, index), layer in prescription.layers.items()
        ],
        "received_before": {str(beam): counts for beam, counts in prescription.received_before.items()},
        "spots_before": [
            {"beam": beam, "layer": index, "counts1": _packed(counts)}
            for (beam, index), counts in prescription.spots_before.items()
        ],
    }


def prescription_from_json(raw: Mapping[str, Any]) -> Prescription:
    """From JSON values. Raises ValueError with what is wrong."""
    try:
        layers = {}
        for row in raw["layers"]:
            x, y, counts1 = (_unpacked(row[key]) for key in ("x_mm", "y_mm", "counts1"))
            if not x.size == y.size == counts1.size:
                raise ValueError(f"beam {row['beam']} layer {row['layer']}: arrays of {x.size}, {y.size}, {counts1.size} spots")
            layers[int(row["beam"]), int(row["layer"])] = PrescribedLayer(
                int(row["species_token"]), float(row["energy_mev_u"]), x, y, counts1
            )
        return Prescription(
            plan_hash=int(raw["plan_hash"]),
            room=str(raw["room"]),
            gantry_angle_deg={int(beam): float(angle) for beam, angle in raw["gantry_angle_deg"].items()},
            layers=layers,
            received_before={int(beam): float(counts) for beam, counts in raw.get("received_before", {}).items()},
            spots_before={
                (int(row["beam"]), int(row["layer"])): _unpacked(row["counts1"]) for row in raw.get("spots_before", ())
            },
        )
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"not a prescription: {type(error).__name__}: {error}") from None


def violation_to_json(violation: Violation) -> dict[str, Any]:
    """As JSON values."""
    return {"name": violation.name, "t_ns": violation.t_ns, "room": violation.room, "message": violation.message}


def violation_from_json(raw: Mapping[str, Any]) -> Violation:
    """From JSON values."""
    return Violation(str(raw["name"]), int(raw["t_ns"]), str(raw["room"]), str(raw["message"]))


def _packed(values: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode("ascii")


def _unpacked(text: str) -> Floats:
    data = base64.b64decode(text, validate=True)
    if len(data) % 8:
        raise ValueError(f"{len(data)} bytes are no float64")
    return np.frombuffer(data, dtype="<f8").astype(np.float64)
