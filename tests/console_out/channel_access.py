"""EPICS base's own programs as clients of one server on the loopback, and waiting until something is true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from epics_tool import epics_tool

HOST = "127.0.0.1"


async def until(condition: Callable[[], bool], what: str, within_s: float = 10.0) -> None:
    """Wait until it holds; AssertionError when it does not within `within_s`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline_s, f"{what} did not come true within {within_s} s"
        await asyncio.sleep(0.01)


async def said(port: int, program: str, *arguments: str) -> str:
    """What a program says, run to its end."""
    async with epics_tool(port, program, *arguments) as process:
        assert process.stdout is not None
        async with asyncio.timeout(15.0):
            return (await process.stdout.read()).decode()
