"""Who on this side of a broker wants to be told what: shared by the MQTT client and its memory twin.

Messages that arrive wait in bounded queues and are handed over a few at a time, so that a flood leaves room for everything else
in the loop. Not responsible for connections or brokers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from drivers.wire.messages import Message, topic_matches
from drivers.wire.waiting import WaitingMessages

T = TypeVar("T")

AT_ONCE = 32  # messages handed over before others in the loop have their turn; assumed


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """One wish to be told.

    Attributes:
        pattern: topic filter.
        callback: told each message.
        retained: whether messages that the broker had kept are wanted too.
    """

    pattern: str
    callback: Callable[[Message], None]
    retained: bool


class Subscriptions:
    """The subscriptions of one client, and what waits for them.

    Attributes:
        waiting: messages that have arrived and were not handed over yet.
    """

    def __init__(self) -> None:
        self.waiting = WaitingMessages()
        self._entries: list[Subscription] = []
        self._watchers: list[Callable[[bool], None]] = []
        self._handing_over = False
        self._up = False

    @property
    def patterns(self) -> list[str]:
        """Topic filters in use, each once, in the order of their first use."""
        return list(dict.fromkeys(entry.pattern for entry in self._entries))

    def add(self, pattern: str, callback: Callable[[Message], None], retained: bool) -> Subscription:
        """A new subscription."""
        entry = Subscription(pattern, callback, retained)
        self._entries.append(entry)
        return entry

    def remove(self, entry: Subscription) -> None:
        """End a subscription, once or more often."""
        if entry in self._entries:
            self._entries.remove(entry)

    @property
    def entries(self) -> Sequence[Subscription]:
        """All subscriptions, in the order in which they were made."""
        return self._entries

    def watch(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Tell changes of the connection."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def tell(self, up: bool) -> None:
        """The connection is there, or is not; watchers hear of a change."""
        if up == self._up:
            return
        self._up = up
        for watcher in tuple(self._watchers):
            _call(watcher, up)

    def arrive(self, message: Message) -> None:
        """A message has reached this client: it is handed over soon."""
        self.waiting.put(message)
        if not self._handing_over:
            self._handing_over = True
            asyncio.get_running_loop().call_soon(self._hand_over)

    def hand_to(self, entry: Subscription, message: Message) -> None:
        """Tell one subscriber, if it is still one and wants such a message."""
        if entry in self._entries and (entry.retained or not message.retained):
            _call(entry.callback, message)

    def clear(self) -> None:
        """No subscription and nothing waiting any more."""
        self._entries.clear()
        self._watchers.clear()
        self.waiting.clear()

    def _hand_over(self) -> None:
        for _ in range(AT_ONCE):
            message = self.waiting.take()
            if message is None:
                self._handing_over = False
                return
            for entry in tuple(self._entries):
                if topic_matches(entry.pattern, message.topic):
                    self.hand_to(entry, message)
        asyncio.get_running_loop().call_soon(self._hand_over)


def minimal_filters(patterns: Sequence[str]) -> list[str]:
    """The filters that no other one covers: with these at a broker, most messages come once instead of once per filter."""
    return [pattern for pattern in patterns if not any(other != pattern and _covers(other, pattern) for other in patterns)]


def _covers(wider: str, narrower: str) -> bool:
    """Whether a filter matches every topic that another one matches."""
    wide, narrow = wider.split("/"), narrower.split("/")
    for index, level in enumerate(wide):
        if level == "#":
            return True
        if index >= len(narrow) or narrow[index] == "#" or level not in ("+", narrow[index]):
            return False
    return len(wide) == len(narrow)


def _call(callback: Callable[[T], None], value: T) -> None:
    """Call a listener; what it raises is the loop's to tell, and silences nobody else."""
    try:
        callback(value)
    except Exception as error:  # noqa: BLE001 - told to the loop's handler, which ends a run that it hits
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"exception in a listener of messages {callback!r}", "exception": error}
        )
