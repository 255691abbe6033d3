"""The operator at a terminal: answers the room's questions there, where the room is real or nobody stands in for people.

A question is asked once and waits; the room's own deadlines take it back. Not responsible for what an answer leads to.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any, TextIO

QUESTIONS: Mapping[str, str] = {
    "identify": "Is this the patient, plan, fraction, beam and room?",
    "move_on": "A motion was stopped and nothing withholds it now. Is everything clear, and shall it go on?",
    "positioned": "Is the position accepted? (then leave, search the room and close the door)",
    "beam_on": "Beam on?",
    "resume": "Resume after the interruption, with a fresh beam-on?",
}
YES, NO = ("yes",), ("no", "n")
LINE_MAX = 4096


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
        shown = ", ".join(f"{name} {value}" for name, value in facts.items() if value not in ("", None))
        self._forget_typed()
        self._say(f"? {QUESTIONS.get(kind, kind)}  [{shown}]  type yes or no")
        while True:
            answer = await self._line()
            if answer is None:
                self._say("  no more input: declined")
                return False
            if answer in YES:
                return True
            if answer in NO:
                return False
            self._say("  please type the whole word yes, or no")

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
