"""Wire faults of process variables. See `disturb` for when they strike; docs/tap.md for what they do.

What a driver may rely on (docs/wire-semantics.md) is kept, except where the fault is that it is not: of one variable an older
value never follows a newer one, and after a loss every monitor is told the present value.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError
from drivers.wire.channels import Channels, CountsConnections, PutValue, Sample, Value
from drivers.wire.tap.disturb import DELAY_S, LOST_S, Disturber
from drivers.wire.tap.faults import WireFault

SHUFFLE_S = 0.05
UNWELL = ("silence", "disconnect", "vanish", "identity")  # while one of them holds a variable back nothing of it arrives
NO_ANSWER, NOT_THERE, LOST = 2001, 2004, 2005


class DisturbedChannels:
    """Variables with the faults of their wire."""

    def __init__(self, tap: Disturber, wire: str, channels: Channels) -> None:
        self._tap = tap
        self._wire = wire
        self._channels = channels
        self._monitors: list[_Monitor] = []
        self._asking: dict[asyncio.Future[None], str] = {}
        self._lost_until_ns = 0
        self._losses: list[str] = []  # patterns of what was lost, each time
        tap.attach(wire, self)

    async def get(self, name: str, timeout_s: float = 1.0) -> Sample:
        """Ask; see `Channels.get`."""
        await self._way(name, timeout_s)
        sample = await self._channels.get(name, timeout_s)
        await self._way(name, timeout_s)
        return self.spoilt(name, sample)

    async def put(self, name: str, value: PutValue, timeout_s: float = 1.0) -> None:
        """Write; see `Channels.put`. A write that meets a fault on its way is lost; one whose answer meets it is not."""
        self._tap.passes(name)
        await self._way(name, timeout_s)
        await self._channels.put(name, value, timeout_s)
        await self._way(name, timeout_s)

    def monitor(self, name: str, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Watch; see `Channels.monitor`."""
        monitor = _Monitor(self, self._tap, self._wire, name, callback)
        self._monitors.append(monitor)
        end = self._channels.monitor(name, monitor.take)

        def cancel() -> None:
            monitor.ended = True
            end()
            if monitor in self._monitors:
                self._monitors.remove(monitor)

        return cancel

    def connected(self, name: str) -> bool:
        """Whether it is connected. A silent one is."""
        return self._channels.connected(name) and not self._away(name)

    def connections(self, name: str) -> int:
        """How often it was connected, with the losses made here."""
        below = self._channels.connections(name) if isinstance(self._channels, CountsConnections) else 0
        return below + sum(fnmatchcase(name, part) for part in self._losses)

    async def close(self) -> None:
        """End all monitors."""
        for monitor in self._monitors:
            monitor.ended = True
        self._monitors.clear()
        await self._channels.close()

    def struck(self, fault: WireFault) -> None:
        """Whoever waits for an answer over a lost connection is told so."""
        if fault.kind in ("disconnect", "vanish", "identity"):
            self._losses.append(fault.part)
        if fault.kind == "identity":
            self._lost_until_ns = now_ns() + round(LOST_S * 1e9)
            self._tap.later(LOST_S, self._replay)
        if fault.kind in ("disconnect", "vanish", "identity"):
            for waiter, name in tuple(self._asking.items()):
                if self._away(name) and not waiter.done():
                    waiter.set_exception(CommunicationError(f"lost {name}", code=LOST, retryable=True))

    def healed(self, fault: WireFault) -> None:
        """Whoever waited gets on; every monitor is told the present value."""
        for waiter, name in tuple(self._asking.items()):
            if not waiter.done() and not self.held(name):
                waiter.set_result(None)
        if fault.kind == "identity":
            self._losses.append(fault.part)  # the right one is back, over a connection of its own
        if fault.kind in ("silence", "disconnect", "vanish", "nan", "text", "identity"):
            self._replay()

    def held(self, name: str) -> bool:
        """Whether nothing of a variable arrives now."""
        return "silence" in self._tap.active(self._wire, name) or self._away(name)

    def spoilt(self, name: str, sample: Sample) -> Sample:
        """A value with the faults of now."""
        faults = self._tap.active(self._wire, name)
        if "nan" in faults:
            return replace(sample, value=without_number(sample.value))
        if "text" in faults:
            return replace(sample, value="not a number")
        if "identity" in faults and name.endswith(":ID:RB"):
            return replace(sample, value="somebody else")
        return sample

    def _away(self, name: str) -> bool:
        faults = self._tap.active(self._wire, name)
        return "disconnect" in faults or "vanish" in faults or ("identity" in faults and now_ns() < self._lost_until_ns)

    def _replay(self) -> None:
        for monitor in tuple(self._monitors):
            monitor.replay()

    async def _way(self, name: str, timeout_s: float) -> None:
        """One way of a request: lost, late, or waiting for a silent server to wake up within the time-out."""
        if self._away(name):
            raise CommunicationError(f"{name}: not connected", code=NOT_THERE, retryable=True)
        faults = self._tap.active(self._wire, name)
        if "delay" in faults:
            if timeout_s <= DELAY_S:
                await self._wait(name, timeout_s)
            else:
                await asyncio.sleep(DELAY_S)
        if "silence" in faults:
            await self._wait(name, timeout_s)

    async def _wait(self, name: str, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._asking[waiter] = name
        late = CommunicationError(f"{name}: no answer within {timeout_s} s", code=NO_ANSWER, retryable=True)
        timer = loop.call_later(timeout_s, lambda: None if waiter.done() else waiter.set_exception(late))
        try:
            await waiter
        finally:
            timer.cancel()
            del self._asking[waiter]


class _Monitor:
    """One monitor, with the faults of its variable."""

    def __init__(
        self, channels: DisturbedChannels, tap: Disturber, wire: str, name: str, callback: Callable[[Sample], None]
    ) -> None:
        self.ended = False
        self._channels = channels
        self._tap = tap
        self._wire = wire
        self._name = name
        self._callback = callback
        self._last: Sample | None = None  # as it came, sound
        self._free_s = 0.0  # when the last update that is under way arrives: none overtakes it
        self._rng: random.Random | None = None

    def take(self, sample: Sample) -> None:
        """An update comes."""
        self._last = sample
        if self._channels.held(self._name):
            return
        faults = self._tap.active(self._wire, self._name)
        delay_s = DELAY_S if "delay" in faults else 0.0
        if (fault := faults.get("shuffle")) is not None:
            self._rng = self._rng or random.Random(f"{fault.seed} {self._name}")
            delay_s += self._rng.random() * SHUFFLE_S
        now_s = asyncio.get_running_loop().time()
        due_s = max(now_s + delay_s, self._free_s)
        for _ in range(2 if "duplicate" in faults else 1):
            if due_s > now_s:
                self._free_s = due_s
                self._tap.later(due_s - now_s, self._hand_over, sample)
            else:
                self._hand_over(sample)

    def replay(self) -> None:
        """The present value, after a loss."""
        if self._last is not None:
            self._hand_over(self._last)

    def _hand_over(self, sample: Sample) -> None:
        if self.ended or self._channels.held(self._name):
            return
        self._callback(self._channels.spoilt(self._name, replace(sample, t_ns=now_ns())))


def without_number(value: Value) -> Value:
    """A value whose numbers are none: what a broken sensor or a wrong record type shows."""
    if isinstance(value, np.ndarray):
        floats = np.full(value.size, np.nan)
        floats.flags.writeable = False
        return floats
    return value if isinstance(value, str) else math.nan
