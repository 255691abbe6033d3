"""The truth of a running plant as one JSON-able table: what people and test rigs look at beside the wires.

Truth, not what any sensor says. Not responsible for bringing the plant up to now.
"""

from __future__ import annotations

from typing import Any

from simulators.plant.couch import AXES
from simulators.plant.facility import FacilityPlant
from simulators.plant.gantry import GantryRing
from simulators.plant.room import RoomPlant

NS_PER_S = 1_000_000_000


def plant_state(plant: FacilityPlant) -> dict[str, Any]:
    """Source, ring, route and every room."""
    ring = plant.synchrotron
    return {
        "source": {"species": ring.true_species, "measured_species": ring.measured_species},
        "ring": {
            "state": ring.state.name.lower(),
            "energy_mev_u": ring.true_energy_mev_u,
            "spill": ring.spill,
            "ions_left": ring.ions_left,
            "fault": ring.fault.name.lower(),
        },
        "route": plant.switchyard.readback,
        "rooms": {name: room_state(room) for name, room in plant.rooms.items()},
    }


def room_state(room: RoomPlant) -> dict[str, Any]:
    """One room."""
    now, access, chain, unit, unit2 = room.kernel.now_ns, room.access, room.chain, room.unit, room.unit2
    gantry = room.gantry
    grant = unit.open_grant
    return {
        "gantry": {
            "kind": "ring" if isinstance(gantry, GantryRing) else "port",
            "angle_deg": gantry.angle_deg(now),
            "speed_deg_s": gantry.speed_deg_s(now),
            "brake_applied": gantry.brake_applied,
            "drive_enabled": gantry.drive_enabled,
        },
        "couch": {
            **dict(zip(AXES, room.couch.position(now).tolist(), strict=True)),
            "brake_applied": room.couch.brake_applied,
        },
        "nozzle": {
            "snout_mm": room.nozzle.snout_mm(now),
            "range_shifters_in": [slab.inside for slab in room.nozzle.shifters],
            "moving": room.nozzle.moving,
        },
        "patient_on_couch": room.patient.on_couch,
        "door_closed": access.door_closed,
        "search": access.state.name.lower(),
        "people_inside": list(access.people_inside),
        "service_key": access.service_key,
        "chain": {name: line.value for name, line in chain.elements.items()},
        "beam_off": {
            "level": int(chain.beam_off.level),
            "stopper_in": chain.beam_off.stopper.inside,
            "residual_counts": chain.beam_off.residual_counts,
        },
        "permits": {
            "A": chain.permit_a.value,
            "B": chain.permit_b.value,
            "R": chain.permit_r.value,
            "beam_enable": chain.beam_enable.value,
        },
        "relays": {
            which: {"pulsed_s": chain.last_pulse_ns(which) / NS_PER_S, "changed_s": line.changed_ns / NS_PER_S}
            for which, line in (("B", chain.permit_b), ("R", chain.permit_r))
        },
        "relays_contested": dict(zip(("B", "motion"), chain.contested, strict=True)),
        "armed": chain.armed,
        "beam": room.beam_present,
        "magnets": {"settled_token": room.magnets.settled_token, "quenched": room.magnets.quenched},
        "unit": {
            "boot_id": unit.boot_id,
            "state": unit.state.name.lower(),
            "reason": unit.reason.name.lower(),
            "latched": unit.latched,
            "open_grant": None if grant is None else grant.grant_id,
            "last_grant": unit.memory.last_grant_id,
            "total_counts1": unit.counts()[0],
            "total_counts2": unit.counts()[1],
            "field_counts1": unit.field_counts1(),
        },
        "unit2": {"state": unit2.state.name.lower(), "total_counts2": unit2.total, "trip": unit2.trip.name.lower()},
    }
