"""The contract of published messages: MQTT, or its memory twin.

For display, supervision and record only: nothing that lets beam through travels here, losing the broker neither holds nor
releases beam, and commands are never retained. The promises are M1 to M12 of docs/wire-semantics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it arrived.

    Attributes:
        topic: full topic, levels joined by ``/``.
        payload: bytes, not interpreted.
        t_ns: loop time in ns at which it reached this process.
        retained: True when the broker had kept it from before the subscription.
    """

    topic: str
    payload: bytes
    t_ns: int
    retained: bool = False


class Notice(NamedTuple):
    """A message prepared ahead: a last will, or a birth message. Only topics of a state may be retained, never commands."""

    topic: str
    payload: bytes
    retain: bool = False


class Messages(Protocol):
    """A client of a broker."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Hand a message to the broker, at most once delivered.

        Raises:
            CommunicationError: no broker (2006), or it did not take the message within `timeout_s` (2007).
        """
        ...

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish without waiting, for what must never slow its sender: False when there is no broker.

        What waits is bounded: where the broker takes less than is posted, the oldest messages are dropped and counted.
        """
        ...

    def subscribe(self, pattern: str, callback: Callable[[Message], None], *, retained: bool = True) -> Callable[[], None]:
        """Call `callback` for each message whose topic matches; returns the function that ends it.

        In `pattern`, ``+`` stands for one level and ``#`` for the rest. The subscription outlives a lost connection. The
        callback must not raise and must not block. With `retained` False, as for commands and answers, a message that the
        broker had kept from before is not handed over.
        """
        ...

    def watch(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Call `callback` with False when the broker is lost, and with True when it is back and subscriptions are restored.

        Only changes are told. Returns the function that ends it.
        """
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable."""
        ...

    @property
    def dropped(self) -> int:
        """Messages, in and out, that were dropped because too many waited."""
        ...

    async def close(self) -> None:
        """Leave the broker in good order: the last will is not sent."""
        ...


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT topic filter matches a topic (MQTT 3.1.1, section 4.7)."""
    wanted, levels = pattern.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)
