"""Commands as typed values, and the desk where a room takes them: judged, journalled, executed once, answered.

Console, command line and any other client are equals. Stop needs no token and never queues. Not responsible for transport or
sign-in (the console) nor for what a command does (the handlers, handed in by the assembly).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

from controller.roles import RULES, Mode, Role, judge
from controller.room.states import State
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError, CommandRejected, DataError

AGE_MAX_NS = 200 * NS_PER_MS  # hazard C3: an old command is dropped, whatever held it up
CONSOLE_LOST_NS = NS_PER_S  # design: no commanding console for 1 s means pause
ANSWERS_KEPT = 256  # per console, for repeated sends of one command
CONSOLES_KEPT = 256  # whose last sequence is remembered; those of 20 browsers and their predecessors of days
TOLD = "told"  # in a value that is a mapping: what became of the command, in words, which the journal keeps
TOKEN_BITS = 52  # a number that JavaScript keeps, and nobody guesses


@dataclass(frozen=True, slots=True)
class Actor:
    """Who, and as what."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: see `controller.roles.RULES`.
        arguments: JSON-able, units in the names.
        actor: who.
        console: from where.
        token: the room's control token as the console knows it; 0 none.
        boot_id: of the room controller the console believes to speak to.
        sequence: counts up per console; the same number again is the same command again.
        age_ns: since the person acted, measured by the edge that received it.
    """

    name: str
    arguments: Mapping[str, Any]
    actor: Actor
    console: str
    token: int
    boot_id: int
    sequence: int
    age_ns: int

    @property
    def fingerprint(self) -> str:
        """Equal for equal commands, whatever their age."""
        return json.dumps(
            [self.name, dict(self.arguments), self.actor.name, self.actor.role.value], sort_keys=True, default=str
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told. `repeated`: this is the answer of the first time."""

    accepted: bool
    value: Any = None
    rejection: BeamlineError | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """The commanding console of a room."""

    console: str
    actor: Actor
    token: int


@dataclass(slots=True)
class _Console:
    last_sequence: int = 0
    answers: OrderedDict[int, tuple[str, asyncio.Future[Answer]]] = field(default_factory=OrderedDict)


class StorageFailed(Exception):
    """The journal did not take an entry."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


Handler = Callable[[Command], Any | Awaitable[Any]]
Journal = Callable[[str, Mapping[str, Any]], None]


class CommandDesk:
    """One per room.

    Args:
        room: its name, for messages.
        boot_id: of this controller process; a console that knew another one has to look again.
        state, mode: how the room stands when a command is judged.
        journal: told before a command is executed; when it raises, the command is not executed.
        handlers: what each command does; `view`, `take_control` and `give_control` are the desk's own.
        mode_for: the mode that a command is judged in where it is not `mode`'s, for example loading a plan for QA.
        clock_ns: by which a console is alive: the wall's, where the room's time runs faster.
    """

    def __init__(
        self,
        room: str,
        boot_id: int,
        state: Callable[[], State],
        mode: Callable[[], Mode],
        journal: Journal,
        handlers: Mapping[str, Handler],
        *,
        mode_for: Callable[[Command], Mode | None] = lambda _command: None,
        clock_ns: Callable[[], int] = now_ns,
    ) -> None:
        if unknown := [name for name in handlers if name not in RULES]:
            raise ValueError(f"handlers for unknown commands: {', '.join(unknown)}")
        self.room = room
        self.boot_id = boot_id
        self._state = state
        self._mode = mode
        self._journal = journal
        self._handlers: dict[str, Handler] = {
            "take_control": self._take_control,
            "give_control": self._give_control,
            "view": lambda _command: None,
            **handlers,
        }
        self._mode_for = mode_for
        self._clock_ns = clock_ns
        self._consoles: OrderedDict[str, _Console] = OrderedDict()
        self._control: Control | None = None
        self._heard_ns = 0

    def offer(self, handlers: Mapping[str, Handler]) -> None:
        """Take more commands than at the start. Raises ValueError for one that is not in the table."""
        if unknown := [name for name in handlers if name not in RULES]:
            raise ValueError(f"handlers for unknown commands: {', '.join(unknown)}")
        self._handlers |= handlers

    @property
    def control(self) -> Control | None:
        """Who commands the room."""
        return self._control

    @property
    def heard_ns(self) -> int:
        """Since the commanding console was last heard, ns by the desk's clock."""
        return self._clock_ns() - self._heard_ns

    def heartbeat(self, console: str, token: int) -> bool:
        """The commanding console is alive. False when it does not command (any more)."""
        if self._control is None or (self._control.console, self._control.token) != (console, token):
            return False
        self._heard_ns = self._clock_ns()
        return True

    def console_alive(self) -> bool:
        """Whether a commanding console was heard within the last second."""
        return self._control is not None and self.heard_ns <= CONSOLE_LOST_NS

    def entrust(self, console: str, actor: Actor) -> int:
        """Give the control of the room to a console, and make its token; for handlers that let somebody in."""
        self._control = Control(console, actor, secrets.randbits(TOKEN_BITS) | 1)
        self._heard_ns = self._clock_ns()
        return self._control.token

    async def submit(self, command: Command) -> Answer:
        """Judge, journal, execute once, answer. Never raises a `BeamlineError`: a refusal is an answer.

        The judgement and a synchronous handler run before anything else can: stop is executed when this is entered.
        """
        if command.name == "stop":
            return await self._execute(command)  # no token, no age, no sequence: executed every time it comes
        console = self._console(command.console)
        earlier = console.answers.get(command.sequence)
        if earlier is not None and earlier[0] == command.fingerprint:
            first = await asyncio.shield(earlier[1])
            return Answer(first.accepted, first.value, first.rejection, repeated=True)
        rejection = self._refuse(command, console)
        if rejection is not None:
            with suppress(StorageFailed):  # refused all the same
                self._note("command.refused", command, reason=str(rejection))
            return Answer(False, rejection=rejection)
        console.last_sequence = command.sequence
        promise: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        console.answers[command.sequence] = (command.fingerprint, promise)
        while len(console.answers) > ANSWERS_KEPT:
            console.answers.popitem(last=False)
        answer = Answer(False, rejection=CommandRejected("the command was abandoned", code=4416, device=self.room))
        try:
            answer = await self._execute(command)
        finally:
            promise.set_result(answer)
        return answer

    def _console(self, name: str) -> _Console:
        """What is known of a console; those that were silent longest are forgotten, the commanding one never."""
        console = self._consoles.setdefault(name, _Console())
        self._consoles.move_to_end(name)
        if len(self._consoles) > CONSOLES_KEPT:
            commanding = self._control.console if self._control is not None else ""
            self._consoles.pop(next(known for known in self._consoles if known not in (name, commanding)))
        return console

    def _refuse(self, command: Command, console: _Console) -> CommandRejected | None:
        """Why a command is not taken, most basic reason first."""
        if command.boot_id != self.boot_id:
            return self._no(4411, f"it was meant for boot {command.boot_id}, this is {self.boot_id}", "look at the room again")
        if not 0 <= command.age_ns <= AGE_MAX_NS:
            age_ms, limit_ms = command.age_ns / NS_PER_MS, AGE_MAX_NS / NS_PER_MS
            return self._no(4412, f"it is {age_ms:.0f} ms old (limit {limit_ms:.0f} ms)", "look at the room, then act again")
        if command.sequence <= console.last_sequence:
            last = console.last_sequence
            return self._no(
                4413, f"sequence {command.sequence} from {command.console} came after {last}", "a replay is not obeyed"
            )
        refused = judge(command.name, command.actor.role, self._mode_for(command) or self._mode(), self._state())
        if refused is not None:
            return refused
        control = self._control
        if RULES[command.name].needs_control:
            if control is None or (control.console, control.token) != (command.console, command.token):
                holder = f"{control.console} commands it" if control is not None else "nobody commands it"
                return self._no(4414, f"{command.console} does not command this room: {holder}", "take control first")
            if control.actor != command.actor:
                return self._no(4414, f"{control.actor.name} has control, not {command.actor.name}", "take control yourself")
        return None

    def _no(self, code: int, why: str, hint: str) -> CommandRejected:
        return CommandRejected(f"command refused: {why}", code=code, device=self.room, hint=hint)

    async def _execute(self, command: Command) -> Answer:
        handler = self._handlers.get(command.name)
        if handler is None:
            return Answer(False, rejection=self._no(4417, f"{command.name} is not offered here", "see the room's own console"))
        stop = command.name == "stop"
        try:
            if not stop:
                self._note("command", command)
            result = handler(command)
            if stop:
                self._note("command", command)  # afterwards: nothing, not even a full disk, comes before a stop
            value = await result if isawaitable(result) else result
        except StorageFailed as error:
            if isinstance(error.cause, DataError):
                return Answer(
                    stop, rejection=self._no(4419, f"its arguments cannot be recorded: {error.cause}", "no such numbers")
                )
            rejection = self._no(4415, f"the command could not be journalled: {error.cause}", "free the disk")
            return Answer(stop, rejection=rejection)
        except BeamlineError as error:
            self._tell(command, str(error))
            return Answer(False, rejection=error)
        told = str(value.get(TOLD, "")) if isinstance(value, Mapping) else ""
        self._tell(command, told, kind="command.done")
        return Answer(True, value)

    def _tell(self, command: Command, reason: str, kind: str = "command.failed") -> None:
        """Note what became of a command that was executed; one that cannot be noted was executed all the same."""
        with suppress(StorageFailed):
            self._note(kind, command, **({"reason": reason} if reason else {}))

    def _note(self, kind: str, command: Command, **more: Any) -> None:
        """Raises StorageFailed, whatever the journal raised."""
        entry = {
            "name": command.name,
            "arguments": dict(command.arguments),
            "actor": command.actor.name,
            "role": command.actor.role.value,
            "console": command.console,
            "sequence": command.sequence,
            "age_ns": command.age_ns,
            **more,
        }
        try:
            self._journal(kind, entry)
        except (OSError, BeamlineError) as error:
            raise StorageFailed(error) from error

    def _take_control(self, command: Command) -> int:
        holder = self._control
        if holder is not None and holder.console != command.console and self.console_alive():
            raise self._no(4418, f"{holder.console} ({holder.actor.name}) commands this room", "ask there to give it back")
        return self.entrust(command.console, command.actor)

    def _give_control(self, _command: Command) -> None:
        self._control = None
