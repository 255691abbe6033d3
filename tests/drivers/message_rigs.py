"""Brokers and their clients behind the same handles: the memory twin, amqtt in a child process, Mosquitto."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from witness import system_program

from drivers.wire.memory import MemoryBroker, MemoryMessages
from drivers.wire.messages import Messages, Notice
from drivers.wire.mqtt_messages import MqttMessages
from simulators import clock
from simulators.servers.broker import BrokerError, BrokerServer, free_port, greet

Will = tuple[str, bytes] | Notice | None
KEEPALIVE_S = 1  # of the rigs' clients: a hung broker is noticed within two or three of these


async def until(true: Callable[[], object], within_s: float = 8.0) -> None:
    """Wait until something has come true; AssertionError when it does not."""
    end_s = asyncio.get_running_loop().time() + within_s
    while not true():
        assert asyncio.get_running_loop().time() < end_s, f"not so within {within_s} s"
        await asyncio.sleep(0.01)


class MemoryMessagesRig:
    """Clients of a memory broker.

    Attributes:
        quiet_s: after which what has not come will not come.
    """

    quiet_s = 0.2

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine, with callbacks of one instant shuffled."""
        clock.run(main, schedule_seed=3)

    async def client(self, will: Will = None, birth: Will = None) -> Messages:
        """A connected client."""
        return self.broker.client(will, birth)

    async def kill(self, client: Messages) -> None:
        """The client's process dies."""
        assert isinstance(client, MemoryMessages)
        self.broker.lose(client)

    async def stop(self) -> None:
        """The broker dies, and its clients have noticed."""
        self.broker.stop()

    async def start(self) -> None:
        """The broker is there again; clients find it in a moment."""
        self.broker.start()

    async def freeze(self) -> None:
        """The broker hangs."""
        self.broker.freeze()

    async def thaw(self) -> None:
        """It works again."""
        self.broker.thaw()


class MosquittoServer:
    """Mosquitto with a configuration of its own, on a free port of the loopback."""

    def __init__(self, port: int = 0) -> None:
        self.program = system_program("mosquitto", "mosquitto")
        self.port = port or free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="mosquitto-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _spawn(self) -> subprocess.Popen[bytes]:
        configuration = Path(self._directory.name) / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n", encoding="utf-8"
        )
        return subprocess.Popen(
            [self.program, "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def start(self) -> None:
        self._process = self._spawn()
        for _ in range(300):
            try:
                return await greet("127.0.0.1", self.port)
            except BrokerError:
                assert self._process.poll() is None, "mosquitto does not start"
                await asyncio.sleep(0.02)
        raise AssertionError("mosquitto is not ready")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self._directory.cleanup()


class MqttRig:
    """Clients of a real broker on the wall clock."""

    quiet_s = 0.15

    def __init__(self, broker: MosquittoServer | BrokerServer) -> None:
        self.broker = broker
        self._clients: list[MqttMessages] = []
        self._names = itertools.count(1)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        async def around() -> None:
            await self.broker.start()
            try:
                await main
            finally:
                await self.thaw()
                for client in self._clients:
                    await client.close()
                self.broker.kill()
                if isinstance(self.broker, MosquittoServer):
                    self.broker.close()

        asyncio.run(around())

    async def client(self, will: Will = None, birth: Will = None) -> Messages:
        client = MqttMessages(
            "127.0.0.1",
            self.broker.port,
            f"rig-{next(self._names)}",
            will=will,
            birth=birth,
            backoff_s=(0.05, 0.2),
            keepalive_s=KEEPALIVE_S,
        )
        await client.start()
        self._clients.append(client)
        return client

    async def kill(self, client: Messages) -> None:
        assert isinstance(client, MqttMessages)
        await client.abort()

    async def stop(self) -> None:
        self.broker.kill()
        await until(lambda: not any(client.connected for client in self._clients))

    async def start(self) -> None:
        await self.broker.start()

    async def freeze(self) -> None:
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGSTOP)

    async def thaw(self) -> None:
        if self.broker.pid is not None:
            os.kill(self.broker.pid, signal.SIGCONT)


MessagesRig = MemoryMessagesRig | MqttRig
MESSAGES: list[Any] = [
    MemoryMessagesRig,
    pytest.param(lambda: MqttRig(BrokerServer()), marks=pytest.mark.xdist_group("wires")),
    pytest.param(lambda: MqttRig(MosquittoServer()), marks=pytest.mark.xdist_group("wires")),
]
MESSAGES_IDS = ["memory", "amqtt", "mosquitto"]
