"""Memory twin of MQTT: one broker in this process, clients with latency and a last will.

It keeps the written semantics M1 to M6 (docs/wire-semantics.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError
from drivers.wire.memory.fifo import Fifo
from drivers.wire.memory.stream import LATENCY_S
from drivers.wire.messages import Message, topic_matches


class MemoryBroker:
    """A broker: takes messages from clients, keeps retained ones, hands them to subscribers.

    Args:
        latency_s: one way, client to broker and broker to client.
    """

    def __init__(self, latency_s: float = LATENCY_S) -> None:
        self.latency_s = latency_s
        self._clients: list[MemoryMessages] = []
        self._retained: dict[str, bytes] = {}
        self._up = True
        self._inward, self._outward = Fifo(), Fifo()

    @property
    def up(self) -> bool:
        """Whether the broker answers."""
        return self._up

    def client(self, will: tuple[str, bytes] | None = None) -> MemoryMessages:
        """A new client; `will` is (topic, payload), published when the client is lost without a farewell."""
        client = MemoryMessages(self, will)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """Lose the broker: messages under way and retained messages are lost."""
        self._up = False
        self._retained.clear()

    def start(self) -> None:
        """Bring the broker back; clients reconnect and keep their subscriptions."""
        self._up = True

    def lose(self, client: MemoryMessages) -> None:
        """A client's process dies: its last will is published."""
        if client in self._clients:
            self._clients.remove(client)
            if client.will is not None:
                self.publish(*client.will, retain=False)

    def leave(self, client: MemoryMessages) -> None:
        """A client says farewell: no will."""
        if client in self._clients:
            self._clients.remove(client)

    def send(self, topic: str, payload: bytes, retain: bool) -> None:
        """A message leaves a client."""
        self._inward.call_later(self.latency_s, self.publish, topic, payload, retain)

    def publish(self, topic: str, payload: bytes, retain: bool) -> None:
        """A message reaches the broker."""
        if not self._up:
            return
        if retain:
            self._retained[topic] = payload
        for client in tuple(self._clients):
            if client.wants(topic):
                self._outward.call_later(self.latency_s, self._hand_over, client, topic, payload)

    def retained(self, pattern: str) -> list[tuple[str, bytes]]:
        """Retained messages that match a topic filter, by topic."""
        return [(topic, self._retained[topic]) for topic in sorted(self._retained) if topic_matches(pattern, topic)]

    def _hand_over(self, client: MemoryMessages, topic: str, payload: bytes) -> None:
        if self._up:
            client.arrive(topic, payload)


class MemoryMessages:
    """A client of a `MemoryBroker`; fulfils `drivers.wire.messages.Messages`."""

    def __init__(self, broker: MemoryBroker, will: tuple[str, bytes] | None) -> None:
        self.will = will
        self._broker = broker
        self._subscriptions: list[tuple[str, Callable[[Message], None]]] = []
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable."""
        return self._broker.up and not self._closed

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Hand a message to the broker; see `Messages.publish`."""
        if not self.connected:
            raise CommunicationError(f"no broker for {topic} within {timeout_s} s", code=2006, retryable=True)
        self._broker.send(topic, bytes(payload), retain)

    def subscribe(self, pattern: str, callback: Callable[[Message], None]) -> Callable[[], None]:
        """Messages that match, retained ones first; see `Messages.subscribe`."""
        entry = (pattern, callback)
        self._subscriptions.append(entry)
        if self.connected:
            asyncio.get_running_loop().call_later(2 * self._broker.latency_s, self._replay, entry)
        return lambda: self._subscriptions.remove(entry) if entry in self._subscriptions else None

    async def close(self) -> None:
        """Leave in good order: the last will is not sent."""
        self._closed = True
        self._subscriptions.clear()
        self._broker.leave(self)

    def wants(self, topic: str) -> bool:
        """Whether a subscription matches."""
        return any(topic_matches(pattern, topic) for pattern, _ in self._subscriptions)

    def arrive(self, topic: str, payload: bytes) -> None:
        """A message reaches this client."""
        for pattern, callback in tuple(self._subscriptions):
            if topic_matches(pattern, topic):
                callback(Message(topic, payload, now_ns()))

    def _replay(self, entry: tuple[str, Callable[[Message], None]]) -> None:
        if entry in self._subscriptions and self.connected:
            for topic, payload in self._broker.retained(entry[0]):
                entry[1](Message(topic, payload, now_ns(), retained=True))
