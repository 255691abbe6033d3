"""What the real devices of a room read, for a simulated plant whose model follows them.

Pure: from drivers' last readings to one payload, each with its age. Not responsible for sending it, nor for what the model
makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drivers.devices.couch import SixAxisCouch
from drivers.devices.gantry import RotatingGantry
from drivers.devices.nozzle import Nozzle
from drivers.devices.ring import DriveSample
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.clock import NS_PER_S
from drivers.hal.facility import Device, Facility
from drivers.wire.codecs.cia402 import DriveState, Safety, drive_state

Readings = dict[str, Any]
POWERED = (DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP, DriveState.FAULT_REACTION)


def shadow_values(facility: Facility, devices: Iterable[object], t_ns: int) -> dict[str, Any]:
    """What real devices read, ``{"parts": {NAME: {"age_s": .., values}}}``; empty when nothing real has been read.

    Args:
        facility: says which devices and parts are real.
        devices: drivers of a room; those that have no place in the plant's model are passed over.
        t_ns: now, loop time.
    """
    parts: dict[str, Readings] = {}
    for device in devices:
        if isinstance(device, RotatingGantry | SixAxisCouch | Nozzle):
            config = facility.devices[device.name]
            real = set(config.real_parts) if config.simulated else {device.name, *config.parts}
            if real:
                parts.update({name: told for name, told in _told(device, config, t_ns).items() if name in real})
    return {"parts": parts} if parts else {}


def _told(device: RotatingGantry | SixAxisCouch | Nozzle, config: Device, t_ns: int) -> dict[str, Readings]:
    """Everything that a driver read last, by part."""
    if isinstance(device, RotatingGantry):
        return _ring(device, config, t_ns)
    readings = {reading.name.rpartition(".")[2]: reading for reading in device.readings()}
    if not readings:
        return {}
    age_s = (t_ns - next(iter(readings.values())).t_ns) / NS_PER_S
    if isinstance(device, SixAxisCouch):
        return {device.name: {"age_s": age_s, **{axis: readings[axis].value for axis in COUCH_AXES}}}
    told = {"snout_mm": readings["snout"].value, "mask": device.shifter_mask, "ripple_filter": readings["ripple_filter"].value}
    return {device.name: {"age_s": age_s, **told}}


def _ring(device: RotatingGantry, config: Device, t_ns: int) -> dict[str, Readings]:
    sample = device.sample
    if sample is None or len(config.parts) != 3:
        return {}
    a, b, load = config.parts
    return {
        a: _drive(sample.drives[0], t_ns),
        b: _drive(sample.drives[1], t_ns),
        load: {
            "age_s": (t_ns - sample.t_ns) / NS_PER_S,
            "angle_deg": sample.load_deg,
            "speed_deg_s": sample.speed_deg_s,
            "valid": int(sample.load_valid),
        },
    }


def _drive(drive: DriveSample, t_ns: int) -> Readings:
    return {
        "age_s": (t_ns - drive.t_ns) / NS_PER_S,
        "position_deg": drive.position_deg,
        "speed_deg_s": drive.speed_deg_s,
        "enabled": int(drive_state(drive.statusword) in POWERED),
        "braked": int(Safety.SBC in drive.safety),
    }
