"""Brokers and their clients behind the same handles: the memory twin, amqtt in a child process, Mosquitto."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Coroutine
from typing import Any

import pytest
from mosquitto import MosquittoServer, until

from drivers.wire.memory import MemoryBroker, MemoryMessages
from drivers.wire.messages import Messages, Notice
from drivers.wire.mqtt_messages import MqttMessages
from simulators import clock
from simulators.servers.broker import BrokerServer

Will = tuple[str, bytes] | Notice | None
KEEPALIVE_S = 1  # of the rigs' clients: a hung broker is noticed within two or three of these


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
