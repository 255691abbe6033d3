"""Commands of the machine rather than of a patient: what is there, the interlock daemon, a standing room, all under one roof.

Registered on the command line by `cli`. Not responsible for deciding anything.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli_common import (
    EXIT_DELIVERED,
    EXIT_ENDED_EARLY,
    EndpointsOption,
    FacilityOption,
    JsonOption,
    collected,
    refuse,
    say,
)

if TYPE_CHECKING:
    from controller.endpoints import Whereabouts
    from drivers.hal.facility import Facility
    from simulators.faults import TimedFault

RoomOf = Annotated[str | None, typer.Option(help="Room; default: the first of the facility, or of the endpoints.")]
PORT = 8437  # of nobody else's, as far as IANA's list goes; assumed
StateOption = Annotated[Path, typer.Option(help="The facility's state: plans, treatments, ledger, users.")]
PortOption = Annotated[int, typer.Option(help="Where the console answers; 0: any free port, told when it stands.")]
HostOption = Annotated[str, typer.Option(help="Address of the console; anything but the loopback needs TLS.")]
CertOption = Annotated[Path | None, typer.Option(help="Certificate of the console, PEM.")]
KeyOption = Annotated[Path | None, typer.Option(help="Its private key, PEM.")]
NoConsoleOption = Annotated[bool, typer.Option("--no-console", help="Keep no console process; the room's socket stands.")]
EpicsOption = Annotated[
    int | None,
    typer.Option("--epics-port", help="Publish the room as EPICS process variables there, on the loopback, to be read only."),
]
NeededEndpoints = Annotated[Path, typer.Option(help="Where the devices answer: what `simulate` wrote, or a rig's overlay.")]


def devices(
    facility: FacilityOption = "asan",
    room: RoomOf = None,
    endpoints: EndpointsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every device of a room: driver, endpoint, simulated or real, identity, quality, age, value, unit. Moves nothing.

    Exit codes: 0 every device answers, 2 refused, 3 a device does not answer or is not what it should be.
    """
    import asyncio

    from controller.assembly import loop_factory
    from controller.device_table import survey

    installed, where, name = _located(facility, room, endpoints, as_json)
    factor = where.endpoints.speed if where is not None else None
    with asyncio.Runner(loop_factory=loop_factory(factor)) as runner:
        found = runner.run(survey(installed, where, name))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found)
    raise typer.Exit(EXIT_ENDED_EARLY if found.silent else EXIT_DELIVERED)


def interlock(
    endpoints: NeededEndpoints,
    facility: FacilityOption = "asan",
    room: RoomOf = None,
    journal: Annotated[
        Path | None, typer.Option(help="File for trips, resets and bypasses. Default: ROOM-interlock.jsonl.")
    ] = None,
    buttons: Annotated[
        Path | None, typer.Option(help="Socket that takes 'press ROLE' and 'release ROLE'. Default: as the endpoints say.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Plan to hold presets and grants against.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Overlay of the limits. Default: the shipped one of the facility, if any.")
    ] = None,
    trust: Annotated[
        list[Path] | None, typer.Option(help="Public key of signatures beside the shipped one; may be repeated.")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="For development, on a loopback host: take limits that nobody signed.")
    ] = False,
) -> None:
    """The interlock system of one room, as a process of its own: reads the plant by itself, can only take beam away.

    Ends when it is ended (Ctrl-C); beam permit B is then gone. Exit code 2: refused, every reason.
    """
    from drivers.hal.endpoints import parse_endpoint
    from interlocks.overlay import overlay_of

    installed, where, name = _located(facility, room, endpoints, as_json=False)
    reasons = []
    safety = (where.facility if where is not None else installed).devices[f"{name}-safety"]
    at = parse_endpoint(safety.endpoint, f"{name}-safety")
    if at.scheme != "tcp":
        reasons.append(f"{name}-safety: {safety.endpoint}: the interlock system reads Modbus TCP only")
    socket = buttons or (Path(where.endpoints.interlock_buttons.get(name, "")) if where is not None else Path())
    if socket == Path():
        reasons.append("--buttons: the endpoints name no socket for the reset buttons of this room; give one")
    if reasons:
        refuse(reasons)
    command = [
        *(sys.executable, "-m", "interlocks.daemon", "--host", at.host, "--port", str(at.port)),
        *("--buttons", str(socket), "--journal", str(journal or f"{name}-interlock.jsonl")),
    ]
    overlay = overlay or overlay_of(installed.name)
    for option, path in (("--plan", plan), ("--overlay", overlay), *(("--trust", key) for key in trust or ())):
        command += [option, str(path)] if path is not None else []
    command += ["--unsigned"] if unsigned else []
    if where is not None and where.endpoints.speed != 1.0:
        command += ["--speed", f"{where.endpoints.speed:g}"]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until that process listens: it is not lost
    os.execv(command[0], command)  # a process that holds nothing of the controller


def serve(
    facility: FacilityOption = "asan",
    room: RoomOf = None,
    endpoints: EndpointsOption = None,
    state: StateOption = Path("run/state"),
    port: PortOption = PORT,
    host: HostOption = "127.0.0.1",
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    speed: Annotated[str, typer.Option(help="Of a simulated room: real, or seconds per second.")] = "real",
    seed: Annotated[int, typer.Option(help="Root of every random stream of the simulated plant.")] = 0,
    staff: Annotated[str, typer.Option(help="Of a simulated room: real, or quick: people who walk 20 times faster.")] = "real",
    fault: Annotated[
        list[str] | None,
        typer.Option(help="Of a simulated room: NAME[:VALUE][@WHEN] to plant, see `iongantry faults`; may be repeated."),
    ] = None,
    no_console: NoConsoleOption = False,
    epics_port: EpicsOption = None,
) -> None:
    """A room that stands by for its console, in the browser and over the API: load, treat, pause, resume, read the report.

    Without --endpoints in a simulated world of its own. Ends with Ctrl-C; what is under way then ends with a record.
    Exit codes: 0 ended, 2 refused.
    """
    from controller.admission import VIRTUAL, parse_speed
    from controller.standby import Serving, serve_room
    from simulators.staff import pace_of

    installed, where, name = _located(facility, room, endpoints, as_json=False)
    reasons: list[str] = []
    factor = collected(reasons, parse_speed, speed, 1.0)
    collected(reasons, pace_of, staff, None)
    if factor == VIRTUAL:
        reasons.append("--speed max: people at a console need time; give real or a factor, 10 for example")
    if where is not None and speed != "real":
        reasons.append(f"--speed {speed}: the devices at these endpoints keep their own pace")
    if seed < 0:
        reasons.append(f"--seed {seed}: expected 0 or more")
    faults: list[TimedFault] = []
    if fault and where is not None:
        reasons.append("--fault: these endpoints answer in other processes; a simulator takes a fault by iongantry backdoor")
    elif fault:
        from controller.assembly import read_faults, unsuited_faults

        faults = collected(reasons, lambda specs: read_faults(specs, None), fault, [])
        reasons += unsuited_faults(faults, installed.name, name)
    if (tls_cert is None) is not (tls_key is None):
        reasons.append("--tls-cert and --tls-key belong together")
    if epics_port is not None and not 1 <= epics_port <= 65_534:
        reasons.append(f"--epics-port {epics_port}: expected 1 to 65534")
    if reasons:
        refuse(reasons)
    asked = Serving(
        called=facility,
        facility=installed,
        room=name,
        state=state,
        epics_port=epics_port,
        where=where,
        endpoints=endpoints,
        speed=factor,
        seed=seed,
        staff=staff,
        faults=tuple(faults),
        console=not no_console,
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    if reasons := serve_room(asked, say):
        refuse(reasons)


def up(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="Plan to treat; without one the room stands by for its console.")
    ] = None,
    facility: FacilityOption = "asan",
    room: RoomOf = None,
    speed: Annotated[str, typer.Option(help="real, or plant seconds per second (up to 2 on a quiet computer).")] = "real",
    seed: Annotated[int, typer.Option(help="Root of every random stream of the simulated plant.")] = 0,
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="An MQTT broker to use instead of one of our own.")] = "",
    staff: Annotated[str, typer.Option(help="real, or quick: people who walk 20 times faster.")] = "real",
    directory: Annotated[Path, typer.Option(help="Where endpoints, journals and logs of the processes go.")] = Path("run/up"),
    state: Annotated[Path | None, typer.Option(help="Facility state that outlives a treatment.")] = None,
    output: Annotated[Path | None, typer.Option(help="Directory for the outputs of the treatment.")] = None,
    port: PortOption = PORT,
    host: HostOption = "127.0.0.1",
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    no_console: NoConsoleOption = False,
) -> None:
    """Simulators, interlock system and controller, each in a process of its own, under one supervisor, until Ctrl-C.

    Without a plan: the room stands by for its console, see `serve`; the line `console: ...` says where.
    With a plan: treats it over the real wires between these processes, then stops them; exit codes as of `treat`.
    4: one of the processes died.
    """
    from controller.admission import library_in
    from controller.intake import Refused, take_in
    from controller.supervise import Household, run_site

    _, _, name = _located(facility, room, None, as_json=False)
    if plan is not None:
        try:
            take_in(plan, facility, name, (), {}, *library_in(state))
        except Refused as refused:
            refuse(refused.reasons)
    elif not no_console:
        from controller.console.process import check_place
        from controller.standby import PLACE_S
        from drivers.hal.errors import BeamlineError

        try:
            check_place(host, port, tls_cert, tls_key, PLACE_S)
        except BeamlineError as error:
            refuse(error.as_reasons)
    site = Household(
        facility=facility,
        room=name,
        speed=speed,
        seed=seed,
        broker=broker,
        staff=staff,
        directory=directory,
        plan=plan,
        state=state,
        output=output,
        console=_console_options(port, host, tls_cert, tls_key, no_console=no_console),
    )
    raise typer.Exit(run_site(site, typer.echo))


def _console_options(port: int, host: str, cert: Path | None, key: Path | None, *, no_console: bool) -> tuple[str, ...]:
    """What `serve` is told of its console."""
    if no_console:
        return ("--no-console",)
    tls = [("--tls-cert", cert), ("--tls-key", key)]
    return (
        "--port",
        str(port),
        "--host",
        host,
        *(word for name, path in tls if path is not None for word in (name, str(path))),
    )


def _located(
    facility: str, room: str | None, endpoints: Path | None, as_json: bool
) -> tuple[Facility, Whereabouts | None, str]:
    """Facility, whereabouts and room of a command that needs no plan; refuses with every reason."""
    from controller.endpoints import locate
    from drivers.hal.endpoints import load_endpoints
    from drivers.hal.errors import BeamlineError
    from drivers.hal.facility import load_facility

    try:
        installed = load_facility(facility)
        name = room
        if name is None and endpoints is not None:
            placed = load_endpoints(endpoints).devices
            name = next((r for r in installed.rooms if any(d.startswith(f"{r}-") for d in placed)), None)
        name = name or next(iter(installed.rooms))
        installed.room(name)
    except BeamlineError as error:
        refuse(error.as_reasons, as_json)
    if endpoints is None:
        return installed, None, name
    where, reasons = locate(endpoints, installed, name, factor=None, treats=False)
    if reasons or where is None:
        refuse(reasons, as_json)
    return installed, where, name


def _show(found: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from controller.device_table import Survey, table_lines

    if not isinstance(found, Survey):
        raise TypeError(f"{found!r} is no survey")
    table = Table(title=f"{found.room} of {found.facility}", show_lines=False, pad_edge=False)
    for column in ("device", "driver", "endpoint", "is", "identity", "signal", "quality", "age ms", "value", "unit"):
        table.add_column(column, overflow="fold", justify="right" if column == "age ms" else "left")
    before = ""
    for line, row in zip(table_lines(found), found.rows, strict=True):
        if before and row.device != before:
            table.add_section()
        before = row.device
        table.add_row(*line, style=None if row.quality == "good" else "bold red" if row.error else "yellow")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for letter, what in (("A", "hard-wired chain"), ("B", "interlock system"), ("R", "request of the controller")):
        real = "REAL" if found.contributions[letter] else "simulated"
        typer.echo(f"permit contribution {letter} ({what}): {real}")


def register(app: typer.Typer) -> None:
    """Put these commands on the command line."""
    for command in (devices, interlock, serve, up):
        app.command()(command)
