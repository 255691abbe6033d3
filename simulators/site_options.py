"""What a simulator process is asked to be, and every reason why it cannot be that.

Nothing is started here; what can be known beforehand is told all at once.
"""

from __future__ import annotations

import dataclasses
import math
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from drivers.hal.endpoints import load_endpoints
from drivers.hal.errors import ConfigError
from drivers.hal.facility import Facility
from simulators.plant.facility import FacilityPlant
from simulators.plant.gantry import GantryRing
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.truth import TruthError, load_truth
from simulators.staff import pace_of

SPEED_MAX = 100.0
CONNECT_S = 1.0
ENDPOINTS_FILE = "endpoints.toml"


class SiteRefused(Exception):
    """The simulators cannot start; every reason."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """A simulator process.

    Attributes:
        facility: belief; the plant of the same name is the truth.
        seed: root of every random stream.
        speed: plant seconds per second.
        rooms: served rooms; empty serves all.
        serial: motion lines on ``pty`` or ``tcp``.
        broker: ``HOST:PORT`` of a broker that runs already; empty starts one.
        output: endpoint file to write; None: ``endpoints.toml`` in `directory`, or where the process stands.
        directory: where ptys and interlock journals get stable names; None makes a private one that is removed at the end.
        staff: ``real`` or ``quick``.
        interlock: start an interlock system per served room.
        breathing: tell each room's breathing signal 25 times a second.
        at_deg: angle at which the rings of the served rooms stand at the start; None leaves the plant's own.
        route: beam path that is open at the start; empty: none.
    """

    facility: Facility
    seed: int = 0
    speed: float = 1.0
    rooms: tuple[str, ...] = ()
    serial: str = "pty"
    broker: str = ""
    output: Path | None = None
    directory: Path | None = None
    staff: str = "real"
    interlock: bool = True
    breathing: bool = False
    at_deg: float | None = None
    route: str = ""

    @property
    def served(self) -> tuple[str, ...]:
        """Rooms whose devices answer, in the facility's order."""
        return tuple(name for name in self.facility.rooms if not self.rooms or name in self.rooms)

    @property
    def endpoints_file(self) -> Path:
        """The endpoint file."""
        return self.output or (self.directory or Path()) / ENDPOINTS_FILE


def make_plant(options: SiteOptions) -> FacilityPlant:
    """The plant as it stands at the start.

    Raises:
        TruthError, ValueError: there is no such plant, room, angle or route.
    """
    truth, motion = load_truth(options.facility.name), MotionTruth.load(options.facility.name)
    if options.at_deg is not None and math.isfinite(options.at_deg):
        motion = _turned(motion, options.served, options.at_deg)
    plant = FacilityPlant(Kernel(options.seed), truth, motion)
    if options.route:
        plant.switchyard.stand(options.route)
    return plant


def _turned(motion: MotionTruth, rooms: tuple[str, ...], angle_deg: float) -> MotionTruth:
    turned = dict(motion.rooms)
    found = False
    for name in rooms:
        room = turned[name]
        if room.gantry is None:
            continue
        if abs(angle_deg) > room.gantry.soft_limit_deg:
            raise ValueError(
                f"room {name}: the ring cannot stand at {angle_deg:g} deg, its limit is {room.gantry.soft_limit_deg:g}"
            )
        turned[name] = dataclasses.replace(room, gantry=dataclasses.replace(room.gantry, initial_deg=angle_deg))
        found = True
    if not found:
        raise ValueError(f"no ring in {', '.join(rooms)} could stand at {angle_deg:g} deg")
    return MotionTruth(turned)


def objections(options: SiteOptions) -> list[str]:
    """Why this site cannot be started here; empty when nothing is known against it."""
    found = _objections_to_values(options)
    unknown = [name for name in options.rooms if name not in options.facility.rooms]
    found += [
        f"facility {options.facility.name} has no room {name!r}; it has {', '.join(options.facility.rooms)}" for name in unknown
    ]
    if not unknown:
        try:
            plant = make_plant(options)
            found += [f"room {name}: the simulated plant has none" for name in options.served if name not in plant.rooms]
            lines = {f"{room}-{line}" for room in options.served for line in ("motion", "safety")}
            found += [
                f"device {name}: its line {device.wire_name!r} is none that is simulated: {', '.join(sorted(lines))}"
                for name, device in options.facility.devices.items()
                if device.wire == "stream" and device.room in ("", *options.served) and device.wire_name not in lines
            ]
            found += [
                f"room {name}: facility file and simulated plant differ on whether it has a ring"
                for name in options.served
                if name in plant.rooms
                and isinstance(plant.rooms[name].gantry, GantryRing) != (options.facility.rooms[name].gantry is not None)
            ]
        except TruthError as error:
            found.append(f"facility {options.facility.name}: it has no simulated plant: {error}")
        except ValueError as error:
            found.append(str(error))
    if options.broker:
        found += _objections_to_broker(options.broker)
    return found + _objections_to_files(options)


def _objections_to_values(options: SiteOptions) -> list[str]:
    found = []
    if not 0 < options.speed <= SPEED_MAX:
        found.append(f"speed {options.speed:g}: expected a factor above 0, at most {SPEED_MAX:g}")
    if options.at_deg is not None and not math.isfinite(options.at_deg):
        found.append(f"at {options.at_deg}: expected an angle in degrees")
    if options.serial not in ("pty", "tcp"):
        found.append(f"serial {options.serial!r}: expected pty or tcp")
    try:
        pace_of(options.staff)
    except ValueError as error:
        found.append(str(error))
    return found


def broker_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or not parts.port or parts.path:
        raise ValueError(f"broker {text!r}: expected HOST:PORT")
    return parts.hostname, parts.port


def _objections_to_broker(text: str) -> list[str]:
    try:
        address = broker_address(text)
    except ValueError as error:
        return [f"broker {text!r}: {error}" if "expected" not in str(error) else str(error)]
    try:
        socket.create_connection(address, CONNECT_S).close()
    except OSError as error:
        return [f"broker {text}: nobody answers there: {error}"]
    return []


def _objections_to_files(options: SiteOptions) -> list[str]:
    found = []
    output, directory = options.endpoints_file, options.directory
    if directory is not None and not directory.exists() and output.parent == directory:
        pass  # both are made
    elif not output.parent.is_dir():
        found.append(f"{output}: the directory {output.parent} does not exist")
    elif output.exists():
        found += _objections_to_existing(output)
    if directory is not None and directory.exists() and not directory.is_dir():
        found.append(f"{directory}: is not a directory")
    if directory is not None and (odd := sorted(set(str(directory.absolute())) & set("?#%"))):
        found.append(f"{directory}: a tty's path must not contain {' '.join(odd)}, which mean something in an endpoint")
    return found


def _objections_to_existing(output: Path) -> list[str]:
    """A file of ours whose process has died may be replaced; that of a living one, or anything else, may not."""
    if not output.is_file():
        return [f"{output}: exists and is not a file"]
    try:
        door = load_endpoints(output).backdoor
    except ConfigError:
        return [f"{output}: exists and is not an endpoint file: remove it, or write elsewhere with --output"]
    parts = urlsplit(door)
    if not door or not parts.hostname or not parts.port:
        return [f"{output}: exists and was not written by a simulator: remove it, or write elsewhere with --output"]
    try:
        socket.create_connection((parts.hostname, parts.port), CONNECT_S).close()
    except OSError:
        return []
    return [f"{output}: the simulator that wrote it still runs ({door}): stop it, or write elsewhere with --output"]
