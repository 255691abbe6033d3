"""Commands of the test rig: `hil check` on one attached device.

Registered on the command line by `cli`. Not responsible for deciding anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from controller.cli_common import JsonOption, refuse, say


def check(
    overlay: Annotated[Path, typer.Argument(metavar="OVERLAY", help="TOML file: where the device answers, and [rig].")],
    facility: Annotated[
        str, typer.Option(help="Shipped facility or a facility file. Default: the one the overlay names, or asan.")
    ] = "",
    device: Annotated[str | None, typer.Option(help="Device or part. Default: the only real one of the overlay.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="New directory for report.html and hil.json. Default: hil-DEVICE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check one attached device against its profile: a drive is enabled and moved, everything else is only looked at.

    Exit codes: 0 conforms, 2 refused before anything was enabled, 3 a check failed or was cut short (report written), 4 program
    fault. Ctrl-C stops the drive, disables it and writes the report of what was done.
    """
    from controller.hil.report import as_dict, headline
    from controller.hil.run import HilOptions, find, run_check
    from controller.hil.target import DRIVE, Unsuited

    options = HilOptions(overlay=overlay, facility=facility, device=device, output=output)
    try:
        target = find(options)
        if not as_json and target.kind == DRIVE:
            rig = target.rig
            typer.echo(
                f"{target.name} will be enabled and moved up to {rig.travel_deg:g} deg at {rig.speed_deg_s:g} deg/s; "
                f"local stop: {rig.local_stop or 'none, a simulator answers'}",
                err=True,
            )
        result, where = run_check(target, options, lambda words: None if as_json else typer.echo(f"  {words}", err=True))
    except Unsuited as unsuited:
        refuse(unsuited.reasons, as_json)
    if as_json:
        say(json.dumps({**as_dict(result, traces=False), "output": str(where)}, indent=2))
    else:
        for done in result.checks:
            line = f"{done.verdict.value:8}  {done.requirement.name}"
            say(line + (f": {done.reason}" if done.reason else ""))
            if done.verdict.value == "fail":
                say(f"          {done.requirement.advice}")
        say(f"{'SIMULATED; ' if target.simulated else ''}{headline(result)}")
        say(f"left: {result.left}")
        say(f"read first: {where}/report.html")
    raise typer.Exit(result.exit_code)


def register(app: typer.Typer) -> None:
    """Put the command group on the command line."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Hardware in the loop: real devices on a test rig.")
    group.command("check")(check)
    app.add_typer(group, name="hil")
