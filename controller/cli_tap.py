"""Commands about the wires themselves: `replay`, and the catalogue of faults. Not responsible for deciding anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.cli_common import EXIT_DELIVERED, EXIT_ENDED_EARLY, JsonOption, refuse, say


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(replay)
    app.command()(faults)


def replay(
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="What `treat --record` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Serve a recorded treatment's wires to the present program, without simulators, and name the first difference.

    Exit codes: 0 no difference, 2 the file cannot be replayed, 3 the program does something else, 4 program fault.
    """
    from controller.intake import Refused
    from controller.replay import run_replay

    try:
        result = run_replay(recording)
    except Refused as refused:
        refuse(refused.reasons, as_json)
    if as_json:
        say(json.dumps(result.report(), indent=2))
    else:
        for line in result.lines():
            say(line)
    raise typer.Exit(EXIT_DELIVERED if result.same else EXIT_ENDED_EARLY)


def faults(as_json: JsonOption = False) -> None:
    """The catalogue of faults that --fault can inject, in the plant and on its wires, and what is expected of each."""
    from drivers.wire.tap.faults import KINDS, PREFIX
    from simulators.faults import CATALOGUE

    rows: list[dict[str, Any]] = [
        {"name": f.name, "arguments": f.arguments, "does": f.does, "expected": f.expected} for f in CATALOGUE.values()
    ]
    wires: list[dict[str, Any]] = [
        {
            "name": f"{PREFIX}{kind.name}",
            "arguments": f":WIRE ({', '.join(sorted(kind.carriers))})",
            "does": kind.does,
            "expected": kind.expected,
        }
        for kind in KINDS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows + wires, indent=2))
        return
    typer.echo("NAME[:VALUE][@WHEN]; WHEN is start, t=SECONDS, beam, beam+SECONDS or grant=N\n")
    _list(rows)
    typer.echo(
        "\nOn the wires: wire-KIND:WIRE[/PART][@WHEN][+SECONDS]; WIRE is ROOM-motion, ROOM-safety, epics or mqtt; PART is\n"
        "a node, or a pattern of variables or topics; +SECONDS says how long it lasts. docs/tap.md\n"
    )
    _list(wires)


def _list(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        typer.echo(f"{row['name']}{row['arguments']}\n    {row['does']}\n    expected: {row['expected']}")
