"""Takes planted faults away again, where that means something: a repair gives back what the fault broke, at once.

What a fault has led to stays: a latched unit stays latched, a stopped drive stopped, a trip tripped, until it is reset as in a
real facility. Faults that were one event cannot be undone, and say so. Not responsible for planting (`faults`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simulators.faults_guards import GUARD_FAULTS, Break
from simulators.plant.access import DoorFault
from simulators.plant.brake import BrakeFault
from simulators.plant.encoder import Encoder
from simulators.plant.facility import FacilityPlant
from simulators.plant.gantry import GantryRing, Phase
from simulators.plant.room import RoomPlant

Repair = Callable[[FacilityPlant, RoomPlant], None]

MOMENTARY: Mapping[str, str] = {
    "drive-fault": "the drive has broken down once; its controller resets it",
    "door-contact-bounce": "the contact opened for a moment and is closed again",
    "door-opened": "the door was opened and someone went in: search the room",
    "stray-counts": "the charge has arrived; the unit's latch is reset by its controller",
    "spill-spike": "the burst has happened, or happens in the next spill",
    "unit-power-dip": "the unit has its power back by itself",
    "unit2-power-dip": "the unit has its power back by itself",
}

REPAIRS: dict[str, Repair] = {}


class CannotRepair(ValueError):
    """The fault cannot be taken away now; says why."""


def repair(plant: FacilityPlant, room: RoomPlant, name: str) -> None:
    """Take a fault away.

    Raises:
        CannotRepair: it was one event, or the plant is in a state in which this would mean a jump.
    """
    if name in MOMENTARY:
        raise CannotRepair(f"fault {name} cannot be cleared: {MOMENTARY[name]}")
    REPAIRS[name](plant, room)


def _for(*names: str) -> Callable[[Repair], Repair]:
    def register(act: Repair) -> Repair:
        for name in names:
            REPAIRS[name] = act
        return act

    return register


def _ring(room: RoomPlant) -> GantryRing:
    if not isinstance(room.gantry, GantryRing):
        raise CannotRepair(f"room {room.name} is fixed: it has no ring")
    return room.gantry


def _encoder(which: Callable[[GantryRing], Encoder]) -> Repair:
    def act(_plant: FacilityPlant, room: RoomPlant) -> None:
        ring = _ring(room)
        which(ring).repair()
        ring.encoders.look_ahead()

    return act


for _name in ("frozen", "jump", "drift", "mirrored"):
    REPAIRS[f"load-encoder-{_name}"] = _encoder(lambda ring: ring.encoders.load)
for _name in ("frozen", "jump", "drift"):
    REPAIRS[f"safety-encoder-{_name}"] = _encoder(lambda ring: ring.encoders.load2)
REPAIRS["motor-encoder-frozen"] = _encoder(lambda ring: ring.encoders.motors[1])
REPAIRS["motor-encoder-jump"] = _encoder(lambda ring: ring.encoders.motors[0])


def _guard(mend: Break) -> Repair:
    return lambda plant, room: mend(plant, room, 0.0)


for _guarded in GUARD_FAULTS.values():
    REPAIRS[_guarded.name] = _guard(_guarded.repair)


@_for("brake-fails-to-set", "brake-fails-to-release", "brake-slow", "brake-drags")
def _brakes(_plant: FacilityPlant, room: RoomPlant) -> None:
    _ring(room).brakes.set_fault(BrakeFault.NONE)


@_for("drive-ignores-stop")
def _ignores(_plant: FacilityPlant, room: RoomPlant) -> None:
    _ring(room).ignores_stop = False


@_for("drive-weak")
def _weak(_plant: FacilityPlant, room: RoomPlant) -> None:
    _ring(room).torque.weak[1] = False


@_for("gantry-axis-mirrored")
def _axis(_plant: FacilityPlant, room: RoomPlant) -> None:
    ring = _ring(room)
    if ring.phase is not Phase.OFF:
        raise CannotRepair("motors are rewired with the drives off and the brakes closed, not in a move")
    ring.reverse_axis()


@_for("gantry-creeps")
def _creeps(_plant: FacilityPlant, room: RoomPlant) -> None:
    ring = _ring(room)
    if ring.phase is not Phase.OFF:
        raise CannotRepair("the drives hold the ring: its brakes do not slip now")
    ring.creep(0.0)


@_for("door-contact-welded")
def _door(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.access.set_door_fault(DoorFault.NONE)


@_for("estop")
def _estop(_plant: FacilityPlant, room: RoomPlant) -> None:
    access = room.access
    for button in access.truth.estop_buttons:
        access.release_estop(button)
    access.reset_estop()


@_for("range-shifter-stuck", "range-shifter-switch-lies")
def _shifter(_plant: FacilityPlant, room: RoomPlant) -> None:
    slab = room.nozzle.shifters[0]
    slab.stuck = slab.switch_lies = False
    if slab.inside != slab.commanded:  # the air that was on it all the time moves it now
        wanted, slab.commanded = slab.commanded, slab.inside
        slab.send(wanted)


@_for("mu1-dead")
def _mu1_dead(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.unit.monitor.dead = False


@_for("mu2-dead")
def _mu2_dead(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.unit2.monitor.dead = False


@_for("mu1-gain")
def _mu1_gain(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.unit.monitor.gain_factor = 1.0


@_for("mu2-gain")
def _mu2_gain(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.unit2.monitor.gain_factor = 1.0


@_for("hv-sag")
def _hv(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.unit.monitor.hv_rel = 1.0


@_for("counter-wrap")
def _wrap(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.unit.wrap_bits = 0


@_for("scanner-mirrored", "scanner-swapped", "scanner-scale", "scanner-stuck")
def _scanner(_plant: FacilityPlant, room: RoomPlant) -> None:
    scanner = room.scanner
    scanner.mirrored_x = scanner.swapped = scanner.stuck = False
    scanner.scale = 1.0


@_for("strips-dead", "strips-swapped")
def _strips(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.unit.strips.dead_x = room.unit.strips.swapped = False


def _magnet(room: RoomPlant) -> int:
    return min(4, len(room.magnets.names) - 1)


@_for("magnet-off")
def _supply(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.magnets.offset_supply(_magnet(room), 0.0)


@_for("calibration-row")
def _field(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.magnets.offset_field(_magnet(room), 0.0)


@_for("magnets-swapped")
def _swapped(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.magnets.swap(0, len(room.magnets.names))


@_for("quench")
def _quench(_plant: FacilityPlant, room: RoomPlant) -> None:
    room.magnets.recover()


@_for("spill-early-end")
def _early(plant: FacilityPlant, _room: RoomPlant) -> None:
    plant.synchrotron.faults.early_end = 1.0


@_for("no-spill")
def _no_spill(plant: FacilityPlant, _room: RoomPlant) -> None:
    plant.synchrotron.faults.no_spill = False


@_for("wrong-energy")
def _energy(plant: FacilityPlant, _room: RoomPlant) -> None:
    plant.synchrotron.faults.energy_offset_mev_u = 0.0


@_for("wrong-species")
def _species(plant: FacilityPlant, _room: RoomPlant) -> None:
    plant.synchrotron.faults.wrong_species_token = 0


@_for("rfko-stuck")
def _rfko(plant: FacilityPlant, room: RoomPlant) -> None:
    plant.synchrotron.faults.rfko_stuck_on = False
    room.chain.beam_off.reset()


@_for("chopper-slow")
def _chopper(plant: FacilityPlant, _room: RoomPlant) -> None:
    plant.synchrotron.faults.chopper_extra_us = 0.0
