"""A loop for a simulated world that also has company in the real one: browsers, files, other processes.

Its time runs at most `factor` times as fast as the wall clock and stands still while the program computes, so that nothing in
the plant is ever late, whatever the computer does besides; sockets, signals and threads are answered as they come. What the
computer could not hold makes simulated time slower. Not responsible for worlds on real wires, where time waits for nobody
(`clock.PacedLoop`, `clock.SteerableLoop`).
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable

NS_PER_S = 1_000_000_000
CATCH_UP_S = 0.1  # wall time by which simulated time may be behind and still be made up for; assumed, as of `pacing`
IDLE_S = 0.05  # wall time between two looks when no timer is pending
Ready = list[tuple[selectors.SelectorKey, int]]


class UnhurriedLoop(asyncio.SelectorEventLoop):
    """See above.

    Args:
        factor: simulated seconds per second of the wall clock, above 0.
        wall: the wall clock in s, monotonic; tests hand in their own.

    Attributes:
        now_ns: simulated time in integer ns; nobody else sets it.
        slip_s: wall time by which the computer was too slow so far.
    """

    def __init__(self, factor: float = 1.0, wall: Callable[[], float] = time.monotonic) -> None:
        if not factor > 0:
            raise ValueError(f"pace factor {factor} must be above 0")
        self.now_ns = 0
        self.slip_s = 0.0
        self._factor = factor
        self._wall = wall
        self._anchor_s = wall()  # wall time at which simulated time was `_anchor_ns`, had the computer kept up
        self._anchor_ns = 0
        self._files = _Waiting()
        super().__init__(self._files)
        self._files.wait = self._wait

    def time(self) -> float:
        """Simulated time, s."""
        return self.now_ns / NS_PER_S

    def _wait(self, timeout_s: float | None) -> Ready:
        """Wait for files until the next timer is due; only here time goes on."""
        if timeout_s is not None and timeout_s <= 0:
            return self._files.look(0)
        ahead_s = IDLE_S * self._factor if timeout_s is None else timeout_s
        due_ns = self.now_ns + math.ceil(ahead_s * NS_PER_S)
        due_s = self._wall_at(due_ns)
        ready = self._files.look(max(0.0, due_s - self._wall()))
        wall_s = self._wall()
        if ready and wall_s < due_s:
            reached_ns = self._anchor_ns + round((wall_s - self._anchor_s) * self._factor * NS_PER_S)
            self.now_ns = min(due_ns, max(self.now_ns, reached_ns))
            return ready
        self.now_ns = due_ns
        late_s = wall_s - due_s
        if late_s > CATCH_UP_S:
            self.slip_s += late_s - CATCH_UP_S
            self._anchor_ns, self._anchor_s = due_ns, wall_s - CATCH_UP_S
        return ready

    def _wall_at(self, t_ns: int) -> float:
        return self._anchor_s + (t_ns - self._anchor_ns) / NS_PER_S / self._factor


class _Waiting(selectors.DefaultSelector):
    """The system's selector, whose waiting is the loop's."""

    def __init__(self) -> None:
        super().__init__()
        self.wait: Callable[[float | None], Ready] = super().select

    def select(self, timeout: float | None = None) -> Ready:
        return self.wait(timeout)

    def look(self, timeout_s: float) -> Ready:
        """Wait for files, by the wall clock."""
        return super().select(timeout_s)
