"""Two ways to await that a session needs: within a time, and to the end whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def limited(activity: Awaitable[T], limit_s: float | None) -> T:
    """Await with a time limit; None: none. Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        return await activity


async def uninterrupted(work: Awaitable[object]) -> None:
    """Run to the end even when the caller is cancelled meanwhile; the cancellation is delivered after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
