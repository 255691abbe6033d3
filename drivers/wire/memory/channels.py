"""Memory twin of EPICS Channel Access: a client of any table of variables, with latency, merged monitors, cuts and freezes.

It keeps the written semantics of channels (docs/wire-semantics.md). Not responsible for the variables themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected, CommunicationError, DataError
from drivers.wire.channels import PutValue, Sample, Severity, Value, normalise
from drivers.wire.memory.fifo import Fifo
from drivers.wire.memory.stream import LATENCY_S

CLOCK_RESOLUTION_S = 1e-9
MERGE_S = 0.01  # a held-back update leaves this much later: the batching time measured on one real server


class VariableTable(Protocol):
    """What a server offers: its variables by name."""

    def names(self) -> Iterable[str]: ...

    def read(self, name: str) -> PutValue: ...

    def write(self, name: str, value: Value) -> None:
        """Set-point from a client. PermissionError: read only. KeyError: unknown. ValueError or TypeError: does not fit."""
        ...

    def subscribe(self, listener: Callable[[str, PutValue], None], names: Container[str], /) -> object:
        """Call `listener(name, value)` at every post of one of `names`, a view that changes; of others at will."""
        ...


@dataclass(slots=True, eq=False)
class _Monitor:
    name: str
    callback: Callable[[Sample], None]
    pending: deque[tuple[float, Value, Severity]] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None
    ended: bool = False


class MemoryChannels:
    """Channels onto a table of variables in this process; fulfils `drivers.wire.channels.Channels`.

    Args:
        table: the server's variables.
        before: called before each request reaches the table (brings the plant up to now).
        latency_s: one way.
        queue: most updates of one monitor that may be under way; the last one is overwritten when more come.
        rng: generator for drops and jitter; needed when one of them is above 0.
        drop_probability: share of updates that are held back for `MERGE_S` and then merged into the latest value.
        jitter_s: up to this much is added to the latency of each update, so that variables overtake each other.
    """

    def __init__(
        self,
        table: VariableTable,
        before: Callable[[], None] | None = None,
        *,
        latency_s: float = LATENCY_S,
        queue: int = 4,
        rng: random.Random | None = None,
        drop_probability: float = 0.0,
        jitter_s: float = 0.0,
    ) -> None:
        if rng is None and (drop_probability or jitter_s):
            raise ValueError("drops and jitter need a generator")
        if queue < 1:
            raise ValueError(f"a monitor queue of {queue} cannot hold the last value")
        self._table = table
        self._names = frozenset(table.names())
        self._before = before or (lambda: None)
        self._latency_s = latency_s
        self._queue = queue
        self._rng = rng or random.Random(0)
        self._drop_probability = drop_probability
        self._jitter_s = jitter_s
        self._monitors: dict[str, list[_Monitor]] = {}
        self._alarms: dict[str, Severity] = {}
        self._pending: dict[asyncio.Future[Any], str] = {}
        self._held: list[tuple[Callable[[], Any], asyncio.Future[Any], str]] = []
        self._inward = Fifo()
        self._connected = True
        self._connections = 1
        self._frozen = False
        self._closed = False
        table.subscribe(self._posted, self._monitors.keys())

    async def get(self, name: str, timeout_s: float = 1.0) -> Sample:
        """Ask the server for the present value; see `Channels.get`."""
        value = await self._ask(name, lambda: normalise(name, self._table.read(name)), timeout_s)
        return Sample(value, now_ns(), self._alarms.get(name, Severity.NO_ALARM))

    async def put(self, name: str, value: PutValue, timeout_s: float = 1.0) -> None:
        """Write with completion; see `Channels.put`."""
        carried = normalise(name, value)
        await self._ask(name, lambda: self._table.write(name, carried), timeout_s)

    def monitor(self, name: str, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Present value, then changes; see `Channels.monitor`. An unknown name never calls back, as on the real wire."""
        monitor = _Monitor(name, callback)
        self._monitors.setdefault(name, []).append(monitor)
        self._replay(monitor)

        def cancel() -> None:
            monitor.ended = True
            monitor.pending.clear()
            if monitor in self._monitors.get(name, []):
                self._monitors[name].remove(monitor)

        return cancel

    def connected(self, name: str) -> bool:
        """Whether the variable is connected. True for a frozen server."""
        return self._connected and not self._closed and name in self._names

    def connections(self, name: str) -> int:
        """How often the variable has been connected; see `CountsConnections`."""
        return self._connections if name in self._names else 0

    async def close(self) -> None:
        """End all monitors; whoever waits for an answer gets CommunicationError."""
        self.disconnect()
        self._closed = True
        self._monitors.clear()

    # --- what a test or a fault may do to the wire -------------------------------------------------------------------

    def disconnect(self) -> None:
        """Lose the server: pending and new requests fail, updates under way are lost."""
        self._connected = False
        self._held.clear()
        for future, name in list(self._pending.items()):
            _fail(future, CommunicationError(f"lost the server while waiting for {name}", code=2005, retryable=True))
        for monitors in self._monitors.values():
            for monitor in monitors:
                monitor.pending.clear()

    def reconnect(self) -> None:
        """Find the server again: every monitor gets the present value, whether or not it changed."""
        if self._connected or self._closed:
            return
        self._connected = True
        self._connections += 1
        for monitors in self._monitors.values():
            for monitor in monitors:
                self._replay(monitor)

    def alarm(self, name: str, severity: Severity) -> None:
        """Show the present value of a variable with an alarm severity, until it is posted again."""
        self._alarms[name] = severity
        for monitor in self._monitors.get(name, []):
            self._replay(monitor)

    def freeze(self) -> None:
        """Stop the server's process: connected, silent. Requests reach it and wait there."""
        self._frozen = True

    def thaw(self) -> None:
        """Let the server run on: it works off what waited, also what nobody waits for any more."""
        self._frozen = False
        held, self._held = self._held, []
        for action, future, name in held:
            self._serve(action, future, name)
        for monitors in self._monitors.values():
            for monitor in monitors:
                self._replay(monitor)

    # --- inside --------------------------------------------------------------------------------------------------------

    async def _ask(self, name: str, action: Callable[[], Any], timeout_s: float) -> Any:
        if not self.connected(name):
            known = "not connected" if name in self._names else "no such variable"
            raise CommunicationError(f"{name}: {known}", code=2004, retryable=name in self._names)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._pending[future] = name
        self._inward.call_later(self._latency_s, self._serve, action, future, name)
        late = CommunicationError(f"{name}: no answer within {timeout_s} s", code=2001, retryable=True)
        timer = loop.call_later(timeout_s, _fail, future, late)
        try:
            return await future
        finally:
            timer.cancel()
            del self._pending[future]

    def _serve(self, action: Callable[[], Any], future: asyncio.Future[Any], name: str) -> None:
        """The request reaches the server; it is processed even when nobody waits for the answer any more."""
        if not self._connected:
            return
        if self._frozen:
            self._held.append((action, future, name))
            return
        loop = asyncio.get_running_loop()
        try:
            self._before()
            result = action()
        except PermissionError as error:
            refusal = CommandRejected(f"{name}: access denied ({error})", code=4101, hint="the variable is read only")
            loop.call_later(self._latency_s, _fail, future, refusal)
        except (ValueError, TypeError, KeyError) as error:
            loop.call_later(self._latency_s, _fail, future, DataError(f"{name}: not taken by the server: {error}", code=5006))
        except Exception as error:  # noqa: BLE001 - carried to whoever asked
            loop.call_later(self._latency_s, _fail, future, error)
        else:
            loop.call_later(self._latency_s, _finish, future, result)

    def _posted(self, name: str, value: PutValue) -> None:
        """The server posts a value."""
        if self._alarms:
            self._alarms.pop(name, None)
        if not self._connected or self._frozen:
            return
        monitors = self._monitors.get(name)
        if monitors:
            carried = normalise(name, value)
            for monitor in monitors:
                self._enqueue(monitor, carried)

    def _replay(self, monitor: _Monitor) -> None:
        if self._connected and not self._frozen and monitor.name in self._names:
            self._before()
            self._enqueue(monitor, normalise(monitor.name, self._table.read(monitor.name)), droppable=False)

    def _enqueue(self, monitor: _Monitor, value: Value, *, droppable: bool = True) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._latency_s
        if self._jitter_s:
            due_s += self._rng.random() * self._jitter_s
        severity = self._alarms.get(monitor.name, Severity.NO_ALARM)
        drop = droppable and self._drop_probability > 0 and self._rng.random() < self._drop_probability
        if monitor.pending and (drop or len(monitor.pending) >= self._queue):
            monitor.pending[-1] = (monitor.pending[-1][0], value, severity)
            return
        if drop:
            due_s += MERGE_S
        if monitor.pending:
            due_s = max(due_s, monitor.pending[-1][0])
        monitor.pending.append((due_s, value, severity))
        if monitor.timer is None:
            monitor.timer = loop.call_at(due_s, self._deliver, monitor)

    def _deliver(self, monitor: _Monitor) -> None:
        monitor.timer = None
        loop = asyncio.get_running_loop()
        # A loop runs a timer within its clock's resolution, so a hair before it is due: what is due by then goes out with it.
        now_s = loop.time() + CLOCK_RESOLUTION_S
        while monitor.pending and monitor.pending[0][0] <= now_s:
            _, value, severity = monitor.pending.popleft()
            monitor.callback(Sample(value, now_ns(), severity))
        if monitor.pending and monitor.timer is None:
            monitor.timer = loop.call_at(monitor.pending[0][0], self._deliver, monitor)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _finish(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)
