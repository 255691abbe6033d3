"""Real readings drive the plant's model: safety I/O and lines follow them, and fail safe when they stop or disagree."""

from __future__ import annotations

import pytest

from simulators.plant.facility import FacilityPlant
from simulators.plant.gantry import GantryRing
from simulators.plant.kernel import Kernel
from simulators.servers.room_nodes import motion_nodes, safety_nodes
from simulators.shadow import HOLD_MOVING_S, HOLD_RESTING_S, Shadow

NS = 1_000_000_000
SAFETY, RING_ANGLE, MOTOR_ANGLE, STANDSTILL, CHAIN = 1, 14, 16, 18, 11


class Rig:
    """A plant in virtual time, its shadow, and what its safety I/O says."""

    def __init__(self) -> None:
        self.plant = FacilityPlant.shipped(Kernel(3), "asan")
        self.room = self.plant.rooms["G1"]
        assert isinstance(self.room.gantry, GantryRing)
        self.ring = self.room.gantry
        self.shadow = Shadow(self.plant)
        self.io = safety_nodes(self.room)[SAFETY]
        self.run(1.0)

    def run(self, seconds: float) -> None:
        self.plant.kernel.advance_to(self.plant.kernel.now_ns + round(seconds * NS))

    def tell(self, part: str, age_s: float = 0.0, **values: float) -> None:
        self.shadow.take({"parts": {f"G1-{part}": {"age_s": age_s, **values}}})

    def drives(
        self, position_deg: float, speed_deg_s: float = 0.0, enabled: int = 0, braked: int = 1, age_s: float = 0.0
    ) -> None:
        values = {"position_deg": position_deg, "speed_deg_s": speed_deg_s, "enabled": enabled, "braked": braked}
        for drive in ("drive-A", "drive-B"):
            self.tell(drive, age_s, **values)

    def encoder(self, angle_deg: float, speed_deg_s: float = 0.0, valid: int = 1, age_s: float = 0.0) -> None:
        self.tell("load-encoder", age_s, angle_deg=angle_deg, speed_deg_s=speed_deg_s, valid=valid)

    def angle(self, register: int) -> float:
        high, low = self.io.read(register, 2)
        value = high << 16 | low
        return (value - (1 << 32) if value >> 31 else value) / 1000.0

    @property
    def standstill(self) -> bool:
        return bool(self.io.read(STANDSTILL, 1)[0])


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_ring_is_where_the_real_drives_are(rig: Rig) -> None:
    rig.drives(42.0)
    assert rig.angle(MOTOR_ANGLE) == pytest.approx(42.0, abs=0.01)
    assert rig.angle(RING_ANGLE) == pytest.approx(42.0, abs=0.05)
    assert rig.ring.angle_deg(rig.plant.kernel.now_ns) == pytest.approx(42.0, abs=0.03)
    rig.run(0.5)
    assert rig.standstill


def test_a_turning_real_ring_is_carried_on_between_readings_and_is_no_standstill(rig: Rig) -> None:
    rig.drives(10.0)
    rig.run(0.5)
    for step in range(20):
        rig.drives(10.0 + 0.15 * step, 3.0, enabled=1, braked=0)
        assert not rig.standstill
        assert not rig.ring.torque_off.value
        rig.run(0.05)
        assert rig.angle(MOTOR_ANGLE) == pytest.approx(10.15 + 0.15 * step, abs=0.01)
    rig.drives(13.0)
    rig.run(0.1)
    assert not rig.standstill  # it must have stood for its window
    rig.run(0.3)
    assert rig.standstill
    assert rig.ring.torque_off.value


def test_a_reading_counts_from_when_it_was_taken(rig: Rig) -> None:
    rig.drives(10.0, 2.0, enabled=1, braked=0, age_s=0.1)
    assert rig.angle(MOTOR_ANGLE) == pytest.approx(10.2, abs=0.005)


def test_real_drives_that_are_heard_no_more_open_standstill_and_torque_off(rig: Rig) -> None:
    rig.drives(5.0)
    rig.run(HOLD_RESTING_S - 0.1)
    assert rig.standstill
    rig.run(0.2)
    assert not rig.standstill
    assert not rig.ring.torque_off.value
    rig.run(60.0)
    assert not rig.standstill  # nothing else brings it back
    rig.drives(5.0)
    rig.run(0.5)
    assert rig.standstill
    assert rig.ring.torque_off.value


def test_a_moving_ring_is_lost_sooner_and_stops_being_carried_on(rig: Rig) -> None:
    rig.drives(0.0, 3.0, enabled=1, braked=0)
    rig.run(HOLD_MOVING_S + 0.01)
    place = rig.angle(MOTOR_ANGLE)
    assert place == pytest.approx(3.0 * HOLD_MOVING_S, abs=0.02)
    rig.run(5.0)
    assert rig.angle(MOTOR_ANGLE) == pytest.approx(place, abs=0.01)
    assert not rig.standstill


def test_one_drive_of_two_that_is_lost_keeps_the_ring_lost(rig: Rig) -> None:
    rig.drives(5.0)
    for _ in range(4):
        rig.run(1.0)
        rig.tell("drive-A", position_deg=5.0, speed_deg_s=0.0, enabled=0, braked=1)
    assert not rig.standstill


def test_an_old_reading_says_nothing_new(rig: Rig) -> None:
    rig.drives(5.0)
    rig.run(1.0)
    rig.drives(9.0, age_s=2.0)
    assert rig.angle(MOTOR_ANGLE) == pytest.approx(5.0, abs=0.01)
    rig.run(HOLD_RESTING_S)
    rig.drives(9.0, age_s=HOLD_RESTING_S + 0.5)
    assert not rig.standstill


def test_a_real_load_encoder_that_differs_from_the_simulated_ring_trips_the_encoder_pair(rig: Rig) -> None:
    rig.encoder(0.05)
    rig.run(0.5)
    assert rig.standstill
    assert all(drive.error_code == 0 for drive in rig.ring.drives)
    rig.encoder(0.35)
    rig.run(0.05)
    assert [drive.error_code for drive in rig.ring.drives] == [0x7305, 0x7305]
    assert not rig.standstill
    assert rig.angle(RING_ANGLE) == pytest.approx(0.0, abs=0.05)  # the second encoder is not the real one


def test_a_real_load_encoder_that_goes_on_while_the_simulated_ring_stands_trips_in_time(rig: Rig) -> None:
    rig.encoder(0.0, 1.0)
    rig.run(0.15)
    assert all(drive.error_code == 0 for drive in rig.ring.drives)
    rig.run(0.09)
    assert any(drive.error_code == 0x7305 for drive in rig.ring.drives)
    assert not rig.standstill


def test_a_real_load_encoder_is_read_on_the_motion_line_and_is_not_valid_once_lost(rig: Rig) -> None:
    encoder = motion_nodes(rig.room)[3]
    rig.encoder(0.1)
    status, _, high, low = encoder.read(32, 4)
    assert (status, high << 16 | low) == (1, 100)
    rig.run(HOLD_RESTING_S + 0.01)
    assert encoder.read(32, 1) == [0]
    assert not rig.standstill
    rig.encoder(0.1)
    rig.run(0.5)
    assert encoder.read(32, 1) == [1]
    assert rig.standstill
    rig.encoder(0.1, valid=0)
    assert encoder.read(32, 1) == [0]
    assert not rig.standstill


def test_the_couch_is_where_the_real_one_is(rig: Rig) -> None:
    axes = dict.fromkeys(("lateral_mm", "longitudinal_mm", "vertical_mm", "angle_deg", "pitch_deg", "roll_deg"), 0.0)
    rig.tell("couch", **axes)
    rig.run(0.05)
    rig.tell("couch", **{**axes, "vertical_mm": -30.0})
    assert rig.room.couch.encoder(rig.plant.kernel.now_ns)[2] == -30.0
    assert not rig.room.couch.standstill.value
    rig.run(0.05)
    rig.tell("couch", **{**axes, "vertical_mm": -30.0})
    assert rig.room.couch.standstill.value
    rig.run(HOLD_RESTING_S + 0.1)
    assert not rig.room.couch.standstill.value


def test_the_nozzle_has_in_the_beam_what_the_real_one_has(rig: Rig) -> None:
    rig.tell("nozzle", snout_mm=320.0, mask=2, ripple_filter=1)
    assert rig.room.nozzle.inserted == ("RS60",)
    assert rig.room.nozzle.snout_encoder_mm(rig.plant.kernel.now_ns) == 320.0
    assert rig.room.nozzle.settled.value
    rig.run(HOLD_RESTING_S + 0.1)
    assert rig.room.nozzle.fault
    assert not rig.room.nozzle.settled.value


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("drive-C", {"position_deg": 0.0}, "the plant has none"),
        ("load-encoder", {"angle_deg": 0.0, "speed_deg_s": 0.0}, "valid None"),
        ("load-encoder", {"angle_deg": float("nan"), "speed_deg_s": 0.0, "valid": 1}, "angle_deg nan"),
        ("nozzle", {"snout_mm": 100.0, "mask": 4, "ripple_filter": 0}, "mask 0x4"),
    ],
)
def test_a_reading_that_cannot_be_is_refused_in_words(rig: Rig, part: str, values: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rig.tell(part, **values)
    assert not rig.shadow.parts


def test_nothing_of_a_payload_is_taken_when_a_part_of_it_is_wrong(rig: Rig) -> None:
    good = {"age_s": 0.0, "angle_deg": 1.0, "speed_deg_s": 0.0, "valid": 1}
    with pytest.raises(ValueError, match="G9-couch"):
        rig.shadow.take({"parts": {"G1-load-encoder": good, "G9-couch": {"age_s": 0.0}}})
    assert not rig.shadow.parts
