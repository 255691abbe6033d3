"""Hands the plan to the interlock system of a room on real wires, so that it can read it by itself.

The daemon is told a path and a hash on the socket of its buttons and answers what became of it; it reads the file itself. Not
responsible for what it reads there (`interlocks.plan_ceilings`), nor for judging grants against it.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from controller.interlock_socket import ask
from drivers.hal.errors import BeamlineError, CommandRejected, CommunicationError
from drivers.hal.events import EventBus

ANSWER_S = 2.0  # the daemon hears its socket between two steps
AGAIN_S = 0.2
TRIES = 5  # a room that was disarmed just now is not known to be so yet
SILENT = 2109
REFUSED = 4310
BACK = "back"


BY_HAND = (
    "the endpoints name no socket of this room's interlock system: give it the plan by hand (iongantry interlock --plan FILE); "
    "until then it holds no grant against the plan"
)


async def entrust_plan(buttons: str, plan: Path, sha256: str, room: str, bus: EventBus) -> str:
    """Hand the plan over before anything moves, and say so; why it could not be, in words, or nothing.

    `buttons`: socket of the room's interlock system; empty where the endpoints name none: that is said, and no refusal.
    """
    source = f"{room}-interlocks"
    if not buttons:
        bus.emit(source, "interlock.plan", taken=False, words=BY_HAND, sha256=sha256)
        return ""
    try:
        await hand_over(Path(buttons), plan, sha256, room)
    except BeamlineError as error:
        bus.emit(source, "interlock.plan", taken=False, words=str(error), sha256=sha256)
        return str(error)
    bus.emit(source, "interlock.plan", taken=True, words="the interlock system reads the same plan by itself", sha256=sha256)
    return ""


async def hand_over(buttons: Path, plan: Path, sha256: str, room: str) -> None:
    """Tell the interlock system which plan is treated.

    Args:
        buttons: socket of the room's interlock system.
        plan: the plan's file, on this computer.
        sha256: of the bytes that the controller has read.
        room: name of the room.

    Raises:
        CommunicationError: 2109, nobody answers at the socket.
        CommandRejected: 4310, the interlock system refuses the plan, with its reasons: another file, or one it cannot read.
    """
    answer = ""
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(AGAIN_S)
        answer = await _ask(buttons, _line(plan, sha256), room)
        if answer.split(" ")[:3] == ["plan", "taken", sha256]:
            return
        if "armed" not in answer:
            break
    raise CommandRejected(
        f"the interlock system does not take the plan {plan.name}: {answer.partition(sha256)[2].strip() or answer}",
        code=REFUSED,
        device=f"{room}-interlock",
        hint="see that the file is the one that was approved; a facility's figures for its ions are in its limits overlay",
    )


async def take_back(buttons: Path, room: str) -> None:
    """Tell the interlock system that no plan is treated any more; what cannot be told now is replaced by the next plan."""
    with contextlib.suppress(CommunicationError):
        await _ask(buttons, f"plan {BACK}", room)


def _line(plan: Path, sha256: str) -> str:
    """What the daemon is told; it has another working directory."""
    return f"plan {plan.resolve()} {sha256}"


async def _ask(buttons: Path, message: str, room: str) -> str:
    """Send a line, and wait for what is answered. Raises CommunicationError (2109)."""
    try:
        return await ask(str(buttons), message, ANSWER_S)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else str(error)
        raise CommunicationError(
            f"the interlock system does not answer at {buttons}: {why}",
            code=SILENT,
            device=f"{room}-interlock",
            hint="start the interlock system of this room, or give it the plan by hand: iongantry interlock --plan FILE",
        ) from None
