"""What is there: every device of a room, where and what it is, how far its values may be trusted, and what it reads.

Connects, looks once, lets go; nothing is moved. Not responsible for judging a device (`iongantry hil check` does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from controller.endpoints import Whereabouts
from controller.surroundings import surroundings
from drivers.hal.capabilities import Connectable
from drivers.hal.clock import NS_PER_MS, now_ns
from drivers.hal.errors import BeamlineError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device, Facility

CONNECT_S = 5.0  # longer than any device needs to show its counter twice
LOOK_S = 1.2  # until pollers and heartbeats have told something: one heartbeat of a status is at most 1 s away
ELEMENTS_SHOWN = 4

NOT_INSTALLED = "fixed port"


@dataclass(frozen=True, slots=True)
class Row:
    """One signal of one device, or a device without signals.

    Attributes:
        quality: good, alarm, stale, disconnected; empty where there is no signal.
        age_ms: of the value; None where there is none.
        error: why the device is not connected.
    """

    device: str
    driver: str
    endpoint: str
    simulated: bool
    identity: str
    signal: str = ""
    quality: str = ""
    age_ms: float | None = None
    value: str = ""
    unit: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found in a room.

    Attributes:
        rows: signals, in the order of the devices.
        contributions: of the three permits to beam, which are real: ``{"A": False, ...}`` by letter.
    """

    facility: str
    room: str
    rows: tuple[Row, ...]
    contributions: dict[str, bool]

    @property
    def silent(self) -> tuple[str, ...]:
        """Devices that could not be connected."""
        return tuple(row.device for row in self.rows if row.error)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "facility": self.facility,
            "room": self.room,
            "permit_contributions_real": self.contributions,
            "devices": [asdict(row) for row in self.rows],
        }


async def survey(facility: Facility, where: Whereabouts | None, room: str, seed: int = 0) -> Survey:
    """Connect every device of a room, read once, close. A device that does not answer has a row that says why."""
    bus = EventBus()
    world = surroundings(facility, where, seed, bus, room, commands=False)
    facility = where.facility if where is not None else facility
    rows: list[Row] = []
    try:
        await world.start()
        devices = world.devices().all()
        errors = await asyncio.gather(*(_connect(device) for device in devices))
        await asyncio.sleep(LOOK_S)
        for device, error in zip(devices, errors, strict=True):
            rows += _rows(device, facility.devices.get(device.name), error)
        for device in devices:
            await device.close()
    finally:
        await world.stop()
    return Survey(facility.name, room, tuple(rows), contributions(facility, room))


async def _connect(device: Connectable) -> str:
    try:
        async with asyncio.timeout(CONNECT_S):
            await device.connect()
    except BeamlineError as error:
        return str(error)
    except TimeoutError:
        return f"{device.name}: no answer within {CONNECT_S:g} s"
    return ""


def _rows(device: Connectable, config: Device | None, error: str) -> Iterator[Row]:
    head = {
        "device": device.name,
        "driver": config.driver if config is not None else NOT_INSTALLED,
        "endpoint": _places(config) if config is not None else "",
        "simulated": config is None or config.simulated,
        "identity": config.identity if config is not None else "",
    }
    readings = () if error else device.readings()
    if not readings:
        yield Row(**head, error=error)  # type: ignore[arg-type]
    for reading in readings:
        yield Row(
            **head,  # type: ignore[arg-type]
            signal=reading.name.removeprefix(f"{device.name}."),
            quality=reading.quality.value,
            age_ms=reading.age_ns(now_ns()) / NS_PER_MS if reading.t_ns else None,
            value=shown(reading.value),
            unit=reading.unit,
        )


def _places(config: Device) -> str:
    """The endpoint, and those of nodes that answer elsewhere."""
    names = dict(zip(config.unit_ids, config.parts, strict=False))
    elsewhere = [f"{names.get(unit, unit)} at {endpoint}" for unit, endpoint in sorted(config.part_endpoints.items())]
    return "; ".join([config.endpoint, *elsewhere])


def shown(value: object) -> str:
    """A value for a table: numbers to six digits, arrays by their first elements."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, np.ndarray | tuple | list):
        first = ", ".join(shown(item) for item in list(value)[:ELEMENTS_SHOWN])
        return f"[{first}{', ...' if len(value) > ELEMENTS_SHOWN else ''}]"
    return str(getattr(value, "name", value))


def contributions(facility: Facility, room: str) -> dict[str, bool]:
    """Which of the three contributions to beam are real: A hard-wired, B of the interlock system, R of the controller."""
    devices = facility.devices_of(room)

    def real(driver: str) -> bool:
        return any(d.driver == driver and not d.simulated for d in devices.values())

    return {"A": real("room_access"), "B": real("interlock_view"), "R": real("room_access")}


def table_lines(found: Survey) -> Sequence[Sequence[str]]:
    """Rows of text: device columns are given once."""
    lines, before = [], ""
    for row in found.rows:
        first = row.device != before
        before = row.device
        where = "simulated" if row.simulated else "REAL"
        lines.append(
            [
                *([row.device, row.driver, row.endpoint, where, row.identity] if first else [""] * 5),
                row.signal,
                row.quality or ("not connected" if row.error else ""),
                "" if row.age_ms is None else f"{row.age_ms:.0f}",
                row.error or row.value,
                row.unit,
            ]
        )
    return lines
