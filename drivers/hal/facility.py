"""What is installed, where it answers, how far it may go: the facility file, as typed values.

This is *belief*: the controller's knowledge of the facility. The truth of a simulated plant lives in
`simulators/plants/*.toml` and is never read here. Units are part of every name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from drivers.hal.errors import ConfigError
from drivers.hal.ions import IONS, Ion

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


SIMULATED_SCHEMES = ("memory:", "sim:")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Range(_Model):
    """A closed interval of an axis, in the axis's unit."""

    minimum: Finite
    maximum: Finite

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside, ends included."""
        return self.minimum <= value <= self.maximum


class SpeciesOffer(_Model):
    """What the accelerator offers for one ion."""

    symbol: str
    energy_min_mev_u: Positive
    energy_max_mev_u: Positive
    energy_step_mev_u: Positive | None = None  # None: any energy inside the range
    intensity_min_per_s: Positive
    intensity_max_per_s: Positive
    ions_per_cycle: Positive

    @property
    def ion(self) -> Ion:
        """The ion of `symbol`."""
        return IONS[self.symbol]

    def nearest_energy_mev_u(self, energy_mev_u: float) -> float:
        """The offered energy nearest to the given one (itself where any energy is offered)."""
        low, high = self.energy_min_mev_u, self.energy_max_mev_u
        inside = min(max(energy_mev_u, low), high)
        if self.energy_step_mev_u is None:
            return inside
        return low + round((inside - low) / self.energy_step_mev_u) * self.energy_step_mev_u

    @model_validator(mode="after")
    def _known(self) -> SpeciesOffer:
        if self.symbol not in IONS:
            raise ValueError(f"species {self.symbol!r} is unknown; known: {', '.join(IONS)}")
        if self.energy_min_mev_u > self.energy_max_mev_u or self.intensity_min_per_s > self.intensity_max_per_s:
            raise ValueError(f"species {self.symbol}: a minimum is above its maximum")
        return self


class Accelerator(_Model):
    """Belief about the synchrotron, for planning: times in s, all of them estimates that the plant need not meet exactly."""

    species: tuple[SpeciesOffer, ...]
    cycle_s: Positive  # inject, accelerate, settle: a refill
    flattop_max_s: Positive
    energy_step_s: Positive  # a small step down on the flattop
    energy_step_per_mev_u_s: float = 0.0  # added per MeV/u of step
    species_switch_s: Positive
    cutoff_us: Positive  # from the unit's decision to the last ion

    def offer(self, symbol: str) -> SpeciesOffer | None:
        """The offer for a species symbol, or None."""
        return next((s for s in self.species if s.symbol == symbol), None)


class Meterset(_Model):
    """How monitor units relate to charge and counts.

    `counts_per_mu` is the resolution of the monitor electronics where 1 MU is a fixed chamber charge. Protons of facilities
    that plan in protons-per-MU carry a table (energy in MeV, protons per MU).
    """

    charge_pc_per_mu: Positive = 20.0
    counts_per_mu: Positive = 1000.0
    protons_per_mu: tuple[tuple[Positive, Positive], ...] = ()


class GantryLimits(_Model):
    """Soft limits and motion of a rotating gantry."""

    angle_deg: Range
    speed_deg_s: Positive
    acceleration_deg_s2: Positive
    jerk_deg_s3: Positive
    in_position_deg: Positive
    settle_s: Positive


class CouchLimits(_Model):
    """Soft limits of a six-axis couch, IEC 61217 table-top coordinates."""

    lateral_mm: Range
    longitudinal_mm: Range
    vertical_mm: Range
    angle_deg: Range
    pitch_deg: Range
    roll_deg: Range
    correction_max_mm: Positive
    correction_max_deg: Positive


class RangeShifter(_Model):
    """A slab that can be moved into the beam."""

    id: str
    wet_mm: Positive


class Nozzle(_Model):
    """Scanning geometry and dose limits of a room's nozzle. Distances are upstream of the isocentre."""

    sad_x_mm: Positive
    sad_y_mm: Positive
    monitor_distance_mm: Positive
    field_x_mm: Positive  # full width at the isocentre plane
    field_y_mm: Positive
    spot_min_mu: float = 0.0
    snout_mm: Range
    range_shifters: tuple[RangeShifter, ...] = ()
    range_shifters_any: bool = False  # accept a plan's own range shifter by name (research)
    scan_speed_x_mm_ms: Positive
    scan_speed_y_mm_ms: Positive
    spot_settle_us: Positive
    beam_on_distance_max_mm: Positive  # raster: longer steps are done with the beam off


class Room(_Model):
    """One treatment room."""

    name: str
    kind: Literal["gantry", "fixed"]
    machine_names: tuple[str, ...]  # TreatmentMachineName values this room answers to
    ports_deg: tuple[float, ...] = ()  # a fixed room's beam angles
    port_tolerance_deg: Positive = 0.1
    gantry: GantryLimits | None = None
    couch: CouchLimits
    nozzle: Nozzle
    route_switch_s: Positive

    def beam_angle_deg(self, angle_deg: float, near_deg: float = 0.0) -> float | None:
        """The angle to which this room would turn (or the port it would use) for a beam angle; None when it cannot.

        Angles a full turn apart are the same beam (270 is -90). Of several inside the limits the one nearest to `near_deg`.
        """
        if self.gantry is None:
            ports = [p for p in self.ports_deg if abs((angle_deg - p + 180.0) % 360.0 - 180.0) <= self.port_tolerance_deg]
            return ports[0] if ports else None
        turns = [angle_deg + 360.0 * turn for turn in (-2, -1, 0, 1, 2)]
        inside = [angle for angle in turns if self.gantry.angle_deg.holds(angle)]
        return min(inside, key=lambda angle: (abs(angle - near_deg), angle)) if inside else None

    @model_validator(mode="after")
    def _kind(self) -> Room:
        if self.kind == "gantry" and self.gantry is None:
            raise ValueError(f"room {self.name}: a gantry room needs a [gantry] table")
        if self.kind == "fixed" and not self.ports_deg:
            raise ValueError(f"room {self.name}: a fixed room needs ports_deg")
        return self


class Device(_Model):
    """One device: which driver speaks to it, over what wire, where, and how old its values may get."""

    driver: str
    wire: Literal["stream", "channels", "messages"]
    endpoint: str  # "memory:NAME", "serial://..", "tcp://..", "ca://..", "mqtt://.."
    actuator: bool = False  # moves, powers or lets beam through
    room: str = ""  # empty: shared by all rooms
    unit_ids: tuple[int, ...] = ()  # Modbus nodes
    prefix: str = ""  # PV prefix without the last colon, or topic prefix
    deadline_ms: Positive = 1000.0
    poll_deadline_ms: Positive | None = None  # the device stops by itself when it is not asked for longer than this
    baud: int | None = None  # a serial bus declares its speed
    identity: str = ""  # what the device must answer when asked who it is
    magnets: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()  # names of its nodes, in the order of `unit_ids`: a rig may attach one of them alone
    sensors: tuple[str, ...] = ()  # those of its parts that only measure
    part_endpoints: dict[int, str] = {}  # nodes that answer elsewhere than the device, by unit id
    real_parts: tuple[str, ...] = ()  # parts that are not simulated although the device is
    answered_by_simulator: bool = False  # said by the process that answers at a real wire's endpoint
    line: str = ""  # name of its wire where the endpoint no longer tells it

    @property
    def simulated(self) -> bool:
        """Whether the endpoint leads to a simulator."""
        return self.answered_by_simulator or self.endpoint.startswith(SIMULATED_SCHEMES)

    @model_validator(mode="after")
    def _parts(self) -> Device:
        if self.parts and len(self.parts) != len(self.unit_ids):
            raise ValueError(f"{len(self.parts)} parts for {len(self.unit_ids)} nodes")
        if stray := set(self.sensors) - set(self.parts):
            raise ValueError(f"sensors {', '.join(sorted(stray))} are no parts")
        return self

    @property
    def wire_name(self) -> str:
        """Name of its wire, whatever it travels on: ``G1-motion``, ``channels``."""
        return self.line or self.endpoint.partition(":")[2]

    @property
    def framing(self) -> Literal["rtu", "tcp"]:
        """How Modbus travels on this stream: a serial bus declares its baud rate, TCP has none."""
        return "tcp" if self.baud is None else "rtu"


class Facility(_Model):
    """The whole of one facility file."""

    name: str
    title: str
    purpose: Literal["clinical-like", "research"]
    require_approval: bool = True
    accelerator: Accelerator
    meterset: Meterset
    rooms: dict[str, Room]
    devices: dict[str, Device]
    registers: dict[str, dict[str, int]] = {}
    sources: dict[str, str] = {}

    @cached_property
    def machine_names(self) -> Mapping[str, str]:
        """Room name by TreatmentMachineName."""
        return {machine: room.name for room in self.rooms.values() for machine in room.machine_names}

    def room(self, name: str) -> Room:
        """The room of that name, or ConfigError that lists the rooms there are."""
        if name not in self.rooms:
            raise ConfigError(f"facility {self.name} has no room {name!r}", code=1004, hint=f"rooms: {', '.join(self.rooms)}")
        return self.rooms[name]

    def devices_of(self, room: str) -> dict[str, Device]:
        """Devices that belong to a room, and those that all rooms share."""
        return {name: d for name, d in self.devices.items() if d.room in ("", room)}

    @model_validator(mode="after")
    def _references(self) -> Facility:
        for key, room in self.rooms.items():
            if key != room.name:
                raise ValueError(f"room table {key!r} names itself {room.name!r}")
        for name, device in self.devices.items():
            if device.room and device.room not in self.rooms:
                raise ValueError(f"device {name}: room {device.room!r} does not exist")
        return self


SHIPPED = ("asan", "qst", "research")


def facility_text(name_or_path: str) -> tuple[str, str]:
    """Text of a shipped facility (by name) or of a facility file (by path), with the name to show in messages."""
    if name_or_path in SHIPPED:
        file = resources.files("drivers.hal") / "facilities" / f"{name_or_path}.toml"
        return file.read_text(encoding="utf-8"), f"{name_or_path}.toml"
    path = Path(name_or_path)
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no facility {name_or_path!r}: {error}", code=1001, hint=f"shipped: {', '.join(SHIPPED)}; or give a file"
        ) from None


def parse_facility(text: str, where: str) -> Facility:
    """Parse and validate a facility file; ConfigError carries every reason, one per line."""
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}", code=1002) from None
    for name, room in raw.get("rooms", {}).items():
        if isinstance(room, dict):
            room.setdefault("name", name)
    try:
        return Facility.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']} (value {e['input']!r:.80})" for e in error.errors()
        ]
        raise ConfigError(f"{where}: {len(lines)} fault(s):\n" + "\n".join(lines), code=1003) from None


def load_facility(name_or_path: str) -> Facility:
    """Load a shipped facility by name or a facility file by path.

    Raises:
        ConfigError: unknown, unreadable or invalid; every reason at once.
    """
    text, where = facility_text(name_or_path)
    return parse_facility(text, where)
