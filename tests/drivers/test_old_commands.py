"""A motion command that took too long does nothing: it is not sent, or the device drops it; stops always arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_nodes import FakeNode, FakeRing, serve

from drivers.devices.couch import SixAxisCouch
from drivers.devices.gantry import RotatingGantry
from drivers.devices.nozzle import Nozzle
from drivers.hal.errors import BeamlineError, CommunicationError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Facility, load_facility
from drivers.hal.facility_check import check_facility
from drivers.hal.register_map import AGED_COMMANDS
from drivers.wire.framing import ServerFramer
from drivers.wire.memory import MemoryLine
from drivers.wire.modbus import TOO_OLD, WAITED, ModbusClient
from simulators import clock
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.room import RoomPlant
from simulators.servers.modbus import responder
from simulators.servers.room_nodes import motion_nodes
from simulators.world import World

ASAN = load_facility("asan")
LATE_S = 0.5


class Late:
    """Keeps chosen command frames back for `LATE_S`: the answer is missed, the frame arrives all the same."""

    def __init__(self, line: MemoryLine, units: tuple[int, ...], chosen: Callable[[int], bool]) -> None:
        self._line = line
        self._units = units
        self._chosen = chosen
        self.seen = 0
        self.kept = 0
        self._again: list[bytes] = []
        line.disturb = self

    def __call__(self, data: bytes, to_server: bool) -> bytes:
        if to_server and data not in self._again:
            requests = ServerFramer("rtu", self._units).feed(data)
            if requests and requests[0].write_values:
                self.seen += 1
                if self._chosen(self.seen):
                    self.kept += 1
                    self._again.append(data)
                    asyncio.get_running_loop().call_later(LATE_S, self._line.carry, self._line.client, data)
                    return b""
        return data


def on_the_motion_line(body: Callable[[RoomPlant, World, MemoryLine, dict[str, Any]], Awaitable[None]], **more: Any) -> None:
    """Couch, nozzle and gantry of a secured room of the plant, on one line."""

    async def main() -> None:
        kernel = Kernel(1)
        plant = RoomPlant(kernel, MotionTruth.load("asan").rooms["G1"])
        world = World(kernel)
        world.start()
        for button in plant.access.truth.search_buttons:
            plant.access.press_search(button)
        plant.access.close_door()
        line = MemoryLine("G1-motion", baud=115200)
        line.server.serve(responder(motion_nodes(plant), world.sync))
        client, bus = ModbusClient("G1-motion", line.connect), EventBus()
        registers, room = more.get("registers", ASAN.registers), ASAN.room("G1")
        drivers: dict[str, Any] = {
            "gantry": RotatingGantry("G1-gantry", ASAN.devices["G1-gantry"], room, client, registers, bus),
            "couch": SixAxisCouch("G1-couch", ASAN.devices["G1-couch"], room, client, registers, bus),
            "nozzle": Nozzle("G1-nozzle", ASAN.devices["G1-nozzle"], room, client, registers, bus),
        }
        await asyncio.sleep(5.0)
        for driver in drivers.values():
            await driver.connect()
        await body(plant, world, line, drivers)
        for driver in drivers.values():
            await driver.close()
        world.stop()

    clock.run(main(), schedule_seed=2)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["gantry", "couch"])
def test_a_move_of_which_one_command_comes_late_ends_at_rest_and_nothing_stirs_afterwards(kind: str, number: int) -> None:
    async def body(plant: RoomPlant, world: World, line: MemoryLine, drivers: dict[str, Any]) -> None:
        late = Late(line, (1, 2, 10), lambda n: n == number)
        device = plant.gantry if kind == "gantry" else plant.couch
        with pytest.raises(BeamlineError):
            await drivers[kind].move_to(20.0 if kind == "gantry" else {"longitudinal_mm": 300.0})
        assert late.kept == 1
        await asyncio.sleep(5.0)
        world.sync()
        assert device.brake_applied and not device.drive_enabled
        at = [plant.gantry.angle_deg(world.now_ns), *plant.couch.position(world.now_ns)]
        await asyncio.sleep(30.0)
        world.sync()
        assert [plant.gantry.angle_deg(world.now_ns), *plant.couch.position(world.now_ns)] == at

    on_the_motion_line(body)


def test_a_range_shifter_that_was_asked_for_too_late_stays_out() -> None:
    async def body(plant: RoomPlant, world: World, line: MemoryLine, drivers: dict[str, Any]) -> None:
        Late(line, (20,), lambda n: n == 1)
        with pytest.raises(CommunicationError):
            await drivers["nozzle"].set_up(None, ["RS30"])
        await asyncio.sleep(20.0)
        world.sync()
        assert plant.nozzle.inserted == () and not plant.nozzle.shifters[0].commanded
        await drivers["nozzle"].set_up(None, ["RS30"])
        assert plant.nozzle.inserted == ("RS30",)

    on_the_motion_line(body)


def test_a_target_given_up_does_not_replace_the_next_one() -> None:
    """The couch was sent to one place, the frame got stuck, the user sends it to another: it must not end at the first."""

    async def body(plant: RoomPlant, world: World, line: MemoryLine, drivers: dict[str, Any]) -> None:
        late = Late(line, (10,), lambda n: n == 1)
        with pytest.raises(CommunicationError):
            await drivers["couch"].move_to({"lateral_mm": 150.0})
        await asyncio.sleep(0.2)
        await drivers["couch"]._node.connection.open()
        await drivers["couch"].move_to({"lateral_mm": -20.0})
        assert late.kept == 1
        world.sync()
        assert plant.couch.position(world.now_ns)[0] == pytest.approx(-20.0, abs=0.6)
        assert plant.couch.targets[0] == -20.0

    on_the_motion_line(body)


def test_the_driver_names_a_command_that_the_device_dropped() -> None:
    """A client that was stopped between reading and commanding (or a clock that stood) sends an old token."""

    async def body(plant: RoomPlant, world: World, line: MemoryLine, drivers: dict[str, Any]) -> None:
        node = drivers["nozzle"]._node
        await node.read()
        words = node.words
        await asyncio.sleep(0.3)
        node.words = words
        with pytest.raises(DeviceError, match="the command is too old, nothing was changed") as raised:
            await node.command("shifter_mask", [1], 0.2)
        assert raised.value.code == TOO_OLD
        assert not plant.nozzle.moving

    on_the_motion_line(body)


# --- what waits too long is not sent --------------------------------------------------------------------------------------


def on_a_busy_line(body: Callable[[FakeNode, ModbusClient], Awaitable[None]]) -> None:
    async def main() -> None:
        line = MemoryLine("slow", baud=9600)
        node = FakeNode(0xD1, 41)
        server = asyncio.ensure_future(serve(line, {1: node}))
        client = ModbusClient("slow", line.connect, timeout_s=1.0)
        await client.connect()
        await body(node, client)
        server.cancel()
        await asyncio.wait([server])

    clock.run(main(), schedule_seed=1)


def test_a_command_that_waits_more_than_200_ms_for_the_line_is_withheld_by_name() -> None:
    async def body(node: FakeNode, client: ModbusClient) -> None:
        others = [asyncio.ensure_future(client.read(1, 0, 100)) for _ in range(4)]  # 0.25 s each
        await asyncio.sleep(0.001)
        with pytest.raises(CommunicationError, match=r"waited 9\d\d ms for the line, limit 200 ms: not sent") as raised:
            await client.write(1, 16, [0x0F], within_s=0.2)
        assert raised.value.code == WAITED
        assert node.writes == []
        await asyncio.wait(others)

    on_a_busy_line(body)


def test_a_stop_is_never_withheld_and_passes_the_line() -> None:
    async def body(node: FakeNode, client: ModbusClient) -> None:
        others = [asyncio.ensure_future(client.read(1, 0, 100)) for _ in range(4)]
        await asyncio.sleep(0.001)
        await client.write(1, 16, [2], urgent=True)
        assert len(node.writes) == 1 and sum(other.done() for other in others) <= 1
        await asyncio.wait(others)
        await client.write(1, 16, [0x0F], within_s=0.2)
        assert [values for _, _, values in node.writes] == [(2,), (0x0F,)]

    on_a_busy_line(body)


# --- drives without a token ------------------------------------------------------------------------------------------------


def without_tokens() -> dict[str, dict[str, int]]:
    return {
        table: {name: address for name, address in entries.items() if name not in AGED_COMMANDS}
        for table, entries in ASAN.registers.items()
    }


def test_a_drive_that_has_no_token_is_commanded_without() -> None:
    async def main() -> None:
        ring, line = FakeRing(), MemoryLine("foreign", baud=115200)
        server = asyncio.ensure_future(serve(line, ring.nodes))
        client = ModbusClient("foreign", line.connect)
        config = ASAN.devices["G1-gantry"]
        gantry = RotatingGantry("G1-gantry", config, ASAN.room("G1"), client, without_tokens(), EventBus())
        await gantry.connect()
        await gantry.move_to(10.0)
        assert ring.angle_deg == pytest.approx(10.0)
        assert all(not node.tokens for node in ring.nodes.values())
        targets = [(register, len(values)) for _, register, values in ring.nodes[1].writes if register != 16]
        assert targets == [(17, 7)], "mode, target, velocity, acceleration, and nothing before them"
        await gantry.close()
        server.cancel()
        await asyncio.wait([server])

    clock.run(main())


def test_our_own_devices_refuse_a_driver_that_sends_no_tokens() -> None:
    async def body(plant: RoomPlant, world: World, line: MemoryLine, drivers: dict[str, Any]) -> None:
        for name, command in (("gantry", 10.0), ("couch", {"lateral_mm": 5.0})):
            with pytest.raises(DeviceError, match="too old"):
                await drivers[name].move_to(command)
        world.sync()
        assert plant.gantry.brake_applied and plant.couch.brake_applied

    on_the_motion_line(body, registers=without_tokens())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"command_token": None}, "registers.drive.cycles: needs command_token, or neither"),
        ({"cycles": None}, "registers.drive.command_token: needs cycles, or neither"),
        ({"command_token": 10}, "registers.drive.command_token: at 10, controlword at 16; one frame must carry both"),
        ({"cycles": 50}, "registers.drive.cycles: at 50, the counter at 41"),
        ({"command_token": None, "cycles": None}, ""),
    ],
)
def test_a_facility_file_names_both_registers_where_one_frame_can_carry_them(
    change: dict[str, int | None], reason: str
) -> None:
    raw = ASAN.model_dump()
    table = {**raw["registers"]["drive"], **change}
    raw["registers"]["drive"] = {name: address for name, address in table.items() if address is not None}
    reasons = [r for r in check_facility(Facility.model_validate(raw)) if "drive" in r]
    assert (reasons == []) if not reason else any(reason in r for r in reasons), reasons
