"""Where devices answer: endpoint addresses, the file a simulator process writes about itself, and the overlay of a rig.

A facility file says what is installed; an endpoint map says where it answers today. Nothing ever falls back: a device that a
map does not name keeps the facility's own endpoint, and a map that lets a real actuator hang on a simulated chain A is refused.
Not responsible for opening anything (`drivers.wire`).
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from drivers.hal.errors import ConfigError
from drivers.hal.facility import Device, Facility

FORMAT = 1
BAD_ENDPOINT = 1101
BAD_MAP = 1102
UNKNOWN_DEVICE = 1103
MIXED_CHAIN = 1104

SCHEMES: Mapping[str, frozenset[str]] = {
    "memory": frozenset(),
    "serial": frozenset({"baudrate", "parity", "stopbits"}),
    "tcp": frozenset({"framing"}),
    "ca": frozenset(),
    "mqtt": frozenset({"username"}),
}
OF_WIRE: Mapping[str, tuple[str, ...]] = {
    "stream": ("memory", "serial", "tcp"),
    "channels": ("memory", "ca"),
    "messages": ("memory", "mqtt"),
}
EXAMPLES: Mapping[str, str] = {
    "memory": "memory:G1-motion",
    "serial": "serial:///dev/ttyUSB0?baudrate=115200",
    "tcp": "tcp://192.168.1.20:502",
    "ca": "ca://192.168.1.30:5064",
    "mqtt": "mqtt://192.168.1.40:1883",
}
DEFAULT_PORT: Mapping[str, int] = {"tcp": 502, "ca": 5064, "mqtt": 1883}
CHAIN_DRIVER = "room_access"  # the device whose inputs and outputs are chain A of a room
PARITIES = ("N", "E", "O")
_IDENTITY = re.compile(r"([0-9A-Fa-f]{1,4}:)?[0-9A-Fa-f]{1,4}(,[0-9A-Fa-f]{1,4})*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed address.

    Attributes:
        scheme: ``memory``, ``serial``, ``tcp``, ``ca`` or ``mqtt``.
        path: tty of a serial line, name of a memory wire; empty otherwise.
        host, port: of a network endpoint; empty and 0 otherwise.
        options: what follows the question mark.
    """

    scheme: str
    path: str = ""
    host: str = ""
    port: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """``host:port``, with brackets round an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether it leads to this computer only."""
        if self.scheme in ("memory", "serial"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_endpoint(text: str, device: str = "") -> Endpoint:
    """Parse an address such as ``serial:///dev/ttyUSB0?baudrate=115200``.

    Raises:
        ConfigError: unknown scheme, missing or bad part, unknown option (1101).
    """

    def bad(why: str, example: str = "serial") -> ConfigError:
        return ConfigError(
            f"endpoint {text!r}: {why}", code=BAD_ENDPOINT, device=device, hint=f"for example {EXAMPLES.get(example)}"
        )

    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        raise bad(f"starts with none of {', '.join(f'{name}:' for name in SCHEMES)}")
    if scheme == "memory":
        if not rest:
            raise bad("names no memory wire", scheme)
        return Endpoint(scheme, rest, options={})
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise bad(str(error), scheme) from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(options) - SCHEMES[scheme]):
        raise bad(f"option {', '.join(unknown)} is unknown; known: {', '.join(sorted(SCHEMES[scheme])) or 'none'}", scheme)
    if scheme == "serial":
        _check_serial(options, parts.netloc, parts.path, bad)
        return Endpoint(scheme, parts.path, options=options)
    if not parts.hostname:
        raise bad("names no host", scheme)
    if parts.path not in ("", "/"):
        raise bad(f"has a path {parts.path!r}, only host and port are expected", scheme)
    if options.get("framing", "tcp") not in ("tcp", "rtu"):
        raise bad(f"framing {options['framing']!r} is neither tcp nor rtu", scheme)
    return Endpoint(scheme, "", parts.hostname, port or DEFAULT_PORT[scheme], options)


def _check_serial(options: Mapping[str, str], netloc: str, path: str, bad: Any) -> None:
    if netloc or not path.startswith("/"):
        raise bad("a serial line is named by an absolute path after three slashes")
    baud = options.get("baudrate", "")
    if baud and not (baud.isascii() and baud.isdigit() and 300 <= int(baud) <= 4_000_000):
        raise bad(f"baudrate {baud!r} is not a number of 300 to 4000000")
    if options.get("parity", "E") not in PARITIES:
        raise bad(f"parity {options['parity']!r} is none of {', '.join(PARITIES)}")
    if options.get("stopbits", "1") not in ("1", "2"):
        raise bad(f"stopbits {options['stopbits']!r} is neither 1 nor 2")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DeviceEndpoint(_Model):
    """Where one device, or one part of a device, answers.

    Attributes:
        endpoint: its address.
        simulated: a simulator answers there. Only a simulator process writes true; an overlay's devices are real.
        identity: what it answers when asked who it is; empty keeps the facility's.
    """

    endpoint: str
    simulated: bool = False
    identity: str = ""


class Rig(_Model):
    """What an overlay declares of the bench.

    Attributes:
        local_stop: the stop within reach that takes the torque off what is attached, in words; nothing is enabled without.
        travel_deg: how far, in deg to each side of where it stands, the attached axis may be moved by a check.
        speed_deg_s: how fast a check may move it, in deg/s.
        acceleration_deg_s2: profile acceleration of a check's moves; None takes the facility's.
        jerk_deg_s3: what the drive limits its jerk to; None takes the facility's, 0 is a drive without such a limit.
        quick_stop_deg_s2: deceleration that the drive states for its quick stop (assumed: 2; 3 deg/s end in 2.3 deg).
        following_deg: how far the drive may be from its own demand.
    """

    local_stop: str = ""
    travel_deg: Annotated[float, Field(gt=0, le=360, allow_inf_nan=False)] = 5.0
    speed_deg_s: Annotated[float, Field(gt=0, le=6, allow_inf_nan=False)] = 1.0
    acceleration_deg_s2: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    jerk_deg_s3: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    quick_stop_deg_s2: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    following_deg: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5


class EndpointMap(_Model):
    """`endpoints.toml` as a simulator process writes it, or the overlay of a rig.

    Attributes:
        format: of the file.
        facility: whose devices these are; empty in an overlay that fits any.
        speed: plant seconds per second of the simulator process; everything that talks to it keeps the same clock.
        backdoor: address of the simulator process's own door, ``http://127.0.0.1:PORT``; empty without one.
        token: the key of that door; the file is readable by its owner only.
        interlock_buttons: per room, path of the socket of its interlock daemon's reset buttons.
        simulation: an endpoint file of a simulator process that an overlay lies on; relative to the overlay.
        devices: by device or part.
        rig: of an overlay.
    """

    format: Literal[1] = 1
    facility: str = ""
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    backdoor: str = ""
    token: str = ""
    interlock_buttons: dict[str, str] = {}
    simulation: str = ""
    devices: dict[str, DeviceEndpoint] = {}
    rig: Rig = Rig()


def load_endpoints(path: Path) -> EndpointMap:
    """Read an endpoint map or overlay; an overlay's `simulation` is read and laid under it.

    Raises:
        ConfigError: unreadable, not TOML, or wrong; every reason, one per line (1102).
    """
    upper = _read(path)
    if not upper.simulation:
        return upper
    lower_path = path.parent / upper.simulation
    lower = _read(lower_path)
    if lower.simulation:
        raise ConfigError(f"{lower_path}: an overlay cannot lie on an overlay", code=BAD_MAP)
    if upper.facility and lower.facility and upper.facility != lower.facility:
        raise ConfigError(
            f"{path} is for facility {upper.facility}, {lower_path} for {lower.facility}",
            code=BAD_MAP,
            hint="start the simulators of the same facility",
        )
    return lower.model_copy(
        update={
            "facility": upper.facility or lower.facility,
            "devices": {**lower.devices, **upper.devices},
            "rig": upper.rig,
            "interlock_buttons": {**lower.interlock_buttons, **upper.interlock_buttons},
        }
    )


def _read(path: Path) -> EndpointMap:
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is no file", code=BAD_MAP)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", code=BAD_MAP, hint="`iongantry simulate` writes one") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}", code=BAD_MAP) from None
    try:
        return EndpointMap.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']} (value {e['input']!r:.80})" for e in error.errors()
        ]
        raise ConfigError(f"{path}: {len(lines)} fault(s):\n" + "\n".join(lines), code=BAD_MAP) from None


def objections(facility: Facility, endpoints: EndpointMap, room: str | None = None) -> list[str]:
    """Why a facility's devices cannot be reached as the map says; empty when they can. `room`: look at one room only."""
    return address_objections(facility, endpoints) or mixed_chains(apply(facility, endpoints), room)


def address_objections(facility: Facility, endpoints: EndpointMap) -> list[str]:
    """Entries of a map that lead nowhere: unknown device, bad address, wrong kind of wire. Says nothing of chain A."""
    found = []
    if not endpoints.devices:
        found.append("no device is named")
    if endpoints.backdoor and not endpoints.token:
        found.append("a backdoor is named, and no token that opens it")
    if endpoints.facility and endpoints.facility != facility.name:
        found.append(f"the endpoints are those of facility {endpoints.facility}, not of {facility.name}")
    whole = {part: name for name, device in facility.devices.items() for part in device.parts}
    for name, entry in endpoints.devices.items():
        device = facility.devices.get(name) or facility.devices.get(whole.get(name, ""))
        if device is None:
            known = sorted([*facility.devices, *whole])
            found.append(f"device {name}: facility {facility.name} has none; it has {', '.join(known)}")
            continue
        try:
            scheme = parse_endpoint(entry.endpoint, name).scheme
        except ConfigError as error:
            found.append(str(error))
            continue
        if scheme == "memory":
            found.append(f"device {name}: {entry.endpoint}: a memory wire leads nowhere outside the process that simulates")
        if entry.identity and device.wire == "stream" and not _IDENTITY.fullmatch(entry.identity):
            found.append(f"device {name}: identity {entry.identity!r}: expected hexadecimal codes, as in 1009:D1 or D1")
        if scheme not in OF_WIRE[device.wire]:
            ways = ", ".join(f"{s}:" for s in OF_WIRE[device.wire])
            found.append(f"device {name}: {entry.endpoint} is no {device.wire} wire; one of {ways} is")
    return found


def apply(facility: Facility, endpoints: EndpointMap) -> Facility:
    """The facility with its devices where the map says. Judge the map by `objections` first.

    A part that answers elsewhere than its device is kept in `Device.part_endpoints`, by unit id.
    """
    devices: dict[str, Device] = {}
    for name, device in facility.devices.items():
        update: dict[str, Any] = {}
        own = endpoints.devices.get(name)
        if own is not None:
            update = {**_placed(own), "line": device.wire_name}
        units = dict(device.part_endpoints)
        products = device.identity.partition(":")[2].split(",")
        for index, part in enumerate(device.parts):
            entry = endpoints.devices.get(part)
            if entry is None:
                continue
            units[device.unit_ids[index]] = entry.endpoint
            update["real_parts"] = (*update.get("real_parts", ()), *(() if entry.simulated else (part,)))
            if entry.identity:
                products[index] = entry.identity
        if units != device.part_endpoints:
            update["part_endpoints"] = units
            vendor = (own.identity if own and own.identity else device.identity).partition(":")[0]
            update["identity"] = f"{vendor}:{','.join(products)}"
        devices[name] = device.model_copy(update=update)
    return facility.model_copy(update={"devices": devices})


def _placed(entry: DeviceEndpoint) -> dict[str, Any]:
    parsed = parse_endpoint(entry.endpoint)
    update: dict[str, Any] = {"endpoint": entry.endpoint, "answered_by_simulator": entry.simulated}
    if entry.identity:
        update["identity"] = entry.identity
    if parsed.scheme == "serial" and "baudrate" in parsed.options:
        update["baud"] = int(parsed.options["baudrate"])
    if parsed.scheme == "tcp":
        update["baud"] = None if parsed.options.get("framing", "tcp") == "tcp" else 115200
    return update


def mixed_chains(facility: Facility, room: str | None = None) -> list[str]:
    """Rooms in which a real actuator would be enabled by a simulated chain A: each a reason to refuse the map."""
    found = []
    rooms = facility.rooms if room is None else (room,)
    for name in rooms:
        devices = facility.devices_of(name)
        chains = [d for d in devices.values() if d.driver == CHAIN_DRIVER]
        if not any(chain.simulated for chain in chains):
            continue
        real = sorted(_real_actuators(devices))
        if real:
            found.append(
                f"room {name}: {', '.join(real)} {'is' if len(real) == 1 else 'are'} real, but chain A of the room is "
                "simulated: a real actuator is never enabled by a simulated permit; attach the room's safety I/O as well, or "
                "test the device alone with `iongantry hil check`"
            )
    return found


def _real_actuators(devices: Mapping[str, Device]) -> Iterable[str]:
    for name, device in devices.items():
        if not device.actuator:
            continue
        if not device.simulated:
            yield name
        yield from (part for part in device.real_parts if part not in device.sensors)
