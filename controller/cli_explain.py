"""The command `explain-trip`: what a row of the interlock matrix is, and where it is decided.

Registered on the command line by `cli`. Not responsible for the words (`explain_trip`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli_common import FacilityOption, refuse


def explain_trip(
    name: Annotated[str, typer.Argument(help="Name of a trip (RING_ANGLE), its first-out code, or its words on the screen.")],
    facility: FacilityOption = "asan",
) -> None:
    """Say what an interlock is, which line decides it, and what resets it.

    Exit codes: 0 said, 2 there is no such interlock.
    """
    from controller.explain_trip import NoSuchRow, explain
    from interlocks.matrix import load
    from interlocks.overlay import overlay_of

    try:
        typer.echo(explain(load(overlay=overlay_of(facility)), name))
    except NoSuchRow as error:
        refuse([str(error)])


def register(app: typer.Typer) -> None:
    """Put this command on the command line."""
    app.command()(explain_trip)
