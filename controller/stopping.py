"""Ctrl-C while a fraction is treated: the fraction ends, with a record; a second one ends the process as usual.

Not responsible for what ends it (`fraction`), nor for a signal before anything was begun (`early_end`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from controller.early_end import SIGNALS, begun

if TYPE_CHECKING:
    from types import FrameType


class Stops:
    """Functions that end what is under way. An interrupt that came before them is not lost: each is called as it is added."""

    def __init__(self) -> None:
        self._functions: list[Callable[[str], None]] = []
        self._why = ""

    def append(self, stop: Callable[[str], None]) -> None:
        """One more, called with who ended it."""
        self._functions.append(stop)
        if self._why:
            stop(self._why)

    def clear(self) -> None:
        """Nothing is under way any more."""
        self._functions.clear()

    def __call__(self, why: str) -> None:
        """End it."""
        self._why = self._why or why
        for stop in tuple(self._functions):
            stop(why)


@contextlib.contextmanager
def stopping(by_signal: bool) -> Iterator[Stops]:
    """Functions to be called when this process is interrupted, if it is to listen (in its main thread alone it can)."""
    stops = Stops()
    if not by_signal or threading.current_thread() is not threading.main_thread():
        yield stops
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stops(f"{signal.Signals(number).name} at the console")

    begun()
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
