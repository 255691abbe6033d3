"""Which device of an overlay is checked, and every reason why it may not be.

From facility and overlay to one typed target. Opens nothing. Not responsible for the procedure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drivers.devices.connect import expected_identity
from drivers.hal.endpoints import Endpoint, EndpointMap, Rig, address_objections, apply, parse_endpoint
from drivers.hal.errors import BeamlineError
from drivers.hal.facility import Device, Facility, Room

Kind = Literal["drive", "load_encoder", "couch", "nozzle", "safety", "permit_relay"]

DRIVE = "drive"
KIND_OF_DRIVER: Mapping[str, Kind] = {
    "gantry": "drive",
    "couch": "couch",
    "nozzle": "nozzle",
    "room_access": "safety",
    "interlock_view": "permit_relay",
}
SUPPORTED = "drives and load encoder of a gantry, couch, nozzle, room I/O and permit relay"
POLL_DEADLINE_MS = 200.0  # docs/wires.md: unpolled for longer, a drive stops by itself
SERIAL_BAUD = 115200


@dataclass(frozen=True, slots=True)
class Place:
    """One node: where it answers and who must answer there."""

    label: str
    unit: int
    address: str
    endpoint: Endpoint
    vendor: int
    product: int
    baud: int | None  # of a serial line; None on TCP

    @property
    def rtu(self) -> bool:
        """Whether frames travel as RTU."""
        return self.endpoint.scheme != "tcp" or self.endpoint.options.get("framing") == "rtu"


@dataclass(frozen=True, slots=True)
class Target:
    """What is checked.

    Attributes:
        name: device or part.
        kind: which procedure.
        places: its nodes; the first drive of a ring takes the set-points.
        simulated: the overlay says that a simulator answers.
    """

    name: str
    kind: Kind
    places: tuple[Place, ...]
    facility: Facility
    room: Room
    config: Device
    rig: Rig
    simulated: bool

    @property
    def registers(self) -> Mapping[str, int]:
        """The register table of its nodes."""
        return self.facility.registers[self.kind]

    @property
    def poll_deadline_s(self) -> float:
        """Unpolled for longer it must stop by itself, s."""
        return (self.config.poll_deadline_ms or POLL_DEADLINE_MS) / 1000.0


class Unsuited(Exception):
    """The device cannot be checked; nothing was opened. `reasons` are for the operator."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


def find_target(facility: Facility, overlay: EndpointMap, device: str | None = None) -> Target:
    """The device that is to be checked: the one named, or the only real one.

    Raises:
        Unsuited: with every reason.
    """
    wrong = address_objections(facility, overlay)
    if wrong:
        raise Unsuited(wrong)
    name = device or _only(overlay)
    placed = apply(facility, overlay)
    whole = {part: owner for owner, config in placed.devices.items() for part in config.parts}
    owner = name if name in placed.devices else whole.get(name, "")
    if not owner:
        raise Unsuited(
            [f"device {name}: facility {facility.name} has none; it has {', '.join(sorted([*placed.devices, *whole]))}"]
        )
    config = placed.devices[owner]
    kind = KIND_OF_DRIVER.get(config.driver)
    if kind is None:
        raise Unsuited(
            [f"device {name} ({config.driver}, on {config.wire}): there is no procedure for it; there is for {SUPPORTED}"]
        )
    if name in config.sensors:
        kind = "load_encoder"
    places, simulated, reasons = _places(name, owner, config, overlay)
    if kind == DRIVE and not simulated and not overlay.rig.local_stop.strip():
        reasons.append(
            f"device {name}: the overlay names no local stop; nothing is enabled without one. Write under [rig], for example, "
            'local_stop = "red button beside the drive, takes its mains"'
        )
    room = facility.rooms.get(config.room)
    if room is None or (kind == DRIVE and room.gantry is None):
        reasons.append(f"device {name}: its room {config.room!r} has no limits for it in the facility file")
    if reasons or room is None:
        raise Unsuited(reasons)
    return Target(name, kind, tuple(places), placed, room, config, overlay.rig, simulated)


def _only(overlay: EndpointMap) -> str:
    """The device that an overlay is about, when it is about one."""
    real = [name for name, entry in overlay.devices.items() if not entry.simulated]
    names = real or list(overlay.devices)
    if len(names) == 1:
        return names[0]
    if not names:
        raise Unsuited(["the overlay names no device; write [devices.NAME] with its endpoint"])
    raise Unsuited([f"the overlay names {len(names)} devices; say which one: --device {' or '.join(sorted(names))}"])


def _places(name: str, owner: str, config: Device, overlay: EndpointMap) -> tuple[list[Place], bool, list[str]]:
    """The nodes of a device or part, whether a simulator answers there, and what is wrong with them."""
    reasons: list[str] = []
    labels = config.parts or (owner,)
    moving = [label for label in labels if label not in config.sensors]
    wanted = moving if name == owner else [name]
    try:
        identities = expected_identity(owner, config)
    except BeamlineError as error:
        return [], False, [str(error)]
    places, simulated = [], False
    for label, unit in zip(labels, config.unit_ids, strict=False):
        if label not in wanted:
            continue
        entry = overlay.devices.get(label) or overlay.devices.get(owner)
        if entry is None:
            reasons.append(
                f"device {label}: the overlay does not say where it answers; write [devices.{label}] with its endpoint"
            )
            continue
        simulated = simulated or entry.simulated
        endpoint = parse_endpoint(entry.endpoint, label)
        if endpoint.scheme == "memory":
            reasons.append(f"device {label}: {entry.endpoint} is a wire inside a simulation; a check needs a real wire")
        baud = int(endpoint.options.get("baudrate", config.baud or SERIAL_BAUD)) if endpoint.scheme == "serial" else None
        places.append(Place(label, unit, entry.endpoint, endpoint, *identities[unit], baud))
    return places, simulated, reasons
