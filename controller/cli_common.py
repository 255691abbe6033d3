"""What all commands share: exit codes, options, how a refusal and a result are said. Not responsible for any command."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

EXIT_DELIVERED = 0
EXIT_REFUSED = 2  # before any motion or beam
EXIT_ENDED_EARLY = 3  # record written
EXIT_FAULT = 4  # of the program
EXIT_OF = {"complete": EXIT_DELIVERED, "refused": EXIT_REFUSED, "partial": EXIT_ENDED_EARLY, "fault": EXIT_FAULT}

A = TypeVar("A")
T = TypeVar("T")

FacilityOption = Annotated[str, typer.Option(help="Shipped facility (asan, qst, research) or a facility file.")]
RoomOption = Annotated[str | None, typer.Option(help="Room; by default the one the plan names, or the only one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
EndpointsOption = Annotated[
    Path | None,
    typer.Option(
        help="Where the devices answer: what `simulate` wrote, or a rig's overlay. Default: a simulated world in here."
    ),
]
RecordOption = Annotated[
    Path | None, typer.Option(help="Write all that travels on the wires to this new file (.jsonl.gz), see `replay`.")
]
OperatorOption = Annotated[
    str, typer.Option(help="Who answers the room: scripted (simulated worlds only) or console. Default: whichever may.")
]
PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="RT Ion Plan (DICOM) or GSI raster file (.rst).")]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=REASON, recorded: 'machine' (plan names another machine), 'approval' (not APPROVED)."),
]


def refuse(reasons: Sequence[str], as_json: bool = False) -> NoReturn:
    """Say every reason and leave with exit code 2."""
    if as_json:
        typer.echo(json.dumps({"status": "refused", "reasons": list(reasons)}, indent=2))
    else:
        noun = "reason" if len(reasons) == 1 else "reasons"
        typer.echo(f"refused, {len(reasons)} {noun}:", err=True)
        for reason in reasons:
            typer.echo(f"  - {reason}", err=True)
    raise typer.Exit(EXIT_REFUSED)


def say(line: str) -> None:
    """A result; on a terminal a line is wrapped between words. A reader who has left changes no exit code."""
    if sys.stdout.isatty() and "\n" not in line:
        width = shutil.get_terminal_size().columns
        line = "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * 12, break_on_hyphens=False)) or line
    try:
        typer.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def collected(objections: list[str], parse: Callable[[A], T], argument: A, otherwise: T) -> T:
    """What `parse` makes of an argument; what is wrong with it is told later, together with everything else."""
    try:
        return parse(argument)
    except ValueError as error:
        objections += str(error).splitlines()
        return otherwise
