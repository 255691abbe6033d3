"""Commands of the simulators: the plant in a process of its own, and its backdoor.

Registered on the command line by `cli`. Not responsible for deciding anything.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.cli_common import EXIT_FAULT, FacilityOption, collected, refuse, say


def simulate(
    facility: FacilityOption = "asan",
    room: Annotated[list[str] | None, typer.Option(help="Only this room; may be repeated. Default: every room.")] = None,
    speed: Annotated[
        str, typer.Option(help="real, or plant seconds per second; above 2 the computer's pauses interrupt beam.")
    ] = "real",
    seed: Annotated[int, typer.Option(help="Root of every random stream of the plant.")] = 0,
    serial: Annotated[str, typer.Option(help="Motion lines on pty or tcp.")] = "pty",
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="An MQTT broker to use instead of one of our own.")] = "",
    staff: Annotated[str, typer.Option(help="real, or quick: people who walk 20 times faster.")] = "real",
    directory: Annotated[
        Path | None, typer.Option(help="Where endpoint file, ttys and interlock journals get stable names.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Endpoint file. Default: endpoints.toml, in --directory or here.")
    ] = None,
    interlock: Annotated[bool, typer.Option(help="Start an interlock system for each room.")] = True,
    breathing: Annotated[bool, typer.Option(help="Tell the breathing signal 25 times a second.")] = False,
    at: Annotated[
        float | None, typer.Option(metavar="ANGLE", help="Angle in degrees at which the rings stand at the start.")
    ] = None,
    route: Annotated[str, typer.Option(help="Beam path that is open at the start: G1, F1:0, ...")] = "",
) -> None:
    """The whole plant of a facility in a process of its own, on real wires; writes where it answers. Until Ctrl-C.

    Exit codes: 0 ended by Ctrl-C or SIGTERM, 2 refused, every reason, 4 program fault.
    """
    from controller.simulating import parse_speed, run_simulators
    from drivers.hal.errors import ConfigError
    from drivers.hal.facility import load_facility
    from simulators.site_options import SiteOptions, SiteRefused, objections

    wrong: list[str] = []
    factor = collected(wrong, parse_speed, speed, 1.0)
    try:
        installed = load_facility(facility)
    except ConfigError as error:
        refuse([*wrong, *error.as_reasons])
    options = SiteOptions(
        facility=installed,
        seed=seed,
        speed=factor,
        rooms=tuple(dict.fromkeys(room or ())),
        serial=serial,
        broker=broker,
        output=output,
        directory=directory,
        staff=staff,
        interlock=interlock,
        breathing=breathing,
        at_deg=at,
        route=route,
    )
    if wrong:
        refuse([*wrong, *objections(options)])
    try:
        code = run_simulators(options, say)
    except SiteRefused as refused:
        refuse(refused.reasons)
    raise typer.Exit(code)


_FORMS: dict[str, tuple[int, int, str]] = {
    "state": (0, 0, ""),
    "clock": (0, 0, ""),
    "pause": (0, 0, ""),
    "run": (0, 0, ""),
    "speed": (1, 1, "FACTOR"),
    "faults": (0, 0, ""),
    "fault": (1, 2, "NAME[:VALUE][@WHEN] [ROOM]"),
    "clear": (1, 2, "NAME [ROOM]"),
    "server": (2, 2, "NAME start|stop|kill|suspend|resume|silent"),
    "press": (2, 2, "ROOM ROLE"),
    "violations": (0, 0, ""),
}


def backdoor(
    endpoints: Annotated[Path, typer.Argument(metavar="ENDPOINTS", help="What `simulate` wrote.")],
    action: Annotated[str, typer.Argument(metavar="ACTION", help=", ".join(_FORMS))],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Of the action.")] = None,
) -> None:
    """Look into a running simulator and steer it: clock, truth, pause, speed, faults, servers. Answers are JSON.

    ACTIONS: state; clock; pause; run; speed FACTOR; faults; fault NAME[:VALUE][@WHEN] [ROOM]; clear NAME [ROOM];
    server NAME start|stop|kill|suspend|resume|silent; press ROOM ROLE (a reset button); violations.

    Exit codes: 0 done, 2 refused with the reason, 4 the simulator has failed.
    """
    from drivers.hal.endpoints import load_endpoints
    from drivers.hal.errors import BeamlineError, DeviceError
    from simulators.backdoor_client import call_door

    given = arguments or []
    form = _FORMS.get(action)
    if form is None:
        refuse([f"backdoor: no action {action!r}; there are {', '.join(_FORMS)}"])
    least, most, usage = form
    if not least <= len(given) <= most:
        refuse([f"backdoor {action}: expected {usage or 'no arguments'}, got {' '.join(given) or 'nothing'}"])
    try:
        request = _request(action, given)
    except ValueError as error:
        refuse([f"backdoor {action}: {error}"])
    try:
        where = load_endpoints(endpoints)
        if not where.backdoor:
            refuse([f"{endpoints}: names no backdoor; the file that `iongantry simulate` wrote has one"])
        answer = call_door(where.backdoor, where.token, *request)
    except DeviceError as error:
        typer.echo(f"fault: {error}", err=True)
        raise typer.Exit(EXIT_FAULT) from None
    except BeamlineError as error:
        refuse([f"{error.message}{f' ({error.hint})' if error.hint else ''}"])
    say(json.dumps(answer, indent=2))


def _request(action: str, given: list[str]) -> tuple[Any, ...]:
    """Method, path and body of an action. Raises ValueError."""
    from urllib.parse import quote

    names = [quote(word, safe="") for word in given]
    room = {"room": given[1]} if len(given) > 1 else {}
    match action:
        case "state" | "clock" | "faults" | "violations":
            return "GET", f"/{action}"
        case "pause" | "run":
            return "POST", f"/{action}"
        case "speed":
            try:
                factor = float(given[0])
            except ValueError:
                factor = math.nan
            if not math.isfinite(factor):
                raise ValueError(f"{given[0]!r} is not a number")
            return "POST", "/speed", {"factor": factor}
        case "fault":
            return "POST", "/faults", {"spec": given[0], **room}
        case "clear":
            return "DELETE", f"/faults/{names[0]}" + (f"?room={names[1]}" if room else "")
        case "press":
            return "POST", f"/people/{names[0]}/press", {"role": given[1]}
        case _:
            return "POST", f"/servers/{names[0]}/{names[1]}"


def register(app: typer.Typer) -> None:
    """Put these commands on the command line."""
    for command in (simulate, backdoor):
        app.command()(command)
