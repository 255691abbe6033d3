"""Whether anything may be sent moving: the motion permit of the room's interlock system, asked before each motion.

The motion relay itself stops gantry and couch and keeps their torque off, whatever is asked of them; this says so in words
before anything is asked. Not responsible for the permit (the interlock system), for a stop (the drives), nor for permit B of
the beam.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from drivers.hal.capabilities import InterlockView
from drivers.hal.errors import CommandRejected, DeviceError

MOTION_WITHHELD = 4309
AGAIN = 2  # assumed: what stops three times in one motion is a fault of its own
# Codes of a motion that the drives' safety functions ended: not enabled, set-point not taken, stopped on the way.
ENDED_BY_SAFETY_FUNCTION = frozenset({3307, 3308, 3313})


MoveOn = Callable[[Mapping[str, object]], Awaitable[bool]]


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
    said = f"the motion permit is withheld {why}"
    first = status.first_out_code
    if status.motion_code and first not in (0, status.motion_code):  # what tripped first is the reason; the rest followed
        said = f"{status.first_out_row or f'the row of first-out code {first}'} tripped first; {said}"
        what = status.first_out_advice or f"see iongantry explain-trip {first}"
    raise CommandRejected(said, code=MOTION_WITHHELD, device=f"{room}-interlock", hint=what)


async def move_permitted(
    view: InterlockView | None, room: str, motion: Callable[[], Awaitable[object]], move_on: MoveOn | None = None
) -> None:
    """One motion: refused while the permit is withheld, and with the row named where one stopped it on the way.

    A pulse that comes late, or an enabling switch let go, stops the drives without a row. Nothing moves again by itself then:
    where the interlock system gives motion, a person is asked whether to move on, at most `AGAIN` times in one motion.

    Args:
        view: the interlock system's status line; None: there is nobody to ask.
        room: its name.
        motion: asks the drives; called once, and once more for each yes.
        move_on: asks a person, given what stopped; None: nobody is asked, and the motion has failed.

    Raises:
        CommandRejected: 4309, see `require_motion_permit`; nothing has moved, or it has stopped.
        DeviceError: of the motion; where the permit is withheld now, that is said beside it, with what to do.
    """
    for left in reversed(range(AGAIN + 1)):
        await require_motion_permit(view, room)
        try:
            await motion()
            return
        except DeviceError as stopped:
            try:
                await require_motion_permit(view, room)
            except CommandRejected as why:
                raise DeviceError(
                    f"{stopped.message}; {why.message}", code=stopped.code, device=stopped.device, hint=why.hint
                ) from stopped
            may_ask = view is not None and left and stopped.code in ENDED_BY_SAFETY_FUNCTION
            person = move_on if may_ask else None
            if person is None or not await person({"device": stopped.device, "stopped": stopped.message}):
                raise
