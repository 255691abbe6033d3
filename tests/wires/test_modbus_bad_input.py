"""Bad bytes and dying peers on real wires: every one ends in an error with a name and a code, none in a hang or a leak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from modbus_bench import BAUD, WIRES, client_of, motion_bench, nothing_left, until

from drivers.devices.gantry import RotatingGantry
from drivers.hal.errors import CommunicationError, DeviceError
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import load_facility
from drivers.wire.framing import Kind, crc16
from drivers.wire.modbus import GARBAGE, LINE_CLOSED, NO_ANSWER, REFUSED, ModbusClient
from drivers.wire.serial_stream import serial_opener
from drivers.wire.stream import Stream
from drivers.wire.tcp_stream import tcp_opener
from simulators.servers.modbus_ports import PtyPort, TcpPort
from simulators.servers.pty_line import PtyLine

pytestmark = pytest.mark.xdist_group("wires")

ASAN = load_facility("asan")
Answers = Callable[[bytes], Iterable[bytes]]


def framed(kind: Kind, body: bytes, transaction: bytes = b"\0\1") -> bytes:
    """Unit, function and data as they travel."""
    if kind == "rtu":
        return body + crc16(body).to_bytes(2, "little")
    return transaction + b"\0\0" + len(body).to_bytes(2, "big") + body


# --- what a server makes of bad requests --------------------------------------------------------------------------------


@asynccontextmanager
async def raw_line(wire: str, directory: Path) -> AsyncIterator[tuple[Stream, Kind]]:
    """Bytes straight to and from the plant's server."""
    async with nothing_left(), motion_bench(directory) as bench:
        port = bench.ports[wire]
        opener = serial_opener(str(port.path), BAUD) if isinstance(port, PtyPort) else tcp_opener(port.host, port.port)
        stream = await opener()
        try:
            yield stream, port.framing if isinstance(port, TcpPort) else "rtu"
        finally:
            await stream.close()


async def take(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.read(count - len(data), 2.0)
        assert piece, "the server has closed the line"
        data += piece
    return data


COUCH_IDENTITY = bytes((10, 3, 0, 0, 0, 2))  # node 10, read two registers from 0
COUCH_ANSWERS = bytes((10, 3, 4, 0x10, 0x09, 0x00, 0xC1))
NOZZLE_IDENTITY = bytes((20, 3, 0, 0, 0, 2))
NOZZLE_ANSWERS = bytes((20, 3, 4, 0x10, 0x09, 0x00, 0x41))


@pytest.mark.parametrize("wire", WIRES)
async def test_a_request_in_two_pieces_is_answered_wherever_it_is_cut(wire: str, tmp_path: Path) -> None:
    async with raw_line(wire, tmp_path) as (stream, kind):
        question, answer = framed(kind, COUCH_IDENTITY), framed(kind, COUCH_ANSWERS)
        for cut in range(1, len(question)):
            await stream.write(question[:cut])
            await asyncio.sleep(0.002)
            await stream.write(question[cut:])
            assert await take(stream, len(answer)) == answer


@pytest.mark.parametrize("wire", WIRES)
async def test_two_requests_glued_together_get_two_answers_in_order(wire: str, tmp_path: Path) -> None:
    async with raw_line(wire, tmp_path) as (stream, kind):
        await stream.write(framed(kind, COUCH_IDENTITY) + framed(kind, NOZZLE_IDENTITY, b"\0\2"))
        answers = framed(kind, COUCH_ANSWERS) + framed(kind, NOZZLE_ANSWERS, b"\0\2")
        assert await take(stream, len(answers)) == answers


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("garbage", [b"\xff" * 300, b"\x00\x55\xaa", bytes(range(256)), b"GET / HTTP/1.1\r\n\r\n"], ids=repr)
async def test_a_sound_request_is_answered_after_garbage(wire: str, garbage: bytes, tmp_path: Path) -> None:
    async with raw_line(wire, tmp_path) as (stream, kind):
        question, answer = framed(kind, COUCH_IDENTITY), framed(kind, COUCH_ANSWERS)
        await stream.write(garbage)
        await asyncio.sleep(0.05)
        stream.discard_input()
        heard = b""
        for _ in range(4):  # what is left of the garbage may swallow the first
            await stream.write(question)
            try:
                heard += await stream.read(256, 0.3)
            except TimeoutError:
                continue
            if answer in heard:
                break
        assert answer in heard


@pytest.mark.parametrize("wire", ["pty", "rtu over tcp"])
async def test_a_wrong_checksum_is_not_executed_and_not_answered(wire: str, tmp_path: Path) -> None:
    async with raw_line(wire, tmp_path) as (stream, kind):
        question, answer = framed(kind, COUCH_IDENTITY), framed(kind, COUCH_ANSWERS)
        await stream.write(question[:-1] + bytes((question[-1] ^ 1,)))
        with pytest.raises(TimeoutError):
            await stream.read(256, 0.1)
        await stream.write(question)
        assert await take(stream, len(answer)) == answer


@pytest.mark.parametrize("wire", WIRES)
async def test_a_node_that_is_not_there_does_not_answer(wire: str, tmp_path: Path) -> None:
    async with raw_line(wire, tmp_path) as (stream, kind):
        await stream.write(framed(kind, bytes((99, 3, 0, 0, 0, 2))))
        with pytest.raises(TimeoutError):
            await stream.read(256, 0.1)
        await stream.write(framed(kind, COUCH_IDENTITY))
        assert (await take(stream, len(framed(kind, COUCH_ANSWERS)))) == framed(kind, COUCH_ANSWERS)


@pytest.mark.parametrize("wire", WIRES)
async def test_an_unknown_function_is_refused_by_name(wire: str, tmp_path: Path) -> None:
    async with raw_line(wire, tmp_path) as (stream, kind):
        await stream.write(framed(kind, bytes((10, 1, 0, 0, 0, 8))))  # read coils
        refusal = framed(kind, bytes((10, 0x81, 1)))
        assert await take(stream, len(refusal)) == refusal


# --- what the client makes of bad answers -------------------------------------------------------------------------------


class _BadServer(asyncio.Protocol):
    def __init__(self, answers: Answers, connections: set[asyncio.Transport]) -> None:
        self._answers, self._connections = answers, connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._connections.add(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        _send(self._transport.write, self._answers(data))


def _send(write: Callable[[bytes], None], pieces: Iterable[bytes]) -> None:
    """Each piece a millisecond after the one before."""
    loop = asyncio.get_running_loop()
    for number, piece in enumerate(pieces):
        loop.call_later(0.001 * number, write, piece)


@asynccontextmanager
async def bad_peer(wire: str, answers: Answers, directory: Path, timeout_s: float = 0.3) -> AsyncIterator[ModbusClient]:
    """Our client, connected to a peer that says what `answers` makes of each question."""
    async with nothing_left():
        if wire == "pty":
            line = PtyLine(lambda data: _send(line.send, answers(data)), BAUD, directory / "bad")
            line.open()
            client = ModbusClient("bad", serial_opener(str(line.path), BAUD), timeout_s=timeout_s, retries=1)
            await client.connect()
            try:
                yield client
            finally:
                await client.close()
                line.close()
            return
        connections: set[asyncio.Transport] = set()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _BadServer(answers, connections), "127.0.0.1", 0)
        opener = tcp_opener(*server.sockets[0].getsockname()[:2])
        framing: Kind = "tcp" if wire == "tcp" else "rtu"
        client = ModbusClient("bad", opener, framing=framing, timeout_s=timeout_s, retries=1)
        await client.connect()
        try:
            yield client
        finally:
            await client.close()
            server.close()
            for connection in list(connections):
                connection.abort()
            await server.wait_closed()


def sound(wire: str, question: bytes) -> bytes:
    """The right answer to a read of two registers of node 10."""
    return framed("tcp" if wire == "tcp" else "rtu", COUCH_ANSWERS, question[:2])


IDENTITY = (0x1009, 0xC1)


@pytest.mark.parametrize("wire", WIRES)
async def test_an_answer_in_two_pieces_is_understood_wherever_it_is_cut(wire: str, tmp_path: Path) -> None:
    cuts = list(range(1, len(sound(wire, b"\0\1"))))

    def answers(question: bytes) -> Iterable[bytes]:
        answer, cut = sound(wire, question), cuts.pop()
        return answer[:cut], answer[cut:]

    async with bad_peer(wire, answers, tmp_path) as client:
        while cuts:
            assert await client.read(10, 0, 2) == IDENTITY
        assert (client.counts.silent, client.counts.garbled) == (0, 0)


@pytest.mark.parametrize("wire", WIRES)
async def test_answers_glued_to_garbage_or_to_each_other_are_understood(wire: str, tmp_path: Path) -> None:
    async with bad_peer(wire, lambda q: [b"\xff\x00\x7f" + sound(wire, q) + b"\x55"], tmp_path) as client:
        for _ in range(5):
            assert await client.read(10, 0, 2) == IDENTITY
    async with bad_peer(wire, lambda q: [sound(wire, q) * 2], tmp_path) as client:
        for _ in range(5):
            assert await client.read(10, 0, 2) == IDENTITY
        assert client.counts.retries == 0


def spoilt_checksum(answer: bytes) -> bytes:
    return answer[:-1] + bytes((answer[-1] ^ 0xFF,))


@pytest.mark.parametrize(
    ("wire", "spoil"),
    [
        ("pty", spoilt_checksum),
        ("rtu over tcp", spoilt_checksum),
        ("pty", lambda answer: framed("rtu", bytes((11,)) + answer[1:-2])),
        ("tcp", lambda answer: answer[:6] + b"\x0b" + answer[7:]),
        ("tcp", lambda answer: bytes((answer[0] ^ 1,)) + answer[1:]),
        ("pty", lambda answer: answer[:-3]),
        ("tcp", lambda answer: answer[:-3]),
        ("pty", lambda answer: b"\xff" * 5000),
        ("tcp", lambda answer: b"\xff" * 5000),
    ],
    ids=[
        "checksum, pty",
        "checksum, rtu over tcp",
        "unit, pty",
        "unit, tcp",
        "transaction, tcp",
        "cut off, pty",
        "cut off, tcp",
        "garbage, pty",
        "garbage, tcp",
    ],
)
async def test_what_is_no_answer_is_garbage_by_name(wire: str, spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    async with bad_peer(wire, lambda q: [spoil(sound(wire, q))], tmp_path, timeout_s=0.05) as client:
        with pytest.raises(CommunicationError) as raised:
            await client.read(10, 0, 2)
        assert raised.value.code == GARBAGE
        assert (raised.value.device, raised.value.retryable) == ("bad", True)
        assert client.counts.retries == 1


@pytest.mark.parametrize("wire", WIRES)
async def test_a_refusal_is_an_error_of_the_device(wire: str, tmp_path: Path) -> None:
    def answers(question: bytes) -> Iterable[bytes]:
        yield framed("tcp" if wire == "tcp" else "rtu", bytes((10, 0x83, 6)), question[:2])

    async with bad_peer(wire, answers, tmp_path) as client:
        with pytest.raises(DeviceError, match="device busy") as raised:
            await client.read(10, 0, 2)
        assert raised.value.code == REFUSED
        assert client.counts.retries == 0


@pytest.mark.parametrize("wire", WIRES)
async def test_who_accepts_and_never_answers_is_named_in_time(wire: str, tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        port = bench.ports[wire]
        client = bench.client(wire, 0.05)
        await client.connect()
        port.silent = True
        start_s = time.monotonic()
        with pytest.raises(CommunicationError) as raised:
            await client.read(10, 0, 2)
        assert raised.value.code == NO_ANSWER
        assert time.monotonic() - start_s < 2.0
        assert client.is_open
        port.silent = False
        assert await client.read(10, 0, 2) == IDENTITY
        await client.close()


# --- servers that die ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
async def test_a_server_that_dies_while_it_is_asked_is_found_again(wire: str, tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        port = bench.ports[wire]
        client = bench.client(wire)
        await client.connect()
        endpoint = port.endpoint
        for _ in range(3):
            port.silent = True  # so that the question is under way when it happens
            asked = asyncio.ensure_future(client.read(10, 0, 2))
            await asyncio.sleep(0.01)
            await port.stop()
            with pytest.raises(CommunicationError) as raised:
                await asked
            assert raised.value.code == LINE_CLOSED
            assert not client.is_open
            with pytest.raises(CommunicationError) as raised:
                await client.connect()
            assert raised.value.code == LINE_CLOSED
            port.silent = False
            await port.start()
            assert port.endpoint == endpoint
            await client.connect()
            assert await client.read(10, 0, 2) == IDENTITY
        await client.close()


@pytest.mark.parametrize("wire", WIRES)
async def test_a_driver_reconnects_to_a_server_that_was_started_again(wire: str, tmp_path: Path) -> None:
    async with nothing_left(), motion_bench(tmp_path) as bench:
        bus = EventBus()
        events: list[Event] = []
        bus.subscribe(events.append)

        def told(kind: str) -> int:
            return sum(event.kind == kind for event in events)

        client = client_of(bench.ports[wire])
        gantry = RotatingGantry("G1-gantry", ASAN.devices["G1-gantry"], ASAN.room("G1"), client, ASAN.registers, bus)
        await gantry.connect()
        await bench.ports[wire].stop()
        with pytest.raises(CommunicationError) as raised:
            await gantry.read_state()
        assert raised.value.code == LINE_CLOSED
        await asyncio.sleep(0.5)  # some tries in vain
        await bench.ports[wire].start()
        await until(lambda: told("device.up") == 2, 10.0)
        assert (told("device.up"), told("device.down")) == (2, 1)
        assert abs((await gantry.read_state()).angle.value * 1000 - bench.angle_mdeg()) <= 50
        await gantry.close()
        await client.close()
