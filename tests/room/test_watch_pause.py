"""The room looks right after a driver has read by itself: fresher than any phase by chance, and nothing is read twice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from controller.room.supervision import Timing
from controller.room.watch import Watch
from drivers.hal.clock import now_ns
from simulators.clock import run


@pytest.mark.parametrize("phase_s", [0.0, 0.004, 0.013, 0.031, 0.048])
def test_looks_fall_into_step_with_the_driver(phase_s: float) -> None:
    async def main() -> None:
        access = SimpleNamespace(status=SimpleNamespace(t_ns=0))
        watch = Watch(SimpleNamespace(access=access), Timing())

        async def driver() -> None:
            while True:
                access.status = SimpleNamespace(t_ns=now_ns())
                await asyncio.sleep(0.05)

        task = asyncio.ensure_future(driver())
        await asyncio.sleep(1.0 + phase_s)
        ages_s, pauses_s = [], []
        for _ in range(20):
            pauses_s.append(watch.pause_s(0.05))
            await asyncio.sleep(pauses_s[-1])
            ages_s.append((now_ns() - access.status.t_ns) / 1e9)
        assert max(pauses_s) <= 0.05
        assert max(ages_s) < 0.01, "in step from the first look on"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_without_news_from_the_driver_the_room_looks_every_period() -> None:
    async def main() -> None:
        watch = Watch(SimpleNamespace(access=SimpleNamespace(status=SimpleNamespace(t_ns=0))), Timing())
        await asyncio.sleep(10.0)
        assert watch.pause_s(0.05) == 0.05

    run(main())
