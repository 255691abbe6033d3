"""Faults of what guards a room rather than moves it: beam-off elements, services, contacts; each a function of the plant.

The numbers are rows of the project's fault catalogue. Not responsible for when a fault strikes (`faults`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulators.plant.facility import FacilityPlant
from simulators.plant.room import RoomPlant

Break = Callable[[FacilityPlant, RoomPlant, float], None]


@dataclass(frozen=True, slots=True)
class GuardFault:
    """One fault.

    Attributes:
        name: as written on the command line.
        row: of the fault catalogue; 0 when it has none.
        title: what breaks.
        expected: what must follow.
        unit, default: of its value; no unit: it takes none.
        plant, repair: break it, and give back what was broken.
    """

    name: str
    row: int
    title: str
    expected: str
    plant: Break
    repair: Break
    unit: str = ""
    default: float = 0.0


def _stick_chopper(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.chopper_stuck = True


def _blind_chopper(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.chopper_stuck = plant.synchrotron.faults.chopper_reading_lies = True


def _free_chopper(plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.chopper_stuck = plant.synchrotron.faults.chopper_reading_lies = False
    room.chain.beam_off.reset()


def _stick_stopper(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.chain.beam_off.stopper.stuck = True


def _free_stopper(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.chain.beam_off.stopper.repair()
    room.chain.beam_off.reset()


def _flows(number: int) -> Break:
    def act(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
        room.services.flows_permille[:number] = [round(value)] * number

    return act


def _flows_back(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.services.flows_permille[:] = [1000] * 3


def _thermometer(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.services.thermometer_errors_k[0] = value


def _thermometer_back(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.services.thermometer_errors_k[0] = 0.0


def _service(attribute: str, broken: bool | None = None, sound: float | bool = True) -> tuple[Break, Break]:
    """Break and mend one attribute of the room's services; `broken` None: with the fault's value."""

    def act(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
        setattr(room.services, attribute, value if broken is None else broken)

    def mend(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
        setattr(room.services, attribute, sound)

    return act, mend


def _touch(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.services.collision.set(False)


def _let_go(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.services.collision.set(True)


def _slip(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.couch.slip(value)


def _lift(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.couch.slip(-room.couch.slipped_mm)


def _fall(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.nozzle.shifters[0].inside = True


def _pick_up(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    slab = room.nozzle.shifters[0]
    slab.inside = slab.commanded


_BY_B = "beam off by relay B within 150 ms; before beam never armed"

GUARD_FAULTS: dict[str, GuardFault] = {
    fault.name: fault
    for fault in (
        GuardFault(
            "chopper-stuck",
            29,
            "the chopper does not fire",
            "told by its read-back when beam has to go: ring dumped, stopper in, chain A open until reset at its cabinet",
            _stick_chopper,
            _free_chopper,
        ),
        GuardFault(
            "chopper-read-back-lies",
            31,
            "the chopper does not fire and says that it did",
            "no effect while RF-KO works; else measured beam after 1 ms dumps the ring",
            _blind_chopper,
            _free_chopper,
        ),
        GuardFault(
            "stopper-stuck",
            31,
            "the room's stopper does not come in",
            "no effect before chain A falls; then told after 1 s: ring dumped, source off, chain A open until reset",
            _stick_stopper,
            _free_stopper,
        ),
        GuardFault(
            "collision-contact",
            0,
            "something touches the collision contact of the nozzle",
            "torque of gantry and couch off, beam off by chain A, without any program; the field ends",
            _touch,
            _let_go,
        ),
        GuardFault("couch-slips", 0, "the couch top sinks in its brakes", _BY_B, _slip, _lift, "mm", 2.0),
        GuardFault("range-shifter-falls", 0, "the first range shifter falls into the beam", _BY_B, _fall, _pick_up),
        GuardFault("coils-warm", 0, "the coils' bath warms", _BY_B, *_service("warmer_k", sound=0.0), "K", 10.0),
        GuardFault(
            "thermometer-wrong",
            0,
            "one of three thermometers of the coils reads too high",
            "no effect: two of three must agree",
            _thermometer,
            _thermometer_back,
            "K",
            10.0,
        ),
        GuardFault("cooling-low", 0, "cooling flow falls", _BY_B, _flows(3), _flows_back, "permille", 500.0),
        GuardFault(
            "flow-meter-dead",
            0,
            "one of three flow meters reads nothing",
            "no effect: two of three must agree",
            _flows(1),
            _flows_back,
            "permille",
            0.0,
        ),
        GuardFault("vacuum-burst", 35, "the vacuum contact of the beam line opens", _BY_B, *_service("vacuum_good", False)),
        GuardFault("supplies-fail", 36, "the power contact of the supplies opens", _BY_B, *_service("power_good", False)),
        GuardFault(
            "area-radiation",
            0,
            "the area monitor reads too much",
            _BY_B,
            *_service("area_extra_usv_h", sound=0.0),
            "uSv/h",
            100.0,
        ),
    )
}
