"""Channels and messages behind the same handles, for the suite of promises; byte streams are in `stream_rigs`."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Coroutine
from typing import Any

import numpy as np

from drivers.wire.channels import Channels, PutValue, Value
from drivers.wire.memory import MemoryBroker, MemoryChannels
from drivers.wire.messages import Messages
from simulators import clock


class Table:
    """A server's variables."""

    def __init__(self) -> None:
        self.values: dict[str, PutValue] = {
            "int": 7,
            "float": 2.5,
            "text": "G1",
            "ints": np.array([1, -2], dtype=np.int32),
            "floats": np.array([0.5, -1e300]),
            "read-only": 1,
            "count-a": 0,
            "count-b": 0,
        }
        self.writes: list[tuple[str, PutValue]] = []
        self._listeners: list[Callable[[str, PutValue], None]] = []

    def names(self) -> list[str]:
        return list(self.values)

    def read(self, name: str) -> PutValue:
        return self.values[name]

    def write(self, name: str, value: Value) -> None:
        if name == "read-only":
            raise PermissionError("no write access")
        self.writes.append((name, value))
        self.post(name, value)

    def subscribe(self, listener: Callable[[str, PutValue], None], _names: Container[str] = ()) -> None:
        self._listeners.append(listener)

    def post(self, name: str, value: PutValue) -> None:
        """The server's own change of a value."""
        self.values[name] = value
        for listener in self._listeners:
            listener(name, value)


class MemoryChannelsRig:
    """Memory channels onto a table; `rough` merges updates at random and lets variables overtake each other."""

    def __init__(self, *, rough: bool = False) -> None:
        self.table = Table()
        self._rough = rough
        self._channels: MemoryChannels | None = None

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine, with callbacks of one instant shuffled."""
        clock.run(main, schedule_seed=3)

    def client(self) -> Channels:
        """The client."""
        if self._rough:
            rng = random.Random(5)
            self._channels = MemoryChannels(self.table, rng=rng, drop_probability=0.4, jitter_s=0.01)
        else:
            self._channels = MemoryChannels(self.table)
        return self._channels

    @property
    def wire(self) -> MemoryChannels:
        """The twin's own handles: disconnect, reconnect, freeze, thaw."""
        if self._channels is None:
            raise RuntimeError("no client yet")
        return self._channels


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


CHANNELS: dict[str, Callable[[], MemoryChannelsRig]] = {
    "memory": MemoryChannelsRig,
    "memory, rough": lambda: MemoryChannelsRig(rough=True),
}
MESSAGES: dict[str, Callable[[], MemoryMessagesRig]] = {"memory": MemoryMessagesRig}
