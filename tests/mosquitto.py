"""Mosquitto for tests that need a broker written by others."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from witness import system_program

from simulators.leash import leashed
from simulators.servers.broker import BrokerError, free_port, greet


async def until(true: Callable[[], object], within_s: float = 8.0) -> None:
    """Wait until something has come true; AssertionError when it does not."""
    end_s = asyncio.get_running_loop().time() + within_s
    while not true():
        assert asyncio.get_running_loop().time() < end_s, f"not so within {within_s} s"
        await asyncio.sleep(0.01)


class MosquittoServer:
    """Mosquitto with a configuration of its own, on a free port of the loopback."""

    def __init__(self, port: int = 0) -> None:
        self.program = system_program("mosquitto", "mosquitto")
        self.port = port or free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="mosquitto-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _spawn(self) -> subprocess.Popen[bytes]:
        configuration = Path(self._directory.name) / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\nuser root\n",
            encoding="utf-8",  # a change of the user would slip the leash
        )
        return subprocess.Popen(
            leashed([self.program, "-c", str(configuration)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def start(self) -> None:
        self._process = self._spawn()
        for _ in range(300):
            try:
                return await greet("127.0.0.1", self.port)
            except BrokerError:
                assert self._process.poll() is None, "mosquitto does not start"
                await asyncio.sleep(0.02)
        raise AssertionError("mosquitto is not ready")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self._directory.cleanup()
