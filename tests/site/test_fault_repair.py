"""A repair takes the fault away and nothing else; a fault that was one event cannot be taken back, and says so."""

import pytest

from simulators.fault_repair import MOMENTARY, REPAIRS, CannotRepair, repair
from simulators.faults import CATALOGUE, parse_fault
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel

T_NS = 5_000_000_000


def plant_at(t_ns):
    plant = FacilityPlant.shipped(Kernel(7), "asan")
    plant.kernel.advance_to(t_ns)
    return plant, plant.rooms["G1"]


def seen(plant, room):
    """Everything a fault of the catalogue changes, as sensors, switches and beam would show it."""
    ring, unit, magnets, now = room.gantry, room.unit, room.magnets, plant.kernel.now_ns
    return {
        "encoders": (
            [ring.load_encoder_mdeg(now + s) for s in (0, 10**9)],
            ring.load_encoder2_mdeg(now),
            ring.motor_encoder_mdeg(0, now),
            ring.motor_encoder_mdeg(1, now),
        ),
        "ring": (ring.angle_deg(now), ring.speed_deg_s(now), ring.body.aligned, ring.ignores_stop, ring.torque.weak),
        "brakes": [(b.fault, b.applied, b.feedback_applied) for b in ring.brakes.each],
        "monitors": [(m.counts_per_ion(6012, 300.0), m.hv_good, m.fresh) for m in (unit.monitor, room.unit2.monitor)],
        "strips": (unit.strips.dead_x, unit.strips.swapped, unit.wrap_bits),
        "scanner": (room.scanner.mirrored_x, room.scanner.swapped, room.scanner.scale, room.scanner.stuck),
        "magnets": (magnets.quenched, magnets.off_setpoint, magnets.beam_at_isocentre(6012, 300.0)),
        "ring faults": plant.synchrotron.faults,
        "species": plant.synchrotron.measured_species,
        "access": (room.access.contact_a, room.access.contact_b, room.access.estop_ok.value),
        "shifters": [(s.stuck, s.switch_lies, s.inside, s.commanded) for s in room.nozzle.shifters],
    }


def test_every_fault_of_the_catalogue_is_repaired_or_was_one_event():
    assert set(REPAIRS) | set(MOMENTARY) == set(CATALOGUE)
    assert not set(REPAIRS) & set(MOMENTARY)


@pytest.mark.parametrize("name", sorted(REPAIRS))
def test_a_repair_undoes_the_fault_and_nothing_else(name):
    plant, room = plant_at(T_NS)
    timed = parse_fault(name)
    timed.fault.plant(plant, room, timed.value)
    repair(plant, room, name)
    plant.kernel.advance_to(2 * T_NS)
    sound = plant_at(2 * T_NS)
    after, expected = seen(plant, room), seen(*sound)
    if name == "gantry-creeps":  # at once: the ring has not slipped
        after["ring"] = after["ring"][1:]
        expected["ring"] = expected["ring"][1:]
    assert after == expected


@pytest.mark.parametrize("name", sorted(MOMENTARY))
def test_one_event_cannot_be_taken_back(name):
    plant, room = plant_at(T_NS)
    with pytest.raises(CannotRepair, match=name):
        repair(plant, room, name)


def test_a_freed_range_shifter_goes_where_it_was_sent():
    plant, room = plant_at(T_NS)
    slab = room.nozzle.shifters[0]
    slab.stuck = True
    slab.send(True)
    repair(plant, room, "range-shifter-stuck")
    plant.kernel.advance_to(2 * T_NS)
    assert slab.inside
    assert slab.seen_arrived


def test_a_fixed_room_has_no_ring_to_repair():
    plant, _ = plant_at(T_NS)
    with pytest.raises(CannotRepair, match="no ring"):
        repair(plant, plant.rooms["F1"], "brake-slow")
