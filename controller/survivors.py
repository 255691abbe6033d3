"""Asks the delivery unit of a room on real wires what it still knows of a treatment whose program died.

Connects that one device, ends a grant that is still open, moves nothing else. Not responsible for what follows (`recover`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from controller.assembly import loop_factory
from controller.endpoints import Whereabouts, locate
from controller.intake import Refused
from controller.recover import Survived, ask_unit
from controller.request import read_request
from controller.wires import RoomWires
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.hal.errors import BeamlineError
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility


def survivors(directory: Path, endpoints: Path) -> Survived:
    """What the delivery unit at these endpoints knows of the treatment in a directory.

    Raises:
        Refused: no such treatment, endpoints that cannot be, or a unit that does not answer; nothing was changed then.
    """
    request = read_request(directory)
    try:
        facility = load_facility(request.facility)
    except BeamlineError as error:
        raise Refused(str(error).splitlines()) from None
    # Nothing is treated here: who is asked, and where dose is kept, are no questions.
    where, reasons = locate(endpoints, facility, request.room, factor=None, state=directory)
    if where is None or reasons:
        raise Refused(reasons)
    try:
        with asyncio.Runner(loop_factory=loop_factory(where.endpoints.speed)) as runner:
            return runner.run(_ask(where, request.room, directory))
    except BeamlineError as error:
        raise Refused([f"{error}; without --endpoints the treatment is recovered from what is on disk"]) from None


async def _ask(where: Whereabouts, room: str, directory: Path) -> Survived:
    wires = RoomWires(where.facility, room, client_id=f"iongantry-recover-{room}")
    name = f"{room}-delivery-unit"
    try:
        await wires.open()
        unit = DeliveryUnitClient(name, where.facility.devices[name], wires.channels(name), EventBus())
        await unit.connect()
        try:
            return await ask_unit(unit, directory)
        finally:
            await unit.close()
    finally:
        await wires.close()
