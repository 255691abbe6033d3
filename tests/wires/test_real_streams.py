"""Openers of real lines: what cannot be opened says why and what to do; what is lost or given up leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from modbus_bench import nothing_left
from serial import Serial

from drivers.hal.errors import CommunicationError
from drivers.wire.modbus import LINE_CLOSED, ModbusClient
from drivers.wire.serial_stream import serial_opener
from drivers.wire.tcp_stream import tcp_opener

pytestmark = pytest.mark.xdist_group("wires")


@pytest.fixture
def line() -> Iterator[tuple[int, str]]:
    """A raw pty: our descriptor and the path of the other end."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    yield ours, os.ttyname(theirs)
    for descriptor in (ours, theirs):
        os.close(descriptor)


# --- serial lines


async def test_a_line_that_is_not_there_is_named() -> None:
    async with nothing_left():
        with pytest.raises(ConnectionError, match="/dev/ttyNOBODY: there is no such serial line; is the adapter plugged in"):
            await serial_opener("/dev/ttyNOBODY")()


async def test_a_client_says_it_with_a_code() -> None:
    client = ModbusClient("G1-motion", serial_opener("/dev/ttyNOBODY"))
    with pytest.raises(CommunicationError, match="G1-motion: cannot open: /dev/ttyNOBODY") as raised:
        await client.connect()
    assert (raised.value.code, raised.value.retryable) == (LINE_CLOSED, True)


async def test_a_file_is_not_a_serial_line(tmp_path: Path) -> None:
    async with nothing_left():
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", Path("/dev/null")):
            with pytest.raises(ConnectionError, match="this is not a serial line"):
                await serial_opener(str(path))()
        with pytest.raises(ConnectionError):
            await serial_opener(str(tmp_path))()


async def test_a_line_in_use_is_refused_until_it_is_free(line: tuple[int, str]) -> None:
    async with nothing_left():
        first = await serial_opener(line[1])()
        with pytest.raises(ConnectionError, match="another program uses this serial line"):
            await serial_opener(line[1])()
        await first.close()
        second = await serial_opener(line[1])()
        await second.close()


async def test_a_line_locked_by_another_program_is_refused(line: tuple[int, str]) -> None:
    async with nothing_left():
        with Serial(line[1], exclusive=True), pytest.raises(ConnectionError, match="another program uses"):
            await serial_opener(line[1])()


async def test_permission_is_told_from_the_systems_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch, pytest.raises(ConnectionError, match="join the group that owns the device"):
        patch.setattr("serial.serialposix.os.open", refuse)
        await serial_opener("/dev/ttyUSB0")()


@pytest.mark.parametrize("parity", ["N", "E", "O"])
async def test_a_pty_takes_any_parity_and_every_byte_passes(line: tuple[int, str], parity: str) -> None:
    async with nothing_left():
        every = bytes(range(256))
        for _ in range(2):  # the second finds the line as the first has left it
            stream = await serial_opener(line[1], 115200, parity)()
            await stream.write(every)
            assert os.read(line[0], 300) == every
            os.write(line[0], every)
            heard = b""
            while len(heard) < len(every):
                heard += await stream.read(300, 1.0)
            assert heard == every
            await stream.close()


async def test_what_waits_in_the_system_is_discarded_too(line: tuple[int, str]) -> None:
    stream = await serial_opener(line[1])()
    os.write(line[0], b"stale")
    time.sleep(0.05)  # noqa: ASYNC251 - the loop must not look before
    assert stream.discard_input() == 5
    with pytest.raises(TimeoutError):
        await stream.read(8, 0.05)
    await stream.close()


async def test_a_line_pulled_out_is_found_by_the_first_write() -> None:
    async with nothing_left():
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        stream = await serial_opener(os.ttyname(theirs))()
        os.close(ours)
        os.close(theirs)
        for _ in range(3):  # no turn of the loop in between
            with pytest.raises(ConnectionError):
                await stream.write(b"x")
        assert await stream.read() == b""
        await stream.close()
        await stream.close()


async def test_a_line_pulled_out_with_bytes_waiting_leaves_nothing() -> None:
    async with nothing_left():
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        stream = await serial_opener(os.ttyname(theirs), stall_s=5.0)()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                while True:
                    await stream.write(bytes(4096))
        waiting = asyncio.ensure_future(stream.write(b"x"))
        await asyncio.sleep(0.01)
        os.close(ours)
        os.close(theirs)
        with pytest.raises(ConnectionError):
            await waiting
        await stream.close()


async def test_closing_twice_at_once_with_bytes_waiting_leaves_nothing(line: tuple[int, str]) -> None:
    async with nothing_left():
        stream = await serial_opener(line[1], stall_s=5.0)()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                while True:  # nobody reads the other end
                    await stream.write(bytes(4096))
        await asyncio.gather(stream.close(), stream.close())
        with pytest.raises(ConnectionError):
            await stream.write(b"x")


async def test_opening_given_up_leaves_nothing(line: tuple[int, str]) -> None:
    async with nothing_left():
        for turns in range(4):
            opening = asyncio.ensure_future(serial_opener(line[1])())
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled():
                await opening.result().close()
        await asyncio.sleep(0.05)
        stream = await serial_opener(line[1])()  # and the lock is free
        await stream.close()


# --- TCP


async def test_a_port_where_nobody_listens_is_named() -> None:
    async with nothing_left():
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}: nobody answers on this port"):
            await tcp_opener("127.0.0.1", port)()


async def test_a_host_name_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectionError, match="this host name is not known"):
        await tcp_opener("nobody.invalid", 502)()
    with pytest.raises(ConnectionError, match="this host name is not known"):
        await tcp_opener("n" * 100, 502)()


async def test_a_host_that_does_not_answer_is_given_up_in_time() -> None:
    async with nothing_left():
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            waiting = [socket.socket() for _ in range(4)]  # fill the queue: further connections are not answered at all
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            start_s = time.monotonic()
            with pytest.raises(ConnectionError, match=r"no connection within 0\.2 s"):
                await tcp_opener("127.0.0.1", port, connect_s=0.2)()
            assert time.monotonic() - start_s < 2.0
            for sock in waiting:
                sock.close()


async def test_a_connection_of_a_port_to_itself_is_not_taken_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    create = loop.create_connection

    async def from_itself(factory: object, host: str, port: int) -> object:
        return await create(factory, host, port, local_addr=("127.0.0.1", port))  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "create_connection", from_itself)
    with pytest.raises(ConnectionRefusedError, match="nobody answers"):
        await tcp_opener("127.0.0.1", port)()


async def test_a_connection_is_set_up_for_short_answers_and_dead_peers() -> None:
    async with nothing_left():
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        stream = await tcp_opener(*server.sockets[0].getsockname()[:2])()
        transport = stream._transport  # type: ignore[attr-defined]
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
        assert transport.max_size == 4096
        assert await stream.read(timeout_s=1.0) == b""
        await stream.close()
        server.close()
        await server.wait_closed()
