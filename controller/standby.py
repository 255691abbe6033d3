"""A room that stands by: every device kept connected, what is lost and found said once, what is read published.

No treatment begins here. Not responsible for opening wires (`attached`) or for what a device says of itself.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from controller.attached import AttachedRoom
from controller.endpoints import Whereabouts
from drivers.hal.capabilities import Connectable
from drivers.hal.errors import BeamlineError
from drivers.hal.events import Event, EventBus

RETRY_S = 2.0  # between tries to connect a device that never answered; assumed
TOLD = ("device.up", "device.down", "device.fault", "interlock.trip", "interlock.reset")


async def stand_by(where: Whereabouts, room: str, say: Callable[[str], None]) -> str:
    """Stand by until interrupted. Returns why it could not, or an empty text."""
    bus = EventBus()
    bus.subscribe(lambda event: _tell(event, say))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    world = AttachedRoom(where, bus, room)
    try:
        await world.start()
    except BeamlineError as error:
        await world.stop()
        return str(error)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    devices = world.devices().all()
    keepers = [asyncio.create_task(_keep(device, say), name=f"{device.name}-keeper") for device in devices]
    say(f"{room} of {where.facility.name} stands by: {len(devices)} devices; Ctrl-C ends it")
    try:
        await ended.wait()
    finally:
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for device in devices:
            try:
                await device.close()
            except BeamlineError as error:
                say(str(error))
        await world.stop()
    return ""


async def _keep(device: Connectable, say: Callable[[str], None]) -> None:
    """Connect a device; once it was connected, its driver keeps it."""
    told = ""
    while True:
        try:
            await device.connect()
        except BeamlineError as error:
            if str(error) != told:
                told = str(error)
                say(f"{device.name}: {error}")
            await asyncio.sleep(RETRY_S)
        else:
            return


def _tell(event: Event, say: Callable[[str], None]) -> None:
    if event.kind in TOLD:
        details = ", ".join(f"{name} {value}" for name, value in event.data.items() if value not in ("", None, []))
        say(f"{event.t_ns / 1e9:10.1f} s  {event.source}  {event.kind}{f'  {details}' if details else ''}")
