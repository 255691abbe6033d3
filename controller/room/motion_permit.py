"""Whether anything may be sent moving: the motion permit of the room's interlock system, asked before each motion.

The motion relay itself stops gantry and couch and keeps their torque off, whatever is asked of them; this says so in words
before anything is asked. Not responsible for the permit (the interlock system), for a stop (the drives), nor for permit B of
the beam.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from drivers.hal.capabilities import InterlockView
from drivers.hal.errors import CommandRejected, DeviceError

MOTION_WITHHELD = 4309


async def require_motion_permit(view: InterlockView | None, room: str) -> None:
    """Return when gantry and couch may move; a room without a motion relay (`motion_permitted` None) has nothing to ask.

    Raises:
        CommandRejected: 4309, the motion permit is withheld: by which row, and what to do.
        CommunicationError: the interlock system's status line is silent.
    """
    if view is None:
        return
    status = await view.refresh()
    if status.motion_permitted is not False:
        return
    if status.motion_code:
        why = f"by {status.motion_row or f'the row of first-out code {status.motion_code}'}"
        what = status.motion_advice or f"see iongantry explain-trip {status.motion_code}"
    else:
        why = "and names no row: the interlock system does not run, hangs, or is cut off"
        what = "see that the interlock system of this room runs; it gives motion back when it does"
    raise CommandRejected(f"the motion permit is withheld {why}", code=MOTION_WITHHELD, device=f"{room}-interlock", hint=what)


@asynccontextmanager
async def permitted_motion(view: InterlockView | None, room: str) -> AsyncIterator[None]:
    """One motion: refused while the permit is withheld, and with the row named where one stopped it on the way.

    Raises:
        CommandRejected: 4309, see `require_motion_permit`; nothing has moved.
        DeviceError: of the motion; where the permit is withheld now, that is said beside it, with what to do.
    """
    await require_motion_permit(view, room)
    try:
        yield
    except DeviceError as stopped:
        try:
            await require_motion_permit(view, room)
        except CommandRejected as why:
            raise DeviceError(
                f"{stopped.message}; {why.message}", code=stopped.code, device=stopped.device, hint=why.hint
            ) from stopped
        raise
