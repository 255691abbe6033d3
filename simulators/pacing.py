"""Slows virtual time down to a multiple of real time, in scheduled steps.

Simulated time stands still while the program computes: on a computer that cannot hold the pace it runs slower, nothing in it is
late, and the course of a run is the one it has at full speed, count by count. What the computer could not hold is measured.

Not responsible for real time as such (`clock.PacedLoop`), where simulated time never waits for anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

STEP_S = 0.02  # wall time between two waits: an eye sees no step, and the waiting costs nothing
CATCH_UP_S = 0.1  # lateness that is made up for afterwards; what exceeds it makes simulated time slower


class Pacer:
    """Holds the loop it is started in to `factor` times real time.

    Args:
        factor: simulated seconds per second, above 0.
        clock, sleep: the wall clock in s; tests hand in their own.

    Attributes:
        late_s: wall time by which each step was late, in order.
    """

    def __init__(
        self, factor: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not factor > 0:
            raise ValueError(f"pace factor {factor} must be above 0")
        self.late_s: list[float] = []
        self._factor = factor
        self._clock = clock
        self._sleep = sleep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0  # wall time of the next step

    def start(self) -> None:
        """Begin, in the running loop, at the pace of its time."""
        self._loop = asyncio.get_running_loop()
        self._due_s = self._clock()
        self._arm()

    def stop(self) -> None:
        """Let time run free."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = None

    def _arm(self) -> None:
        if self._loop is not None:
            self._due_s += STEP_S
            self._timer = self._loop.call_later(STEP_S * self._factor, self._step)

    def _step(self) -> None:
        early_s = self._due_s - self._clock()
        if early_s > 0:
            self._sleep(early_s)  # the whole loop waits: nothing else may happen at this simulated time
        late_s = max(0.0, self._clock() - self._due_s)
        self.late_s.append(late_s)
        self._due_s += max(0.0, late_s - CATCH_UP_S)
        self._arm()
