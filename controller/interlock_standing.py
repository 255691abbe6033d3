"""Asks the interlock system of a room on real wires what stands: once a second, and when its status line changes.

Off the safety path: one datagram each way, a bounded answer, and no permit, motion or command waits for it. An answer that is
late, absent or not understood leaves a reason in its place. A joiner: the words of a trip are the interlock system's own. Not
responsible for showing (`controller.serving.interlock_book`), nor for the status line (`drivers.devices.interlock_view`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Callable
from typing import Any

from controller.interlock_socket import ANSWER_MAX, answers, answers_now
from controller.surroundings import Standing, StandingBypass, StandingRow, Unheard
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.events import Event, EventBus
from interlocks.first_out import Trip
from interlocks.matrix import ROLES
from interlocks.proof import NEVER_S

EVERY_S = 1.0  # between two questions while nothing changes
SETTLED_S = 0.06  # from a change to the question: the interlock system has made its next step; bounds the questions, too
ANSWER_S = 1.0  # it hears its socket between two steps
OLD_NS = 4 * NS_PER_S  # an answer that is older says nothing of now, whatever became of who asks
MISSED_NS = 3 * NS_PER_S  # without an answer for so long: an alarm; two questions, and the start of its process. Assumed
ROWS_MAX, STATES_MAX, TEXT_MAX = 256, 64, 1000  # what is taken of an answer; assumed, far above the shipped matrix
ANSWERS_MAX = 16  # read for one question: late ones to former questions come first
WHOLE_MAX = 1 << 63

NOT_YET = "the interlock system was not asked yet"
NO_SOCKET = "the endpoints name no socket of the interlock system"
SILENT = Unheard("the interlock system does not answer at its socket")
NOT_UNDERSTOOD = "the interlock system's answer is not understood"


class StandingWatch:
    """One per room.

    Args:
        path: of the socket of the interlock system's buttons; empty where the endpoints name none.
        room: name of the room.
        bus: where changes of the status line are told.
    """

    def __init__(self, path: str, room: str, bus: EventBus) -> None:
        self._path = path
        self._device = f"{room}-interlock"
        self._source = f"{room}-interlocks"
        self._bus = bus
        self._known: Standing | str = NOT_YET if path else NO_SOCKET
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._deaf: Callable[[], None] = lambda: None
        self._heard_ns = 0  # it answered last; before that: asking began
        self._told_silent = False

    def start(self) -> None:
        """Begin to ask, where there is a socket."""
        if self._path and self._task is None:
            self._deaf = self._bus.subscribe(self._take)
            self._heard_ns = now_ns()
            self._task = asyncio.create_task(self._run(), name="what stands in the interlock system")

    async def stop(self) -> None:
        """Ask no more; what was known is forgotten."""
        task, self._task, self._known = self._task, None, NOT_YET
        if task is not None:
            self._deaf()
            task.cancel()
            await asyncio.wait([task])

    def look(self) -> None:
        """Ask soon: something was changed."""
        self._changed.set()

    def standing(self) -> Standing | str:
        """As told last; or why it is not known, in words (`Unheard`: it does not answer)."""
        known = self._known
        return SILENT if isinstance(known, Standing) and now_ns() - known.t_ns > OLD_NS else known

    async def unheard(self) -> str:
        """Asked now: empty when it answers, else why not, in words."""
        if not self._path:
            return NO_SOCKET
        why = await answers_now(self._path, ANSWER_S)
        self.look()
        return f"{SILENT}: {why}" if why else ""

    def _take(self, event: Event) -> None:
        if event.kind == "interlock.status" and event.source == self._device:
            self._changed.set()

    async def _run(self) -> None:
        while True:
            try:
                with answers() as line:
                    await self._ask_on(line)
            except OSError as error:  # no place for the answers: a full disk, for example
                self._known = Unheard(f"the interlock system cannot be asked: {error.strerror or error}")
                self._tell()
                await asyncio.sleep(EVERY_S)

    async def _ask_on(self, line: socket.socket) -> None:
        for number in itertools.count():
            self._changed.clear()
            asked_ns = now_ns()
            self._known = await self._ask(line, str(number))
            self._tell()
            waits_s = EVERY_S if isinstance(self._known, Standing) else max(0.0, EVERY_S - (now_ns() - asked_ns) / NS_PER_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(waits_s):
                    await self._changed.wait()
            await asyncio.sleep(SETTLED_S)

    def _tell(self) -> None:
        """Say once that it does not answer, and once that it does again. An answer that is not understood is one."""
        if not isinstance(self._known, Unheard):
            self._heard_ns = now_ns()
            if self._told_silent:
                self._told_silent = False
                self._bus.emit(self._source, "interlock.heard")
        elif not self._told_silent and now_ns() - self._heard_ns > MISSED_NS:
            self._told_silent = True
            self._bus.emit(self._source, "interlock.silent", error=str(self._known))

    async def _ask(self, line: socket.socket, word: str) -> Standing | str:
        loop, asked_ns = asyncio.get_running_loop(), now_ns()
        try:
            line.sendto(f"status {word}".encode(), self._path)
            async with asyncio.timeout(ANSWER_S):
                for _ in range(ANSWERS_MAX):
                    answer = await loop.sock_recv(line, ANSWER_MAX)
                    if answer.startswith(f"status {word} ".encode()):
                        return standing_of(answer.split(b" ", 2)[2], asked_ns)
        except OSError:  # a timeout is one, too
            return SILENT
        except ValueError:
            return NOT_UNDERSTOOD
        return NOT_UNDERSTOOD


class ToldApart:
    """What an interlock system in this process would tell another one; understood once for each answer."""

    def __init__(self) -> None:
        self._answer = b""
        self._known: Standing | str = NOT_YET

    def of(self, answer: bytes, at_ns: int) -> Standing | str:
        """Of an answer that was made at `at_ns`; before the first step there is none."""
        if answer != self._answer:
            self._answer, self._known = answer, NOT_UNDERSTOOD
            with contextlib.suppress(ValueError):
                self._known = standing_of(answer, at_ns)
        return self._known


def standing_of(answer: bytes, at_ns: int) -> Standing:
    """What an answer tells (docs/interlocks.md), its times turned into those of the room, in which it was asked at `at_ns`.

    Raises ValueError: it is not such an answer.
    """
    try:
        told = json.loads(answer)
        there_ns = _whole(told["t_ns"])
        latched = _texts(told["latched"])
        by = {_text(row): _text(role) for row, role in told["by"].items() if role in ROLES}
        trips = sorted(map(_trip, _few(told["rows"], ROWS_MAX)), key=lambda trip: (not trip.first_out, trip.seq))
        rows = tuple(
            StandingRow(
                id=trip.id,
                code=trip.code,
                first_out=trip.first_out,
                cause=trip.cause,
                advice=trip.advice,
                shown_input=trip.shown[0],
                since_ns=at_ns - max(0, there_ns - trip.t_ns),
                latched=trip.id in latched,
                resettable_by=by.get(trip.id, ""),
            )
            for trip in trips
        )
        bypasses = tuple(
            StandingBypass(
                id=_text(bypass["id"]),
                owner=_text(bypass["owner"]),
                approver=_text(bypass["approver"]),
                reason=_text(bypass["reason"]),
                until_ns=at_ns + max(0, _whole(bypass["expires_ns"]) - there_ns),
            )
            for bypass in _few(told["bypasses"], ROWS_MAX)
        )
        age_s = _whole(told["proof_age_s"])
        known_age_s = None if age_s >= NEVER_S else age_s
        return Standing(at_ns, _whole(told["boot_id"]), rows, _texts(told["withheld"]), bypasses, known_age_s)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not what an interlock system tells: {type(error).__name__}") from None


def _trip(row: dict[str, Any]) -> Trip:
    index, value, limit = map(_whole, _few(row["shown"], 3))
    return Trip(
        seq=_whole(row["seq"]),
        id=_text(row["id"]),
        code=_whole(row["code"]),
        first_out=_flag(row["first_out"]),
        t_ns=_whole(row["t_ns"]),
        what=_text(row["what"]),
        limit=_text(row["limit"]),
        states=tuple(
            (_text(name), None if value is None else _whole(value), _flag(believed))
            for name, value, believed in _few(row["states"], STATES_MAX)
        ),
        advice=_text(row["advice"]),
        shown=(index, value, limit),
    )


def _few(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"a list of at most {most}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(_text, _few(value, ROWS_MAX)))


def _text(value: object) -> str:
    """As it can be shown: half a character, or a control, would spoil everything that is sent to a page with it."""
    if not isinstance(value, str):
        raise ValueError("a text")
    return "".join(character if character.isprintable() else "?" for character in value[:TEXT_MAX])


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -WHOLE_MAX <= value < WHOLE_MAX:
        raise ValueError("a whole number")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("yes or no")
    return value
