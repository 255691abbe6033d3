"""A Modbus line and its faults: reads survive them, writes are never doubled, and every failure has its name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fake_nodes import FakeNode, serve

from drivers.hal.errors import CommunicationError, DataError, DeviceError
from drivers.wire.framing import Kind
from drivers.wire.memory import MemoryLine, MemoryStream
from drivers.wire.modbus import GARBAGE, LINE_CLOSED, NO_ANSWER, ModbusClient, Withheld
from simulators import clock

KINDS: tuple[Kind, ...] = ("rtu", "tcp")
Body = Callable[[MemoryLine, FakeNode, ModbusClient], Awaitable[None]]


def on_a_line(body: Body, kind: Kind = "rtu", baud: int | None = 115200) -> None:
    """Run a test on a line with one node (1) and an open client."""

    async def main() -> None:
        line = MemoryLine("line", baud=baud)
        node = FakeNode(0xD1, 41)
        server = asyncio.ensure_future(serve(line, {1: node}, kind))
        client = ModbusClient("line", line.connect, framing=kind)
        await client.connect()
        await body(line, node, client)
        await client.close()
        server.cancel()
        await asyncio.wait([server])

    clock.run(main(), schedule_seed=11)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind: Kind) -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        await client.write(1, 16, [6, 65535])
        assert await client.read(1, 16, 2) == (6, 65535)
        assert await client.read_write(1, (16, 3), 18, [9]) == (6, 65535, 9)

    on_a_line(body, kind)


def test_a_status_block_takes_its_time_on_a_serial_line() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        await client.read(1, 32, 8)
        # 8 bytes there, 5 + 16 back, 11 bits each, and the latency both ways.
        assert loop.time() - start_s == pytest.approx(29 * 11 / 19200 + 0.0005, abs=1e-6)

    on_a_line(body, baud=19200)


@pytest.mark.parametrize("lost", ["question", "answer"])
def test_a_lost_read_is_asked_again(lost: str) -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        line.disturb = lose_first(to_server=lost == "question")
        assert await client.read(1, 0, 2) == (0x1009, 0xD1)
        assert (client.counts.retries, client.counts.silent) == (1, 1)

    on_a_line(body)


@pytest.mark.parametrize("lost", ["question", "answer"])
def test_a_lost_write_is_never_sent_again(lost: str) -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        line.disturb = lose_first(to_server=lost == "question")
        with pytest.raises(CommunicationError) as raised:
            await client.write(1, 16, [15])
        assert raised.value.code == NO_ANSWER
        await asyncio.sleep(1.0)
        assert len(node.writes) == (0 if lost == "question" else 1)
        line.disturb = lose_first(to_server=lost == "question")
        with pytest.raises(CommunicationError):
            await client.read_write(1, (32, 2), 16, [15])
        await asyncio.sleep(1.0)
        assert len(node.writes) == (0 if lost == "question" else 2)

    on_a_line(body)


def test_garbage_is_named_and_read_through() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        line.disturb = lambda data, to_server: data if to_server else data[:-1] + bytes([data[-1] ^ 1])
        with pytest.raises(CommunicationError) as raised:
            await client.read(1, 0, 4)
        assert raised.value.code == GARBAGE
        assert client.counts.garbled == 3
        line.disturb = lambda data, to_server: data if to_server else b"\xff\x01\x03" + data + b"\x00"
        assert (await client.read(1, 0, 2))[0] == 0x1009

    on_a_line(body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_answer_is_not_taken_for_the_next_question(kind: Kind) -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        node.registers[100] = 1
        given_up = asyncio.ensure_future(client.read(1, 100, 1))
        await asyncio.sleep(0.0003)  # the question is there, its answer under way
        given_up.cancel()
        await asyncio.wait([given_up])
        node.registers[101] = 2
        assert await client.read(1, 101, 1) == (2,)

    on_a_line(body, kind, baud=None)


def test_a_late_answer_after_a_timeout_is_not_taken_for_the_next_question() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        slow = ModbusClient("slow", line.connect, timeout_s=0.004, retries=0)
        await slow.connect()
        node.registers[100:102] = [1, 2]
        with pytest.raises(CommunicationError):
            await slow.read(1, 100, 1)  # question and answer take 4.8 ms
        node.registers[100] = 7
        await asyncio.sleep(0.0)
        try:
            assert await slow.read(1, 101, 1) == (2,)
        except CommunicationError:
            return  # an error is right as well; the old value is not

    on_a_line(body, baud=38400)


def test_refusals_name_node_function_and_reason() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        with pytest.raises(DeviceError, match="node 1 refuses function 3: illegal register address"):
            await client.read(1, 900, 2)
        with pytest.raises(DataError):
            await client.write(1, 16, [70000])

    on_a_line(body)


def test_a_lost_line_is_named_and_can_be_opened_again() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        waiting = asyncio.ensure_future(client.read(1, 0, 4))
        await asyncio.sleep(0.0001)
        line.cut()
        with pytest.raises(CommunicationError) as raised:
            await waiting
        assert raised.value.code == LINE_CLOSED
        with pytest.raises(CommunicationError, match="not open"):
            await client.read(1, 0, 4)
        with pytest.raises(CommunicationError, match="cannot open"):
            await client.connect()
        line.restore()
        await client.connect()
        assert (await client.read(1, 0, 1)) == (0x1009,)

    on_a_line(body)


def test_an_urgent_write_passes_all_who_wait() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        order: list[str] = []

        async def ask(name: str, what: Awaitable[object]) -> None:
            await what
            order.append(name)

        tasks = [asyncio.ensure_future(ask(f"read {i}", client.read(1, 32, 10))) for i in range(5)]
        await asyncio.sleep(0.0001)
        tasks.append(asyncio.ensure_future(ask("stop", client.write(1, 16, [2], urgent=True))))
        await asyncio.wait(tasks)
        assert order.index("stop") == 1  # behind the one that held the line

    on_a_line(body)


def test_one_who_gives_up_waiting_does_not_block_the_line() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        tasks = [asyncio.ensure_future(client.read(1, 32, 10)) for _ in range(4)]
        await asyncio.sleep(0.0001)
        tasks[1].cancel()
        tasks[2].cancel()
        assert len(await tasks[3]) == 10
        assert len(await tasks[0]) == 10

    on_a_line(body)


def test_a_guarded_write_is_withheld_in_the_step_in_which_it_would_leave() -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        allowed = True
        holding = asyncio.ensure_future(client.read(1, 32, 10))
        await asyncio.sleep(0.0001)
        pulse = asyncio.ensure_future(client.read_write(1, (8, 2), 128, [5], guard=lambda: allowed))
        await asyncio.sleep(0.0001)
        allowed = False
        await holding
        with pytest.raises(Withheld):
            await pulse
        assert node.writes == []

    on_a_line(body)


def lose_first(*, to_server: bool) -> Callable[[bytes, bool], bytes]:
    """A disturbance that loses the first frame of one direction."""
    left = 1

    def disturb(data: bytes, towards_server: bool) -> bytes:
        nonlocal left
        if towards_server is to_server and left:
            left -= 1
            return b""
        return data

    return disturb


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_on_which_nobody_answers_is_opened_anew_and_one_silent_node_is_no_reason(kind: Kind) -> None:
    async def body(line: MemoryLine, node: FakeNode, client: ModbusClient) -> None:
        opened = 0
        connect = line.connect

        async def counted() -> MemoryStream:
            nonlocal opened
            opened += 1
            return await connect()

        client._open_stream = counted
        for _ in range(3):
            with pytest.raises(CommunicationError):
                await client.read(9, 0, 1)  # no such node
            assert await client.read(1, 0, 1) == (0x1009,)
            await client.connect()
        assert opened == 0
        node.silent = True
        for _ in range(2):
            with pytest.raises(CommunicationError):
                await client.read(1, 0, 1)
        await client.connect()
        assert opened == 1
        await client.connect()
        assert opened == 1
        node.silent = False
        assert await client.read(1, 0, 1) == (0x1009,)

    on_a_line(body, kind)
