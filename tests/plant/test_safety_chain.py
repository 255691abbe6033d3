"""What must be true of the permit: all three contributions, in hardware time, with nothing of ours running."""

import itertools

import pytest

from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth, TruthError
from simulators.plant.room import RoomPlant
from simulators.plant.safety_chain import ELEMENTS, SafetyChain

NS = 1_000_000_000
MS = 1_000_000
US = 1_000
ROOMS = MotionTruth.load("asan").rooms


class Bench:
    def __init__(self):
        self.kernel = Kernel(1)
        self.chain = SafetyChain(self.kernel, "G1", ROOMS["G1"].chain)
        self.events = []
        self.kernel.observe(self.events.append)

    def wait(self, ns):
        self.kernel.advance_to(self.kernel.now_ns + ns)

    def heal(self):
        for line in self.chain.elements.values():
            line.set(True)
        self.wait(20 * MS)

    def enable(self):
        self.heal()
        self.chain.pulse_b(1)
        self.chain.pulse_r(1)


@pytest.mark.parametrize("element", ELEMENTS)
def test_any_open_element_takes_the_permit_away_within_200_us(element):
    bench = Bench()
    bench.enable()
    assert bench.chain.beam_enable.value
    bench.chain.elements[element].set(False)
    bench.wait(200 * US)
    assert not bench.chain.permit_a.value and not bench.chain.beam_enable.value
    assert bench.chain.first_out.element == element and bench.chain.first_out.first


def test_a_hasty_recovery_does_not_undo_a_fall():
    bench = Bench()
    bench.enable()
    bench.chain.door_ok.set(False)
    bench.wait(10 * US)
    bench.chain.door_ok.set(True)
    bench.wait(200 * US)
    assert not bench.chain.permit_a.value
    bench.wait(20 * MS)
    assert bench.chain.permit_a.value


def test_beam_needs_all_three_contributions():
    for a, b, r in itertools.product((False, True), repeat=3):
        bench = Bench()
        if a:
            bench.heal()
        if b:
            bench.chain.pulse_b(7)
        if r:
            bench.chain.pulse_r(7)
        assert bench.chain.beam_enable.value == (a and b and r)


@pytest.mark.parametrize("which", ["b", "r"])
def test_a_pulse_relay_falls_100_ms_after_the_last_change(which):
    bench = Bench()
    pulse = getattr(bench.chain, f"pulse_{which}")
    line = getattr(bench.chain, f"permit_{which}")
    pulse(0)
    assert not line.value  # what stood there at power-up is not a pulse
    for value in (1, 2, 1, 2):
        pulse(value)
        changed_ns = bench.kernel.now_ns
        bench.wait(90 * MS)
        assert line.value
        assert bench.chain.last_pulse_ns(which.upper()) == changed_ns
    for _ in range(5):  # a stuck value is not a pulse
        pulse(2)
        bench.wait(5 * MS)
    assert not line.value


def test_first_out_is_the_first_and_stays_until_the_chain_was_whole_again():
    bench = Bench()
    bench.heal()
    bench.chain.quench_ok.set(False)
    bench.wait(MS)
    bench.chain.door_ok.set(False)
    assert bench.chain.first_out.element == "quench"
    assert [f.element for f in bench.chain.evidence] == ["quench", "door"]
    assert [f.first for f in bench.chain.evidence] == [True, False]
    bench.heal()
    assert bench.chain.first_out.element == "quench"
    bench.chain.dose2_ok.set(False)
    assert bench.chain.first_out.element == "dose2"


def test_a_fall_is_a_trip_only_when_beam_was_possible_or_armed():
    for armed, enabled in itertools.product((False, True), repeat=2):
        bench = Bench()
        bench.heal()
        bench.chain.armed = armed
        if enabled:
            bench.chain.pulse_b(1)
            bench.chain.pulse_r(1)
        bench.chain.torque_off_ok.set(False)
        trips = [e.data["element"] for e in bench.events if e.kind == "trip"]
        assert trips == (["torque_off"] if armed or enabled else [])


def test_truth_tells_of_each_change_of_the_permit():
    bench = Bench()
    bench.enable()
    bench.wait(200 * MS)
    told = [(e.data["which"], e.data["value"]) for e in bench.events if e.kind == "permit"]
    assert told == [
        ("A", True),
        ("B", True),
        ("R", True),
        ("beam_enable", True),
        ("B", False),
        ("beam_enable", False),
        ("R", False),
    ]


def healthy_room(name="G1"):
    """A room whose beam side is healthy, searched and closed, with both pulses running."""
    kernel = Kernel(1)
    room = RoomPlant(kernel, ROOMS[name])
    for line in (room.chain.dose1_ok, room.chain.dose2_ok, room.chain.quench_ok):
        line.set(True)
    access = room.access
    access.enter("operator")
    for button in access.truth.search_buttons:
        access.press_search(button)
    access.leave("operator")
    access.close_door()
    kernel.advance_to(kernel.now_ns + 4 * NS)
    room.chain.pulse_b(1)
    room.chain.pulse_r(1)
    return room


@pytest.mark.parametrize("name", ["G1", "G2", "F1"])
def test_a_room_at_rest_searched_and_closed_can_have_beam(name):
    assert healthy_room(name).chain.beam_enable.value


def test_an_estop_takes_beam_and_torque_away_with_every_process_dead():
    room = healthy_room()
    for drive in room.gantry.drives:
        for word in (0x06, 0x07, 0x0F):
            drive.write_controlword(word)
    room.kernel.advance_to(room.kernel.now_ns + 50 * MS)
    room.chain.pulse_r(2)
    room.chain.pulse_b(2)
    assert room.gantry.drive_enabled
    room.access.press_estop("console")
    room.kernel.advance_to(room.kernel.now_ns + 200 * US)
    assert not room.chain.beam_enable.value
    assert not room.gantry.drive_enabled and room.gantry.brake_applied


def test_torque_on_the_ring_or_a_moving_couch_withholds_the_permit():
    room = healthy_room()
    ring = room.gantry
    for drive in ring.drives:
        for word in (0x06, 0x07, 0x0F):
            drive.write_controlword(word)
    room.kernel.advance_to(room.kernel.now_ns + MS)
    assert room.chain.standstill_ok.value and not room.chain.torque_off_ok.value
    assert not room.chain.permit_a.value
    nozzle = healthy_room()
    nozzle.nozzle.set_mask(1)
    assert not nozzle.chain.standstill_ok.value


def test_the_ring_is_limited_to_safe_speed_unless_the_room_is_secured():
    room = healthy_room()
    assert not room.gantry.sls_active
    room.access.open_door()
    assert room.gantry.sls_active


def test_the_stopper_needs_route_and_permit():
    room = healthy_room()
    assert room.stopper_closed
    room.route = lambda: "G1"
    assert not room.stopper_closed
    room.access.open_door()
    room.kernel.advance_to(room.kernel.now_ns + MS)
    assert not room.stopper_closed  # it takes its time, and its end switch tells
    room.kernel.advance_to(room.kernel.now_ns + NS)
    assert room.stopper_closed


def test_a_fixed_room_takes_its_angle_from_the_route_and_never_moves():
    room = healthy_room("F1")
    assert room.gantry.angle_deg(0) == 0.0
    room.route = lambda: "F1:90"
    assert room.gantry.angle_deg(0) == 90.0
    assert room.gantry.load_encoder2_mdeg(0) == 90_000
    assert room.gantry.brake_applied and not room.gantry.drive_enabled
    room.route = lambda: "G1"
    assert room.gantry.angle_deg(0) == 0.0


def test_every_shipped_plant_has_its_motion_tables():
    assert set(MotionTruth.load("asan").rooms) == {"G1", "G2", "F1"}
    assert set(MotionTruth.load("qst").rooms) == {"G1", "F1", "F2"}
    assert set(MotionTruth.load("research").rooms) == {"R1"}
    assert MotionTruth.load("asan").rooms["F1"].gantry is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gantry": {"speed": 3.0}}, "unknown speed"),
        ({"gantry": {"hard_limit_deg": 179.0}}, "limits must rise"),
        ({"couch": {"speed": [1.0]}}, "needs 6"),
        ({"chain": {"permit_fall_us": "fast"}}, "permit_fall_us"),
        ({"kind": "moving"}, "neither"),
        ({"kind": "fixed"}, "at least one port"),
    ],
)
def test_a_wrong_table_is_refused_by_name(change, words):
    import tomllib
    from pathlib import Path

    import simulators.plants

    file = Path(next(iter(simulators.plants.__path__))) / "asan.motion.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    table["rooms"] = {"G1": change}
    with pytest.raises(TruthError, match=words):
        MotionTruth.from_table(table)
