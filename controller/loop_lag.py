"""Tells of a loop that is late: an alarm before the watchdog of another process has to act (hazard T1).

Looks twenty times a second and tells the worst of each second that was late, and once when it is in time again. In virtual time
nothing is ever late. Not responsible for limits (`console.alarm_table`) nor for what a late loop costs (`room.watchdog`).
"""

from __future__ import annotations

import asyncio

from drivers.hal.events import EventBus

PERIOD_S = 0.05
TOLD_S = 1.0
LATE_MS = 20.0  # hazard T1


async def tell_lag(bus: EventBus, source: str) -> None:
    """Emit ``loop.lag`` with ``lag_ms`` until cancelled."""
    loop = asyncio.get_running_loop()
    told_late = False
    while True:
        worst_s, due_s = 0.0, loop.time()
        end_s = due_s + TOLD_S
        while due_s < end_s:
            due_s += PERIOD_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            late_s = max(0.0, loop.time() - due_s)
            worst_s, due_s = max(worst_s, late_s), due_s + late_s
        late = worst_s * 1e3 > LATE_MS
        if late or told_late:
            bus.emit(source, "loop.lag", lag_ms=round(worst_s * 1e3, 1))
        told_late = late
