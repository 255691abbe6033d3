"""The room's side of `BeamPermission`: lets the delivery grant while irradiating, parks it while interrupted, then ends it.

Not responsible for stopping beam: the room has dropped the request line before anybody here is woken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.room.machine import Room
from controller.room.ports import BeamEnded
from controller.room.states import IRRADIATING, State, Trigger
from controller.room.supervision import Timing
from drivers.hal.capabilities import RoomAccess
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError, DeviceError

ANSWER_POLL_S = 0.01


class Permission:
    """One per session.

    Args:
        room: whose state decides.
        access: where the answer to the request is read back.
        post: how the delivery's words reach the session, which fires.
        timing: how long an answer may take.
    """

    def __init__(self, room: Room, access: RoomAccess, post: Callable[[Trigger, str], None], timing: Timing) -> None:
        self._room = room
        self._access = access
        self._post = post
        self._timing = timing
        self._changed = asyncio.Event()
        self._why = ""  # what the delivery said last: why the beam is held; empty while spots are delivered
        self.answered = False  # the request line is up and beam was seen enabled since
        self._lost_ns: int | None = None  # ... and the unit has lost it since, then

    @property
    def ended(self) -> bool:
        """Whether the field is over."""
        return self._room.state not in (*IRRADIATING, State.INTERRUPTED)

    @property
    def interrupted(self) -> bool:
        """Whether the room is interrupted now."""
        return self._room.state is State.INTERRUPTED

    def beam_on(self) -> None:
        """Spots are being delivered."""
        self._why = ""
        self._post(Trigger.CONTINUE, "")

    def held(self, why: str) -> None:
        """The beam is held without an operator."""
        self._why = why
        self._post(Trigger.HOLD, why)

    def lost(self) -> None:
        """The unit lost the beam: the answer to the request has to be seen anew."""
        self._lost_ns = now_ns()

    def state_changed(self, state: State) -> None:
        """Called by the session after every change."""
        if state not in IRRADIATING:
            self.answered = False
        if state is State.BEAM_ON and self._why:
            self._post(Trigger.HOLD, self._why)  # resumed, but the machine is not ready yet
        self._changed.set()

    async def permission(self) -> None:
        """See `BeamPermission.permission`."""
        while True:
            if self.ended:
                raise BeamEnded(self._room.cause)
            if self._room.state in IRRADIATING and ((self.answered and self._lost_ns is None) or await self._wait_answer()):
                return
            self._changed.clear()
            if self._room.state is State.INTERRUPTED:
                await self._changed.wait()

    async def _wait_answer(self) -> bool:
        """Wait until the request line was answered. False when the room left its state meanwhile."""
        try:
            async with asyncio.timeout(self._timing.request_answer_s):
                while self._room.state in IRRADIATING:
                    try:
                        status = await self._access.refresh()
                    except CommunicationError:  # supervision says so when it lasts
                        await asyncio.sleep(ANSWER_POLL_S)
                        continue
                    # A node that only repeats itself has said nothing since the beam was lost.
                    heard = self._lost_ns is None or status.t_ns > self._lost_ns
                    if heard and status.beam_enabled and self._room.state in IRRADIATING:
                        self.answered, self._lost_ns = True, None
                        return True
                    await asyncio.sleep(ANSWER_POLL_S)
        except TimeoutError:
            status = self._access.status
            missing = [n for n, ok in (("A", status.permit_a), ("B", status.permit_b), ("R", status.permit_r)) if not ok]
            raise DeviceError(
                f"the request for beam was not answered within {self._timing.request_answer_s:g} s: "
                f"contribution {', '.join(missing) or 'none'} missing",
                code=3305,
                device=self._room.name,
                hint="see the interlock list and the safety chain",
            ) from None
        return False
