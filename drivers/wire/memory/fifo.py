"""Delayed calls that keep their order.

Timers that are due at the same instant run in no promised order (and are shuffled on purpose in campaigns); bytes of one stream
and requests of one client must not overtake each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class Fifo:
    """Calls functions later, first in, first out."""

    __slots__ = ("_calls", "_last_s")

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._last_s = 0.0

    def call_later(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        """Call after a delay, but not before any call asked for earlier."""
        self.call_at(asyncio.get_running_loop().time() + delay_s, function, *args)

    def call_at(self, due_s: float, function: Callable[..., None], *args: Any) -> None:
        """Call at loop time `due_s`, but not before any call asked for earlier."""
        if due_s > self._last_s or not self._calls:
            self._last_s = due_s
        self._calls.append((function, args))
        asyncio.get_running_loop().call_at(self._last_s, self._next)

    def _next(self) -> None:
        """One timer has come: run one call, the oldest. Times never fall, so each call runs at its own."""
        function, args = self._calls.popleft()
        function(*args)
