"""What `treat` was asked, and whether it may begin: options, plan, ledger and directories, with every objection at once.

Nothing is written before nothing is objected to. Not responsible for the words of the command line (`cli`), for the plan's own
reasons (`intake`), or for the run (`treatment`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from controller.endpoints import CONSOLE, OPERATORS, SCRIPTED, locate
from controller.intake import Intake, Refused, take_in
from drivers.hal.errors import BeamlineError

if TYPE_CHECKING:
    from controller.assembly import TimedFault
    from controller.endpoints import Whereabouts
    from controller.plan.model import Plan
    from controller.record.ledger import Ledger, Received
    from controller.record.store import Store
    from drivers.wire.tap.faults import WireFault

VIRTUAL = float("inf")
REAL = 1.0
OVERRIDES = ("machine", "approval")
NAME_MAX = 40  # of a new output directory, without its number
LIBRARY = "library.json"
KEYS = "keys"
LEDGER = "ledger"


@dataclass(frozen=True, slots=True)
class TreatOptions:
    """What `treat` was asked.

    Attributes:
        speed: factor of real time; `VIRTUAL` does not wait at all, `REAL` runs against the wall clock.
        output: directory for the outputs, empty or not there yet; None: none, or a new one in `output_parent`.
        output_parent: where a new directory named after the plan is made when `output` is None; None: nothing is written.
        state: the facility's state (ledger, library, keys); None: a fresh one inside the outputs.
        endpoints: where the devices answer; None: a simulated world in this process.
        record: file that everything on the wires is written to; None: none.
        operator: who answers the room, ``scripted`` or ``console``; empty: scripted where everything is simulated.
    """

    plan: Path
    facility: str = "asan"
    room: str | None = None
    beams: tuple[int, ...] = ()
    fraction: int = 1
    seed: int = 0
    speed: float = VIRTUAL
    scenario: Path | None = None
    faults: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    output: Path | None = None
    output_parent: Path | None = None
    state: Path | None = None
    endpoints: Path | None = None
    operator: str = ""
    record: Path | None = None

    @property
    def paced(self) -> bool:
        """Whether simulated time of a world in this process is slowed down to a multiple of real time."""
        return self.endpoints is None and self.speed not in (VIRTUAL, REAL)


@dataclass(frozen=True, slots=True, eq=False)
class Admitted:
    """What may begin.

    Attributes:
        intake: what to treat.
        faults: to plant.
        where: the room on real wires; None: a simulated world in this process.
        factor: the run keeps to this multiple of the wall clock; None: to virtual time.
        wire_faults: what goes wrong on the wires.
        replays_wires: a run on real wires is replayed; nothing real is there now.
    """

    intake: Intake
    faults: tuple[TimedFault, ...]
    where: Whereabouts | None = None
    factor: float | None = None
    wire_faults: tuple[WireFault, ...] = ()
    replays_wires: bool = False

    @property
    def on_wires(self) -> bool:
        """Whether the room is, or was, one that others may have left as they pleased."""
        return self.where is not None or self.replays_wires

    @property
    def simulated(self) -> bool:
        """Whether anything of the room is."""
        return self.where is None or self.where.simulated


def parse_speed(text: str) -> float:
    """`max`, `real` or a positive factor of real time; 1 is `real`. Raises ValueError."""
    named = {"max": VIRTUAL, "real": REAL}
    if text in named:
        return named[text]
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0.0 < factor < VIRTUAL:
        raise ValueError(f"--speed {text!r}: expected max, real, or a factor above 0")
    return factor


def parse_overrides(items: Sequence[str]) -> dict[str, str]:
    """`NAME=REASON` by name. Raises ValueError with one line per item that is wrong."""
    overrides: dict[str, str] = {}
    bad = []
    for item in items:
        name, _, reason = item.partition("=")
        if name not in OVERRIDES:
            bad.append(f"--override {item!r}: there is no override {name!r}; known: {', '.join(OVERRIDES)}")
        elif not reason.strip():
            bad.append(f"--override {item!r}: needs a reason, as in {name}=REASON; it goes to the record")
        elif name in overrides:
            bad.append(f"--override {item!r}: {name} is given twice")
        else:
            overrides[name] = reason.strip()
    if bad:
        raise ValueError("\n".join(bad))
    return overrides


def admit(options: TreatOptions, objections: Sequence[str] = ()) -> Admitted:
    """Everything that can be refused before anything moves.

    Args:
        options: what was asked.
        objections: what is already known to be wrong with the request.

    Raises:
        Refused: with every reason.
    """
    from controller.assembly import unsuited_faults
    from controller.taps import record_objections, sort_faults, wire_fault_objections

    reasons = [*objections, *_number_objections(options)]
    faults: list[TimedFault] = []
    wire_faults: list[WireFault] = []
    try:
        faults, wire_faults = sort_faults(options.faults, options.scenario, options.seed)
    except ValueError as error:
        reasons += str(error).splitlines()
    if options.output is not None:
        reasons += output_objections(options.output)
    if options.state is not None:
        reasons += directory_objections("--state", options.state)
    if options.record is not None:
        reasons += record_objections(options.record)
    intake: Intake | None = None
    plan: Plan | None = None
    where: Whereabouts | None = None
    try:
        intake = take_in(
            options.plan,
            options.facility,
            options.room,
            options.beams,
            options.overrides,
            *library_in(options.state),
        )
        plan = intake.plan
    except Refused as refused:
        reasons += refused.reasons
        plan = refused.plan
    planned = max(plan.fractions_planned, 1) if plan is not None else options.fraction
    if options.fraction > planned:
        reasons.append(f"--fraction {options.fraction}: the plan has {planned} fraction{'s' if planned > 1 else ''}")
    if intake is not None:
        reasons += unsuited_faults(faults, intake.facility.name, intake.room.name)
        where, found = locate_room(options, intake, faults)
        reasons += found
        real = where.real if where is not None else ()
        reasons += wire_fault_objections(wire_faults, intake.facility, intake.room.name, real)
        if options.state is not None:
            reasons += _ledger_objections(options.state, intake, options.fraction)
    if intake is None or reasons:
        raise Refused(list(dict.fromkeys(reasons)))
    return Admitted(intake, tuple(faults), where, pace_of(options, where), tuple(wire_faults))


def locate_room(
    options: TreatOptions, intake: Intake, faults: Sequence[TimedFault] = ()
) -> tuple[Whereabouts | None, list[str]]:
    """Where the room answers, if endpoints were given, and every objection to it."""
    wrong = [f"--operator {options.operator!r}: expected {SCRIPTED} or {CONSOLE}"] * (options.operator not in OPERATORS)
    if options.endpoints is None:
        if options.operator == CONSOLE:
            wrong.append("--operator console: a simulated world in this process has a scripted operator; give --endpoints")
        return None, wrong
    where, reasons = locate(
        options.endpoints,
        intake.facility,
        intake.room.name,
        factor=None if options.speed == VIRTUAL else options.speed,
        operator=options.operator,
        state=options.state,
        library=intake.library,
        lifted=options.overrides,
        faults=bool(faults),
    )
    return where, [*wrong, *reasons]


def pace_of(options: TreatOptions, where: Whereabouts | None) -> float | None:
    """The multiple of the wall clock that a run keeps to; None: virtual time, paced or not."""
    if where is not None:
        return where.endpoints.speed
    return REAL if options.speed == REAL else None


def ledger_objections(ledger: Ledger, intake: Intake, fraction: int, before: Mapping[int, Received] | None = None) -> list[str]:
    """Beams of this fraction that the ledger shows delivered, open or locked; those in `before` may be partly delivered."""
    from controller.record.ledger import BeamState

    advice = {
        BeamState.OPEN: "it is being treated now, or its process died while treating: recover it",
        BeamState.PARTIAL: "resume it",
        BeamState.COMPLETE: "choose another fraction or beam",
        BeamState.LOCKED: "a physicist must sign its interval",
    }
    reasons = []
    for beam in intake.beams:
        received = ledger.delivered(intake.plan.uid, fraction, beam.number)
        expected = BeamState.PARTIAL if beam.number in (before or {}) else BeamState.UNTOUCHED
        if received.state is not expected:
            reasons.append(
                f"beam {beam.number} of fraction {fraction} is {received.state.value} in the ledger: at most "
                f"{int(received.upper.sum())} counts were given, journal {received.journal or 'unknown'}; "
                f"{advice[received.state]}"
            )
    return reasons


def output_objections(output: Path) -> list[str]:
    """Why nothing can be written to a directory: what is there already is never overwritten."""
    try:
        if output.is_dir() and any(output.iterdir()):
            return [f"--output {output}: is not empty; name a new directory"]
    except OSError as error:
        return [f"--output {output}: cannot be read: {error.strerror or error}"]
    return directory_objections("--output", output)


def make_output(options: TreatOptions, label: str) -> Path | None:
    """Make the directory of the outputs; its absolute path, because the ledger names it.

    Raises:
        Refused: it cannot be made, or somebody was faster.
    """
    try:
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            return options.output.resolve()
        return new_directory(options.output_parent.resolve(), label) if options.output_parent is not None else None
    except OSError as error:
        where = options.output or options.output_parent
        raise Refused([f"--output {where}: cannot be made: {error.strerror or error}"]) from None


def new_directory(parent: Path, label: str) -> Path:
    """A directory that was not there before, named after a plan: `carbon-sphere-1`. Raises OSError."""
    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:NAME_MAX].strip("-") or "plan"
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _number_objections(options: TreatOptions) -> list[str]:
    found = []
    if options.fraction < 1:
        found.append(f"--fraction {options.fraction}: fractions count from 1")
    if options.seed < 0:
        found.append(f"--seed {options.seed}: expected 0 or more")
    return found


def directory_objections(option: str, path: Path) -> list[str]:
    """Why a directory is not there and cannot be made, or cannot be written to."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return [f"{option} {path}: {there} is not a directory"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"{option} {path}: {there} cannot be written to"]
    return []


def library_in(state: Path | None) -> tuple[Path | None, Path | None]:
    """The beam library that was commissioned into a state directory, if any, and its keys."""
    if state is None or not (state / LIBRARY).exists():
        return None, None
    return state / LIBRARY, state / KEYS


def _ledger_objections(state: Path, intake: Intake, fraction: int) -> list[str]:
    """What an existing ledger says; one that is not there yet is not made here."""
    if not (state / LEDGER).exists():
        return []
    try:
        with open_ledger(state, boot_id=1) as ledger:
            if who := ledger.in_session(intake.plan.uid):
                return [who]
            return ledger_objections(ledger, intake, fraction)
    except BeamlineError as error:
        return [f"--state {state}: {error}"]


def open_ledger(state: Path, *, boot_id: int, store: Store | None = None) -> Ledger:
    """The ledger of a state directory. Raises DataError, StorageError, Busy."""
    from controller.record.ledger import Ledger
    from controller.record.store import DiskStore

    return Ledger(store or DiskStore(), state / LEDGER, boot_id=boot_id)
