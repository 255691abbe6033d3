"""Ctrl-C or SIGTERM while a command has begun nothing yet: one line and an exit code, also in the middle of Python's imports.

`listen` is called by the first line of the program. A command that answers for itself takes the signals over when it begins
something; for every other `begun` gives them back to Python before it is called. Not responsible for what is done with them
then, nor for what Python does before it reads the program's first line.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORDS = "Stopped before anything was started."
EXIT_SIGNAL = 128  # and the number of the signal, as shells tell it

_before: dict[signal.Signals, signal._HANDLER] = {}


def listen() -> None:
    """From now on a signal ends the process at once. What is ignored, as under `nohup`, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _before[number] = signal.signal(number, _end)


def begun() -> None:
    """Give back what nobody has taken over yet; from now on a signal raises, and what is held is put away."""
    for number, handler in _before.items():
        if signal.getsignal(number) is _end:
            signal.signal(number, handler)
    _before.clear()


def _end(number: int, _frame: FrameType | None) -> None:
    """Nothing is there to be put away; an exception would only be told by whoever is imported just now, or lost."""
    with contextlib.suppress(OSError):
        os.write(2, f"{WORDS}\n".encode())
    os._exit(EXIT_SIGNAL + number)
