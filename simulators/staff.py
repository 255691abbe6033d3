"""Who works in the rooms of a simulator process: answers a controller's prompts and does what a person does at that moment.

A controller in another process asks over the backdoor; people, search buttons, door and reset buttons belong to the plant. Not
responsible for how long a walk takes (`people`), nor for what a button does (`plant.access`, the interlock system).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

from simulators.people import OperatorFailed, Pace, ScriptedOperator

LOOK_S = 5.0  # how often the operator looks whether the room is still secured
MIND_S = 20.0  # between two looks at the interlock panel of a secured room, each with a try at the reset buttons; assumed
BUTTON_S = 0.5  # how long a reset button is held
ROLES = ("operator", "physicist", "service", "key")  # whose buttons the interlock system has
RESET_ROLES = ("key", "operator")  # what a member of staff may reset alone, after a search
QUICK = 20.0

Press = Callable[[str, bool], object]


def pace_of(staff: str) -> Pace:
    """``real``: as people walk; ``quick``: everything they do takes a twentieth (lamps and relays keep their times).

    Raises:
        ValueError: neither.
    """
    real = Pace()
    if staff == "real":
        return real
    if staff == "quick":
        return dataclasses.replace(real, **{f.name: getattr(real, f.name) / QUICK for f in dataclasses.fields(real)})
    raise ValueError(f"staff {staff!r}: expected real or quick")


class Staff:
    """The operator of one room.

    Args:
        script: the person.
        press: presses (True) or releases the interlock system's reset button of a role.
    """

    def __init__(self, script: ScriptedOperator, press: Press) -> None:
        self.script = script
        self._press = press
        self._deeds: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def confirm(self, kind: str) -> tuple[bool, str]:
        """Answer a prompt, with the reason when the answer is no.

        Identifying brings the patient in, and tries the operator's reset where motion is withheld; accepting the position
        means leaving and searching the room, and searching it again whenever the search is lost until beam is asked for. From
        then on the person minds the interlock panel: where the permit of a secured room is gone, the reset buttons are tried
        (the interlock system refuses while the cause is there).
        """
        async with self._one_at_a_time:
            try:
                if kind == "identify":
                    await self.stop()  # of a session that was lost: nobody closes the room on this one
                    if not self.script.secured:
                        await self.script.lay_patient()
                    if not self.script.room.chain.motion_permit.value:  # who looks at the panel sees why nothing will move
                        await self.press("operator")
                if kind == "beam_on":
                    await self._stop_closing()
                answer = await self.script.answer(kind)
            except (OperatorFailed, ValueError) as error:
                return False, str(error)
            if answer and kind == "positioned":
                await self.stop()
                self._closing = self._start(self._close_room())
                self._start(self._mind_interlocks())
            return answer, "" if answer else f"the operator answers no to {kind}"

    async def attend(self, kind: str) -> None:
        """Do what bodies do once a person at a console has said yes to a prompt; answers and resets are left to that one.

        The next patient is brought in at ``identify_next``, the same one at ``identify`` if the room is open. The room is
        searched and closed after ``positioned``, again whenever the search is lost, until ``beam_on``; nobody waits for the
        search here. Raises OperatorFailed, ValueError.
        """
        async with self._one_at_a_time:
            if kind.startswith("identify"):
                await self.stop()
                if kind == "identify_next" and self.script.room.patient.on_couch:
                    await self.script.fetch_patient()
                if kind == "identify_next" or not self.script.secured:
                    await self.script.lay_patient()
            elif kind == "positioned":
                await self.stop()
                self._closing = self._start(self._keep_closed())
            elif kind == "beam_on":
                await self._stop_closing()

    async def turn_key(self, service: bool) -> None:
        """Turn the mode key."""
        await self.script.turn_key(service)

    async def lay_patient(self) -> None:
        """Bring the patient in."""
        await self.script.lay_patient()

    async def secure_room(self) -> None:
        """Search, leave, close the door. Raises OperatorFailed."""
        await self.script.secure_room()

    async def press(self, role: str) -> None:
        """Press and release the reset button of a role. Raises ValueError where there is no such button."""
        if role not in ROLES:
            raise ValueError(f"there is no reset button of role {role!r}; there are {', '.join(ROLES)}")
        self._press(role, True)
        await asyncio.sleep(BUTTON_S)
        self._press(role, False)

    async def stop(self) -> None:
        """Let nothing go on."""
        for deed in self._deeds:
            deed.cancel()
        await asyncio.gather(*self._deeds, return_exceptions=True)

    async def _stop_closing(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.gather(self._closing, return_exceptions=True)
            self._closing = None

    async def _mind_interlocks(self) -> None:
        while True:
            await asyncio.sleep(MIND_S)
            if self.script.secured and not self.script.room.chain.permit_b.value:
                await self._reset()

    async def _close_room(self) -> None:
        """Secure the room, press the reset buttons (a room that stayed secured may have tripped since), keep an eye on it."""
        first = True
        while True:
            if first or not self.script.secured:
                await self._search_and_reset()
            first = False
            await asyncio.sleep(LOOK_S)

    async def _keep_closed(self) -> None:
        while True:
            if not self.script.secured:
                with contextlib.suppress(OperatorFailed, ValueError):  # the room sees by itself that it is not secured
                    await self.script.secure_room()
            await asyncio.sleep(LOOK_S)

    async def _search_and_reset(self) -> None:
        with contextlib.suppress(OperatorFailed, ValueError):  # the room sees by itself that it is not secured
            await self.script.secure_room()
        await self._reset()

    async def _reset(self) -> None:
        for role in RESET_ROLES:
            self._press(role, True)
        await asyncio.sleep(BUTTON_S)
        for role in RESET_ROLES:
            self._press(role, False)

    def _start(self, deed: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(deed, name="scripted operator")
        self._deeds.add(task)
        task.add_done_callback(self._deeds.discard)
        return task
