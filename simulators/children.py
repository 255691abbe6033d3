"""A child process of the simulator: started, watched, stopped, suspended, killed; it dies with its parent.

It gets a session of its own, so that Ctrl-C at the terminal reaches the simulator alone, which then ends its children in order.
All waiting is by the wall clock: a paused plant has processes all the same. Not responsible for what a child does, nor for
starting it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from simulators.clock import wall_limit
from simulators.leash import leashed

STOP_S = 3.0  # wall time between asking a child to end and killing it
WORDS_KEPT = 2000  # of what it said last
ROOT = str(Path(__file__).resolve().parents[1])  # where these packages are, installed or not


# Told of a child that ended without being asked to: its name, its exit code (negative: a signal), what it said last.
Died = Callable[[str, int, str], None]


class Child:
    """One child process.

    Args:
        name: as people call it.
        command: makes program and arguments, anew for each start.
        died: told when it ends by itself.
    """

    def __init__(self, name: str, command: Callable[[], Sequence[str]], died: Died) -> None:
        self.name = name
        self._command = command
        self._died = died
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._expected = False
        self._suspended = False
        self._words = ""

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def alive(self) -> bool:
        """Whether the process exists; it may be suspended."""
        return self.pid is not None

    @property
    def suspended(self) -> bool:
        """Whether it was stopped by SIGSTOP."""
        return self.alive and self._suspended

    @property
    def words(self) -> str:
        """The end of what it said on standard error."""
        return self._words.strip()

    async def start(self) -> None:
        """Start it, if it does not live. Raises OSError when the system refuses."""
        if self.alive:
            return
        await self._settle()
        self._words, self._expected, self._suspended = "", False, False
        self._process = await asyncio.create_subprocess_exec(
            *leashed(self._command()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))},
            start_new_session=True,
        )
        self._watcher = asyncio.create_task(self._watch(self._process), name=f"child {self.name}")

    async def stop(self, patience_s: float = STOP_S) -> None:
        """Ask it to end, and kill it when it does not within `patience_s` of wall time."""
        self._expected = True
        if not self.alive:
            await self._settle()
            return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            await self._settle(patience_s)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._expected = True
        self._signal(signal.SIGKILL)
        await self._settle()

    def suspend(self) -> None:
        """SIGSTOP: it lives and does nothing."""
        if self.alive:
            self._suspended = True
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._suspended = False
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def _settle(self, within_s: float = 10.0) -> None:
        """Until its end was seen."""
        if self._watcher is not None:
            await wall_limit(asyncio.shield(self._watcher), within_s)
            self._watcher = None

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is not None:
            while chunk := await process.stderr.read(1024):
                self._words = (self._words + chunk.decode("utf-8", "replace"))[-WORDS_KEPT:]
        code = await process.wait()
        if not self._expected:
            self._died(self.name, code, self.words)
