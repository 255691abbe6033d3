"""Keeps the latest status of everything that is watched, and turns it into causes for the state the room is in.

A device that does not answer keeps its old status, which grows stale and becomes a cause: silence is never good news. Not
responsible for when to look or for what a cause does (`session`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from controller.room.causes import Cause, Severity
from controller.room.states import State
from controller.room.supervision import ENTERED, WATCHED, Reference, Seen, Timing, always, in_beam, unsecured
from controller.room.watchdog import Beat
from drivers.hal.capabilities import RingState, RoomDevices
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError
from drivers.hal.reading import Reading

FRESH_SHARE = 0.8  # a status younger than this share of the period is not read again: its driver reads it by itself
AFTER_MS = 3.0  # a look follows a driver's own reading by this: a transaction takes 1 ms (assumed: three)
LOOK_S = 0.25  # for the look itself, beside what it waits for: a period and a busy loop (assumed)
STALLED_S = 30.0  # beam on without a count for this long: nobody knows what the delivery waits for (assumed)


@dataclass(slots=True)
class Watch:
    """The latest of everything.

    Attributes:
        devices: the room's devices; their statuses are read as they are and refreshed when old.
        timing: deadlines and periods.
        reference: what was armed; None before.
        beat: of the task that looks: told before each question how long its answer may take.
        errors: why the last refresh of a device failed, by what it was.
    """

    devices: RoomDevices
    timing: Timing
    reference: Reference | None = None
    beat: Beat | None = None
    errors: dict[str, str] = field(default_factory=dict)
    _ring: RingState | None = None
    _ring_ns: int = -(10**18)
    _couch: Mapping[str, Reading[float]] | None = None
    _couch_ns: int = -(10**18)
    _progress: tuple[int, int] = (-1, -1)
    _progress_ns: int = 0

    def seen(self) -> Seen:
        """What is known now, without I/O."""
        d = self.devices
        return Seen(
            now_ns(), d.access.status, d.interlock.status, d.unit.status, d.dose_monitor.status, self._ring, self._couch
        )

    def pause_s(self, period_s: float) -> float:
        """How long to sleep until the next look: a period, or less so that it follows the driver's own reading of the room.

        In step with it the status is milliseconds old when it is judged, and nothing is read twice.
        """
        age_s, after_s = (now_ns() - self.devices.access.status.t_ns) / NS_PER_S, AFTER_MS / 1000.0
        return min(period_s, max(after_s, period_s + after_s - age_s)) if age_s < 1.5 * period_s else period_s

    async def refresh(self, *, with_ring: bool = False, period_s: float = 0.0) -> Seen:
        """Read what is older than it need be, and return what is known then.

        Args:
            with_ring: also gantry and couch, each at its own period.
            period_s: how often this is called; 0 reads everything now, as before a decision.
        """
        d, t = self.devices, self.timing
        now = now_ns()
        enough_ns = FRESH_SHARE * period_s * NS_PER_S
        if not period_s or now - d.access.status.t_ns > enough_ns:
            await self._ask("room status", d.access.refresh, t.access_deadline_ms)
        if not period_s or now - d.interlock.status.t_ns > max(enough_ns, t.interlock_ms * NS_PER_MS):
            await self._ask("interlock status", d.interlock.refresh, t.interlock_deadline_ms)
        if with_ring and (not period_s or now - self._ring_ns >= t.ring_ms * NS_PER_MS):
            self._ring_ns = now
            await self._ask("gantry", self._read_ring, t.ring_deadline_ms)
        if with_ring and (not period_s or now - self._couch_ns >= t.couch_ms * NS_PER_MS):
            self._couch_ns = now
            await self._ask("couch", self._read_couch, t.ring_deadline_ms)
        return self.seen()

    def causes(self, state: State, seen: Seen, *, requested: bool) -> list[Cause]:
        """Everything that is wrong for this state, in the order in which it should be told."""
        found = list(always(seen.access, seen.now_ns))
        if state in ENTERED or state in WATCHED:
            cause = unsecured(seen.access, seen.now_ns)
            found += [cause] if cause is not None else []
        if state in WATCHED and self.reference is not None:
            found += in_beam(seen, self.timing, self.reference, requested=requested)
        return found

    def withheld(self, seen: Seen) -> list[Cause]:
        """What keeps an interrupted room from resuming."""
        found = self.causes(State.INTERRUPTED, seen, requested=False)
        if not seen.access.permit_a:
            found.append(
                Cause(
                    "permit.a", Severity.PAUSE, "the hard-wired chain does not permit beam", device="chain A", t_ns=seen.now_ns
                )
            )
        return found

    def stalled(self, state: State, seen: Seen) -> Cause | None:
        """Beam on, and nothing has been counted for `STALLED_S`."""
        progress = (seen.unit.counts1_total, seen.unit.last_grant_id)
        if state is not State.BEAM_ON or progress != self._progress:
            self._progress, self._progress_ns = progress, seen.now_ns
            return None
        idle_s = (seen.now_ns - self._progress_ns) / NS_PER_S
        if idle_s <= STALLED_S:
            return None
        return Cause(
            "delivery.stalled",
            Severity.FAULT,
            "beam is on and nothing is counted",
            device=self.devices.unit.name,
            value=f"{idle_s:.0f} s without a count",
            limit=f"{STALLED_S:g} s",
            hint="reconcile the open grant, then acknowledge",
            t_ns=seen.now_ns,
        )

    async def _read_ring(self) -> None:
        self._ring = await self.devices.gantry.read_state()

    async def _read_couch(self) -> None:
        self._couch = await self.devices.couch.read_axes()

    @property
    def ring_ns(self) -> int:
        """When the gantry was last seen alive, loop time; 0 before."""
        return self._ring.angle.t_ns if self._ring is not None else 0

    async def _ask(self, what: str, read: Callable[[], Awaitable[object]], limit_ms: float) -> None:
        if self.beat is not None:
            self.beat.beat(limit_ms / 1000.0 + LOOK_S)
        try:
            async with asyncio.timeout(limit_ms / 1000.0):
                await read()
        except (BeamlineError, TimeoutError) as error:
            self.errors[what] = str(error) or f"no answer within {limit_ms:g} ms"
        else:
            self.errors.pop(what, None)
