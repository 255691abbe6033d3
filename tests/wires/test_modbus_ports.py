"""The plant's ports: line time, names that stay, any number of clients, ends like a death, and nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from modbus_bench import BAUD, WIRES, client_of, motion_bench, nothing_left, until

from drivers.hal.endpoints import parse_endpoint
from drivers.hal.errors import CommunicationError
from drivers.wire.tcp_stream import tcp_opener
from interlocks.daemon import SAFETY_NODE
from interlocks.modbus import ModbusTcp
from simulators.clock import PacedLoop
from simulators.plant.kernel import Kernel
from simulators.servers.modbus_node import ModbusNode
from simulators.servers.modbus_ports import PtyPort, TcpPort
from simulators.servers.pty_line import PtyLine

pytestmark = pytest.mark.xdist_group("wires")

ASKED = 50


def nothing() -> None:
    """No plant to advance."""


def node() -> ModbusNode:
    """A node of ten registers, 16 to 25, all written and read."""
    return ModbusNode(Kernel(0), 0x77, "node", 0.01, 16, range(10))


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_a_query_takes_the_time_of_its_bits_and_hardly_more(speed: float, tmp_path: Path) -> None:
    async def main() -> None:
        async with nothing_left():
            port = PtyPort({1: node()}, nothing, baud=9600, link=tmp_path / "line")
            await port.start()
            client = client_of(port)
            await client.connect()
            loop = asyncio.get_running_loop()
            took_s = []
            for _ in range(5):
                start_s = loop.time()
                await client.read(1, 16, 8)
                took_s.append(loop.time() - start_s)
            bits_s = (8 + 5 + 16) * 11 / 9600
            assert min(took_s) >= bits_s
            assert min(took_s) < bits_s + 0.05
            await client.close()
            await port.stop()

    with asyncio.Runner(loop_factory=lambda: PacedLoop(speed)) as runner:
        runner.run(main())


async def test_one_direction_at_a_time() -> None:
    async with nothing_left():
        loop = asyncio.get_running_loop()
        heard: list[tuple[float, bytes]] = []
        line = PtyLine(lambda data: heard.append((loop.time(), data)), 9600)
        line.open()
        with line.path.open("wb", buffering=0) as client:
            start_s = loop.time()
            client.write(bytes(40))
            await asyncio.sleep(0.01)
            line.send(bytes(40))  # waits until the client's bytes have passed
            await until(lambda: line._free_at_s < loop.time())
            await until(lambda: len(heard) == 1)
        assert heard[0][0] - start_s >= 40 * 11 / 9600
        assert line._free_at_s - start_s >= 80 * 11 / 9600
        line.close()


async def test_endpoints_are_addresses_of_an_endpoint_map(tmp_path: Path) -> None:
    async with motion_bench(tmp_path) as bench:
        pty = parse_endpoint(bench.ports["pty"].endpoint)
        assert (pty.scheme, pty.path, pty.options) == ("serial", str(tmp_path / "G1-motion"), {"baudrate": str(BAUD)})
        tcp = parse_endpoint(bench.ports["tcp"].endpoint)
        assert (tcp.scheme, tcp.host, tcp.options) == ("tcp", "127.0.0.1", {})
        assert tcp.port > 0
        assert parse_endpoint(bench.ports["rtu over tcp"].endpoint).options == {"framing": "rtu"}


@pytest.mark.parametrize("wire", WIRES)
async def test_starting_and_stopping_twice_does_nothing_more(wire: str, tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        port = bench.ports[wire]
        endpoint = port.endpoint
        await port.start()
        assert (port.running, port.endpoint) == (True, endpoint)
        waiting = asyncio.ensure_future(port.until_closed())
        await asyncio.sleep(0)
        assert not waiting.done()
        await port.stop()
        await port.stop()
        await waiting
        assert not port.running


async def test_a_pty_leaves_no_name_behind_and_takes_over_one_that_was_left(tmp_path: Path) -> None:
    link = tmp_path / "G1-motion"
    link.symlink_to("/dev/pts/nobody")  # of a server that was killed
    port = PtyPort({1: node()}, nothing, link=link)
    await port.start()
    assert link.resolve() != Path("/dev/pts/nobody")
    assert link.exists()
    await port.stop()
    assert not link.is_symlink()
    with pytest.raises(RuntimeError):
        port.endpoint  # noqa: B018 - the question is what is tried


async def test_clients_of_a_pty_come_and_go(tmp_path: Path) -> None:
    async with nothing_left():
        port = PtyPort({1: node()}, nothing, link=tmp_path / "line")
        await port.start()
        for value in range(5):
            client = client_of(port)
            await client.connect()
            await client.write(1, 16, [value])
            assert await client.read(1, 16, 1) == (value,)
            await client.close()
        await port.stop()


async def test_any_number_of_clients_get_each_their_own_answers() -> None:
    async with nothing_left():
        port = TcpPort({1: node()}, nothing)
        await port.start()
        clients = [client_of(port) for _ in range(20)]
        for client in clients:
            await client.connect()

        async def ask(number: int) -> None:
            for _ in range(ASKED):
                assert await clients[number].read(1, 16 + number % 10, 1) == (number % 10,)

        await asyncio.gather(*(ask(number) for number in range(len(clients))))
        assert port.clients == len(clients)
        for client in clients[:15]:
            await client.close()
        await until(lambda: port.clients == 5)
        assert port.clients == 5
        await port.stop()
        for client in clients[15:]:
            with pytest.raises(CommunicationError):
                await client.read(1, 16, 1)


async def test_the_interlock_systems_own_reader_and_a_controller_share_the_safety_line(tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        client = client_of(bench.safety)
        await client.connect()
        loop = asyncio.get_running_loop()

        def read_as_the_interlocks_do() -> list[tuple[int, ...]]:
            reader = ModbusTcp(bench.safety.host, bench.safety.port, timeout_s=1.0)
            try:
                return [tuple(reader.read(SAFETY_NODE, 0, 4)) for _ in range(ASKED)]
            finally:
                reader.close()

        reading = loop.run_in_executor(None, read_as_the_interlocks_do)
        ours = [await client.read(SAFETY_NODE, 0, 4) for _ in range(ASKED)]
        theirs = await reading
        assert set(ours) == set(theirs)
        assert ours[0][:2] == (0x1009, 0x51)
        await client.close()


async def test_a_client_that_never_reads_its_answers_holds_up_nobody_and_no_memory() -> None:
    async with nothing_left():
        executed = 0

        def before() -> None:
            nonlocal executed
            executed += 1

        port = TcpPort({1: node()}, before)
        await port.start()
        greedy = await tcp_opener(port.host, port.port, stall_s=0.2)()
        question = bytes((0, 1, 0, 0, 0, 6, 1, 3, 0, 16, 0, 10)) * 300
        asked = 0
        with pytest.raises(ConnectionError):
            while asked < 10_000_000:
                await greedy.write(question)
                asked += len(question) // 12
        assert 0 < executed < asked
        polite = client_of(port)
        await polite.connect()
        assert await polite.read(1, 16, 1) == (0,)
        await polite.close()
        await greedy.close()
        await port.stop()


async def test_the_plant_is_advanced_before_every_request() -> None:
    async with nothing_left():
        calls: list[str] = []

        class Told(ModbusNode):
            def read(self, register: int, count: int) -> list[int]:
                calls.append("read")
                return super().read(register, count)

        port = TcpPort({1: Told(Kernel(0), 0x77, "node", 0.01, 16, range(10))}, lambda: calls.append("before"))
        await port.start()
        client = client_of(port)
        await client.connect()
        await client.read(1, 16, 1)
        await client.read(1, 16, 1)
        assert calls == ["before", "read"] * 2
        await client.close()
        await port.stop()


async def test_a_port_that_is_taken_says_so() -> None:
    async with nothing_left():
        first = TcpPort({1: node()}, nothing)
        await first.start()
        second = TcpPort({1: node()}, nothing, port=first.port)
        with pytest.raises(OSError, match="address already in use"):
            await second.start()
        assert not second.running
        await first.stop()
        await second.start()  # and may be tried again
        await second.stop()
