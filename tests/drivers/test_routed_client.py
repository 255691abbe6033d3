"""One device on several Modbus lines: each node is asked on its own line, and errors name the line they are of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from fake_nodes import FakeNode, serve

from drivers.hal.errors import CommunicationError, ConfigError
from drivers.wire.memory import MemoryLine
from drivers.wire.modbus import LINE_CLOSED, NO_ANSWER, ModbusClient, ModbusLine, Withheld
from drivers.wire.routed import RoutedClient
from simulators import clock


@dataclass
class Stand:
    """Drive A (node 1) on a line of its own, nodes 2 and 3 on the shared one."""

    own: MemoryLine
    shared: MemoryLine
    nodes: dict[int, FakeNode]
    lines: tuple[ModbusClient, ModbusClient]
    client: RoutedClient


def on_two_lines(body: Callable[[Stand], Awaitable[None]]) -> None:
    """Run a test with two lines, not yet connected."""

    async def main() -> None:
        own, shared = MemoryLine("own", baud=115200), MemoryLine("shared", baud=115200)
        nodes = {n: FakeNode(0xD0 + n, 41) for n in (1, 2, 3)}
        servers = [
            asyncio.ensure_future(serve(own, {1: nodes[1]})),
            asyncio.ensure_future(serve(shared, {2: nodes[2], 3: nodes[3]})),
        ]
        a, others = ModbusClient("G1-drive-A", own.connect), ModbusClient("G1-motion", shared.connect)
        client = RoutedClient("G1-gantry-lines", {1: a, 2: others, 3: others})
        await body(Stand(own, shared, nodes, (a, others), client))
        await client.close()
        for server in servers:
            server.cancel()
        await asyncio.wait(servers)

    clock.run(main(), schedule_seed=2)


def test_it_is_a_line_for_any_device() -> None:
    async def body(stand: Stand) -> None:
        line: ModbusLine = stand.client
        assert line.name == "G1-gantry-lines"

    on_two_lines(body)


def test_every_node_is_asked_on_its_own_line() -> None:
    async def body(stand: Stand) -> None:
        client = stand.client
        assert not client.is_open
        await client.connect()
        assert client.is_open
        assert [(await client.read(unit, 1, 1))[0] for unit in (1, 2, 3)] == [0xD1, 0xD2, 0xD3]
        await client.write(1, 50, [7])
        await client.write(2, 50, [8], urgent=True)
        assert await client.read_write(3, (50, 1), 50, [9]) == (9,)
        assert [node.registers[50] for node in stand.nodes.values()] == [7, 8, 9]
        assert [line.counts.transactions for line in stand.lines] == [2, 4]
        assert client.counts.transactions == 6
        with pytest.raises(Withheld):
            await client.read_write(1, (50, 1), 50, [1], guard=lambda: False)
        await client.close()
        assert not any(line.is_open for line in stand.lines)

    on_two_lines(body)


def test_an_error_names_the_line_it_is_of() -> None:
    async def body(stand: Stand) -> None:
        await stand.client.connect()
        stand.nodes[1].silent = True
        with pytest.raises(CommunicationError) as raised:
            await stand.client.read(1, 0, 2)
        assert (raised.value.device, raised.value.code) == ("G1-drive-A", NO_ANSWER)
        assert await stand.client.read(2, 1, 1) == (0xD2,)
        assert stand.client.counts.silent == stand.lines[0].counts.silent > 0

    on_two_lines(body)


def test_a_lost_line_is_opened_again_and_the_other_is_left_alone() -> None:
    async def body(stand: Stand) -> None:
        await stand.client.connect()
        stand.own.cut()
        with pytest.raises(CommunicationError) as raised:
            await stand.client.read(1, 0, 2)
        assert (raised.value.device, raised.value.code) == ("G1-drive-A", LINE_CLOSED)
        assert not stand.client.is_open
        with pytest.raises(CommunicationError, match="G1-drive-A"):
            await stand.client.connect()
        assert stand.lines[1].is_open
        stand.own.restore()
        await stand.client.connect()
        assert await stand.client.read(1, 1, 1) == (0xD1,)

    on_two_lines(body)


def test_a_node_without_a_line_is_refused_by_name() -> None:
    async def body(stand: Stand) -> None:
        with pytest.raises(ConfigError, match="node 10 is on no line; nodes with a line: 1, 2, 3"):
            await stand.client.read(10, 0, 2)

    on_two_lines(body)
