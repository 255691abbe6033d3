"""The command line: arguments in, assembly out, exit codes and words. See docs/command-line.md.

Heavy imports happen inside the commands, so `--help` is quick. Not responsible for deciding anything.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli_common import (
    EXIT_DELIVERED,
    EXIT_ENDED_EARLY,
    EXIT_FAULT,
    EXIT_OF,
    EndpointsOption,
    FacilityOption,
    JsonOption,
    OperatorOption,
    OverrideOption,
    PlanArgument,
    RecordOption,
    RoomOption,
    collected,
    refuse,
    say,
)
from controller.cli_console import register as register_console
from controller.cli_explain import register as register_explain
from controller.cli_hil import register as register_hil
from controller.cli_limits import register as register_limits
from controller.cli_simulate import register as register_simulate
from controller.cli_site import register as register_site
from controller.cli_tap import register as register_tap
from controller.early_end import begun

if TYPE_CHECKING:
    from drivers.hal.events import Event

# Until one of these has begun something Ctrl-C ends it in words; then it answers for itself.
ANSWER_FOR_THEMSELVES = {"treat", "resume", "simulate", "interlock", "serve", "up", "watch", "hil"}

app = typer.Typer(
    name="iongantry",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Treatment control for rotating-gantry heavy-ion beamlines. Research, training, test-rig and simulation "
    "software: not a medical device.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"iongantry {version('iongantry')}")
        raise typer.Exit(EXIT_DELIVERED)


@app.callback()
def _root(
    context: typer.Context,
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    if context.invoked_subcommand not in ANSWER_FOR_THEMSELVES:
        begun()


@app.command()
def treat(
    plan: PlanArgument,
    facility: FacilityOption = "asan",
    room: RoomOption = None,
    beam: Annotated[list[int] | None, typer.Option(help="Beam number; may be repeated. Default: every beam.")] = None,
    fraction: Annotated[int, typer.Option(help="Fraction number, from 1.")] = 1,
    seed: Annotated[int, typer.Option(help="Root of every random stream of the simulated plant.")] = 0,
    speed: Annotated[
        str, typer.Option(help="max: as fast as it goes; real: against the wall clock; or a factor of real time, at most.")
    ] = "max",
    scenario: Annotated[Path | None, typer.Option(help='TOML file of timed faults: faults = ["NAME:VALUE@WHEN", ...].')] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="NAME[:VALUE][@WHEN] to plant, see `iongantry faults`; may be repeated.")
    ] = None,
    override: OverrideOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory for record, spots, events and report. Default: a new one here, named after the plan."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Facility state (ledger, library, keys) that outlives this run. Default: a fresh one in the output."),
    ] = None,
    endpoints: EndpointsOption = None,
    operator: OperatorOption = "",
    record: RecordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Treat one fraction of a plan.

    Exit codes: 0 delivered as prescribed, 2 refused before any motion or beam, 3 ended early with a record, 4 program fault.
    Ctrl-C ends the fraction with a record; a second one kills the program.
    """
    from controller.admission import VIRTUAL, TreatOptions, parse_overrides, parse_speed
    from controller.console.progress import Progress
    from controller.console.verdict import verdict_lines
    from controller.intake import Refused
    from controller.treatment import run_treatment

    objections: list[str] = []
    options = TreatOptions(
        plan=plan,
        facility=facility,
        room=room,
        beams=tuple(beam or ()),
        fraction=fraction,
        seed=seed,
        speed=collected(objections, parse_speed, speed, VIRTUAL),
        scenario=scenario,
        faults=tuple(fault or ()),
        overrides=collected(objections, parse_overrides, override or [], {}),
        output=output,
        output_parent=Path(),
        state=state,
        endpoints=endpoints,
        operator=operator,
        record=record,
    )
    try:
        with Progress() as listener:
            result = run_treatment(options, listener, objections, stop_by_signal=True)
    except Refused as refused:
        refuse(refused.reasons, as_json)
    if as_json:
        told = {**result.summary, "status": result.status, "output": str(result.output), "failures": list(result.failures)}
        say(json.dumps(told, indent=2))
    else:
        for line in verdict_lines(result.outcome, result.summary):
            say(line)
        where = "report.html" if result.status != "refused" else "events.jsonl"
        say(f"outputs: {result.output}")
        say(f"read first: {result.output}/{where}")
        if record is not None:
            say(f"recording of the wires: {record}")
        if result.status == "partial":
            there = f" --endpoints {endpoints}" if endpoints is not None else ""
            sign = f"iongantry recover {result.output}{there} --sign NAME --reason TEXT, then " if result.locked else ""
            say(f"what is left: {sign}iongantry resume {result.output}{there}")
    for failure in result.failures:
        typer.echo(f"fault: {failure}; journal and ledger hold what was delivered", err=True)
    raise typer.Exit(EXIT_OF[result.status])


MovedStateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="The facility's state, where it was moved since."),
]


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `treat --output` wrote.")],
    seed: Annotated[int | None, typer.Option(help="Of the simulated plant. Default: that of the treatment.")] = None,
    speed: Annotated[str, typer.Option(help="max, real, or a factor of real time, at most.")] = "max",
    scenario: Annotated[Path | None, typer.Option(help="TOML file of timed faults.")] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="NAME[:VALUE][@WHEN] to plant, see `iongantry faults`; may be repeated.")
    ] = None,
    endpoints: EndpointsOption = None,
    operator: OperatorOption = "",
    record: RecordOption = None,
    state: MovedStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Finish a fraction that ended early: deliver what is left of it, into DIR/resume-1, resume-2, ...

    Exit codes: 0 all sessions together delivered as prescribed, 2 refused before any motion or beam, 3 something is missing or
    not known, 4 program fault.
    """
    from controller.admission import VIRTUAL, parse_speed
    from controller.console.progress import Progress
    from controller.console.verdict import verdict_lines
    from controller.intake import Refused
    from controller.resume import ResumeOptions, run_resume

    objections: list[str] = []
    pace = collected(objections, parse_speed, speed, VIRTUAL)
    options = ResumeOptions(directory, seed, pace, scenario, tuple(fault or ()), endpoints, operator, record, state)
    try:
        with Progress() as listener:
            result = run_resume(options, listener, objections, stop_by_signal=True)
    except Refused as refused:
        refuse(refused.reasons, as_json)
    treated = result.treated
    if as_json:
        say(json.dumps(result.report(), indent=2))
    else:
        for line in verdict_lines(treated.outcome, treated.summary):
            say(line)
        say("over all sessions:")
        for beam in result.beams:
            say(f"  {beam.line()}")
        say(f"outputs: {treated.output}")
    for failure in treated.failures:
        typer.echo(f"fault: {failure}; journal and ledger hold what was delivered", err=True)
    raise typer.Exit(EXIT_OF[result.status])


@app.command()
def recover(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `treat --output` wrote.")],
    sign: Annotated[str, typer.Option(metavar="NAME", help="A physicist who accepts the stated intervals.")] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="On what they are accepted; needed with --sign.")] = "",
    endpoints: Annotated[
        Path | None, typer.Option(help="Where the room's devices answer: its delivery unit is asked what it still knows.")
    ] = None,
    no_unit: Annotated[bool, typer.Option("--no-unit", help="The delivery unit is gone: do without what it knew.")] = False,
    state: MovedStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """After a crash: reconcile what was delivered, close it in the ledger, write a salvage record. Twice gives the same.

    Exit codes: 0 nothing waits, 2 refused and nothing changed, 3 a physicist must sign before anything goes on.
    """
    from controller.intake import Refused
    from controller.recover import run_recovery
    from controller.request import read_request

    try:
        survived = None
        if endpoints is None and not no_unit and read_request(directory).wires:
            refuse(
                [
                    f"{directory}: treated over real wires: its delivery unit may still know what it gave, and is asked at "
                    "--endpoints FILE; say --no-unit only when it is gone, because what it knew is then an interval for good"
                ],
                as_json,
            )
        if endpoints is not None:
            from controller.survivors import survivors

            survived = survivors(directory, endpoints)
        result = run_recovery(directory, sign=sign, reason=reason, survived=survived, state=state)
        cleared: tuple[str, ...] = ()
        if endpoints is not None and sign.strip() and not result.locked:
            from controller.survivors import clear_latches

            cleared = clear_latches(directory, endpoints)
    except Refused as refused:
        refuse(refused.reasons, as_json)
    if as_json:
        say(json.dumps({**result.report(), "cleared": list(cleared)}, indent=2))
    else:
        for line in (*result.lines(), *cleared):
            typer.echo(line)
    raise typer.Exit(EXIT_ENDED_EARLY if result.locked else EXIT_DELIVERED)


@app.command()
def check(
    plan: PlanArgument,
    facility: FacilityOption = "asan",
    room: RoomOption = None,
    beam: Annotated[list[int] | None, typer.Option(help="Beam number; may be repeated.")] = None,
    override: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Can this plan be delivered here? Every reason why not."""
    from controller.admission import parse_overrides
    from controller.intake import Refused
    from controller.treatment import check_plan

    objections: list[str] = []
    overrides: dict[str, str] = collected(objections, parse_overrides, override or [], {})
    try:
        report = check_plan(plan, facility, room, tuple(beam or ()), overrides)
    except Refused as refused:
        refuse([*objections, *refused.reasons], as_json)
    if objections:
        refuse(objections, as_json)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(f"{plan}: can be delivered in {report['room']} of {report['facility']}")
    for row in report["beams"]:
        typer.echo(
            f"  beam {row['number']} {row['name']}: {row['species']}, {row['layers']} layers, {row['spots']} spots, "
            f"{row['meterset']:.6g} {row['unit']}, gantry {row['gantry_angle_deg']:g} deg, {row['passes']} passes in "
            f"{row['cycles']} synchrotron cycles, about {row['estimated_s']:.0f} s of beam"
        )
    for what, notes in (("note", report["notes"]), ("overridden", report["overridden"])):
        for note in notes:
            typer.echo(f"  {what}: {note}")


@app.command("plan")
def make_plan_file(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    shape: Annotated[
        str, typer.Option(help="sphere, box, pancreas, liver, lung, prostate, qa-grid, or benchmark (30,000 spots).")
    ] = "sphere",
    species: Annotated[str, typer.Option(help="C, He, O, Ne, or p where the facility has it.")] = "C",
    diameter_mm: Annotated[float | None, typer.Option(help="Largest width of the target.")] = None,
    size_mm: Annotated[tuple[float, float, float] | None, typer.Option(help="Widths X Y Z instead of a diameter.")] = None,
    depth_mm: Annotated[float | None, typer.Option(help="Water in front of the target's centre.")] = None,
    dose_gy: Annotated[float | None, typer.Option(help="Physical dose over all beams.")] = None,
    angle: Annotated[list[float] | None, typer.Option(help="Gantry or port angle in degrees; one beam each.")] = None,
    couch_angle: Annotated[float, typer.Option(help="Patient support angle in degrees.")] = 0.0,
    facility: FacilityOption = "asan",
    room: Annotated[str | None, typer.Option(help="Room of the facility; default: its first.")] = None,
    paintings: Annotated[int | None, typer.Option(help="Times each layer is painted.")] = None,
    spot_spacing_mm: Annotated[float | None, typer.Option()] = None,
    layer_spacing_mm: Annotated[float | None, typer.Option()] = None,
    fractions: Annotated[int | None, typer.Option()] = None,
    approval: Annotated[str, typer.Option(help="ApprovalStatus to write.")] = "APPROVED",
    seed: Annotated[int, typer.Option(help="Enters the UIDs only.")] = 0,
    label: Annotated[str, typer.Option(help="RTPlanLabel.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write a deliverable RT Ion Plan or QA field for a water phantom.

    Exit codes: 0 written, 2 not written. A plan that could not be delivered as it is (not approved, no free way between its
    beams) is written all the same: 0, with a warning and every reason on standard error, or `deliverable` false with --json.
    """
    from controller.plan.errors import PlanError, PlanRefused
    from controller.plan.make import PlanSpec, write_plan
    from drivers.hal.errors import BeamlineError
    from drivers.hal.facility import load_facility

    try:
        where = load_facility(facility)
        spec = PlanSpec(
            shape=shape,
            species=species,
            diameter_mm=diameter_mm,
            size_mm=size_mm,
            depth_mm=depth_mm,
            dose_gy=dose_gy,
            angles_deg=tuple(angle or ()),
            couch_angle_deg=couch_angle,
            room=room or next(iter(where.rooms)),
            paintings=paintings,
            spot_spacing_mm=spot_spacing_mm,
            layer_spacing_mm=layer_spacing_mm,
            fractions=fractions,
            approval=approval,
            seed=seed,
            label=label,
        )
        if not output.parent.is_dir():
            output.parent.mkdir(parents=True)
        file = write_plan(spec, where, output)
    except PlanRefused as refused:
        refuse([str(reason) for reason in refused.reasons], as_json)
    except (PlanError, BeamlineError) as error:
        refuse([str(error)], as_json)
    except OSError as error:
        refuse([f"{output}: cannot be written: {error.strerror or error}"], as_json)
    objections = _objections_to(file, facility, spec.room)
    if as_json:
        written = {"status": "written", "file": str(file), "facility": where.name, "room": spec.room}
        typer.echo(json.dumps({**written, "deliverable": not objections, "reasons": objections}, indent=2))
        return
    elsewhere = f" --facility {facility}" if facility != "asan" else ""
    typer.echo(f"{file}: written; see it with `iongantry check {file}{elsewhere}`")
    if objections:
        typer.echo(f"warning: {file} cannot be delivered as it is in {spec.room} of {where.name}:", err=True)
    for objection in objections:
        typer.echo(f"  - {objection}", err=True)


def _objections_to(plan: Path, facility: str, room: str) -> list[str]:
    """Why a plan that was just written could not be delivered where it was made for; written all the same."""
    from controller.intake import Refused, take_in

    try:
        take_in(plan, facility, room, (), {})
    except Refused as refused:
        return list(refused.reasons)
    return []


@app.command("check-config")
def check_config(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Facility file, or the name of a shipped facility.")],
    endpoints: Annotated[Path | None, typer.Option(help="Also an endpoint map or a rig's overlay for this facility.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Is a facility file right, and a map of where its devices answer? Every reason why not."""
    from drivers.hal.errors import ConfigError
    from drivers.hal.facility import load_facility
    from drivers.hal.facility_check import check_facility

    try:
        facility = load_facility(file)
    except ConfigError as error:
        refuse(error.as_reasons, as_json)
    reasons = check_facility(facility)
    if endpoints is not None:
        from drivers.hal.endpoints import load_endpoints, objections

        try:
            reasons += [f"{endpoints}: {reason}" for reason in objections(facility, load_endpoints(endpoints))]
        except ConfigError as error:
            reasons += error.as_reasons
    if reasons:
        refuse(reasons, as_json)
    if as_json:
        typer.echo(json.dumps({"status": "ok", "facility": facility.name, "devices": sorted(facility.devices)}, indent=2))
    else:
        typer.echo(
            f"{file}: facility {facility.name}, rooms {', '.join(facility.rooms)}, {len(facility.devices)} devices: right"
        )


@app.command()
def commission(
    facility: FacilityOption = "asan",
    room: Annotated[list[str] | None, typer.Option(help="Only this room; may be repeated. Default: every room.")] = None,
    species: Annotated[list[str] | None, typer.Option(help="Only this species; may be repeated. Default: every one.")] = None,
    nodes: Annotated[int, typer.Option(help="Energies per species.")] = 16,
    seed: Annotated[int, typer.Option(help="Root of every random stream of the simulated plant.")] = 0,
    state: Annotated[Path | None, typer.Option(help="Write the library and its key into this facility state.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the library to this new file instead.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the beam library of a simulated facility through its own devices, and sign it.

    What is not measured again is kept from the library in force. Exit codes: 0 every row released, 2 refused before any
    motion or beam, 3 written with rows that are withdrawn, 4 program fault.
    """
    from datetime import UTC, datetime

    from controller.commissioning import CommissionOptions, run_commissioning
    from controller.console.progress import commission_line
    from controller.intake import Refused

    options = CommissionOptions(
        facility=facility,
        rooms=tuple(dict.fromkeys(room or ())),
        species=tuple(dict.fromkeys(species or ())),
        nodes=nodes,
        seed=seed,
        state=state,
        output=output,
        date=datetime.now(UTC).date().isoformat(),
    )

    def show(event: Event) -> None:
        line = commission_line(event)
        if line and not as_json:
            typer.echo(line)

    try:
        done = run_commissioning(options, show)
    except Refused as refused:
        refuse(refused.reasons, as_json)
    withdrawn = sum(not row["released"] for row in done.measured)
    if as_json:
        typer.echo(json.dumps(done.as_dict(), indent=2))
    else:
        typer.echo(
            f"{len(done.measured)} rows measured, {withdrawn} withdrawn, {done.kept} kept; library of {done.facility}, version "
            f"{done.version}, signed with key {done.key_id}: {done.file}"
        )
    raise typer.Exit(EXIT_ENDED_EARLY if withdrawn else EXIT_DELIVERED)


register_site(app)
register_limits(app)
register_explain(app)
register_hil(app)
register_simulate(app)
register_tap(app)
register_console(app)


def main() -> None:
    """Entry point: no traceback ever reaches the operator; an unknown error is exit code 4 with its name."""
    try:
        app()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BrokenPipeError:  # a reader who has left, as `| head` does, changes nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001 - the last line of defence, names the error
        from drivers.hal.errors import BeamlineError

        if isinstance(error, BeamlineError):
            typer.echo(f"fault: {error}", err=True)
        else:
            typer.echo(f"program fault: {type(error).__name__}: {error} (set IONGANTRY_TRACEBACK=1 to see where)", err=True)
            if os.environ.get("IONGANTRY_TRACEBACK"):
                import traceback

                traceback.print_exc()
        sys.exit(EXIT_FAULT)
