"""The operator at a terminal: answers the room's questions there, where the room is real or nobody stands in for people.

A question is asked in the words of every console and waits; the room's own deadlines take it back. It is asked again when what
it is about has changed: results of a pass that was cut come late. Not responsible for what an answer leads to.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from controller.console.question_words import question_text

YES, NO = ("yes",), ("no", "n")
LINE_MAX = 4096
LOOK_S = 0.5  # how often a question that waits is looked at again; assumed


class ConsoleOperator:
    """`OperatorPort` of a terminal.

    Beam is given for the whole word ``yes`` only; anything that is neither yes nor no is asked again.

    Args:
        lines: where answers are typed, with a file descriptor that can be waited for.
        say: prints a line.
    """

    def __init__(self, lines: TextIO, say: Callable[[str], None]) -> None:
        self._lines = lines
        self._say = say
        self._typed = b""

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Ask and wait for an answer; the end of the input declines."""
        asked = ""
        while True:
            now = _asked(kind, facts)
            if now != asked:
                asked = now
                self._forget_typed()
                self._say(now)
            try:
                async with asyncio.timeout(LOOK_S):
                    answer = await self._line()
            except TimeoutError:
                continue
            if answer is None:
                self._say("  no more input: declined")
                return False
            if answer in NO:
                return False
            if answer not in YES:
                self._say("  please type the whole word yes, or no")
            elif _asked(kind, facts) == asked:  # a yes is to what was read
                return True

    async def stop(self) -> None:
        """Nothing goes on when nobody is asked."""

    def _forget_typed(self) -> None:
        """What was typed before a question answers nothing: beam-on is one deliberate act."""
        if self._lines.isatty():
            import termios

            self._typed = b""
            termios.tcflush(self._lines.fileno(), termios.TCIFLUSH)

    async def _line(self) -> str | None:
        """One line as it is typed, without blocking the loop; None at the end of the input."""
        while b"\n" not in self._typed:
            await self._readable()
            piece = os.read(self._lines.fileno(), LINE_MAX)
            if not piece:
                line, self._typed = self._typed, b""
                return line.decode("utf-8", "replace").strip().lower() if line else None
            self._typed = (self._typed + piece)[-LINE_MAX:]
        line, _, self._typed = self._typed.partition(b"\n")
        return line.decode("utf-8", "replace").strip().lower()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        descriptor = self._lines.fileno()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(descriptor, wake)
        try:
            await ready
        finally:
            loop.remove_reader(descriptor)


def _asked(kind: str, facts: Mapping[str, Any]) -> str:
    """The question, and behind it every fact that is one value."""
    told = dict(facts)
    shown = ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in told.items()
        if value not in ("", None) and not isinstance(value, Mapping)
    )
    return f"? {question_text(kind, told)}  [{shown}]  type yes or no"
