"""Connections that live: a loss is noticed within its limit and told once; who answers is asked anew; it ends by itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from drivers.devices.accelerator import Accelerator
from drivers.devices.couch import SixAxisCouch
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.devices.dose_monitor import SecondDoseUnit
from drivers.devices.gantry import RotatingGantry
from drivers.devices.interlock_view import InterlockStatusLine
from drivers.devices.magnets import Magnets
from drivers.devices.nozzle import Nozzle
from drivers.devices.reference_detector import ReferenceDetectorClient
from drivers.devices.room_access import RoomAccessIO
from drivers.hal.errors import BeamlineError, CommunicationError, DeviceError
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality, Reading
from drivers.wire.memory import MemoryChannels, MemoryLine
from drivers.wire.modbus import ModbusClient
from simulators import clock
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.servers.modbus import responder
from simulators.servers.modbus_node import ModbusNode
from simulators.servers.process_variables import PvTable, facility_pvs
from simulators.servers.room_nodes import motion_nodes, safety_nodes
from simulators.world import World

ASAN = load_facility("asan")
ON_STREAMS = {"gantry": "gantry", "couch": "couch", "nozzle": "nozzle", "safety": "room_access", "interlock": "interlock_view"}
ON_CHANNELS = {"accelerator": "ACC", "magnets": "G1:MAG", "delivery-unit": "G1:DU", "dose-unit-2": "G1:DU2"}
DEVICES = [*ON_STREAMS, *ON_CHANNELS]


@dataclass
class Room:
    """One driver on a room of the plant, and what can be done to its wire."""

    world: World
    plant: FacilityPlant
    line: MemoryLine
    nodes: dict[int, ModbusNode]
    table: PvTable
    channels: MemoryChannels
    kind: str
    device: Any
    events: list[Event] = field(default_factory=list)
    identities_asked: int = 0

    @property
    def name(self) -> str:
        """As in the facility file."""
        return self.kind if self.kind == "accelerator" else f"G1-{self.kind}"

    @property
    def deadline_s(self) -> float:
        """How old its values may get."""
        return ASAN.devices[self.name].deadline_ms / 1000.0

    @property
    def streams(self) -> bool:
        """Whether it is on a Modbus line."""
        return self.kind in ON_STREAMS

    def own_nodes(self) -> list[ModbusNode]:
        """Its nodes."""
        return [self.nodes[unit] for unit in ASAN.devices[self.name].unit_ids]

    def told(self) -> list[str]:
        """What it told of its connection."""
        return [e.kind.removeprefix("device.") for e in self.events if e.source == self.name and e.kind.startswith("device.")]

    def texts(self) -> str:
        """The words of all of that."""
        return " | ".join(str(e.data) for e in self.events if e.source == self.name)

    def quality(self) -> Quality:
        """The worst of its readings."""
        found = {reading.quality for reading in self.device.readings()}
        return found.pop() if len(found) == 1 else Quality.ALARM

    # --- what happens to it --------------------------------------------------------------------------------------------

    def cut(self) -> None:
        self.line.cut() if self.streams else self.channels.disconnect()

    def silence(self) -> None:
        if self.streams:
            for node in self.own_nodes():
                node.silent = True
        else:
            self.channels.freeze()

    def freeze(self) -> None:
        """It answers, and its counter stands."""
        if self.streams:
            for node in self.own_nodes():
                node.frozen = True
            return
        pv = f"ASAN:{ON_CHANNELS[self.kind]}:STATUS:RB"
        held = np.array(self.table.read(pv))
        self._replace(pv, lambda: held)

    def garble(self) -> None:
        if self.streams:
            self.line.disturb = lambda data, to_server: data if to_server else bytes(255 - b for b in data)
        else:
            self._replace(f"ASAN:{ON_CHANNELS[self.kind]}:STATUS:RB", lambda: np.array([7, 7], dtype=np.int32))

    def exchange(self) -> None:
        """Somebody else answers from now on, after the wire was away."""
        if self.streams:
            self.own_nodes()[-1].add_area(0, 4, lambda: (0x1009, 0x77, 9, 4711))
        else:
            self._replace(f"ASAN:{ON_CHANNELS[self.kind]}:ID:RB", lambda: "a stranger")

    def repair(self) -> None:
        """Everything as it was."""
        self.line.restore()
        self.line.disturb = None
        for node in self.nodes.values():
            node.frozen = node.silent = False
            node._areas = [area for area in node._areas if area[2]() != (0x1009, 0x77, 9, 4711)]
            node._found.clear()
        for name, pv in self._originals.items():
            self.table._pvs[name] = pv
        self._originals.clear()
        self.channels.thaw()
        self.channels.reconnect()

    _originals: dict[str, Any] = field(default_factory=dict)

    def _replace(self, pv: str, get: Callable[[], Any]) -> None:
        self._originals.setdefault(pv, self.table._pvs[pv])
        self.table._pvs[pv] = type(self.table._pvs[pv])(self.table.kind(pv), get)


def connected(kind: str, body: Callable[[Room], Awaitable[None]], *, schedule_seed: int = 3) -> None:
    """Run a test with one connected driver; no task may be left."""

    async def main() -> None:
        plant = FacilityPlant.shipped(Kernel(1), "asan")
        world = World(plant.kernel)
        world.start()
        room = plant.rooms["G1"]
        limits, registers = ASAN.room("G1"), ASAN.registers
        motion = kind in ("gantry", "couch", "nozzle")
        nodes = motion_nodes(room) if motion else safety_nodes(room)
        line = MemoryLine("G1-line", baud=115200 if motion else None)
        line.server.serve(responder(nodes, world.sync, "rtu" if motion else "tcp"))
        pulse = asyncio.create_task(pulsing(nodes)) if kind == "interlock" else None
        table = facility_pvs(plant)
        channels = MemoryChannels(table, world.sync)
        client = ModbusClient("G1-line", line.connect, framing="rtu" if motion else "tcp")
        bus = EventBus()
        stand = Room(world, plant, line, dict(nodes), table, channels, kind, None)
        bus.subscribe(stand.events.append)
        config, name = ASAN.devices[stand.name], stand.name
        makers: dict[str, Callable[[], Any]] = {
            "gantry": lambda: RotatingGantry(name, config, limits, client, registers, bus),
            "couch": lambda: SixAxisCouch(name, config, limits, client, registers, bus),
            "nozzle": lambda: Nozzle(name, config, limits, client, registers, bus),
            "safety": lambda: RoomAccessIO(name, config, client, registers, bus),
            "interlock": lambda: InterlockStatusLine(name, config, client, registers, bus),
            "accelerator": lambda: Accelerator(name, config, channels, bus, ASAN),
            "magnets": lambda: Magnets(name, config, channels, bus),
            "delivery-unit": lambda: DeliveryUnitClient(name, config, channels, bus),
            "dose-unit-2": lambda: SecondDoseUnit(name, config, channels, bus),
        }
        stand.device = makers[kind]()
        count_identities(stand)
        await stand.device.connect()
        stand.events[:] = [e for e in stand.events if not e.kind.startswith("device.")]
        await asyncio.sleep(3.0)
        try:
            await body(stand)
        finally:
            await stand.device.close()
            if pulse is not None:
                pulse.cancel()
                await asyncio.wait([pulse])
            world.stop()
        await asyncio.sleep(0)
        assert [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []

    clock.run(main(), schedule_seed=schedule_seed)


async def pulsing(nodes: Any) -> None:
    """The interlock daemon's pulse."""
    for number in itertools.count(1):
        nodes[2].write(16, [number & 0xFFFF])
        await asyncio.sleep(0.02)


def count_identities(stand: Room) -> None:
    """Count how often its identity is asked for."""
    if stand.streams:
        node = stand.own_nodes()[-1]
        read = node.read

        def counted(register: int, count: int) -> list[int]:
            stand.identities_asked += register == 0
            return read(register, count)

        node.read = counted  # type: ignore[method-assign]
        return
    pv = f"ASAN:{ON_CHANNELS[stand.kind]}:ID:RB"
    entry = stand.table._pvs[pv]
    get = entry.get

    def asked() -> Any:
        stand.identities_asked += 1
        return get()

    stand.table._pvs[pv] = type(entry)(entry.kind, asked)


async def until(condition: Callable[[], bool], within_s: float) -> float:
    """When it became true, s from now; fails when it does not."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while not condition():
        assert loop.time() - began_s < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return loop.time() - began_s


def good(readings: list[Reading[object]]) -> bool:
    return all(reading.quality is Quality.GOOD for reading in readings)


# Polls of a line come at most half a limit late, and three tries of 50 ms for each of three nodes follow.
MARGIN_S = 0.7


@pytest.mark.parametrize("what", ["cut", "silence", "freeze", "garble"])
@pytest.mark.parametrize("kind", DEVICES)
def test_a_loss_is_noticed_in_time_told_once_and_ends_by_itself(kind: str, what: str) -> None:
    async def body(room: Room) -> None:
        assert room.quality() is Quality.GOOD
        asked = room.identities_asked
        getattr(room, what)()
        noticed_s = await until(lambda: room.quality() in (Quality.STALE, Quality.DISCONNECTED), 2 * room.deadline_s)
        assert noticed_s <= room.deadline_s + MARGIN_S
        await until(lambda: room.told() == ["down"], MARGIN_S + room.deadline_s - noticed_s)
        await asyncio.sleep(20.0)
        assert room.told() == ["down"], "told once, however long it lasts"
        assert room.quality() in (Quality.STALE, Quality.DISCONNECTED)
        room.repair()
        await until(lambda: room.quality() is Quality.GOOD, 5.0 + 2 * room.deadline_s)
        await asyncio.sleep(10.0)
        assert room.told() == ["down", "up"]
        assert good(room.device.readings())
        if what == "cut" or room.streams:
            assert room.identities_asked > asked, "nobody asked who answers"

    connected(kind, body)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", DEVICES)
def test_another_device_after_a_reconnection_is_refused_told_once_and_never_believed(kind: str, seed: int) -> None:
    async def body(room: Room) -> None:
        room.cut()
        await asyncio.sleep(room.deadline_s + MARGIN_S)
        assert room.told() == ["down"]
        room.exchange()
        room.line.restore()
        room.channels.reconnect()
        before = room.device.readings()
        asked = room.identities_asked
        for _ in range(1500):
            await asyncio.sleep(0.02)
            assert not any(reading.good for reading in room.device.readings())
        if not room.streams:
            assert [r.value for r in room.device.readings()] == [r.value for r in before], "its values were believed"
        assert room.told() == ["down", "refused"], "told once, in thirty seconds of tries"
        (refused,) = [e for e in room.events if e.kind == "device.refused"]
        assert all(identity in str(refused.data["error"]) for identity in identities(room))
        if kind != "interlock":  # which takes no commands
            with pytest.raises(DeviceError) as raised:
                await command(room)
            assert all(identity in str(raised.value) for identity in identities(room))
        assert room.identities_asked - asked < 20 or not room.streams, "tries without pauses"
        room.repair()
        await until(lambda: room.quality() is Quality.GOOD, 8.0 + room.deadline_s)
        assert room.told() == ["down", "refused", "up"]

    connected(kind, body, schedule_seed=seed)


def identities(room: Room) -> Iterator[str]:
    """What must be in the message: who answers, and who was expected."""
    if room.streams:
        expected = ASAN.devices[room.name].identity.rsplit(",")[-1].rsplit(":")[-1]
        return iter(("product 0x77", f"product 0x{expected}"))
    return iter(("'a stranger'", repr(ASAN.devices[room.name].identity)))


async def command(room: Room) -> None:
    """Something that needs the device."""
    device = room.device
    match room.kind:
        case "gantry":
            await device.move_to(10.0)
        case "couch":
            await device.move_to({"lateral_mm": 10.0})
        case "nozzle":
            await device.set_up(300.0, ())
        case "safety":
            device.request_beam(True)
        case "accelerator":
            await device.select_route("G1")
        case "magnets":
            _, dipole_a, quadrupole_a = await device.read_nameplate()
            await device.set_currents(200_000, dipole_a, quadrupole_a)
        case "delivery-unit":
            await device.set_gate(True)
        case "dose-unit-2":
            await device.start_field(1000, 100)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", list(ON_CHANNELS))
def test_a_glimpse_of_a_disconnection_is_enough_to_ask_again(kind: str, seed: int) -> None:
    """The wire is away for no time at all, and somebody else is there afterwards, with a counter that moves."""

    async def body(room: Room) -> None:
        room.channels.disconnect()
        room.exchange()
        room.channels.reconnect()
        for _ in range(200):
            assert not any(reading.good for reading in room.device.readings())
            await asyncio.sleep(0.0001)
        await asyncio.sleep(2.0)
        assert not any(reading.good for reading in room.device.readings())
        assert room.told() == ["down"]
        assert "'a stranger'" in room.texts() and ASAN.devices[room.name].identity in room.texts()

    connected(kind, body, schedule_seed=seed)


@pytest.mark.parametrize("kind", list(ON_CHANNELS))
def test_the_same_device_after_a_glimpse_of_a_disconnection_is_no_news(kind: str) -> None:
    async def body(room: Room) -> None:
        asked = room.identities_asked
        room.channels.disconnect()
        room.channels.reconnect()
        await until(lambda: good(room.device.readings()), 0.1)
        await asyncio.sleep(3.0)
        assert room.told() == []
        assert room.identities_asked > asked

    connected(kind, body)


def test_what_can_only_end_beam_does_not_wait_for_an_identity() -> None:
    async def body(room: Room) -> None:
        room.channels.disconnect()
        room.exchange()
        room.channels.reconnect()
        await asyncio.sleep(1.0)
        await room.device.abort()
        await room.device.set_gate(False)
        assert not room.plant.rooms["G1"].unit.controller_gate
        with pytest.raises(DeviceError, match="a stranger"):
            await room.device.set_gate(True)
        with pytest.raises(DeviceError, match="a stranger"):
            await room.device.read_latch()
        assert not room.plant.rooms["G1"].unit.controller_gate

    connected("delivery-unit", body)


@pytest.mark.parametrize("kind", ["gantry", "couch", "nozzle", "safety"])
def test_tries_to_reconnect_come_with_growing_pauses_of_5_s_at_most(kind: str) -> None:
    async def body(room: Room) -> None:
        loop = asyncio.get_running_loop()
        opened: list[float] = []
        client_open = room.line.connect

        async def noted() -> Any:
            opened.append(loop.time())
            return await client_open()

        line = room.device._client if hasattr(room.device, "_client") else room.device._node._client
        line._open_stream = noted
        room.cut()
        await asyncio.sleep(40.0)
        pauses = [b - a for a, b in itertools.pairwise(opened)]
        assert pauses[:5] == pytest.approx([0.4, 0.8, 1.6, 3.2, 5.0], abs=0.02)
        assert max(pauses) < 5.1 and len(pauses) >= 8

    connected(kind, body)


# --- queries are repeated, commands never --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(ON_CHANNELS))
def test_a_question_is_asked_again_after_silence_and_a_command_is_not(kind: str) -> None:
    async def body(room: Room) -> None:
        gets: list[str] = []
        puts: list[str] = []
        get, put = room.channels.get, room.channels.put

        async def counted_get(name: str, timeout_s: float = 1.0) -> Any:
            gets.append(name)
            return await get(name, timeout_s)

        async def counted_put(name: str, value: Any, timeout_s: float = 1.0) -> None:
            puts.append(name)
            await put(name, value, timeout_s)

        room.channels.get, room.channels.put = counted_get, counted_put  # type: ignore[method-assign]
        status = f"ASAN:{ON_CHANNELS[room.kind]}:STATUS:RB"
        room.channels.freeze()
        with pytest.raises(CommunicationError):
            await room.device._link.refresh()
        assert gets == [status, status]
        with pytest.raises(BeamlineError):
            await room.device._link.put(f"ASAN:{ON_CHANNELS[room.kind]}:TEST:SP", 1)
        await asyncio.sleep(10.0)
        assert len(puts) == 1
        room.channels.thaw()
        gets.clear()
        room.world.sync()
        await until(lambda: good(room.device.readings()), 3.0)
        await room.device._link.refresh()
        assert gets == [status]

    connected(kind, body)


# --- the reference detector: no heartbeat, asked at each use -----------------------------------------------------------------


def with_reference(body: Callable[[ReferenceDetectorClient, MemoryChannels, FacilityPlant], Awaitable[None]]) -> None:
    async def main() -> None:
        plant = FacilityPlant.shipped(Kernel(1), "asan")
        world = World(plant.kernel)
        world.start()
        channels = MemoryChannels(facility_pvs(plant), world.sync)
        await body(ReferenceDetectorClient("G1-reference", "ASAN:G1:QA", channels), channels, plant)
        world.stop()

    clock.run(main())


def test_an_exchanged_reference_detector_is_refused_by_both_names() -> None:
    async def body(reference: ReferenceDetectorClient, _channels: MemoryChannels, plant: FacilityPlant) -> None:
        await reference.install(True)
        plant.references["G1"].identity = "another screen"
        with pytest.raises(DeviceError, match="answers 'another screen', expected 'iongantry simulated reference G1'"):
            await reference.spots(1)
        with pytest.raises(DeviceError, match="another screen"):
            await reference.install(False)
        assert plant.references["G1"].installed
        plant.references["G1"].identity = "iongantry simulated reference G1"
        assert (await reference.spots(1)).size == 0

    with_reference(body)


@pytest.mark.parametrize("what", ["disconnect", "freeze"])
def test_a_lost_reference_detector_is_told_by_name_in_bounded_time_and_comes_back(what: str) -> None:
    async def body(reference: ReferenceDetectorClient, channels: MemoryChannels, _plant: FacilityPlant) -> None:
        await reference.install(True)
        loop = asyncio.get_running_loop()
        getattr(channels, what)()
        began_s = loop.time()
        with pytest.raises(CommunicationError, match="ASAN:G1:QA:ID:RB"):
            await reference.spots(1)
        assert loop.time() - began_s < 2.1
        channels.thaw()
        channels.reconnect()
        assert (await reference.spots(1)).size == 0

    with_reference(body)


# --- the request for beam ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["cut", "silence", "freeze", "garble"])
def test_a_request_for_beam_ends_with_the_connection_and_does_not_come_back_with_it(what: str) -> None:
    async def body(room: Room) -> None:
        chain = room.plant.rooms["G1"].chain
        room.device.request_beam(True)
        await asyncio.sleep(1.0)
        assert chain.permit_r.value
        getattr(room, what)()
        await until(lambda: not room.device.requested, room.deadline_s + 0.2)
        await asyncio.sleep(0.2)
        room.world.sync()
        assert not chain.permit_r.value
        room.repair()
        await until(lambda: room.quality() is Quality.GOOD, 5.0 + 2 * room.deadline_s)
        await asyncio.sleep(3.0)
        room.world.sync()
        assert not room.device.requested and not chain.permit_r.value
        assert [e.kind for e in room.events if e.kind.startswith("request.")] == ["request.on", "request.dropped"]
        assert room.told() == ["down", "up"]
        room.device.request_beam(True)
        await asyncio.sleep(0.5)
        room.world.sync()
        assert chain.permit_r.value

    connected("safety", body)
