"""A foreign program commands a simulated nozzle: without a token, and with an old one, it is told no and nothing stirs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from modbus_bench import BAUD, motion_bench, nothing_left
from witness import system_program

from simulators.servers.modbus_ports import PtyPort, TcpPort

pytestmark = pytest.mark.xdist_group("wires")


async def mbpoll_writes(port: PtyPort | TcpPort, node: int, register: int, values: list[int]) -> str:
    """What mbpoll says when it writes registers."""
    program = system_program("mbpoll", "mbpoll")
    if isinstance(port, PtyPort):
        where = ["-m", "rtu", "-b", str(BAUD), "-P", "none", str(port.path)]
    else:
        where = ["-m", "tcp", "-p", str(port.port), port.host]
    process = await asyncio.create_subprocess_exec(
        program,
        *("-a", str(node), "-0", "-r", str(register), "-t", "4", "-1", "-o", "2"),
        *where,
        "--",
        *map(str, values),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode()


@pytest.mark.parametrize("wire", ["pty", "tcp"])
async def test_mbpoll_moves_nothing_by_an_old_command(wire: str, tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        port, client = bench.ports[wire], bench.client(wire)
        await client.connect()
        token = await client.read(20, 42, 2)
        await client.close()  # a line has one master at a time
        await asyncio.sleep(0.25)
        assert "Negative acknowledge" in await mbpoll_writes(port, 20, 14, [*token, 1])
        assert "Negative acknowledge" in await mbpoll_writes(port, 20, 16, [1])
        assert "Written 1 references" in await mbpoll_writes(port, 1, 16, [2]), "a quick stop needs no token"
        await client.connect()
        assert (await client.read(20, 14, 3))[2] == 0
        assert await client.read(20, 32, 2) == (1, 0), "in position, no range shifter"
        await client.close()
