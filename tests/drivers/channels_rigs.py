"""The memory twin and EPICS Channel Access behind the same handles, for the suite of promises of `Channels`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Container, Coroutine
from typing import Any, Protocol

import numpy as np

from drivers.wire.channels import Channels, PutValue, Severity, Value
from drivers.wire.epics_channels import EpicsChannels
from drivers.wire.memory import MemoryChannels
from simulators import clock
from simulators.servers.ioc_link import IocServer
from simulators.servers.process_variables import coerce

KINDS = {
    "int": "int",
    "float": "double",
    "text": "string",
    "ints": "int[]",
    "floats": "double[]",
    "read-only": "int",
    "choosy": "int",
    "effect": "int",
    "count-a": "int",
    "count-b": "int",
}
WITHIN_S = 10.0


class Table:
    """A server's variables. `choosy` takes even numbers only, and `effect` becomes ten times what `choosy` took."""

    def __init__(self) -> None:
        self.values: dict[str, PutValue] = {}
        self.on_write: Callable[[], None] | None = None
        self.writes: list[tuple[str, PutValue]] = []
        self._listeners: list[tuple[Callable[[str, PutValue], None], Container[str] | None]] = []
        self.reset()

    def reset(self) -> None:
        """As it was made."""
        self.values |= {
            "int": 7,
            "float": 2.5,
            "text": "G1",
            "ints": np.array([1, -2], dtype=np.int32),
            "floats": np.array([0.5, -1e300]),
            "read-only": 1,
            "choosy": 2,
            "effect": 20,
            "count-a": 0,
            "count-b": 0,
        }
        self.writes.clear()
        self.on_write = None

    def names(self) -> list[str]:
        return list(self.values)

    def kind(self, name: str) -> str:
        return KINDS[name]

    def elements(self, name: str) -> int:
        return 16 if self.kind(name).endswith("[]") else 1

    def writable(self, name: str) -> bool:
        return name not in ("read-only", "effect")

    def read(self, name: str) -> PutValue:
        return self.values[name]

    def write(self, name: str, value: Value) -> None:
        if not self.writable(name):
            raise PermissionError("no write access")
        taken = coerce(name, self.kind(name), value)
        if name == "choosy":
            if int(taken) % 2:  # type: ignore[arg-type]
                raise ValueError(f"{taken} is odd")
            self.post("effect", 10 * int(taken))  # type: ignore[arg-type]
        if self.on_write is not None:
            self.on_write()
        self.writes.append((name, taken))
        self.post(name, taken)

    def subscribe(self, listener: Callable[[str, PutValue], None], names: Container[str] | None = None) -> None:
        self._listeners.append((listener, names))

    def post(self, name: str, value: PutValue) -> None:
        """The server's own change of a value."""
        self.values[name] = value
        for listener, names in self._listeners:
            if names is None or name in names:
                listener(name, value)


class ChannelsRig(Protocol):
    """A server that a test may freeze and take away, and its client.

    Attributes:
        overtaking: whether it shows that variables overtake each other.
        merging: whether it merges a burst.
        frozen_s: how long a frozen server is watched.
    """

    overtaking: bool
    merging: bool
    frozen_s: float

    @property
    def table(self) -> Table: ...
    def run(self, main: Coroutine[Any, Any, None]) -> None: ...
    def client(self) -> Channels: ...
    async def disconnect(self) -> None: ...
    async def reconnect(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def alarm(self, name: str, severity: Severity) -> None: ...


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds; AssertionError after `WITHIN_S`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + WITHIN_S
    while not condition():
        assert loop.time() < deadline_s, f"did not come true within {WITHIN_S} s"
        await asyncio.sleep(0.005)


class MemoryChannelsRig:
    """Memory channels onto a table; `rough` merges updates at random and lets variables overtake each other."""

    merging = True
    frozen_s = 35.0

    def __init__(self, *, rough: bool = False) -> None:
        self.table = Table()
        self.overtaking = rough
        self._channels: MemoryChannels | None = None

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine, with callbacks of one instant shuffled."""
        clock.run(main, schedule_seed=3)

    def client(self) -> Channels:
        """The client."""
        if self.overtaking:
            rng = random.Random(5)
            self._channels = MemoryChannels(self.table, rng=rng, drop_probability=0.4, jitter_s=0.01)
        else:
            self._channels = MemoryChannels(self.table)
        return self._channels

    async def disconnect(self) -> None:
        """The server is gone."""
        self._wire.disconnect()

    async def reconnect(self) -> None:
        """The server is back, and found."""
        self._wire.reconnect()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._wire.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self._wire.thaw()

    def alarm(self, name: str, severity: Severity) -> None:
        """The server marks a value, until the next one."""
        self._wire.alarm(name, severity)

    @property
    def _wire(self) -> MemoryChannels:
        if self._channels is None:
            raise RuntimeError("no client yet")
        return self._channels


class EpicsRig:
    """An IOC in a child process and the EPICS client in real time. One process serves test after test, in one loop."""

    overtaking = merging = False
    frozen_s = 1.0
    _shared: EpicsRig | None = None

    def __init__(self) -> None:
        self.table = Table()
        self._runner = asyncio.Runner(loop_factory=clock.PacedLoop)
        self._server = IocServer(self.table)
        self._client: EpicsChannels | None = None

    @classmethod
    def shared(cls) -> EpicsRig:
        """The one of this test process."""
        if cls._shared is None:
            cls._shared = cls()
        return cls._shared

    @classmethod
    def end(cls) -> None:
        """Stop the process, if there is one."""
        rig, cls._shared = cls._shared, None
        if rig is not None:
            rig._runner.run(rig._server.stop())
            rig._runner.close()

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine on a server with fresh values."""
        self._runner.run(self._run(main))

    async def _run(self, main: Coroutine[Any, Any, None]) -> None:
        self.table.reset()
        if not self._server.running:
            await self._server.start()
        for name, value in self.table.values.items():
            self.table.post(name, value)
        try:
            await main
        finally:
            self._server.resume()
            if self._client is not None:
                await self._client.close()

    def client(self) -> Channels:
        """A new client."""
        self._client = EpicsChannels(self._server.endpoint)
        return self._client

    async def disconnect(self) -> None:
        """SIGKILL; returns when the client has noticed."""
        self._server.kill()
        if self._client is not None:
            client = self._client
            await until(lambda: not any(client.connected(name) for name in self.table.names()))

    async def reconnect(self) -> None:
        """Start it again on its port; returns when the client has found what it knew."""
        await self._server.start()
        if self._client is not None:
            client = self._client
            await until(lambda: any(client.connected(name) for name in self.table.names()))

    def freeze(self) -> None:
        """SIGSTOP."""
        self._server.suspend()

    def thaw(self) -> None:
        """SIGCONT."""
        self._server.resume()

    def alarm(self, name: str, severity: Severity) -> None:
        """The server marks a value, until the next one."""
        self._server.alarm(name, severity)


CHANNELS: dict[str, Callable[[], ChannelsRig]] = {
    "memory": MemoryChannelsRig,
    "memory, rough": lambda: MemoryChannelsRig(rough=True),
}
REAL_CHANNELS: dict[str, Callable[[], ChannelsRig]] = {"Channel Access": EpicsRig.shared}
