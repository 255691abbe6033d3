"""Measures of a run that cost nothing: how late the loop was, and garbage collection kept out of the beam.

Not responsible for benchmarks (`bench/`).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from controller.record.outcome import LoopLag

PERIOD_S = 0.05
GARBAGE_WAITS = 32  # runs in virtual time whose garbage, 3 MB each (measured), waits for one collection
_runs = itertools.count(1)


def lag_of(late_s: Sequence[float]) -> LoopLag:
    """p50, p99 and maximum of latenesses; zeros where nothing was measured."""
    late = sorted(late_s) or [0.0]
    p50, p99 = late[len(late) // 2], late[min(len(late) - 1, (len(late) * 99) // 100)]
    return LoopLag(p50 * 1e3, p99 * 1e3, late[-1] * 1e3)


class LagProbe:
    """Measures how late a loop that runs against the wall clock is, with a timer of its own.

    Attributes:
        late_s: lateness of each look, s.
    """

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        self._task = asyncio.create_task(self._measure(), name="loop lag")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s += PERIOD_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            self.late_s.append(max(0.0, loop.time() - due_s))


@contextmanager
def quiet_garbage(*, collect: bool = True) -> Iterator[None]:
    """Freeze before, no automatic collection during, normal again after (a full one took 138 ms, measured).

    `collect`: a full collection first; in virtual time nothing can be late, and garbage may wait for the next one. But not for
    ever: what was frozen once is not looked at by automatic collections.
    """
    was_enabled = gc.isenabled()
    if collect or next(_runs) % GARBAGE_WAITS == 0:
        gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
