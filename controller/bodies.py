"""The people of a room on real wires, as a console reaches them: staff of a simulator process, or people in a real room.

Not responsible for when something is to be done (`controller.serving`), nor for a world in this process (`assembly`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controller.interlock_socket import ask
from drivers.hal.errors import CommandRejected

if TYPE_CHECKING:
    from simulators.backdoor_client import BackdoorClient

BUTTON_S = 0.5  # how long a reset button is held; assumed
ANSWER_S = 2.0  # the interlock system hears its socket between two steps


class PanelButtons:
    """The socket of the interlock system's buttons, as far as there is one."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def path(self) -> str:
        """Of the socket; empty where there is none."""
        return self._path

    async def ask(self, message: str) -> None:
        """One line that is answered ``VERB taken`` or with why not. Raises CommandRejected."""
        try:
            answer = await ask(self._path, message, ANSWER_S)
        except OSError as error:
            why = "no answer" if isinstance(error, TimeoutError) else str(error)
            raise CommandRejected(
                f"the interlock system does not answer: {why}", code=4433, hint="does it run, and is this its socket?"
            ) from None
        verb, _, said = answer.partition(" ")
        if said != "taken":
            raise CommandRejected(f"the interlock system refuses: {said.strip() or verb or 'no reason given'}", code=4432)

    async def press(self, role: str) -> None:
        """Press and release. Raises CommandRejected: nobody takes it, or it was not taken, and why."""
        await self._button(f"press {role}")
        await asyncio.sleep(BUTTON_S)
        await self._button(f"release {role}")

    async def _button(self, message: str) -> None:
        """One line, answered with nothing where it was taken."""
        if not self._path:
            raise CommandRejected(
                "the endpoints name no socket for the buttons of the interlock system", code=4433, hint="press them in the room"
            )
        try:
            answer = await ask(self._path, message, ANSWER_S)
        except TimeoutError:
            raise CommandRejected(
                f"the interlock system does not answer to {message!r}: it is not known whether it was taken",
                code=4433,
                hint="look at what stands, then press again",
            ) from None
        except OSError as error:
            raise CommandRejected(
                f"the interlock system does not take {message.split(maxsplit=1)[0]!r}: {error.strerror or error}",
                code=4433,
                hint="does it run?",
            ) from None
        if answer:
            why = answer.partition(": ")[2] or answer
            raise CommandRejected(f"the interlock system did not take the button: {why}", code=4432, hint="look at what stands")


class RemoteBodies:
    """The staff of a simulator process."""

    def __init__(self, door: BackdoorClient, room: str, buttons: PanelButtons) -> None:
        self._door = door
        self._room = room
        self._buttons = buttons

    async def attend(self, kind: str) -> None:
        """Let them do what follows a yes of the console."""
        await self._door.person(self._room, "attend", kind=kind)

    async def turn_key(self, service: bool) -> None:
        """Let them turn the mode key."""
        await self._door.person(self._room, "turn-key", mode="service" if service else "treat")

    async def press(self, role: str) -> None:
        """Press a reset button."""
        await self._buttons.press(role)


class RealPeople:
    """People in a real room: the program waits for what they do, and reads it back from the plant."""

    def __init__(self, room: str, buttons: PanelButtons) -> None:
        self._room = room
        self._buttons = buttons

    async def attend(self, kind: str) -> None:
        """They know."""

    async def turn_key(self, service: bool) -> None:
        """Raises CommandRejected: no program turns a key."""
        raise CommandRejected(
            f"the mode key of {self._room} is turned by a person",
            code=4434,
            device=self._room,
            hint=f"turn it to {'service' if service else 'treatment'} at the room, then ask again",
        )

    async def press(self, role: str) -> None:
        """Press the button of a role. Raises CommandRejected for the key."""
        if role == "key":
            raise CommandRejected(
                f"the reset key of {self._room} is turned by a person at the key switch", code=4434, device=self._room
            )
        await self._buttons.press(role)


def bypass_line(interlock: str, owner: str, approver: str, duration_s: float, reason: str) -> str:
    """A bypass as the interlock system takes it: words without spaces but for the reason at the end."""
    names = [name.strip().replace(" ", "_") for name in (interlock, owner, approver)]
    return f"bypass {' '.join(names)} {round(duration_s * 1000)} {' '.join(reason.split())}"
