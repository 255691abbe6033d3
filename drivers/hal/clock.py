"""The only door to time. Everything else asks here, so a virtual loop is enough to own the clock."""

from __future__ import annotations

import asyncio

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
NS_PER_US = 1_000


def now_ns() -> int:
    """Loop time in integer ns: monotonic, never the wall clock. A loop that keeps integer ns (`now_ns`) is asked for them."""
    loop = asyncio.get_running_loop()
    kept_ns: int | None = getattr(loop, "now_ns", None)
    return round(loop.time() * NS_PER_S) if kept_ns is None else kept_ns


def seconds(duration_ns: int) -> float:
    """Convert a duration in ns into s."""
    return duration_ns / NS_PER_S


async def sleep_ns(duration_ns: int) -> None:
    """Sleep `duration_ns` of loop time."""
    await asyncio.sleep(duration_ns / NS_PER_S)


async def sleep_until_ns(deadline_ns: int) -> None:
    """Sleep until the loop time `deadline_ns`; returns at once when it has passed."""
    await asyncio.sleep(max(0, deadline_ns - now_ns()) / NS_PER_S)
