"""`iongantry` in a process of its own, as people start it: what it says goes to a file, which a test reads while it runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAID_S, END_S = 300.0, 300.0  # limits, for a computer that is busy with other things


def environment() -> dict[str, str]:
    """Of this process as it is now; nothing that is said is wrapped."""
    return {**os.environ, "COLUMNS": "400"}


def until(holds: Callable[[], Any], seconds: float = 10.0, what: str | Callable[[], str] = "in time") -> Any:
    """Wait for something to become true; what it was. `what`: words, or a function that says them when it did not."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.02)
    return value


class IongantryProcess:
    """One command.

    Args:
        log: file for what it says.
        arguments: of `iongantry`.
    """

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log = log
        with log.open("wb") as words:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "controller", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
                env=environment(),
            )

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """Everything so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until_said(self, words: str, seconds: float = SAID_S) -> None:
        """Wait until it has said them; it may have ended by then."""
        until(lambda: words in self.said() or not self.runs, seconds, lambda: f"{words!r} in {self.said()}")
        assert words in self.said(), self.said()

    def send(self, how: signal.Signals = signal.SIGINT) -> None:
        """As Ctrl-C at its terminal does, if it still runs."""
        if self.runs:
            self.process.send_signal(how)

    def wait(self, seconds: float = END_S) -> int:
        """Its exit code. What does not end is killed with all its children, and fails the test."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"it does not end: {self.said()}") from None

    def end(self, how: signal.Signals = signal.SIGINT, seconds: float = END_S) -> int:
        """Signal it and wait; its exit code."""
        self.send(how)
        return self.wait(seconds)

    def kill(self) -> None:
        """As a power cut does; also for the end of a test."""
        if self.runs:
            self.process.kill()
        self.process.wait()
