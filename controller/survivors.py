"""Asks the dose units of a room on real wires what they still know of a treatment, and clears what they latched.

Connects these devices alone, ends a grant that is still open, moves nothing. Not responsible for what follows from the answers
(`recover`), nor for who may clear a latch: that a physicist signed is the caller's to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from controller.assembly import loop_factory
from controller.endpoints import Whereabouts, locate
from controller.intake import Refused
from controller.recover import Survived, ask_unit
from controller.request import read_request
from controller.wires import RoomWires
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.devices.dose_monitor import TRIPPED, SecondDoseUnit
from drivers.hal.errors import BeamlineError
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility

T = TypeVar("T")


def survivors(directory: Path, endpoints: Path) -> Survived:
    """What the delivery unit at these endpoints knows of the treatment in a directory.

    Raises:
        Refused: no such treatment, endpoints that cannot be, or a unit that does not answer; nothing was changed then.
    """

    async def ask(wires: RoomWires, where: Whereabouts, room: str) -> Survived:
        unit = _unit(wires, where, room)
        await unit.connect()
        try:
            return await ask_unit(unit, directory)
        finally:
            await unit.close()

    return _at(directory, endpoints, ask, "without --endpoints the treatment is recovered from what is on disk")


def clear_latches(directory: Path, endpoints: Path) -> tuple[str, ...]:
    """Clear the latch of the delivery unit and a trip of the second dose unit; says what was cleared.

    Raises:
        Refused: a unit does not answer, or its cause is still there.
    """

    async def clear(wires: RoomWires, where: Whereabouts, room: str) -> tuple[str, ...]:
        unit, name = _unit(wires, where, room), f"{room}-dose-unit-2"
        second = SecondDoseUnit(name, where.facility.devices[name], wires.channels(name), EventBus())
        said = []
        await unit.connect()
        try:
            if unit.status.latched:
                await unit.reset()
                said.append(f"{unit.name}: latch cleared")
        finally:
            await unit.close()
        await second.connect()
        try:
            if second.status.state == TRIPPED:
                await second.acknowledge()
                said.append(f"{name}: trip cleared; beam needs a new field")
        finally:
            await second.close()
        return tuple(said)

    return _at(directory, endpoints, clear, "the units keep what they latched")


def _at(directory: Path, endpoints: Path, work: Callable[[RoomWires, Whereabouts, str], Awaitable[T]], otherwise: str) -> T:
    """Do something with the wires of the room of a treatment."""
    request = read_request(directory)
    try:
        facility = load_facility(request.facility)
    except BeamlineError as error:
        raise Refused(error.as_reasons) from None
    where, reasons = locate(endpoints, facility, request.room, factor=None, treats=False)
    if where is None or reasons:
        raise Refused(reasons)

    async def main(where: Whereabouts) -> T:
        wires = RoomWires(where.facility, request.room)
        try:
            await wires.open()
            return await work(wires, where, request.room)
        finally:
            await wires.close()

    try:
        with asyncio.Runner(loop_factory=loop_factory(where.endpoints.speed)) as runner:
            return runner.run(main(where))
    except BeamlineError as error:
        raise Refused([f"{error}; {otherwise}"]) from None


def _unit(wires: RoomWires, where: Whereabouts, room: str) -> DeliveryUnitClient:
    name = f"{room}-delivery-unit"
    return DeliveryUnitClient(name, where.facility.devices[name], wires.channels(name), EventBus())
