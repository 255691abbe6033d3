"""What the room asks a person, answered by commands: each question has a challenge that its answer has to carry.

An `OperatorPort`. A question that nobody answers waits until the room takes it back (its deadlines, a stop, an edit); an answer
to an earlier question, or to another one, is refused. Not responsible for who may answer (the command desk).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.console.question_words import question_text
from controller.console.views import QuestionView
from controller.room.ports import Confirm
from controller.surroundings import Bodies
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected

NOTHING_ASKED, OTHER_QUESTION, OLD_CHALLENGE = 4421, 4422, 4423
COMMAND_OF = {
    Confirm.IDENTIFY: "identify",
    Confirm.MOVE_ON: "move_on",
    Confirm.POSITIONED: "accept_position",
    Confirm.BEAM_ON: "beam_on",
    Confirm.RESUME: "resume",
}
CHALLENGE_BYTES = 9
DOING = {
    Confirm.IDENTIFY: "the patient is brought in",
    Confirm.POSITIONED: "the room is searched and closed",
}


@dataclass(slots=True, eq=False)
class _Asked:
    kind: Confirm
    facts: Mapping[str, Any]  # as they stand whenever they are read
    challenge: str
    t_ns: int
    answer: asyncio.Future[bool]


class Questions:
    """One per room.

    Args:
        room: its name, for messages.
        bodies: who does what follows a yes.

    Attributes:
        next_patient: the next yes to an identity brings another patient in.
        doing: what people do now, after a yes; empty when the room does not wait for them.
        answered_by: names of those who have said yes since `begin`.
    """

    def __init__(self, room: str, bodies: Bodies) -> None:
        self.next_patient = True
        self.doing = ""
        self.answered_by: list[str] = []
        self._room = room
        self._bodies = bodies
        self._asked: _Asked | None = None

    def begin(self, *, next_patient: bool) -> None:
        """A treatment begins."""
        self.next_patient, self.answered_by, self.doing = next_patient, [], ""

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Ask, and wait for the answer. Raises CommandRejected when what follows a yes could not be done."""
        asked = _Asked(
            Confirm(kind),
            facts,
            secrets.token_urlsafe(CHALLENGE_BYTES),
            now_ns(),
            asyncio.get_running_loop().create_future(),
        )
        self._asked = asked
        try:
            answer = await asked.answer
        finally:
            if self._asked is asked:
                self._asked = None
        if answer:
            await self._follow(asked.kind)
        return answer

    async def _follow(self, kind: Confirm) -> None:
        deed = kind.value
        if kind is Confirm.IDENTIFY and self.next_patient:
            deed = "identify_next"
        self.doing = DOING.get(kind, "")
        try:
            await self._bodies.attend(deed)
            if kind is Confirm.IDENTIFY:
                self.next_patient = False
        finally:
            self.doing = ""

    def answer(self, command: str, challenge: object, yes: bool, who: str) -> str:
        """Answer the question that stands; says which it was.

        Args:
            command: the one that answers, or ``decline`` for any question.
            challenge: of the question, as it was shown.
            yes: the answer.
            who: gives it.

        Raises:
            CommandRejected: nothing is asked, something else is, or the challenge is of another question.
        """
        asked = self._asked
        if asked is None or asked.answer.done():
            raise CommandRejected("nothing is asked now", code=NOTHING_ASKED, device=self._room, hint="look at the room")
        wanted = COMMAND_OF[asked.kind]
        if command not in (wanted, "decline"):
            raise CommandRejected(
                f"{command} does not answer what is asked now", code=OTHER_QUESTION, device=self._room, hint=f"{wanted} does"
            )
        if not isinstance(challenge, str) or not secrets.compare_digest(challenge.encode(), asked.challenge.encode()):
            raise CommandRejected(
                "the challenge is not that of the question which stands",
                code=OLD_CHALLENGE,
                device=self._room,
                hint="read the question again, then answer it",
            )
        asked.answer.set_result(yes)
        if yes and who not in self.answered_by:
            self.answered_by.append(who)
        return asked.kind.value

    def view(self) -> QuestionView | None:
        """What is asked now."""
        asked = self._asked
        if asked is None or asked.answer.done():
            return None
        facts = dict(asked.facts)
        return QuestionView(
            kind=asked.kind.value,
            command=COMMAND_OF[asked.kind],
            text=question_text(asked.kind.value, facts),
            facts=facts,
            challenge=asked.challenge,
            asked_t_ns=asked.t_ns,
        )
