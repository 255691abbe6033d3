"""Commands of people, on their way from HTTP to a room: who sends them comes from the sign-in, each is sent once.

An idempotency key stands for one command of one console: the same key with the same body is the same command, whenever it is
sent again, and the room executes it once; with another body it is refused. Not responsible for judging a command (the room's
desk).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from controller.console.refused import Refused
from controller.console.room_link import RoomLink
from controller.console.tokens import Session
from controller.console.views import AnswerView, CommandBody
from drivers.hal.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from drivers.hal.errors import BeamlineError

KEYS_MAX = 256  # per console
CONSOLES_MAX = 1_000
NOT_SENT, UNKNOWN = 2061, 2063
STATUS_BY_CODE = {
    4401: 422,  # there is no such command
    4402: 403,  # not for this role
    4404: 404,
    4412: 425,  # too old
    4443: 404,  # no such plan
    4446: 422,  # a plan that is refused, with every reason
    4454: 422,  # arguments that cannot be
    4463: 422,
    4415: 503,  # it could not be journalled
    4416: 503,
    4491: 429,
    4492: 503,
    NOT_SENT: 503,
    UNKNOWN: 504,
}


def status_of(answer: AnswerView) -> int:
    """HTTP status of an answer. What depends on the room's state, its control or its devices is 409."""
    if answer.accepted:
        return 200
    code = answer.code or 0
    if 5000 <= code < 6000:  # an argument that cannot be right
        return 422
    return STATUS_BY_CODE.get(code, 409)


def finite(body: CommandBody) -> None:
    """JSON as this program reads it knows NaN, Infinity and halves of letters; a command does not. Raises Refused 422."""
    try:
        json.dumps(body.model_dump(), allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Refused(422, "a value of the command is no number or no text", "numbers are finite, text is Unicode") from None


@dataclass(slots=True)
class _Sent:
    body: str
    sequence: int
    answer: asyncio.Future[AnswerView] | None = None


class Dispatch:
    """All consoles of one room.

    Args:
        clock_ns: the computer's monotonic clock: sequences go on counting up when this process is started again.
    """

    def __init__(self, link: RoomLink, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._link = link
        self._clock_ns = clock_ns
        self._sent: OrderedDict[str, OrderedDict[str, _Sent]] = OrderedDict()
        self._last_sequence = 0

    async def command(self, session: Session, body: CommandBody, key: str, came_s: float) -> AnswerView:
        """What the room answers.

        Args:
            session: of who sends it.
            body: as sent.
            key: for this command of this console.
            came_s: loop time when the request arrived, s.

        Raises:
            Refused: 409, the key stands for another command.
        """
        sent = self._sent_as(session, body, key)
        if sent.answer is not None:
            first = await asyncio.shield(sent.answer)
            if first.code not in (NOT_SENT, UNKNOWN):
                return first.model_copy(update={"repeated": True})
            # Nothing is known of the first time: the room is asked again, and knows the sequence if it ever saw it.
        promise = sent.answer = asyncio.get_running_loop().create_future()
        answer = AnswerView(accepted=False, code=UNKNOWN, reason="the request was given up", hint="look at the room")
        try:
            answer = await self._send(session, body, sent.sequence, came_s)
        finally:
            promise.set_result(answer)
        self._remember_control(session, body, answer)
        return answer

    async def once(self, session: Session, name: str, arguments: dict[str, object]) -> AnswerView:
        """A command of ours on somebody's behalf, which nobody sends again."""
        body = CommandBody(name=name, arguments=arguments, boot_id=self._link.boot_id)
        return await self._send(session, body, self._next_sequence(), asyncio.get_running_loop().time())

    async def _send(self, session: Session, body: CommandBody, sequence: int, came_s: float) -> AnswerView:
        waited_ns = int((asyncio.get_running_loop().time() - came_s) * NS_PER_S)
        command = {
            "name": body.name,
            "arguments": body.arguments,
            "actor": session.name,
            "role": session.role.value,
            "console": session.console,
            "token": body.control_token,
            "boot_id": body.boot_id,
            "sequence": sequence,
            "age_ns": int(body.age_ms * NS_PER_MS) + max(0, waited_ns),
        }
        try:
            return await self._link.submit(command)
        except BeamlineError as error:
            return AnswerView(accepted=False, code=error.code, reason=error.message, hint=error.hint)

    def _sent_as(self, session: Session, body: CommandBody, key: str) -> _Sent:
        text = json.dumps([session.name, session.role.value, body.model_dump(exclude={"age_ms"})], sort_keys=True)
        keys = self._sent.setdefault(session.console, OrderedDict())
        self._sent.move_to_end(session.console)
        while len(self._sent) > CONSOLES_MAX:
            self._sent.popitem(last=False)
        found = keys.get(key)
        if found is None:
            found = keys[key] = _Sent(text, self._next_sequence())
            while len(keys) > KEYS_MAX:
                keys.popitem(last=False)
        elif found.body != text:
            raise Refused(
                409, "this Idempotency-Key stands for another command of this console", "use a new key for a new command"
            )
        return found

    def _next_sequence(self) -> int:
        self._last_sequence = max(self._last_sequence + 1, self._clock_ns() // NS_PER_US)
        return self._last_sequence

    def _remember_control(self, session: Session, body: CommandBody, answer: AnswerView) -> None:
        """For the heartbeats of the console's stream, which need not say it."""
        if answer.accepted and body.name == "take_control" and isinstance(answer.value, int):
            session.control_tokens[self._link.room] = answer.value
        elif answer.accepted and body.name == "give_control":
            session.control_tokens.pop(self._link.room, None)
