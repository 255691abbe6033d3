"""Commissions a simulated facility: a world for each room, the scripted operator, the measurements, one library.

Not responsible for the measurements (`beam.commission`), for the library's file and key (`beam.library_file`,
`beam.signing`), or for the words of the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from controller.admission import directory_objections
from controller.assembly import SimulatedWorld, unsuited_faults
from controller.beam.commission import NODES, RoomCommissioning, RoomMeasurements, library_of
from controller.beam.library import BeamLibrary
from controller.beam.library_file import load_library, write_library
from controller.beam.signing import load_or_create_key
from controller.intake import Refused
from drivers.devices.accelerator import Accelerator
from drivers.devices.magnets import Magnets
from drivers.devices.reference_detector import ReferenceDetectorClient
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError, CommandRejected, ConfigError
from drivers.hal.events import Event, EventBus, Listener
from drivers.hal.facility import Facility, load_facility

SECURE_TIMEOUT_S = 180.0  # a search, the warning, and the door; assumed
LOOK_S = 0.5
NODES_MIN, NODES_MAX = 2, 64
ROW = "commission.row"


async def commission_room(
    facility: Facility,
    room: str,
    seed: int,
    bus: EventBus,
    date: str,
    *,
    species: Iterable[str] = (),
    energies_mev_u: Sequence[float] = (),
    nodes: int = NODES,
) -> RoomMeasurements:
    """Commission one room in a simulated world of its own, on the running loop.

    Args:
        facility: belief; its plant is the shipped one of the same name.
        room: which room.
        seed: of the plant.
        bus: ``commission.row`` and the events of the devices.
        date: ISO 8601 day for the rows.
        species, energies_mev_u: only these; everything offered when empty.
        nodes: energies per species when none are named.
    """
    world = SimulatedWorld(facility, seed, bus, room)
    await world.start()
    devices = world.devices()
    accelerator, magnets = devices.accelerator, devices.magnets
    if not isinstance(accelerator, Accelerator) or not isinstance(magnets, Magnets):
        raise ConfigError(f"room {room} is not commissioned through these drivers", code=1311)
    unit_prefix = facility.devices[f"{room}-delivery-unit"].prefix
    reference = ReferenceDetectorClient(f"{room}-reference", f"{unit_prefix.removesuffix(':DU')}:QA", world.channels)
    try:
        for device in devices.all():
            await device.connect()
        operator = world.simulated.operator
        await operator.script.turn_key(True)
        await operator.confirm("positioned", {"room": room})
        deadline_ns = now_ns() + round(SECURE_TIMEOUT_S * NS_PER_S)
        while not (await devices.access.refresh()).secured:
            if now_ns() >= deadline_ns:
                raise CommandRejected(f"room {room} was not secured in {SECURE_TIMEOUT_S:g} s", code=4322, device=room)
            await asyncio.sleep(LOOK_S)
        procedure = RoomCommissioning(
            devices, accelerator, magnets, reference, facility, facility.room(room), bus, date=date, nodes=nodes
        )
        return await procedure.run(species, energies_mev_u)
    finally:
        for device in devices.all():
            await device.close()
        await world.stop()


@dataclass(frozen=True, slots=True)
class CommissionOptions:
    """What `commission` was asked. Empty rooms or species mean all; exactly one of `state` and `output` is given."""

    facility: str
    rooms: tuple[str, ...] = ()
    species: tuple[str, ...] = ()
    nodes: int = NODES
    seed: int = 0
    state: Path | None = None
    output: Path | None = None
    date: str = ""


@dataclass(frozen=True, slots=True)
class Commissioned:
    """What came of it: a table of the rows that were measured, how many were kept, and the signed library."""

    facility: str
    version: int
    measured: tuple[Mapping[str, Any], ...]
    kept: int
    key_id: str
    file: Path

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "status": "written",
            "facility": self.facility,
            "version": self.version,
            "rows": [dict(row) for row in self.measured],
            "rows_kept": self.kept,
            "key_id": self.key_id,
            "file": str(self.file),
        }


def run_commissioning(options: CommissionOptions, listener: Listener) -> Commissioned:
    """Measure in a simulated world, put what was measured in place of what is in force, sign, write.

    Raises:
        Refused: before any motion or beam, with every reason.
        BeamlineError: the plant does not behave; nothing was written.
    """
    from simulators.clock import run

    facility = _admitted(options)
    rooms = options.rooms or tuple(facility.rooms)
    shown: list[Mapping[str, Any]] = []
    measured: list[RoomMeasurements] = []
    for room in rooms:
        bus = EventBus()
        bus.subscribe(listener)
        bus.subscribe(partial(_keep_row, shown, room))
        job = commission_room(facility, room, options.seed, bus, options.date, species=options.species, nodes=options.nodes)
        measured.append(run(job))
    base = _in_force(options, facility)
    fresh = library_of(facility, measured, version=1, date=options.date, origin="simulated")
    library, kept = (fresh, 0) if base is None else _renewed(base, fresh)
    directory = options.state or (options.output or Path()).parent
    file = options.output or directory / "library.json"
    key = load_or_create_key(directory / "keys")
    if file.exists() and base is not None:
        file.replace(file.with_name(f"library-{base.version}.json"))
    write_library(library, file, key)
    return Commissioned(facility.name, library.version, tuple(shown), kept, key.id, file)


def _keep_row(rows: list[Mapping[str, Any]], room: str, event: Event) -> None:
    if event.kind == ROW:
        rows.append({"room": room, **event.data})


def _renewed(base: BeamLibrary, fresh: BeamLibrary) -> tuple[BeamLibrary, int]:
    """`fresh` in place of the same species and rooms in `base`; and how many rows are still those of `base`."""
    again = {(row.species, row.room) for row in fresh.rows}
    turned = {angles.room for angles in fresh.angle_maps}
    kept = tuple(row for row in base.rows if (row.species, row.room) not in again)
    maps = tuple(angles for angles in base.angle_maps if angles.room not in turned)
    renewed = replace(fresh, version=base.version + 1, rows=(*kept, *fresh.rows), angle_maps=(*maps, *fresh.angle_maps))
    return renewed, len(kept)


def _in_force(options: CommissionOptions, facility: Facility) -> BeamLibrary | None:
    """The library whose rows stay where nothing is measured again; None when there is none."""
    own = options.state / "library.json" if options.state is not None else None
    try:
        if own is not None and own.exists() and options.state is not None:
            return load_library(facility, own, options.state / "keys")
        return load_library(facility)
    except ConfigError:
        return None


def _admitted(options: CommissionOptions) -> Facility:
    """The facility, when nothing speaks against it. Raises Refused."""
    reasons: list[str] = []
    facility: Facility | None = None
    try:
        facility = load_facility(options.facility)
        _in_force(options, facility)
    except BeamlineError as error:
        reasons.append(str(error))
    if facility is not None:
        unknown = [room for room in options.rooms if room not in facility.rooms]
        offered = [offer.symbol for offer in facility.accelerator.species]
        reasons += [f"--room {room}: facility {facility.name} has {', '.join(facility.rooms)}" for room in unknown]
        reasons += [
            f"--species {symbol}: facility {facility.name} offers {', '.join(offered)}"
            for symbol in options.species
            if symbol not in offered
        ]
        if not unknown:
            room = (options.rooms or tuple(facility.rooms))[0]
            reasons += unsuited_faults((), facility.name, room)
    if not NODES_MIN <= options.nodes <= NODES_MAX:
        reasons.append(f"--nodes {options.nodes}: expected {NODES_MIN} to {NODES_MAX}")
    if options.seed < 0:
        reasons.append(f"--seed {options.seed}: expected 0 or more")
    if (options.state is None) == (options.output is None):
        reasons.append("say where the library goes: either --state DIR or --output FILE")
    for name, directory in (("--state", options.state), ("--output", options.output.parent if options.output else None)):
        if directory is not None:
            reasons += directory_objections(name, directory)
    if options.output is not None and options.output.exists():
        reasons.append(f"--output {options.output}: is there already; name a new file")
    if facility is None or reasons:
        raise Refused(reasons)
    return facility
