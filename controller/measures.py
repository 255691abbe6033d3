"""Measures of a run that cost nothing: how late the loop was, and garbage collection kept out of the beam.

Not responsible for benchmarks (`bench/`).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

from controller.record.outcome import LoopLag

PERIOD_S = 0.05


class LagProbe:
    """Measures the loop's lateness with a timer of its own. In virtual time there is none to measure."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def start(self, *, virtual: bool) -> None:
        """Begin, in the running loop."""
        if not virtual:
            self._task = asyncio.create_task(self._measure(), name="loop lag")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def result(self) -> LoopLag:
        """p50, p99 and maximum; zeros where nothing was measured."""
        late = sorted(self._late_ms) or [0.0]
        return LoopLag(late[len(late) // 2], late[min(len(late) - 1, (len(late) * 99) // 100)], late[-1])

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s += PERIOD_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            self._late_ms.append((loop.time() - due_s) * 1e3)


@contextmanager
def quiet_garbage() -> Iterator[None]:
    """Collect and freeze before, no automatic collection during, normal again after (a full one took 138 ms, measured)."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
