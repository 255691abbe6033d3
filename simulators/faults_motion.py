"""Faults of motion and room that a simulated run can plant by name: each a function of the room's plant.

The numbers are rows of the project's fault catalogue. Not responsible for when a fault strikes, nor for what must follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulators.plant.access import DoorFault
from simulators.plant.brake import BrakeFault
from simulators.plant.drive import ERROR_OVERCURRENT
from simulators.plant.gantry import GantryRing
from simulators.plant.room import RoomPlant


@dataclass(frozen=True, slots=True)
class MotionFault:
    """One fault.

    Attributes:
        name: as written on the command line.
        row: of the fault catalogue; 0 when it has none.
        title: what breaks.
        unit: of the value; empty when it takes none.
        default: value when none is given.
        plant: does it.
    """

    name: str
    row: int
    title: str
    unit: str
    default: float
    plant: Callable[[RoomPlant, float], None]


MOTION_FAULTS: dict[str, MotionFault] = {}


def _fault(
    name: str, row: int, title: str, unit: str = "", default: float = 0.0
) -> Callable[[Callable[[RoomPlant, float], None]], Callable[[RoomPlant, float], None]]:
    def register(plant: Callable[[RoomPlant, float], None]) -> Callable[[RoomPlant, float], None]:
        MOTION_FAULTS[name] = MotionFault(name, row, title, unit, default, plant)
        return plant

    return register


def plant_motion_fault(room: RoomPlant, name: str, value: float | None = None) -> None:
    """Plant a fault now. KeyError for an unknown name, ValueError when the room has no ring to break."""
    fault = MOTION_FAULTS[name]
    fault.plant(room, fault.default if value is None else value)


def _ring(room: RoomPlant) -> GantryRing:
    if not isinstance(room.gantry, GantryRing):
        raise ValueError(f"room {room.name} is fixed: it has no ring")
    return room.gantry


# --- encoders -----------------------------------------------------------------------------------------------------


@_fault("load-encoder-frozen", 1, "load encoder repeats its last reading")
def _load_frozen(room: RoomPlant, _value: float) -> None:
    encoders = _ring(room).encoders
    encoders.freeze(encoders.load)


@_fault("load-encoder-jump", 2, "load encoder jumps", "mdeg", 400.0)
def _load_jump(room: RoomPlant, value: float) -> None:
    encoders = _ring(room).encoders
    encoders.load.jump(value)
    encoders.look_ahead()


@_fault("load-encoder-drift", 3, "load encoder drifts", "mdeg/s", 2.0)
def _load_drift(room: RoomPlant, value: float) -> None:
    encoders = _ring(room).encoders
    encoders.load.drift(value)
    encoders.look_ahead()


@_fault("load-encoder-mirrored", 99, "load encoder is mounted the wrong way round")
def _load_mirrored(room: RoomPlant, _value: float) -> None:
    encoders = _ring(room).encoders
    encoders.load.mirror()
    encoders.look_ahead()


@_fault("motor-encoder-frozen", 1, "motor encoder of drive B repeats its last reading")
def _motor_frozen(room: RoomPlant, _value: float) -> None:
    encoders = _ring(room).encoders
    encoders.freeze(encoders.motors[1])


@_fault("motor-encoder-jump", 2, "motor encoder of drive A jumps", "mdeg", 400.0)
def _motor_jump(room: RoomPlant, value: float) -> None:
    encoders = _ring(room).encoders
    encoders.motors[0].jump(value)
    encoders.look_ahead()


@_fault("safety-encoder-frozen", 1, "hard-wired load encoder repeats its last reading")
def _safety_frozen(room: RoomPlant, _value: float) -> None:
    encoders = _ring(room).encoders
    encoders.freeze(encoders.load2)


@_fault("safety-encoder-jump", 2, "hard-wired load encoder jumps", "mdeg", 400.0)
def _safety_jump(room: RoomPlant, value: float) -> None:
    _ring(room).encoders.load2.jump(value)


@_fault("safety-encoder-drift", 3, "hard-wired load encoder drifts", "mdeg/s", 2.0)
def _safety_drift(room: RoomPlant, value: float) -> None:
    _ring(room).encoders.load2.drift(value)


# --- brakes and drives --------------------------------------------------------------------------------------------


@_fault("brake-fails-to-set", 4, "both ring brakes stay open")
def _no_set(room: RoomPlant, _value: float) -> None:
    _ring(room).brakes.set_fault(BrakeFault.FAILS_TO_SET)


@_fault("brake-fails-to-release", 5, "a ring brake stays closed")
def _no_release(room: RoomPlant, _value: float) -> None:
    _ring(room).brakes.set_fault(BrakeFault.FAILS_TO_RELEASE, 0)


@_fault("brake-slow", 6, "a ring brake closes after four times its delay")
def _slow(room: RoomPlant, _value: float) -> None:
    _ring(room).brakes.set_fault(BrakeFault.SLOW, 0)


@_fault("brake-drags", 0, "the ring brakes stay closed while their contacts say open")
def _drags(room: RoomPlant, _value: float) -> None:
    _ring(room).brakes.set_fault(BrakeFault.DRAGS_UNSEEN)


@_fault("drive-fault", 7, "drive B breaks down", "error code", float(ERROR_OVERCURRENT))
def _drive_fault(room: RoomPlant, value: float) -> None:
    _ring(room).fail_drive(1, int(value))


@_fault("drive-ignores-stop", 8, "the ring goes on when it is told to stop")
def _ignores(room: RoomPlant, _value: float) -> None:
    _ring(room).ignores_stop = True


@_fault("drive-weak", 0, "drive B cannot prove its torque")
def _weak(room: RoomPlant, _value: float) -> None:
    _ring(room).torque.weak[1] = True


@_fault("gantry-axis-mirrored", 99, "the motors turn the ring the wrong way round")
def _axis_mirrored(room: RoomPlant, _value: float) -> None:
    _ring(room).reverse_axis()


@_fault("gantry-creeps", 0, "the closed ring brakes slip", "deg/s", 0.02)
def _creeps(room: RoomPlant, value: float) -> None:
    _ring(room).creep(value)


# --- room ---------------------------------------------------------------------------------------------------------


@_fault("door-contact-welded", 33, "door contact a stays closed")
def _welded(room: RoomPlant, _value: float) -> None:
    room.access.set_door_fault(DoorFault.A_WELDED)


@_fault("door-contact-bounce", 34, "the closed door's contact opens for a moment", "s", 0.02)
def _bounce(room: RoomPlant, value: float) -> None:
    room.access.bounce_door(value)


@_fault("door-opened", 89, "someone opens the door and walks in")
def _door_opened(room: RoomPlant, _value: float) -> None:
    room.access.open_door()
    room.access.enter("visitor")


@_fault("estop", 0, "someone presses the E-stop at the console")
def _estop(room: RoomPlant, _value: float) -> None:
    room.access.press_estop(room.access.truth.estop_buttons[0])


@_fault("range-shifter-stuck", 0, "the first range shifter does not move")
def _shifter_stuck(room: RoomPlant, _value: float) -> None:
    room.nozzle.shifters[0].stuck = True


@_fault("range-shifter-switch-lies", 32, "the first range shifter does not move and its switch says it did")
def _shifter_lies(room: RoomPlant, _value: float) -> None:
    room.nozzle.shifters[0].stuck = room.nozzle.shifters[0].switch_lies = True
