"""Arguments of the commands that choose what is treated, looked at before anything is made of them.

A number that is no fraction must not become the name of a directory, and what is not understood must not be left out in
silence. Not responsible for whether the plan has that fraction and those beams (admission).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from controller.commands import Command
from drivers.hal.errors import CommandRejected

BAD_ARGUMENT = 4454
FRACTION_MAX = 99  # assumed: no course of ions has more
SHOWN_MAX = 40
LOADS = ("plan_id", "fraction", "beams", "overrides", "remainder")
EDITS = None  # what an edit may name depends on what it edits: its own part says


def checked(room: str, known: tuple[str, ...] | None, handler: Callable[[Command], Any]) -> Callable[[Command], Any]:
    """The handler, called only with arguments of these names that can be meant. Its command raises CommandRejected 4454."""

    def judged(command: Command) -> Any:
        if wrong := objections(command.arguments, known):
            raise CommandRejected("; ".join(wrong), code=BAD_ARGUMENT, device=room, hint="nothing was loaded")
        return handler(command)

    return judged


def objections(arguments: Mapping[str, Any], known: tuple[str, ...] | None) -> list[str]:
    """Every reason against them, in words; empty when there is none."""
    wrong = []
    if known is not None and (unknown := sorted(str(name)[:SHOWN_MAX] for name in arguments if name not in known)):
        wrong.append(f"unknown: {', '.join(unknown[:8])}; known: {', '.join(known)}")
    fraction = arguments.get("fraction", 1)
    if isinstance(fraction, bool) or not isinstance(fraction, int) or not 1 <= fraction <= FRACTION_MAX:
        wrong.append(f"fraction: a whole number from 1 to {FRACTION_MAX}")
    beams = arguments.get("beams")
    if beams is not None:
        numbers = isinstance(beams, list | tuple) and all(isinstance(b, int) and not isinstance(b, bool) for b in beams)
        if not numbers:
            wrong.append("beams: a list of beam numbers")
        elif not beams:
            wrong.append("beams: an empty list treats nothing; leave it away for every beam of the plan")
        elif len(set(beams)) != len(beams):
            wrong.append("beams: a number stands in the list twice")
    if not isinstance(arguments.get("remainder", False), bool):
        wrong.append("remainder: true or false")
    return wrong
