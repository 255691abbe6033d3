"""The gentle way out, the same from every state: request off, unit quiet, delivery wound up, brakes on, preset and token back.

Every step is tried whatever the ones before it did, each within a time; what could not be done is told. Not responsible for the
room's state, nor for protection: chain A and the relays have done their part without any of this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from controller.room.activities import Activities, Step
from controller.room.ports import BeamSharing
from controller.room.proofs import Proofs
from controller.room.supervision import Timing
from drivers.hal.capabilities import RoomDevices

EVIDENCE_S = 0.15  # two polls of the interlock system, and some more


class Closing:
    """Closes one session out; may be run again, then it tries what is left.

    Attributes:
        problems: what could not be done, in words.
    """

    def __init__(self, devices: RoomDevices, beam: BeamSharing, proofs: Proofs, activities: Activities, timing: Timing) -> None:
        self.problems: list[str] = []
        self._devices = devices
        self._beam = beam
        self._proofs = proofs
        self._activities = activities
        self._timing = timing

    async def run(self, delivery: asyncio.Task[Step] | None, *, tripped: bool = False) -> None:
        """All steps in order. `delivery` is given time to pull and journal its results before it is cancelled.

        After a trip the preset stays for a moment: the interlock system judges most of its rows only while it is armed, and
        what it saw belongs to the record.
        """
        proofs = self._proofs
        await self.attempt("request off", self._request_off)
        await self.attempt("quiet the delivery unit", self._activities.quiet_unit)
        if delivery is not None:
            await self._join(delivery)
        await self.attempt("brake the gantry", self._brake)
        if tripped and proofs.preset_sent:
            await asyncio.sleep(EVIDENCE_S)
        if proofs.preset_sent and await self.attempt("take the preset back", self._unpreset):
            proofs.preset_sent = proofs.preset_written = False
        lease = proofs.lease
        if lease is not None and self._beam.holds(lease) and await self.attempt("return the beam token", self._return_token):
            proofs.lease = None

    async def stop_motion(self) -> None:
        """Quick stop and brake of gantry and couch."""
        await self.attempt("stop motion", self._activities.positioner.stop)

    async def attempt(self, what: str, step: Callable[[], Awaitable[None]]) -> bool:
        """One step; False when it failed, which is noted."""
        try:
            async with asyncio.timeout(self._timing.closing_step_s):
                await step()
        except Exception as error:  # noqa: BLE001 - told in the result; the other steps must still be tried
            self.problems.append(f"{what}: {type(error).__name__}: {error}")
            return False
        return True

    async def _join(self, task: asyncio.Task[Step]) -> None:
        done, _ = await asyncio.wait({task}, timeout=self._timing.grace_s)
        if not done:
            self.problems.append(f"the delivery did not wind up within {self._timing.grace_s:g} s")
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=self._timing.closing_step_s)
        if not done:
            self.problems.append("the delivery does not let itself be cancelled")
        elif not task.cancelled() and (error := task.exception()) is not None:
            self.problems.append(f"the delivery failed while winding up: {error}")

    async def _request_off(self) -> None:
        self._devices.access.request_beam(False)

    async def _brake(self) -> None:
        ring = await self._devices.gantry.read_state()
        if ring.enabled or not ring.brake_applied:
            await self._devices.gantry.stop()

    async def _unpreset(self) -> None:
        await self._devices.access.preset(0, 0.0, 0, False)

    async def _return_token(self) -> None:
        if self._proofs.lease is not None:
            self._beam.release(self._proofs.lease)
