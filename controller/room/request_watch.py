"""Asks the watchdog while beam is requested: with every pulse that would leave, and by a timer of its own when none asks.

Not responsible for who is late (`watchdog`), nor for what is done with a cause (`session`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.room.causes import Cause
from controller.room.machine import Room, StateChange
from controller.room.states import IRRADIATING
from controller.room.supervision import Timing
from controller.room.watch import LOOK_S, Watch
from controller.room.watchdog import ASKED_NS, Watchdog
from drivers.hal.capabilities import RoomDevices
from drivers.hal.clock import NS_PER_S, now_ns

LOOKS_S = ASKED_NS / NS_PER_S  # between two looks, beside those of each pulse
PULSE_SEEN_S = 0.5  # a pulse that is lost with its line is told by the driver, and by the age of the status, before (assumed)
PULSE = "request pulse"


class RequestWatch:
    """One per session.

    Args:
        room: its state says whether beam is requested.
        devices: whose statuses are followed.
        watch: the room watch, which reports.
        timing: deadlines of the statuses.
        act: told what withholds a pulse; it drops the request in the same step.
    """

    def __init__(self, room: Room, devices: RoomDevices, watch: Watch, timing: Timing, act: Callable[[Cause], None]) -> None:
        self.watchdog = Watchdog()
        self._room = room
        self._devices = devices
        self._watch = watch
        self._timing = timing
        self._act = act
        self._looking: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Name who has to live while beam is requested. The delivery and its collecting of results join by themselves."""
        dog, devices, timing = self.watchdog, self._devices, self._timing
        self._watch.beat = dog.watch("room watch", LOOK_S)
        dog.follow("room status", lambda: devices.access.status.t_ns, timing.access_deadline_ms)
        dog.follow("interlock status", lambda: devices.interlock.status.t_ns, timing.interlock_deadline_ms)
        dog.follow("delivery unit status", lambda: devices.unit.status.t_ns, timing.unit_deadline_ms)
        dog.follow("dose unit 2 status", lambda: devices.dose_monitor.status.t_ns, timing.unit_deadline_ms)
        dog.follow("gantry", lambda: self._watch.ring_ns, timing.ring_deadline_ms + timing.ring_ms)
        devices.access.gate(self._fed)

    def end(self) -> None:
        """Nobody asks any more."""
        self._devices.access.gate(None)

    def state_changed(self, change: StateChange) -> None:
        """From the request on, look even if no pulse asks; when it is dropped, look no more."""
        if (change.dest in IRRADIATING) is (change.source in IRRADIATING):
            return
        self.look_no_more()
        self.expect_no_pulse()  # there is none before the first
        if change.dest in IRRADIATING:
            self.watchdog.renew()
            self._look()

    def expect_no_pulse(self) -> None:
        """None leaves while the request is low."""
        self.watchdog.beats.pop(PULSE, None)

    def look_no_more(self) -> None:
        """Stop the timer."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _fed(self, gap_ns: int) -> bool:
        """Asked by the driver in the step in which a pulse would leave: whether everybody who has to has reported."""
        self.watchdog.watch(PULSE, PULSE_SEEN_S)
        return not self._bitten(gap_ns)

    def _bitten(self, gap_ns: int = 0) -> bool:
        """Trip the room when somebody is late: the request line is dropped in this very step."""
        if self._room.state not in IRRADIATING:
            return False
        cause = self.watchdog.judge(now_ns(), gap_ns)
        if cause is not None:
            self._act(cause)
        return cause is not None

    def _look(self) -> None:
        """A timer of its own: also a pulse that hangs is noticed, and named."""
        if not self._bitten():
            self._looking = asyncio.get_running_loop().call_later(LOOKS_S, self._look)
