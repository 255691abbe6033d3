"""Memory twin of MQTT: one broker in this process, clients with latency, a birth message and a last will.

It keeps the written semantics M1 to M12 (docs/wire-semantics.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError
from drivers.wire.memory.fifo import Fifo
from drivers.wire.memory.stream import LATENCY_S
from drivers.wire.messages import Message, Notice, topic_matches
from drivers.wire.subscriptions import Subscription, Subscriptions
from drivers.wire.waiting import WaitingMessages

AT_ONCE = 64  # posted messages that the broker takes before others in the loop have their turn; assumed
HUNG_S = 10.0  # twice the keep-alive of the MQTT client: then it gives a hung broker up
NO_BROKER = 2006


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
        self._life = 0  # what was under way to or from an earlier one is lost
        self._frozen: asyncio.TimerHandle | None = None
        self._inward, self._outward = Fifo(), Fifo()

    @property
    def up(self) -> bool:
        """Whether clients believe that the broker is there."""
        return self._up

    def client(
        self, will: tuple[str, bytes] | Notice | None = None, birth: tuple[str, bytes] | Notice | None = None
    ) -> MemoryMessages:
        """A new client.

        Args:
            will: published when the client is lost without a farewell.
            birth: published whenever the client has connected, before anything else it says.
        """
        client = MemoryMessages(self, None if will is None else Notice(*will), None if birth is None else Notice(*birth))
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """Lose the broker: messages under way and retained messages are lost."""
        self._unfreeze()
        self._retained.clear()
        self._life += 1
        self._given_up()

    def start(self) -> None:
        """Bring the broker back; clients reconnect and keep their subscriptions."""
        self._up = True
        for client in tuple(self._clients):
            client.found()

    def freeze(self) -> None:
        """Hang: connected and silent, until its clients give it up. What they say meanwhile is lost without a word."""
        self._unfreeze()
        self._frozen = asyncio.get_running_loop().call_later(HUNG_S, self._given_up)

    def thaw(self) -> None:
        """Answer again; clients that gave up reconnect."""
        self._unfreeze()
        if not self._up:
            self.start()

    def _unfreeze(self) -> None:
        if self._frozen is not None:
            self._frozen.cancel()
            self._frozen = None

    def _given_up(self) -> None:
        self._up = False
        for client in tuple(self._clients):
            client.lost()

    def lose(self, client: MemoryMessages) -> None:
        """A client's process dies: its last will is published."""
        if client in self._clients:
            self._clients.remove(client)
            if client.will is not None:
                self.publish(*client.will)

    def leave(self, client: MemoryMessages) -> None:
        """A client says farewell: no will."""
        if client in self._clients:
            self._clients.remove(client)

    def send(self, topic: str, payload: bytes, retain: bool) -> None:
        """A message leaves a client."""
        self.call(self.publish, topic, payload, retain)

    def call(self, function: Callable[..., None], *args: object) -> None:
        """Something of a client reaches the broker, in its turn."""
        self._inward.call_later(self.latency_s, self._within_life, self._life, function, *args)

    def answer(self, function: Callable[..., None], *args: object) -> None:
        """Something reaches a client, in its turn."""
        self._outward.call_later(self.latency_s, self._within_life, self._life, function, *args)

    def publish(self, topic: str, payload: bytes, retain: bool) -> None:
        """A message reaches the broker."""
        if not self._up:
            return
        if retain and payload:
            self._retained[topic] = payload
        elif retain:
            self._retained.pop(topic, None)
        for client in tuple(self._clients):
            if client.wants(topic):
                self.answer(client.arrive, topic, payload)

    def retained(self, pattern: str) -> list[tuple[str, bytes]]:
        """Retained messages that match a topic filter, by topic."""
        return [(topic, self._retained[topic]) for topic in sorted(self._retained) if topic_matches(pattern, topic)]

    def _within_life(self, life: int, function: Callable[..., None], *args: object) -> None:
        if life == self._life and self._frozen is None:
            function(*args)


class MemoryMessages:
    """A client of a `MemoryBroker`; fulfils `drivers.wire.messages.Messages`."""

    def __init__(self, broker: MemoryBroker, will: Notice | None, birth: Notice | None = None) -> None:
        self.will = will
        self._birth = birth
        self._broker = broker
        self._subscriptions = Subscriptions()
        self._outgoing = WaitingMessages()
        self._known: set[Subscription] = set()  # subscriptions that have reached the broker
        self._sending = False
        self._closed = False
        if broker.up:
            self.found()

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable."""
        return self._broker.up and not self._closed

    @property
    def dropped(self) -> int:
        """Messages, in and out, that were dropped because too many waited."""
        return self._subscriptions.waiting.dropped + self._outgoing.dropped

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Hand a message to the broker; see `Messages.publish`."""
        if not self.connected:
            raise CommunicationError(f"no broker for {topic}", code=NO_BROKER, retryable=True)
        self._send_waiting()
        self._broker.send(topic, bytes(payload), retain)

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish without waiting; see `Messages.post`."""
        if not self.connected:
            return False
        self._outgoing.put(Message(topic, bytes(payload), 0, retain))
        if not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send_some)
        return True

    def subscribe(self, pattern: str, callback: Callable[[Message], None], *, retained: bool = True) -> Callable[[], None]:
        """Messages that match, retained ones first; see `Messages.subscribe`."""
        entry = self._subscriptions.add(pattern, callback, retained)
        if self.connected:
            self._send_waiting()
            self._broker.call(self._subscribed, entry)
        else:
            self._known.add(entry)  # the reconnection will bring it along

        def end() -> None:
            self._subscriptions.remove(entry)
            self._known.discard(entry)

        return end

    def watch(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Tell losses and returns of the broker; see `Messages.watch`."""
        return self._subscriptions.watch(callback)

    async def close(self) -> None:
        """Leave in good order: the last will is not sent."""
        if self._closed:
            return
        self._send_waiting()
        self._closed = True
        self._subscriptions.clear()
        self._broker.leave(self)

    def wants(self, topic: str) -> bool:
        """Whether a subscription that the broker knows matches."""
        return any(topic_matches(entry.pattern, topic) for entry in self._subscriptions.entries if entry in self._known)

    def arrive(self, topic: str, payload: bytes) -> None:
        """A message reaches this client."""
        if not self._closed:
            self._subscriptions.arrive(Message(topic, payload, now_ns()))

    def lost(self) -> None:
        """The broker is gone: what was posted is lost with it."""
        self._outgoing.clear()
        self._subscriptions.tell(False)

    def found(self) -> None:
        """The broker is there: the birth message goes first."""
        if self._birth is not None:
            self._broker.send(*self._birth)
        self._known = set(self._subscriptions.entries)
        self._subscriptions.tell(True)

    def _send_some(self) -> None:
        for _ in range(AT_ONCE):
            message = self._outgoing.take()
            if message is None:
                self._sending = False
                return
            self._broker.send(message.topic, message.payload, message.retained)
        asyncio.get_running_loop().call_soon(self._send_some)

    def _send_waiting(self) -> None:
        """Nothing that was posted before may be overtaken."""
        while (message := self._outgoing.take()) is not None:
            self._broker.send(message.topic, message.payload, message.retained)

    def _subscribed(self, entry: Subscription) -> None:
        """A subscription has reached the broker, which tells what it keeps now."""
        if self.connected and entry in self._subscriptions.entries:
            self._known.add(entry)
            for topic, payload in self._broker.retained(entry.pattern):
                self._broker.answer(self._kept, entry, topic, payload)

    def _kept(self, entry: Subscription, topic: str, payload: bytes) -> None:
        self._subscriptions.hand_to(entry, Message(topic, payload, now_ns(), retained=True))
