"""Commissions a simulated facility: a world for each room, the scripted operator, the measurements, one library.

Not responsible for the measurements (`beam.commission`), for the library's file and key (`beam.library_file`,
`beam.signing`), or for the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from controller.assembly import SimulatedWorld
from controller.beam.commission import NODES, RoomCommissioning, RoomMeasurements, library_of
from controller.beam.library import BeamLibrary
from drivers.devices.accelerator import Accelerator
from drivers.devices.magnets import Magnets
from drivers.devices.reference_detector import ReferenceDetectorClient
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommandRejected, ConfigError
from drivers.hal.events import EventBus
from drivers.hal.facility import Facility

SECURE_TIMEOUT_S = 180.0  # a search, the warning, and the door; assumed
LOOK_S = 0.5


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


async def commission_facility(
    facility: Facility, seed: int, bus: EventBus, *, date: str, version: int = 1, nodes: int = NODES
) -> BeamLibrary:
    """Commission every room of a simulated facility, one after the other, and put the library together (unsigned)."""
    measured = [await commission_room(facility, room, seed, bus, date, nodes=nodes) for room in facility.rooms]
    return library_of(facility, measured, version=version, date=date, origin="simulated")
