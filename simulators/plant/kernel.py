"""The plant's own time: an event heap in integer ns, hard-wired lines, truth events, and keyed random streams.

Pure: knows no asyncio and no wall clock. `simulators.world` advances it from the loop (`advance_to`) and wakes at `next_ns`;
tests advance it by hand. Everything that happens in the plant happens inside `advance_to` or inside a call from a server.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Action = Callable[[int], None]
TruthListener = Callable[["TruthEvent"], None]


@dataclass(frozen=True, slots=True)
class TruthEvent:
    """Something that truly happened in the plant; the invariants look at nothing else."""

    t_ns: int
    source: str
    kind: str
    data: dict[str, Any]


@dataclass(slots=True, eq=False)
class Timer:
    """A pending action; `cancel` keeps it from running."""

    t_ns: int
    action: Action
    cancelled: bool = False

    def cancel(self) -> None:
        """Never run the action."""
        self.cancelled = True


@dataclass(slots=True)
class Kernel:
    """Time, events and randomness of one simulated plant.

    Attributes:
        seed: root of every random stream.
        now_ns: plant time.
        wake: called with the time of a new earliest action, so that whoever owns real time can come back then.
    """

    seed: int = 0
    now_ns: int = 0
    wake: Action | None = None
    _heap: list[tuple[int, int, Timer]] = field(default_factory=list)
    _order: int = 0
    _listeners: list[TruthListener] = field(default_factory=list)

    def at(self, t_ns: int, action: Action) -> Timer:
        """Run `action(t_ns)` at plant time `t_ns` (or as soon as possible when that has passed)."""
        timer = Timer(max(t_ns, self.now_ns), action)
        self._order += 1
        heapq.heappush(self._heap, (timer.t_ns, self._order, timer))
        if self.wake is not None and self._heap[0][2] is timer:
            self.wake(timer.t_ns)
        return timer

    def after(self, delay_ns: int, action: Action) -> Timer:
        """Run `action` after a delay."""
        return self.at(self.now_ns + delay_ns, action)

    @property
    def next_ns(self) -> int | None:
        """Time of the next pending action, or None."""
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def advance_to(self, t_ns: int) -> None:
        """Run every action due up to and including `t_ns`, in order of time then of registration."""
        heap = self._heap
        while heap and heap[0][0] <= t_ns:
            timer = heapq.heappop(heap)[2]
            if not timer.cancelled:
                self.now_ns = timer.t_ns
                timer.action(timer.t_ns)
        self.now_ns = max(self.now_ns, t_ns)

    def emit(self, source: str, kind: str, /, **data: Any) -> None:
        """Tell every truth listener what just happened."""
        if not self._listeners:
            return
        event = TruthEvent(self.now_ns, source, kind, data)
        for listener in tuple(self._listeners):
            listener(event)

    def observe(self, listener: TruthListener) -> None:
        """Add a truth listener; it may raise to end the run (an invariant does)."""
        self._listeners.append(listener)

    def rng(self, device: str, quantity: str, *keys: int) -> np.random.Generator:
        """A generator of its own for (seed, device, quantity, keys): the order of use elsewhere cannot change it."""
        words = [
            self.seed & 0xFFFFFFFF,
            zlib.crc32(device.encode()),
            zlib.crc32(quantity.encode()),
            *[k & 0xFFFFFFFF for k in keys],
        ]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


@dataclass(slots=True, eq=False)
class Line:
    """A hard-wired boolean signal: True means safe or permitted; de-energised is False.

    Watchers are called synchronously with (t_ns, value), only on change.
    """

    kernel: Kernel
    name: str
    value: bool = False
    changed_ns: int = 0
    _watchers: list[Callable[[int, bool], None]] = field(default_factory=list)

    def set(self, value: bool) -> None:
        """Drive the line now."""
        if value == self.value:
            return
        self.value = value
        self.changed_ns = self.kernel.now_ns
        for watcher in tuple(self._watchers):
            watcher(self.kernel.now_ns, value)

    def set_after(self, delay_ns: int, value: bool) -> Timer:
        """Drive the line after a wire or relay delay."""
        return self.kernel.after(delay_ns, lambda _t: self.set(value))

    def watch(self, watcher: Callable[[int, bool], None]) -> None:
        """Call `watcher(t_ns, value)` on every change."""
        self._watchers.append(watcher)
