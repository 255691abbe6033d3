"""Brokers that die, hang, refuse or are none: named errors, nothing hangs, nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from mosquitto import MosquittoServer, until

from drivers.hal.errors import CommunicationError
from drivers.wire.messages import Message, Notice
from drivers.wire.mqtt_messages import STUCK_MAX, MqttMessages
from simulators.servers.broker import BrokerError, BrokerServer, ExternalBroker, free_port

pytestmark = pytest.mark.xdist_group("wires")
ROOT = Path(__file__).parents[2]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def somebody(serve: Serve) -> AsyncIterator[int]:
    """A server that is no broker; gives its port."""
    writers: list[asyncio.StreamWriter] = []

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)

    server = await asyncio.start_server(taken, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


async def never_answers(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass


async def hangs_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def speaks_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await never_answers(reader, writer)


async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"\x20\x02\x00\x05")  # not authorised
    await never_answers(reader, writer)


@pytest.mark.parametrize("serve", [never_answers, hangs_up, speaks_garbage, refuses])
async def test_an_endpoint_that_is_no_broker_is_a_named_error_and_leaves_nothing_behind(serve: Serve) -> None:
    async with somebody(serve) as port:
        client = MqttMessages("127.0.0.1", port, "lost", connect_s=0.3)
        with pytest.raises(CommunicationError, match=f"no broker at 127.0.0.1:{port}") as error:
            await client.start(1.0)
        assert error.value.code == 2006 and error.value.retryable and error.value.hint
        assert not client.connected
        with pytest.raises(CommunicationError):
            await client.publish("t", b"")
        assert not client.post("t", b"")
        with pytest.raises(BrokerError, match=str(port)):
            await ExternalBroker("127.0.0.1", port).start(0.3)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("lost")]
        assert not [task for task in asyncio.all_tasks() if "_misc_loop" in repr(task)]  # the library's own


async def test_nobody_at_the_port_is_named_and_a_broker_that_comes_later_is_found() -> None:
    port = free_port()
    client = MqttMessages("127.0.0.1", port, "early", backoff_s=(0.05, 0.2))
    with pytest.raises(CommunicationError, match="refused"):
        await client.start(0.3)
    with pytest.raises(BrokerError, match=f"no broker at 127.0.0.1:{port}"):
        await ExternalBroker("127.0.0.1", port).start()
    await client.start(0.2, required=False)
    broker = BrokerServer(port)
    await broker.start()
    try:
        await until(lambda: client.connected)
        await client.publish("t", b"there")
        await ExternalBroker("127.0.0.1", port).start()
    finally:
        await client.close()
        await broker.stop()


async def test_the_embedded_broker_keeps_its_port_and_tells_of_its_death() -> None:
    lost: list[bool] = []
    broker = BrokerServer(lost=lambda: lost.append(True))
    await broker.start()
    try:
        port, pid = broker.port, broker.pid
        assert broker.endpoint == f"mqtt://127.0.0.1:{port}" and pid is not None
        with pytest.raises(BrokerError, match="runs already"):
            await broker.start()
        with pytest.raises(BrokerError, match="in use"):
            await BrokerServer(port).start()
        await broker.restart()
        assert (broker.port, broker.running) == (port, True) and broker.pid != pid
        broker.suspend()
        with pytest.raises(BrokerError, match="does not answer as a broker"):
            await ExternalBroker("127.0.0.1", port).start(0.3)
        broker.resume()
        await ExternalBroker("127.0.0.1", port).start()
        assert not lost
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        await until(lambda: lost)
        assert not broker.running
        await broker.start()
        await broker.stop()
        assert not broker.running and lost == [True]
        with pytest.raises(BrokerError, match="no broker"):
            await ExternalBroker("127.0.0.1", port).start()
    finally:
        broker.kill()


PARENT = """
import asyncio, sys, time
from simulators.servers.broker import BrokerServer

async def main():
    broker = BrokerServer()
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("suspended", [False, True])
async def test_the_embedded_broker_dies_with_its_parent(suspended: bool) -> None:
    parent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", PARENT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    try:
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        if suspended:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
        await until(lambda: not alive(pid))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_a_broker_that_takes_nothing_more_ends_a_publish_by_time_out_and_bounds_what_waits() -> None:
    mosquitto = MosquittoServer()
    await mosquitto.start()
    assert mosquitto.pid is not None
    client = MqttMessages("127.0.0.1", mosquitto.port, "stuck", keepalive_s=60, backoff_s=(0.05, 0.2))
    try:
        await client.start()
        os.kill(mosquitto.pid, signal.SIGSTOP)
        big = bytes(1 << 20)
        loop = asyncio.get_running_loop()
        with pytest.raises(CommunicationError, match="does not take t") as error:
            for _ in range(100):  # what the system buffers is lost without a word
                await client.publish("t", big, timeout_s=0.05)
        assert error.value.code == 2007
        for _ in range(STUCK_MAX - 1):
            with pytest.raises(CommunicationError, match="does not take t"):
                await client.publish("t", b"", timeout_s=0.01)
        begun_s = loop.time()
        with pytest.raises(CommunicationError, match=f"{STUCK_MAX} messages wait"):
            await client.publish("t", b"", timeout_s=5.0)
        assert loop.time() - begun_s < 2.0  # refused at once
        for _ in range(1000):
            client.post("t", big)
        assert client.dropped >= 990
        os.kill(mosquitto.pid, signal.SIGCONT)
        begun_s = loop.time()
        await client.close()
        assert loop.time() - begun_s < 5.0
    finally:
        await client.abort()
        mosquitto.close()


async def test_a_second_client_of_one_name_throws_the_first_out_and_neither_is_quiet_about_it() -> None:
    mosquitto = MosquittoServer()
    await mosquitto.start()
    changes: list[bool] = []
    first = await MqttMessages.open("127.0.0.1", mosquitto.port, "one name")
    first.watch(changes.append)
    second = MqttMessages("127.0.0.1", mosquitto.port, "one name", backoff_s=(5.0, 5.0))
    try:
        await second.start()
        await until(lambda: changes and first.connections == 2)
        assert changes[:2] == [False, True]
    finally:
        await second.close()
        await first.close()
        mosquitto.close()


async def test_a_client_that_was_killed_leaves_its_will_and_one_that_closed_leaves_its_last_words() -> None:
    broker = BrokerServer()
    await broker.start()
    told: list[bytes] = []

    def take(message: Message) -> None:
        told.append(message.payload)

    ear = await MqttMessages.open("127.0.0.1", broker.port, "ear")
    ear.subscribe("state", take)
    words: list[bytes] = []
    ear.subscribe("words", lambda message: words.append(message.payload))
    try:
        will = Notice("state", b"lost", True)
        polite = await MqttMessages.open("127.0.0.1", broker.port, "polite", will=will, birth=("state", b"here"))
        await until(lambda: told == [b"here"])
        for i in range(100):
            polite.post("words", b"%d" % i)
        polite.post("state", b"leaving", retain=True)
        await polite.close()
        await until(lambda: len(told) == 2 and len(words) == 100)  # topics take turns: the state was not the last to arrive
        assert words == [b"%d" % i for i in range(100)]
        rude = await MqttMessages.open("127.0.0.1", broker.port, "rude", will=will)
        await rude.abort()
        await until(lambda: len(told) == 3)
        assert told == [b"here", b"leaving", b"lost"]
    finally:
        await ear.close()
        await broker.stop()
