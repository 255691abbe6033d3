"""Foreign programs on our wires: mbpoll reads the simulated room, and pymodbus's own server answers our client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from modbus_bench import BAUD, WIRES, client_of, motion_bench, nothing_left
from witness import system_program

from drivers.devices.gantry import RotatingGantry
from drivers.hal.errors import DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality
from drivers.wire.modbus import ModbusClient
from drivers.wire.routed import RoutedClient
from drivers.wire.serial_stream import serial_opener
from drivers.wire.tcp_stream import tcp_opener
from simulators.servers.modbus_ports import PtyPort, TcpPort
from simulators.servers.pty_line import PtyLine

pytestmark = pytest.mark.xdist_group("wires")

ASAN = load_facility("asan")
TIMEOUT_S = 0.12  # of a client whose server shares its process: a busy machine stalls both


async def mbpoll(port: PtyPort | TcpPort, node: int, register: int, count: int) -> list[int]:
    """Holding registers as mbpoll reads them; `-0` makes it count from 0 as docs/wires.md does."""
    program = system_program("mbpoll", "mbpoll")
    if isinstance(port, PtyPort):
        where = ["-m", "rtu", "-b", str(BAUD), "-P", "none", str(port.path)]
    else:
        where = ["-m", "tcp", "-p", str(port.port), port.host]
    asked = ["-a", str(node), "-0", "-r", str(register), "-c", str(count), "-t", "4:hex", "-1", "-o", "2"]
    process = await asyncio.create_subprocess_exec(
        program, *asked, *where, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    found = {int(r): int(v, 16) for r, v in re.findall(r"^\[(\d+)\]:\s+0x([0-9A-F]{4})", out.decode(), re.MULTILINE)}
    return [found[at] for at in range(register, register + count)]


@pytest.mark.parametrize("wire", ["pty", "tcp"])
async def test_mbpoll_reads_the_plants_truth(wire: str, tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        port = bench.ports[wire]
        for drive, name in ((1, "A"), (2, "B")):
            assert (await mbpoll(port, drive, 0, 4))[:2] == [0x1009, 0xD1], name
            statusword, _, high, low = await mbpoll(port, drive, 32, 4)
            assert statusword == bench.ring.drives[drive - 1].statusword
            assert statusword & 0x6F == 0x40  # CiA 402: switch on disabled
            position_mdeg = int.from_bytes(bytes((high >> 8, high & 255, low >> 8, low & 255)), signed=True)
            truth_mdeg = bench.ring.motor_encoder_mdeg(drive - 1, bench.world.now_ns)
            assert abs(position_mdeg - truth_mdeg) <= 2  # its noise
            assert abs(position_mdeg - bench.angle_mdeg()) <= 20
        assert (await mbpoll(port, 3, 0, 2)) == [0x1009, 0xE1]
        assert (await mbpoll(port, 10, 0, 2)) == [0x1009, 0xC1]
        assert (await mbpoll(port, 20, 0, 2)) == [0x1009, 0x41]


async def test_mbpoll_reads_the_safety_line_while_others_do(tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        ours = [client_of(bench.safety) for _ in range(3)]
        for client in ours:
            await client.connect()
        identity = await mbpoll(bench.safety, 1, 0, 4)
        assert identity[:2] == [0x1009, 0x51]
        assert [await client.read(1, 0, 4) for client in ours] == [tuple(identity)] * 3
        assert (await mbpoll(bench.safety, 2, 0, 2)) == [0x1009, 0x52]
        assert bench.safety.clients >= 3
        for client in ours:
            await client.close()


async def move_a_ring(directory: Path, *, own_tty: bool) -> None:
    """Turn a simulated ring by our driver; with `own_tty` its drive A is on another pty than the rest."""
    async with motion_bench(directory) as bench:
        rest = PtyPort({n: node for n, node in bench.motion.items() if n != 1}, bench.world.sync, baud=BAUD)
        alone = PtyPort({1: bench.motion[1]}, bench.world.sync, baud=BAUD, link=directory / "drive-A")
        line: ModbusClient | RoutedClient
        if own_tty:
            await bench.ports["pty"].stop()
            await rest.start()
            await alone.start()
            of_a, of_rest = client_of(alone, TIMEOUT_S), client_of(rest, TIMEOUT_S)
            line = RoutedClient("G1-gantry-lines", {1: of_a, 2: of_rest, 3: of_rest})
        else:
            line = bench.client("pty", TIMEOUT_S)
        gantry = RotatingGantry("G1-gantry", ASAN.devices["G1-gantry"], ASAN.room("G1"), line, ASAN.registers, EventBus())
        await gantry.connect()
        state = await gantry.move_to(0.5)
        assert abs(bench.angle_mdeg() - 500) <= 50
        assert state.angle.value == pytest.approx(0.5, abs=0.05)
        assert state.angle.quality is Quality.GOOD
        assert (state.brake_applied, state.standstill, state.enabled) == (True, True, False)
        assert bench.ring.standstill.value
        await gantry.close()
        await line.close()
        if own_tty:
            assert of_a.counts.transactions > 20 < of_rest.counts.transactions
            await rest.stop()
            await alone.stop()


async def test_our_driver_moves_simulated_rings_over_ptys(tmp_path: Path) -> None:
    async with nothing_left(), asyncio.TaskGroup() as both:
        for name in ("one-line", "drive-A-alone"):
            (tmp_path / name).mkdir()
            both.create_task(move_a_ring(tmp_path / name, own_tty=name == "drive-A-alone"))


@asynccontextmanager
async def pymodbus_on(wire: str) -> AsyncIterator[ModbusClient]:
    """pymodbus's own server with one node (5) of 32 holding registers, and our client on the other end of the wire."""
    from pymodbus.server import ModbusSerialServer, ModbusTcpServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    registers = SimData(0, values=[0x1009, 0xD1, 1, 77, *range(4, 32)], datatype=DataType.REGISTERS)
    device = SimDevice(5, [registers])
    if wire == "tcp":
        tcp = ModbusTcpServer(device, address=("127.0.0.1", 0))
        await tcp.serve_forever(background=True)
        port = tcp.transport.sockets[0].getsockname()[1]
        client = ModbusClient("foreign", tcp_opener("127.0.0.1", port), framing="tcp", timeout_s=0.5)
        try:
            yield client
        finally:
            await client.close()
            await tcp.shutdown()
        return
    there = PtyLine(lambda data: here.send(data))  # noqa: PLW0108 - made one after the other
    here = PtyLine(there.send)
    here.open()
    there.open()
    rtu = ModbusSerialServer(device, port=str(there.path), baudrate=BAUD)
    await rtu.serve_forever(background=True)
    client = ModbusClient("foreign", serial_opener(str(here.path), BAUD), timeout_s=0.5)
    try:
        yield client
    finally:
        await client.close()
        await rtu.shutdown()
        here.close()
        there.close()


@pytest.mark.parametrize("wire", ["pty", "tcp"])
async def test_pymodbus_answers_our_client(wire: str) -> None:
    async with nothing_left(), pymodbus_on(wire) as client:
        await client.connect()
        assert await client.read(5, 0, 4) == (0x1009, 0xD1, 1, 77)
        await client.write(5, 16, [7, 65535])
        assert await client.read(5, 15, 4) == (15, 7, 65535, 18)
        assert await client.read_write(5, (16, 2), 16, [9]) == (9, 65535)
        with pytest.raises(DeviceError, match="illegal register address"):
            await client.read(5, 100, 1)
        assert (client.counts.garbled, client.counts.silent) == (0, 0)


@pytest.mark.parametrize("wire", WIRES)
async def test_pymodbus_asks_our_server(wire: str, tmp_path: Path) -> None:
    from pymodbus import FramerType
    from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient

    async with nothing_left(), motion_bench(tmp_path) as bench:
        port = bench.ports[wire]
        client: AsyncModbusSerialClient | AsyncModbusTcpClient
        if isinstance(port, PtyPort):
            client = AsyncModbusSerialClient(str(port.path), baudrate=BAUD, timeout=1)
        else:
            framer = FramerType.RTU if port.framing == "rtu" else FramerType.SOCKET
            client = AsyncModbusTcpClient(port.host, port=port.port, framer=framer, timeout=1)
        assert await client.connect()
        identity = await client.read_holding_registers(0, count=4, device_id=10)
        assert identity.registers[:2] == [0x1009, 0xC1]
        refused = await client.read_holding_registers(500, count=1, device_id=10)
        assert refused.isError()
        assert refused.exception_code == 2
        stopped = await client.write_registers(16, [0x02], device_id=1)  # quick stop: taken whatever the age
        assert not stopped.isError()
        assert bench.motion[1].read(16, 1) == [0x02]
        client.close()
