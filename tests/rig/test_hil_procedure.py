"""The rig check in virtual time against the plant's own devices, which follow the same interface document in another code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.hil.report import write_report
from controller.hil.run import HilResult, check_target
from controller.hil.target import Unsuited, find_target
from controller.hil.verdict import DRIVE_CHECKS, PASSIVE_CHECKS, Verdict
from drivers.hal.endpoints import EndpointMap
from drivers.hal.facility import load_facility
from drivers.wire.memory import MemoryLine
from simulators import clock
from simulators.plant.brake import BrakeFault
from simulators.plant.facility import FacilityPlant
from simulators.plant.gantry import GantryRing
from simulators.plant.kernel import Kernel
from simulators.plant.room import RoomPlant
from simulators.servers.modbus import responder
from simulators.servers.room_nodes import motion_nodes, safety_nodes
from simulators.world import World

ASAN = load_facility("asan")
Prepare = Callable[[RoomPlant], None]


def overlay(device: str, *, simulated: bool = True, **rig: object) -> EndpointMap:
    endpoint = "tcp://127.0.0.1:1502" if device in ("G1-safety", "G1-interlock") else "serial:///dev/ttyRIG?baudrate=115200"
    return EndpointMap.model_validate({"devices": {device: {"endpoint": endpoint, "simulated": simulated}}, "rig": rig})


def check(
    device: str, prepare: Prepare | None = None, *, cancel: tuple[str, float] | None = None, trips: int = 0, **rig: object
) -> tuple[HilResult, RoomPlant]:
    """Check a device of a plant on memory wires; `cancel`: the step in which the technician stops it, and how long after."""

    async def main() -> tuple[HilResult, RoomPlant]:
        plant = FacilityPlant.shipped(Kernel(5), "asan")
        world = World(plant.kernel)
        room = plant.rooms["G1"]
        room.gantry.sto.set(True)
        room.gantry.may_move.set(True)  # a rig has no interlock system: its local enable stands for the motion relay
        target = find_target(ASAN, overlay(device, **{"travel_deg": 1.5, **rig}))
        rtu = target.places[0].rtu
        line = MemoryLine("rig", baud=115200 if rtu else None)
        world.start()
        if prepare is not None:
            prepare(room)
        nodes = motion_nodes(room) if rtu else safety_nodes(room)
        if trips:
            nodes[2].write(16, [0, 77, 21, trips])
        line.server.serve(responder(nodes, world.sync, "rtu" if rtu else "tcp"))

        def tell(words: str) -> None:
            if cancel is not None and words.startswith(cancel[0]):
                asyncio.get_running_loop().call_later(cancel[1], task.cancel)

        task = asyncio.ensure_future(check_target(target, lambda _place: line.connect, tell))
        try:
            return await task, room
        finally:
            line.server.shut()
            world.stop()

    return clock.run(main())


def verdicts(result: HilResult) -> dict[str, str]:
    return {check.requirement.id: check.reason for check in result.of(Verdict.FAIL)}


def ring_of(room: RoomPlant) -> GantryRing:
    assert isinstance(room.gantry, GantryRing)
    return room.gantry


def test_the_ring_of_the_plant_conforms() -> None:
    result, room = check("G1-gantry")
    assert verdicts(result) == {}
    assert {check.verdict for check in result.checks} == {Verdict.PASS}
    assert [check.requirement.id for check in result.checks] == list(DRIVE_CHECKS)
    assert result.target.simulated
    assert len(result.traces) == 2
    assert room.gantry.brake_applied and not room.gantry.drive_enabled


def test_one_drive_of_a_ring_alone_says_what_is_missing() -> None:
    """The ring rule: both drives must be enabled with the same target."""
    result, room = check("G1-drive-A")
    assert list(verdicts(result)) == ["enable"]
    assert "operation enabled not reached" in verdicts(result)["enable"]
    assert room.gantry.brake_applied and not room.gantry.drive_enabled


@pytest.mark.parametrize(
    ("plant", "name", "words"),
    [
        (lambda room: room.gantry.sto.set(False), "rest", "torque is held off (STO)"),
        (lambda room: setattr(room.gantry, "ignores_stop", True), "quick_stop", "after the quick stop, allowed"),
        (lambda room: ring_of(room).brakes.set_fault(BrakeFault.FAILS_TO_RELEASE), "enable", "operation enabled not reached"),
        (lambda room: ring_of(room).brakes.set_fault(BrakeFault.DRAGS_UNSEEN), "move", "following error"),
        (lambda room: ring_of(room).fail_drive(0), "rest", ""),
    ],
    ids=["sto", "ignores stop", "brake stays closed", "brake drags", "old fault"],
)
def test_what_is_wrong_with_the_plant_is_found(plant: Prepare, name: str, words: str) -> None:
    result, room = check("G1-gantry", plant)
    if not words:  # a fault that an edge clears is acknowledged, told, and no failure
        row = next(check for check in result.checks if check.requirement.id == name)
        assert "acknowledged 0x2310" in row.measured
        assert result.exit_code == 0
        return
    assert words in verdicts(result).get(name, ""), verdicts(result)
    assert result.exit_code == 3
    assert room.gantry.brake_applied


@pytest.mark.parametrize(
    ("step", "after_s"),
    [
        ("Liveness", 0.1),
        ("Travel limits", 0.01),
        ("Enable", 0.2),
        ("Move", 2.5),
        ("Brake before", 0.05),
        ("Quick stop", 1.2),
        ("Halt when", 2.0),
        ("Loss of link", 1.9),
    ],
)
def test_the_technician_may_stop_it_at_any_time(step: str, after_s: float) -> None:
    result, room = check("G1-gantry", cancel=(step, after_s))
    assert result.interrupted
    assert result.exit_code == 3
    ring = ring_of(room)
    assert ring.brake_applied and not ring.drive_enabled
    assert ring.speed_deg_s(room.kernel.now_ns) == 0.0
    assert result.left in ("at rest, brake applied, not enabled", "never enabled")
    undone = result.of(Verdict.NOT_DONE)
    assert undone and all(check.reason == "stopped by the technician" for check in undone)
    assert not result.of(Verdict.FAIL)


def test_a_travel_that_is_too_short_is_no_failure_but_not_done() -> None:
    result, _ = check("G1-gantry", travel_deg=0.02, speed_deg_s=1.0)
    assert verdicts(result) == {}
    undone = {check.requirement.id: check.reason for check in result.of(Verdict.NOT_DONE)}
    assert set(undone) <= {"quick_stop", "polling_lost", "link_return", "reset_edge"}


def test_the_travel_asked_for_is_never_left() -> None:
    result, _ = check("G1-gantry", travel_deg=2.5)
    for trace in result.traces:
        places = [sample.position_deg for sample in trace.samples]
        assert max(places) - min(places) < 2.6


@pytest.mark.parametrize("device", ["G1-load-encoder", "G1-couch", "G1-nozzle", "G1-safety"])
def test_a_device_that_is_only_looked_at_conforms(device: str) -> None:
    result, room = check(device)
    assert verdicts(result) == {}
    assert [check.requirement.id for check in result.checks] == list(PASSIVE_CHECKS)
    assert result.exit_code == 0
    assert result.left == "never commanded"
    assert result.values
    assert not room.couch.drive_enabled and not room.nozzle.moving


def test_a_report_can_be_written_of_every_device(tmp_path: Path) -> None:
    for device in ("G1-gantry", "G1-load-encoder", "G1-couch", "G1-nozzle", "G1-safety", "G1-interlock"):
        result, _ = check(device, travel_deg=0.5)
        folder = tmp_path / device
        folder.mkdir()
        write_report(result, folder)
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "SIMULATED" in page and "Answer times of the line" in page
        assert json.loads((folder / "hil.json").read_text(encoding="utf-8"))["simulated"]


def test_a_permit_relay_without_its_interlock_system_does_not_live() -> None:
    result, _ = check("G1-interlock")
    assert list(verdicts(result)) == ["liveness"]


def test_a_permit_relay_whose_pulse_is_withheld_is_not_called_dead() -> None:
    result, _ = check("G1-interlock", trips=3)
    assert verdicts(result) == {}
    (undone, *_) = result.of(Verdict.NOT_DONE)
    assert "withholds its pulse: 3 active trips" in undone.reason
    assert result.values["active trips"] == "3"


def test_a_load_encoder_that_wanders_or_lies_is_found() -> None:
    result, _ = check("G1-load-encoder", lambda room: ring_of(room).encoders.load.drift(300.0))
    assert "wanders by" in verdicts(result)["steady"]
    result, _ = check("G1-load-encoder", lambda room: ring_of(room).encoders.load.jump(250_000.0))
    assert "is outside" in verdicts(result)["plausible"]


def test_switches_and_light_barriers_that_differ_are_found() -> None:
    def lie(room: RoomPlant) -> None:
        room.nozzle.shifters[0].switch_lies = True
        room.nozzle.shifters[0].commanded = True

    result, _ = check("G1-nozzle", lie)
    assert "light barriers" in verdicts(result)["plausible"]


def test_encoders_of_the_safety_io_that_differ_are_found() -> None:
    result, _ = check("G1-safety", lambda room: ring_of(room).encoders.load2.jump(500.0))
    assert "differ by more than 0.2 deg" in verdicts(result)["plausible"]


@pytest.mark.parametrize(
    ("endpoints", "device", "words"),
    [
        ({"devices": {"G1-drive-A": {"endpoint": "serial:///dev/ttyUSB0"}}}, None, "names no local stop"),
        (
            {"devices": {"G1-drive-A": {"endpoint": "memory:G1-motion"}}, "rig": {"local_stop": "b"}},
            None,
            "outside the process that simulates",
        ),
        ({"devices": {"G1-drive-Z": {"endpoint": "serial:///dev/ttyUSB0"}}}, None, "facility asan has none"),
        ({"devices": {"G1-drive-A": {"endpoint": "usb:0"}}}, None, "starts with none of"),
        ({"devices": {"G1-drive-A": {"endpoint": "ca://h:1"}}}, None, "no stream wire"),
        ({"devices": {"accelerator": {"endpoint": "ca://h:1"}}}, None, "there is no procedure for it"),
        ({"devices": {}}, None, "no device is named"),
        ({"devices": {"G1-couch": {"endpoint": "tcp://h:1"}, "G1-nozzle": {"endpoint": "tcp://h:2"}}}, None, "say which one"),
        ({"devices": {"G1-couch": {"endpoint": "tcp://h:1"}}}, "G1-nozzle", "does not say where it answers"),
        ({"facility": "qst", "devices": {"G1-couch": {"endpoint": "tcp://h:1"}}}, None, "not of asan"),
        ({"devices": {"G1-drive-A": {"endpoint": "serial:///dev/t"}}, "rig": {"local_stop": "b"}}, "G1-gantry", "G1-drive-B"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_words(endpoints: dict[str, object], device: str | None, words: str) -> None:
    with pytest.raises(Unsuited) as caught:
        find_target(ASAN, EndpointMap.model_validate(endpoints), device)
    assert words in str(caught.value)


def test_a_real_drive_beside_a_simulated_chain_may_be_checked_alone() -> None:
    """`treat` refuses this map: a real actuator on a simulated chain A. The check enables it by its own local stop."""
    found = find_target(ASAN, overlay("G1-drive-A", simulated=False, local_stop="red button"))
    assert not found.simulated
    assert [(place.label, place.unit, place.vendor, place.product) for place in found.places] == [
        ("G1-drive-A", 1, 0x1009, 0xD1)
    ]


def test_an_overlay_may_name_another_product_and_a_line_for_each_drive() -> None:
    overlay = {
        "devices": {
            "G1-drive-A": {"endpoint": "serial:///dev/ttyUSB0?baudrate=19200", "identity": "D2"},
            "G1-drive-B": {"endpoint": "tcp://10.0.0.2:502?framing=rtu"},
        },
        "rig": {"local_stop": "red button"},
    }
    found = find_target(ASAN, EndpointMap.model_validate(overlay), "G1-gantry")
    a, b = found.places
    assert (a.product, a.unit, a.baud, a.rtu, a.address) == (0xD2, 1, 19200, True, "serial:///dev/ttyUSB0?baudrate=19200")
    assert (b.product, b.unit, b.baud, b.rtu) == (0xD1, 2, None, True)
    alone = find_target(ASAN, EndpointMap.model_validate(overlay), "G1-drive-B")
    assert [place.label for place in alone.places] == ["G1-drive-B"]
