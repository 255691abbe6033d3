"""Commands for the limits of the interlock system: signing them, and the figures that a facility's overlay needs.

Registered on the command line by `cli`. Not responsible for deciding anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli_common import FacilityOption, refuse


def sign_limits(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Limits files, or overlays of them.")],
    author: Annotated[str, typer.Option(help="Who wrote it.")],
    approver: Annotated[str, typer.Option(help="Who approved it: somebody else.")],
    key: Annotated[
        Path | None, typer.Option(help="Private key (PEM); made if it is not there. Default: a new one that is kept nowhere.")
    ] = None,
    public: Annotated[Path | None, typer.Option(help="Write the public key here; the daemon takes it with --trust.")] = None,
) -> None:
    """Sign limits of the interlock system: FILE.sig beside each file.

    Exit codes: 0 signed, 2 refused.
    """
    from controller.sign_limits import sign_limits as sign
    from drivers.hal.errors import BeamlineError
    from interlocks.matrix import LimitsError, load

    if key is None and public is None:
        refuse(["without --key the public key is needed: give --public, or nobody can verify the signature"])
    try:
        for file in files:
            whole = b"sort =" in file.read_bytes()  # an overlay cannot say what sort of row one is
            load(file) if whole else load(overlay=file)  # what the daemon refuses anyway is not signed
        written = sign(files, key, author, approver, public)
    except OSError as error:
        refuse([f"{error.filename}: {error.strerror}" if error.filename else str(error)])
    except (BeamlineError, LimitsError) as error:
        refuse(str(error).splitlines())
    for path in written:
        typer.echo(str(path))


def limit_figures(facility: FacilityOption = "asan") -> None:
    """Print the conversion figures of a facility for its overlay of the interlock limits, from its signed beam library.

    Exit codes: 0 printed, 2 refused.
    """
    from controller.limit_figures import figures_text
    from drivers.hal.errors import BeamlineError

    try:
        typer.echo(figures_text(facility), nl=False)
    except BeamlineError as error:
        refuse(str(error).splitlines())


def register(app: typer.Typer) -> None:
    """Put these commands on the command line."""
    for command in (sign_limits, limit_figures):
        app.command()(command)
