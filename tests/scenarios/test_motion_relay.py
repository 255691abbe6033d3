"""The motion relay on the plant's truth: what turns is braked when a row asks, when the daemon dies, and by nothing else begun.

The interlock node here reads and writes the registers of the room's own nodes; angles, torque and brakes are the plant's.
"""

from dataclasses import replace

import pytest

from interlocks.daemon import InterlockNode
from interlocks.inputs import gather
from interlocks.matrix import load
from interlocks.permit import PULSE_REGISTER, PULSES_SPAN
from simulators.plant.drive import DriveState
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.servers.room_nodes import safety_nodes

MS = 1_000_000
LIMITS = load()
RELAY_S, POLL_S = 0.1, 0.05
ENABLE = (0x0006, 0x0007, 0x000F)
SPARE_S = 0.03  # when a reading falls between two polls


class Stage:
    """Room G1 with its interlock node, both on plant time; drives are polled by somebody as long as `polled`."""

    def __init__(self):
        self.kernel = Kernel(5)
        self.plant = FacilityPlant.shipped(self.kernel, "asan")
        self.room = self.plant.rooms["G1"]
        self.ring, self.couch, self.chain = self.room.gantry, self.room.couch, self.room.chain
        self.ring.set_sls(False)
        nodes = safety_nodes(self.room)
        self.node = InterlockNode(
            lambda: gather(nodes[1].read),
            lambda *words: nodes[2].write(PULSE_REGISTER, words),
            LIMITS,
            7,
            read_pulses=lambda: nodes[2].read(PULSE_REGISTER, PULSES_SPAN),
        )
        self.relay_node = nodes[2]
        self.alive = True
        self.run(0.3)

    @property
    def now(self):
        return self.kernel.now_ns

    def run(self, seconds, until=lambda: False):
        """Let time pass; returns how long it took."""
        began = self.now
        while self.now < began + round(seconds * 1e9) and not until():
            self.kernel.advance_to(self.now + 10 * MS)
            if self.alive and self.now % (50 * MS) == 0:
                self.node.step(self.now)
            elif self.alive:
                self.node.pulse()
            for drive in (0, 1):
                self.ring.polled(drive)
            self.couch.polled()
        return (self.now - began) / 1e9

    def enable(self):
        for word in ENABLE:
            for drive in self.ring.drives:
                drive.write_controlword(word)
            self.couch.drive.write_controlword(word)
        self.run(1.0)

    def turn(self, to_deg=90.0, deg_s=3.0):
        self.enable()
        self.ring.targets_mdeg[:] = [round(to_deg * 1000.0)] * 2
        self.ring.profile_speed_mdeg_s[:] = [round(deg_s * 1000.0)] * 2
        self.start()
        self.run(8.0)

    def start(self):
        for drive in (1, 0):
            self.ring.drives[drive].write_controlword(0x001F)
            self.ring.drives[drive].write_controlword(0x000F)

    def press(self, role):
        self.node.reset(self.now, role, True)
        self.run(0.1)
        cleared = self.node.reset(self.now, role, False).cleared
        self.run(0.2)
        return cleared

    @property
    def speed(self):
        return abs(self.ring.speed_deg_s(self.now))

    @property
    def held(self):
        return self.speed == 0.0 and self.ring.brake_applied and not self.ring.drive_enabled

    def blind(self):
        """What the drives compare stands still and agrees: only the second load encoder sees the ring."""
        for encoder in (self.ring.encoders.load, *self.ring.encoders.motors):
            self.ring.encoders.freeze(encoder)

    @property
    def stopping_s(self):
        truth = self.ring.truth
        return (
            3.0 / truth.stop_deceleration_deg_s2 + truth.stop_deceleration_deg_s2 / truth.stop_jerk_deg_s3 + truth.brake_set_s
        )


def test_a_ring_whose_encoders_part_while_it_turns_is_braked_within_its_time():
    stage = Stage()
    stage.turn()
    assert stage.speed == pytest.approx(3.0, abs=0.01)
    stage.blind()
    apart_s = 0.2 / 3.0
    before_s = stage.run(1.0, lambda: not stage.chain.motion_permit.value)
    assert before_s <= apart_s + POLL_S + RELAY_S + SPARE_S
    assert stage.node.decision.tripped[-1] == "RING_ENCODERS"
    took_s = stage.run(5.0, lambda: stage.held)
    assert took_s <= stage.stopping_s + SPARE_S
    assert stage.held
    assert stage.ring.angle_deg(stage.now) < 30.0, "far from the 90 deg it was sent to"


def test_without_the_relay_the_same_ring_turns_on():
    stage = Stage()
    stage.chain._relay_motion._fall = lambda _t: None  # a bridge across the contact
    stage.turn()
    stage.blind()
    stage.run(5.0)
    assert "RING_ENCODERS" in stage.node.decision.tripped
    assert stage.speed == pytest.approx(3.0, abs=0.01)


def test_a_ring_that_turns_too_fast_is_braked():
    stage = Stage()
    stage.ring.truth = replace(stage.ring.truth, speed_max_deg_s=6.0)
    stage.turn(deg_s=6.0)
    stage.run(10.0, lambda: not stage.chain.motion_permit.value)
    assert stage.speed < 4.5, "stopped on its way to 6 deg/s"
    assert "RING_SPEED" in stage.node.decision.tripped
    stage.run(4.0, lambda: stage.held)
    assert stage.held
    assert not stage.chain.motion_permit.value


@pytest.mark.parametrize("part", ["ring", "couch"])
def test_a_daemon_that_dies_or_freezes_stops_what_moves(part):
    stage = Stage()
    if part == "ring":
        stage.turn()
    else:
        stage.enable()
        stage.couch.targets[:] = [200.0, 100.0, -50.0, 0.0, 0.0, 0.0]
        stage.couch.drive.write_controlword(0x001F)
        stage.run(1.0)
        assert abs(stage.couch.speed(stage.now)).max() > 1.0
    stage.alive = False
    fell_s = stage.run(1.0, lambda: not stage.chain.motion_permit.value)
    assert fell_s <= RELAY_S + 0.02
    if part == "ring":
        assert stage.run(5.0, lambda: stage.held) <= stage.stopping_s + SPARE_S
        assert stage.held
    else:
        stage.run(3.0)
        assert abs(stage.couch.speed(stage.now)).max() == 0.0
        assert stage.couch.brake_applied and not stage.couch.drive_enabled
    assert not any(drive.faulted for drive in (*stage.ring.drives, stage.couch.drive)), "a stop is no fault"


def test_a_number_that_stays_the_same_holds_no_motion():
    stage = Stage()
    stage.turn()
    stage.alive = False
    held = stage.relay_node.read(PULSE_REGISTER, 11)
    stage.run(0.05)
    stage.relay_node.write(PULSE_REGISTER, held)  # a frame that came late says nothing new
    stage.run(0.06)
    assert not stage.chain.motion_permit.value


def test_nothing_starts_while_it_is_withheld_and_a_reset_gives_it_back_and_moves_nothing():
    stage = Stage()
    stage.turn()
    stage.blind()
    stage.run(5.0, lambda: stage.held)
    stage.enable()
    stage.start()
    stage.run(1.0)
    assert stage.held, "no torque while the relay is open"
    assert stage.ring.safety_word(0) & 1, "the drive says STO"
    for encoder in (stage.ring.encoders.load, *stage.ring.encoders.motors):
        encoder.repair()
    stage.run(0.5)
    for role in ("operator", "physicist"):
        assert "RING_ENCODERS" not in stage.press(role)
        assert not stage.chain.motion_permit.value
    assert "RING_ENCODERS" in stage.press("service")
    assert stage.chain.motion_permit.value
    angle = stage.ring.angle_deg(stage.now)
    stage.run(3.0)
    assert stage.held and stage.ring.angle_deg(stage.now) == angle
    assert all(drive.state is DriveState.SWITCH_ON_DISABLED for drive in stage.ring.drives)
    stage.turn()
    assert stage.speed == pytest.approx(3.0, abs=0.01), "who is asked anew moves"


def test_a_room_is_positioned_before_the_key_is_turned_and_beam_waits_for_it():
    stage = Stage()
    assert stage.node.decision.tripped == ("POWER_UP",)
    stage.turn(to_deg=5.0)
    stage.run(3.0)
    assert stage.ring.angle_deg(stage.now) == pytest.approx(5.0, abs=0.1)
    assert not stage.chain.permit_b.value


def test_a_facility_without_its_daemon_moves_nothing():
    plant = FacilityPlant.shipped(Kernel(5), "asan")
    ring, couch = plant.rooms["G1"].gantry, plant.rooms["G1"].couch
    for word in ENABLE:
        for drive in (*ring.drives, couch.drive):
            drive.write_controlword(word)
    plant.kernel.advance_to(2_000 * MS)
    assert not ring.drive_enabled and not couch.drive_enabled
    assert ring.brake_applied and couch.brake_applied
