"""A gantry room of the plant served on real wires, for tests of this folder: pty with line time, Modbus TCP, RTU over TCP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from drivers.wire.modbus import ModbusClient
from drivers.wire.serial_stream import serial_opener
from drivers.wire.tcp_stream import tcp_opener
from simulators.plant.gantry import GantryRing
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.room import RoomPlant
from simulators.servers.modbus import ModbusNodes, motion_nodes, safety_nodes
from simulators.servers.modbus_ports import PtyPort, TcpPort
from simulators.world import World

BAUD = 115200
WIRES = ("pty", "tcp", "rtu over tcp")


@dataclass
class Bench:
    """A room and its servers, none of them started."""

    plant: RoomPlant
    world: World
    motion: ModbusNodes
    ports: dict[str, PtyPort | TcpPort]
    safety: TcpPort

    @property
    def ring(self) -> GantryRing:
        assert isinstance(self.plant.gantry, GantryRing)
        return self.plant.gantry

    def angle_mdeg(self) -> int:
        """Where the ring truly is."""
        self.world.sync()
        return round(self.ring.angle_deg(self.world.now_ns) * 1000)

    def client(self, wire: str, timeout_s: float = 0.3) -> ModbusClient:
        """A client of ours for a wire, not yet connected. Patient: a busy machine stalls."""
        return client_of(self.ports[wire], timeout_s)


def client_of(port: PtyPort | TcpPort, timeout_s: float = 0.3) -> ModbusClient:
    """A client of ours for a port that has been started."""
    if isinstance(port, PtyPort):
        return ModbusClient(port.endpoint, serial_opener(str(port.path), BAUD), timeout_s=timeout_s)
    return ModbusClient(port.endpoint, tcp_opener(port.host, port.port), framing=port.framing, timeout_s=timeout_s)


@asynccontextmanager
async def motion_bench(directory: Path) -> AsyncIterator[Bench]:
    """A room with its motion line on three wires at once and its safety line, all serving."""
    kernel = Kernel(seed=1)
    plant = RoomPlant(kernel, MotionTruth.load("asan").rooms["G1"])
    world = World(kernel)
    world.start()
    nodes = motion_nodes(plant)
    ports: dict[str, PtyPort | TcpPort] = {
        "pty": PtyPort(nodes, world.sync, baud=BAUD, link=directory / "G1-motion"),
        "tcp": TcpPort(nodes, world.sync),
        "rtu over tcp": TcpPort(nodes, world.sync, framing="rtu"),
    }
    bench = Bench(plant, world, nodes, ports, TcpPort(safety_nodes(plant), world.sync))
    for port in (*ports.values(), bench.safety):
        await port.start()
    try:
        yield bench
    finally:
        for port in (*ports.values(), bench.safety):
            await port.stop()
        world.stop()


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """What runs inside leaves no descriptor, no task, and no error that nobody caught."""
    loop = asyncio.get_running_loop()
    errors: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: errors.append(context))
    before, tasks = descriptors(), asyncio.all_tasks()
    yield
    await until(lambda: descriptors() <= before and asyncio.all_tasks() <= tasks)
    assert descriptors() <= before
    assert asyncio.all_tasks() <= tasks
    assert not errors


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for a condition; gives up quietly, what is asserted next says it better."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not condition() and loop.time() < deadline_s:  # noqa: ASYNC110 - what is waited for tells nobody
        await asyncio.sleep(0.005)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
