"""Wire faults of published messages. See `disturb` for when they strike; docs/tap.md for what they do.

Not responsible for the bounds of what waits: those are the client's, below this tap.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError
from drivers.wire.messages import Message, Messages, topic_matches
from drivers.wire.tap.disturb import DELAY_S, Disturber
from drivers.wire.tap.faults import WireFault

FLOOD_S, FLOOD_MESSAGES = 0.001, 10  # 10,000 a second
FLOOD_BYTES = 200
REMEMBERED = 20  # messages that come again as retained ones
NO_BROKER = 2006


class DisturbedMessages:
    """A client of a broker, with the faults of its wire."""

    def __init__(self, tap: Disturber, wire: str, messages: Messages) -> None:
        self._tap = tap
        self._wire = wire
        self._messages = messages
        self._subscriptions: list[_Subscription] = []
        self._watchers: list[Callable[[bool], None]] = []
        self._past: deque[Message] = deque(maxlen=REMEMBERED)
        self._closed = False
        self._rng = random.Random(0)
        tap.attach(wire, self)
        for fault in tap.active(wire).values():
            self.struck(fault)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Hand a message to the broker; see `Messages.publish`."""
        faults = self._tap.active(self._wire, topic)
        if "disconnect" in faults:
            raise CommunicationError(f"no broker for {topic}", code=NO_BROKER, retryable=True)
        if "silence" not in faults:
            await self._messages.publish(topic, self._spoilt(payload, faults), retain=retain, timeout_s=timeout_s)
            if "duplicate" in faults:
                await self._messages.publish(topic, payload, retain=retain, timeout_s=timeout_s)

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish without waiting; see `Messages.post`."""
        faults = self._tap.active(self._wire, topic)
        if "disconnect" in faults:
            return False
        return "silence" in faults or self._messages.post(topic, self._spoilt(payload, faults), retain=retain)

    def subscribe(self, pattern: str, callback: Callable[[Message], None], *, retained: bool = True) -> Callable[[], None]:
        """Be told; see `Messages.subscribe`."""
        subscription = _Subscription(self, pattern, callback, retained)
        self._subscriptions.append(subscription)
        end = self._messages.subscribe(pattern, subscription.take, retained=retained)

        def cancel() -> None:
            subscription.ended = True
            end()
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

        return cancel

    def watch(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Be told of a lost broker; see `Messages.watch`."""
        self._watchers.append(callback)
        end = self._messages.watch(callback)

        def cancel() -> None:
            end()
            if callback in self._watchers:
                self._watchers.remove(callback)

        return cancel

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable. A silent one is."""
        return self._messages.connected and "disconnect" not in self._tap.active(self._wire)

    @property
    def dropped(self) -> int:
        """Messages that the client below dropped."""
        return self._messages.dropped

    async def close(self) -> None:
        """Leave the broker."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.ended = True
        self._subscriptions.clear()
        self._watchers.clear()
        await self._messages.close()

    def struck(self, fault: WireFault) -> None:
        """A lost broker is told; a flood begins; what was kept comes again."""
        self._rng = random.Random(fault.seed)
        if fault.kind == "disconnect":
            self._tell(False)
        elif fault.kind == "flood":
            self._flood()
        elif fault.kind == "retained":
            for message in tuple(self._past):
                for subscription in tuple(self._subscriptions):
                    if topic_matches(subscription.pattern, message.topic):
                        subscription.repeat(replace(message, retained=True))

    def healed(self, fault: WireFault) -> None:
        """The broker is back."""
        if fault.kind == "disconnect":
            self._tell(True)

    def arrived(self, message: Message) -> list[Message]:
        """What becomes of a message that arrives now; nothing, itself, or two of it."""
        faults = self._tap.active(self._wire, message.topic)
        if "silence" in faults or "disconnect" in faults:
            return []
        self._past.append(message)
        spoilt = replace(message, payload=self._spoilt(message.payload, faults))
        return [spoilt, spoilt] if "duplicate" in faults else [spoilt]

    def late_s(self, topic: str) -> float:
        """How much later a message is handed over."""
        return DELAY_S if "delay" in self._tap.active(self._wire, topic) else 0.0

    def later(self, delay_s: float, function: Callable[[Message], None], message: Message) -> None:
        """Hand something over later."""
        self._tap.later(delay_s, function, message)

    def _spoilt(self, payload: bytes, faults: dict[str, WireFault]) -> bytes:
        return self._rng.randbytes(max(1, len(payload))) if "garbage" in faults else payload

    def _tell(self, up: bool) -> None:
        if self._messages.connected:
            for callback in tuple(self._watchers):
                callback(up)

    def _flood(self) -> None:
        if self._closed or "flood" not in self._tap.active(self._wire):
            return
        for _ in range(FLOOD_MESSAGES):
            for subscription in tuple(self._subscriptions):
                topic = subscription.pattern.replace("+", "flood").replace("#", "flood")
                subscription.repeat(Message(topic, self._rng.randbytes(FLOOD_BYTES), now_ns()))
        self._tap.later(FLOOD_S, self._flood)


class _Subscription:
    """One wish to be told, with the faults of the wire."""

    def __init__(self, messages: DisturbedMessages, pattern: str, callback: Callable[[Message], None], retained: bool) -> None:
        self.pattern = pattern
        self.ended = False
        self._messages = messages
        self._callback = callback
        self._retained = retained
        self._free_s = 0.0

    def take(self, message: Message) -> None:
        """A message arrives."""
        now_s = asyncio.get_running_loop().time()
        due_s = max(now_s + self._messages.late_s(message.topic), self._free_s)
        for copy in self._messages.arrived(message):
            if due_s > now_s:
                self._free_s = due_s
                self._messages.later(due_s - now_s, self._hand_over, copy)
            else:
                self._hand_over(copy)

    def repeat(self, message: Message) -> None:
        """Something comes that nobody sent now. A broker's kept messages do not come to who does not want them."""
        if self._retained or not message.retained:
            self._hand_over(message)

    def _hand_over(self, message: Message) -> None:
        if not self.ended:
            self._callback(replace(message, t_ns=now_ns()))
