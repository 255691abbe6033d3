"""The contract of published messages: MQTT, or its memory twin.

For display, supervision and record only: nothing that lets beam through travels here, losing the broker neither holds nor
releases beam, and commands are never retained. The promises are M1 to M6 of docs/wire-semantics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


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


class Messages(Protocol):
    """A client of a broker."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Hand a message to the broker, at most once delivered.

        Raises:
            CommunicationError: no broker.
        """
        ...

    def subscribe(self, pattern: str, callback: Callable[[Message], None]) -> Callable[[], None]:
        """Call `callback` for each message whose topic matches; returns the function that ends it.

        In `pattern`, ``+`` stands for one level and ``#`` for the rest. The subscription outlives a lost connection. The
        callback must not raise and must not block.
        """
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable."""
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
