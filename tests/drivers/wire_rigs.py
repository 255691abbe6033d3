"""Channels and messages behind the same handles, for the suite of promises; byte streams are in `stream_rigs`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from drivers.wire.memory import MemoryBroker
from drivers.wire.messages import Messages
from simulators import clock


class MemoryMessagesRig:
    """Clients of a memory broker."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine, with callbacks of one instant shuffled."""
        clock.run(main, schedule_seed=3)

    def client(self, will: tuple[str, bytes] | None = None) -> Messages:
        """A client."""
        return self.broker.client(will)

    def kill(self, client: Messages) -> None:
        """The client's process dies."""
        self.broker.lose(client)  # type: ignore[arg-type]


MESSAGES: dict[str, Callable[[], MemoryMessagesRig]] = {"memory": MemoryMessagesRig}
