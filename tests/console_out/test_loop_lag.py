"""A loop that is late is told of with its worst, once a second, and once more when it is in time again."""

from __future__ import annotations

import asyncio
import contextlib

from controller.console.alarm_table import LAG_ALARM_MS
from controller.console.alarms import AlarmList
from controller.loop_lag import LATE_MS, TOLD_S, tell_lag
from drivers.hal.events import Event, EventBus


class SlowLoop(asyncio.SelectorEventLoop):
    """Time is counted by hand: it passes when somebody waits, and when somebody blocks."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


def test_what_is_late_is_told_with_its_worst_and_its_end() -> None:
    events: list[Event] = []
    alarms = AlarmList()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SlowLoop)
        bus = EventBus()
        bus.subscribe(events.append)
        bus.subscribe(alarms.take)
        task = asyncio.create_task(tell_lag(bus, "room.G1"))
        for step in range(400):
            await asyncio.sleep(0)
            late = step in (100, 110)
            loop.now_s += 0.01 if not late else (0.2 if step == 100 else 0.09)
            await asyncio.sleep(0)
        (row,) = alarms.view(0)
        assert (row.severity, row.active) == ("high", False)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=SlowLoop) as runner:
        runner.run(main())
    told = [event.data["lag_ms"] for event in events]
    assert told[:2] == [200.0, 70.0], "the worst of each second"
    assert len(told) == 3 and told[2] <= LATE_MS == LAG_ALARM_MS
    assert TOLD_S <= 1.0
