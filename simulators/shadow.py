"""Real devices drive the plant's model: what they read is where the model's parts are.

So beamline, safety I/O and invariants see the machine that is really there. Pure and in plant time. A reading is carried on at
its speed for a stated time; after that the part counts as lost, and the model says what a plant says when a sensor is
lost: encoder not valid, standstill and torque-off lines open. It never goes back to simulating a part that was real. Not
responsible for how readings arrive (`backdoor`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from simulators.plant.couch import AXES
from simulators.plant.facility import FacilityPlant
from simulators.plant.gantry import GantryRing
from simulators.plant.kernel import Kernel, Timer
from simulators.plant.room import RoomPlant

NS_PER_S = 1_000_000_000
HOLD_MOVING_S = 0.25  # five readings at 20 Hz, assumed: a ring at 3 deg/s is then unknown by less than 1 deg
HOLD_RESTING_S = 2.5  # the deadline of the facility files: a resting machine is polled once a second
STANDS_DEG_S = 0.01  # slower than this it stands: the standstill speed of the plants
COUCH_MOVED = 0.002  # the wire carries thousandths
DRIVES = ("drive-A", "drive-B")


class Part:
    """One real part: when it was read last, and what happens when it is not heard any more.

    Args:
        kernel: plant time.
        lose: makes the model fail safe.
    """

    def __init__(self, kernel: Kernel, lose: Callable[[], None]) -> None:
        self.lost = False
        self.read_ns: int | None = None
        self.values: Mapping[str, float] = {}
        self._kernel = kernel
        self._lose = lose
        self._timer: Timer | None = None

    def heard(self, read_ns: int, values: Mapping[str, float], hold_s: float) -> bool:
        """Take a reading; False when it is not newer than the last, or too old to say anything."""
        if self.read_ns is not None and read_ns <= self.read_ns:
            return False
        self.read_ns, self.values = read_ns, values
        if self._timer is not None:
            self._timer.cancel()
        until_ns = read_ns + round(hold_s * NS_PER_S)
        if until_ns <= self._kernel.now_ns:
            self._gone(self._kernel.now_ns)
            return False
        self.lost = False
        self._timer = self._kernel.at(until_ns, self._gone)
        return True

    def _gone(self, _t_ns: int) -> None:
        self._timer = None
        self.lost = True
        self._lose()


class Shadow:
    """What follows the real devices of a rig.

    Args:
        plant: the model.

    Attributes:
        parts: the real parts heard so far, by name.
    """

    def __init__(self, plant: FacilityPlant) -> None:
        self.parts: dict[str, Part] = {}
        self._plant = plant
        self._kernel = plant.kernel

    def take(self, payload: Mapping[str, Any]) -> None:
        """Take readings, `{"parts": {NAME: {"age_s": .., VALUES}}}`: what each part read `age_s` ago.

        Values: of a drive position_deg, speed_deg_s, enabled, braked; of a load encoder angle_deg, speed_deg_s, valid; of a
        couch its six axes; of a nozzle snout_mm, mask, ripple_filter.

        Raises:
            ValueError: unknown part, or a value that is missing or no number; nothing was taken.
        """
        readings = [(name, *self._reading(name, told)) for name, told in payload.get("parts", {}).items()]
        for name, values, age_s in readings:
            self._take(name, values, self._kernel.now_ns - round(age_s * NS_PER_S))

    def _reading(self, name: str, told: Mapping[str, Any]) -> tuple[dict[str, float], float]:
        room_name, _, part = name.partition("-")
        room = self._plant.rooms.get(room_name)
        wanted = _VALUES.get(part)
        if room is None or wanted is None or (part in (*DRIVES, "load-encoder") and not isinstance(room.gantry, GantryRing)):
            raise ValueError(f"part {name}: the plant has none that a real one could stand in for")
        values = {}
        for key in ("age_s", *wanted):
            value = told.get(key)
            if not isinstance(value, int | float) or not np.isfinite(value):
                raise ValueError(f"part {name}: {key} {value!r} is no number")
            values[key] = float(value)
        age_s = values.pop("age_s")
        if age_s < 0.0:
            raise ValueError(f"part {name}: age_s {age_s:g} is below 0")
        if part == "nozzle" and int(values["mask"]) >> len(room.nozzle.shifters):
            raise ValueError(f"part {name}: mask {int(values['mask']):#x} for {len(room.nozzle.shifters)} range shifters")
        return values, age_s

    def _take(self, name: str, values: Mapping[str, float], read_ns: int) -> None:
        room_name, _, part = name.partition("-")
        room = self._plant.rooms[room_name]
        ring = room.gantry
        if isinstance(ring, GantryRing) and part in DRIVES:
            self._take_drive(name, room_name, ring, DRIVES.index(part), values, read_ns)
        elif isinstance(ring, GantryRing) and part == "load-encoder":
            self._take_encoder(name, ring, values, read_ns)
        elif part == "couch":
            self._take_couch(name, room, values, read_ns)
        else:
            known = self._part(name, room.nozzle.lose_real)
            if known.heard(read_ns, values, HOLD_RESTING_S):
                room.nozzle.follow_real(values["snout_mm"], int(values["mask"]), bool(values["ripple_filter"]))

    def _part(self, name: str, lose: Callable[[], None]) -> Part:
        if name not in self.parts:
            self.parts[name] = Part(self._kernel, lose)
        return self.parts[name]

    def _take_drive(
        self, name: str, room: str, ring: GantryRing, index: int, values: Mapping[str, float], read_ns: int
    ) -> None:
        """The ring is where its real drives are: their mean, each carried on to now."""
        known = self._part(name, lambda: ring.lose_real(index))
        moves = bool(values["enabled"]) or not values["braked"] or abs(values["speed_deg_s"]) >= STANDS_DEG_S
        if not known.heard(read_ns, values, HOLD_MOVING_S if moves else HOLD_RESTING_S):
            return
        speed = _speed(values)
        ring.read_encoder(1000.0 * _now(values, "position_deg", read_ns, self._kernel.now_ns), 1000.0 * speed, drive=index)
        real = [self.parts[f"{room}-{drive}"] for drive in DRIVES if f"{room}-{drive}" in self.parts]
        if any(part.lost for part in real):
            return  # one of two is not heard: the ring stays lost
        now_ns = self._kernel.now_ns
        places = [_now(part.values, "position_deg", part.read_ns or now_ns, now_ns) for part in real]
        ring.follow_real(
            sum(places) / len(places),
            sum(_speed(part.values) for part in real) / len(real),
            torque=any(bool(part.values["enabled"]) for part in real),
            braked=any(bool(part.values["braked"]) for part in real),
        )

    def _take_encoder(self, name: str, ring: GantryRing, values: Mapping[str, float], read_ns: int) -> None:
        known = self._part(name, lambda: ring.load_encoder_valid(False))
        moves = abs(values["speed_deg_s"]) >= STANDS_DEG_S
        if known.heard(read_ns, values, HOLD_MOVING_S if moves else HOLD_RESTING_S):
            angle_deg = _now(values, "angle_deg", read_ns, self._kernel.now_ns)
            ring.read_encoder(1000.0 * angle_deg, 1000.0 * _speed(values))
            ring.load_encoder_valid(bool(values["valid"]))

    def _take_couch(self, name: str, room: RoomPlant, values: Mapping[str, float], read_ns: int) -> None:
        known = self._part(name, room.couch.lose_real)
        before = known.values
        moving = bool(before) and any(abs(values[axis] - before[axis]) > COUCH_MOVED for axis in AXES)
        if known.heard(read_ns, values, HOLD_MOVING_S if moving else HOLD_RESTING_S):
            room.couch.follow_real(np.array([values[axis] for axis in AXES]), moving)


def _speed(values: Mapping[str, float]) -> float:
    """Speed in deg/s; 0 where that counts as standing."""
    speed = values["speed_deg_s"]
    return speed if abs(speed) >= STANDS_DEG_S else 0.0


def _now(values: Mapping[str, float], key: str, read_ns: int, now_ns: int) -> float:
    """A position carried on to now at its speed."""
    return values[key] + _speed(values) * (now_ns - read_ns) / NS_PER_S


_VALUES: Mapping[str, tuple[str, ...]] = {
    "drive-A": ("position_deg", "speed_deg_s", "enabled", "braked"),
    "drive-B": ("position_deg", "speed_deg_s", "enabled", "braked"),
    "load-encoder": ("angle_deg", "speed_deg_s", "valid"),
    "couch": AXES,
    "nozzle": ("snout_mm", "mask", "ripple_filter"),
}
