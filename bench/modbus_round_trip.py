"""What our client costs on a Modbus line: one query of 8 registers, over pymodbus's own asynchronous client on the same server.

The server is ours, in a process of its own: on TCP, and on a pty without line time, so that the wire itself hides nothing. Both
clients ask the same node of the same server in turn, one question after the other, as a driver does. Wall time.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures import Bench, Figure

if TYPE_CHECKING:
    from pymodbus.client.mixin import ModbusClientMixin

    from drivers.wire.modbus import ModbusClient

AIM = 1.2
QUERIES = 2000  # of each kind per sample
NODE, REGISTER, COUNT = 1, 16, 8
US_PER_S = 1e6

Ask = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Served:
    """Where the server answers."""

    port: int
    tty: Path


def measure(bench: Bench) -> list[Figure]:
    """Ratio of wall times, per wire."""
    with server(bench.directory) as served:
        return asyncio.run(_measure(bench, served))


async def _measure(bench: Bench, served: Served) -> list[Figure]:
    from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient

    from drivers.wire.modbus import ModbusClient
    from drivers.wire.serial_stream import serial_opener
    from drivers.wire.tcp_stream import tcp_opener

    figures = []
    for wire in ("TCP", "pty"):
        if wire == "TCP":
            ours = ModbusClient("bench", tcp_opener("127.0.0.1", served.port), framing="tcp", timeout_s=1.0)
            theirs = AsyncModbusTcpClient("127.0.0.1", port=served.port, timeout=1)
        else:
            ours = ModbusClient("bench", serial_opener(str(served.tty), 115200), timeout_s=1.0)
            theirs = AsyncModbusSerialClient(str(served.tty), baudrate=115200, timeout=1)
        # A tty has one owner at a time, so the connections are opened and closed in turn.
        samples, ours_us, theirs_us = [], [], []
        for _ in range(bench.repeat):
            await ours.connect()
            ours_s = await _time(_asking_ours(ours))
            await ours.close()
            if not await theirs.connect():
                raise RuntimeError(f"pymodbus cannot open the {wire} wire")
            theirs_s = await _time(_asking_theirs(theirs))
            theirs.close()
            samples.append(ours_s / theirs_s)
            ours_us.append(ours_s * US_PER_S)
            theirs_us.append(theirs_s * US_PER_S)
        note = f"{_middle(ours_us):.0f} us over {_middle(theirs_us):.0f} us"
        figures.append(Figure(f"Modbus round trip, {wire}", "x pymodbus", tuple(samples), AIM, False, note))
    return figures


def _asking_ours(client: ModbusClient) -> Ask:
    async def ask() -> None:
        registers = await client.read(NODE, REGISTER, COUNT)
        if len(registers) != COUNT:
            raise RuntimeError(f"{len(registers)} registers")

    return ask


def _asking_theirs(client: ModbusClientMixin[Any]) -> Ask:
    async def ask() -> None:
        answer = await client.read_holding_registers(REGISTER, count=COUNT, device_id=NODE)
        if len(answer.registers) != COUNT:
            raise RuntimeError(f"{len(answer.registers)} registers")

    return ask


async def _time(ask: Ask) -> float:
    """Seconds per question."""
    for _ in range(QUERIES // 10):
        await ask()
    start_s = time.perf_counter()
    for _ in range(QUERIES):
        await ask()
    return (time.perf_counter() - start_s) / QUERIES


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@contextmanager
def server(directory: Path) -> Iterator[Served]:
    """Our server in a process of its own."""
    tty = directory / "modbus-line"
    command = [sys.executable, "-m", "bench.modbus_round_trip", str(tty)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("the server says nothing")
            yield Served(int(process.stdout.readline()), tty)
        finally:
            process.terminate()


async def _serve(tty: Path) -> None:
    from simulators.plant.kernel import Kernel
    from simulators.servers.modbus_node import ModbusNode
    from simulators.servers.modbus_ports import PtyPort, TcpPort

    def nothing() -> None:
        """No plant to advance."""

    nodes = {NODE: ModbusNode(Kernel(0), 0x77, "bench", 0.01, REGISTER, range(COUNT))}
    serial, tcp = PtyPort(nodes, nothing, baud=None, link=tty), TcpPort(nodes, nothing)
    await serial.start()
    await tcp.start()
    sys.stdout.write(f"{tcp.port}\n")
    sys.stdout.flush()
    await tcp.until_closed()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
