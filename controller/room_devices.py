"""The drivers of one room on its wires. Not responsible for wires (`wires`) or for connecting."""

from __future__ import annotations

from controller.wires import RoomWires
from drivers.devices.accelerator import Accelerator
from drivers.devices.couch import SixAxisCouch
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.devices.dose_monitor import SecondDoseUnit
from drivers.devices.fixed_port import FixedPort
from drivers.devices.gantry import RotatingGantry
from drivers.devices.imager import OrthogonalImager
from drivers.devices.interlock_view import InterlockStatusLine
from drivers.devices.magnets import Magnets
from drivers.devices.motion_sensor import BreathingSensor
from drivers.devices.nozzle import Nozzle
from drivers.devices.room_access import RoomAccessIO
from drivers.hal.capabilities import Axis, RoomDevices
from drivers.hal.events import EventBus
from drivers.hal.facility import Device, Facility
from interlocks.matrix import load as load_limits


def room_devices(
    facility: Facility, room_name: str, wires: RoomWires, bus: EventBus, *, breathing: bool = False
) -> RoomDevices:
    """Every driver of a room, not yet connected; with `breathing`, also the breathing signal, for those who show it.

    Raises ConfigError where an endpoint leads nowhere.
    """
    room, registers = facility.room(room_name), facility.registers
    rows = {row.code: (f"{row.id}: {row.what}", row.advice) for row in load_limits().software}
    source = facility.devices["accelerator"]
    accelerator = Accelerator("accelerator", source, wires.channels("accelerator"), bus, facility)

    def name(suffix: str) -> str:
        return f"{room_name}-{suffix}"

    def entry(suffix: str) -> tuple[str, Device]:
        return name(suffix), facility.devices[name(suffix)]

    sensor: BreathingSensor | None = None
    if breathing:  # it speaks beside the imaging system, on the same broker (docs/wires.md)
        imager = facility.devices[name("imager")]
        topic = f"{imager.prefix.rpartition('/')[0]}/breathing"
        messages = wires.messages(name("imager"))
        sensor = BreathingSensor(name("breathing"), topic, messages, bus, simulated=imager.simulated)
    gantry: Axis
    if room.gantry is not None:
        gantry = RotatingGantry(*entry("gantry"), room, wires.line(name("gantry")), registers, bus)
    else:
        gantry = FixedPort(name("port"), room, open_route=lambda: accelerator.route)
    return RoomDevices(
        gantry=gantry,
        couch=SixAxisCouch(*entry("couch"), room, wires.line(name("couch")), registers, bus),
        snout=Nozzle(*entry("nozzle"), room, wires.line(name("nozzle")), registers, bus),
        magnets=Magnets(*entry("magnets"), wires.channels(name("magnets")), bus),
        accelerator=accelerator,
        unit=DeliveryUnitClient(*entry("delivery-unit"), wires.channels(name("delivery-unit")), bus),
        dose_monitor=SecondDoseUnit(*entry("dose-unit-2"), wires.channels(name("dose-unit-2")), bus),
        access=RoomAccessIO(*entry("safety"), wires.line(name("safety")), registers, bus),
        interlock=InterlockStatusLine(*entry("interlock"), wires.line(name("interlock")), registers, bus, rows),
        imager=OrthogonalImager(*entry("imager"), wires.messages(name("imager")), bus),
        motion_sensor=sensor,
    )
