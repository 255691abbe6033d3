"""Everything that can be wrong with a facility file beyond its form: contradictions, and what would be unsafe or too slow.

`check_facility` returns every reason at once, each with place, value and limit. Not responsible for parsing (`facility`), nor
for whether the belief is true: that shows when devices answer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from drivers.hal.facility import Device, Facility, GantryLimits, Room
from drivers.hal.register_map import AGED_COMMANDS, COMMANDED, MOTION_RELAY, REGISTER_WIDTHS, TABLES_OF

INT32_MAX = 2**31 - 1
BITS_PER_BYTE = 11  # start, 8 data, parity, stop: Modbus over Serial Line V1.02, section 2.5.1
FRAME_GAP_BYTES = 3.5  # silence around each frame, section 2.5.1.1
TURNAROUND_S = 0.002  # assumed: what a node takes to begin its answer
POLL_SHARE = 0.5  # a poll may be lost once before a device stops: one scan within half of its deadline
TURN_DEG = 360.0

# Registers that are read in one status poll of a node, and the bytes of question and answer around them.
POLLED_REGISTERS = {"gantry": 12, "couch": 18, "nozzle": 12, "room_access": 30, "interlock_view": 17}
FRAME_OVERHEAD_BYTES = 8 + 5

WIRES = {
    "gantry": "stream",
    "couch": "stream",
    "nozzle": "stream",
    "room_access": "stream",
    "interlock_view": "stream",
    "accelerator": "channels",
    "magnets": "channels",
    "delivery_unit": "channels",
    "dose_unit_2": "channels",
    "imager": "messages",
}
NODES = {"gantry": 3, "couch": 1, "nozzle": 1, "room_access": 1, "interlock_view": 1}
NEEDED_IN_ROOM = ("couch", "nozzle", "room_access", "interlock_view", "magnets", "delivery_unit", "dose_unit_2", "imager")
ACTUATORS = ("gantry", "couch", "nozzle", "room_access", "accelerator", "magnets", "delivery_unit", "dose_unit_2")
SCHEMES = {
    "stream": ("memory:", "sim:", "serial://", "tcp://"),
    "channels": ("memory:", "sim:", "ca://"),
    "messages": ("memory:", "sim:", "mqtt://"),
}


class _Deadline(NamedTuple):
    device: str
    limit_s: float
    why: str


def check_facility(facility: Facility) -> list[str]:
    """Every reason why a facility file is wrong beyond parsing; empty when there is none."""
    return [
        *_species(facility),
        *_meterset(facility),
        *_rooms(facility),
        *_missing_devices(facility),
        *_devices(facility),
        *_registers(facility),
        *_shared_lines(facility),
        *_real_and_simulated(facility),
    ]


def _species(facility: Facility) -> Iterator[str]:
    offers = facility.accelerator.species
    if not offers:
        yield "accelerator.species: the accelerator offers none"
    symbols = [offer.symbol for offer in offers]
    for symbol in sorted({s for s in symbols if symbols.count(s) > 1}):
        yield f"accelerator.species: {symbol} is offered {symbols.count(symbol)} times"
    for offer in offers:
        where = f"accelerator.species {offer.symbol}"
        step = offer.energy_step_mev_u
        if step is not None:
            steps = (offer.energy_max_mev_u - offer.energy_min_mev_u) / step
            if abs(steps - round(steps)) > 1e-6:
                span = f"{offer.energy_min_mev_u} to {offer.energy_max_mev_u} MeV/u"
                yield f"{where}: {span} is no whole number of steps of {step}"
        if offer.intensity_max_per_s > INT32_MAX:
            yield f"{where}: intensity_max_per_s {offer.intensity_max_per_s:g} is above {INT32_MAX}, the most a grant can state"
        if offer.ions_per_cycle < offer.intensity_min_per_s * 1e-3:
            yield f"{where}: ions_per_cycle {offer.ions_per_cycle:g} last less than 1 ms at the lowest intensity"


def _meterset(facility: Facility) -> Iterator[str]:
    table = facility.meterset.protons_per_mu
    for (low, _), (high, _) in pairwise(table):
        if high <= low:
            yield f"meterset.protons_per_mu: energy {high} MeV follows {low} MeV; energies must rise"
    protons = facility.accelerator.offer("p")
    if table and protons is not None and (table[0][0] > protons.energy_min_mev_u or table[-1][0] < protons.energy_max_mev_u):
        yield (
            f"meterset.protons_per_mu: covers {table[0][0]} to {table[-1][0]} MeV, protons are offered from"
            f" {protons.energy_min_mev_u} to {protons.energy_max_mev_u} MeV"
        )


def _rooms(facility: Facility) -> Iterator[str]:
    if not facility.rooms:
        yield "rooms: the facility has none"
    owners: dict[str, list[str]] = defaultdict(list)
    for room in facility.rooms.values():
        for machine in room.machine_names:
            owners[machine].append(room.name)
        yield from _room(room)
    for machine, names in owners.items():
        if len(names) > 1:
            yield f"rooms {', '.join(names)}: all answer to the machine name {machine!r}"


def _room(room: Room) -> Iterator[str]:
    where = f"rooms.{room.name}"
    if not room.machine_names:
        yield f"{where}.machine_names: empty, no plan can name this room"
    if room.kind == "fixed" and room.gantry is not None:
        yield f"{where}: a fixed room has a [gantry] table"
    if room.kind == "gantry" and room.ports_deg:
        yield f"{where}: a gantry room has ports_deg {list(room.ports_deg)}"
    for index, port in enumerate(room.ports_deg):
        if not -180.0 < port <= 180.0:
            yield f"{where}.ports_deg: {port} deg is outside (-180, 180]"
        for other in room.ports_deg[:index]:
            if abs(port - other) <= 2 * room.port_tolerance_deg:
                yield f"{where}.ports_deg: {other} and {port} deg cannot be told apart within {room.port_tolerance_deg} deg"
    if room.gantry is not None:
        yield from _gantry(f"{where}.gantry", room.gantry)
    couch, nozzle = room.couch, room.nozzle
    for name in ("lateral_mm", "longitudinal_mm", "vertical_mm", "angle_deg", "pitch_deg", "roll_deg"):
        limits = getattr(couch, name)
        if not limits.holds(0.0):
            yield f"{where}.couch.{name}: {limits.minimum} to {limits.maximum} does not hold 0, the treatment position"
    if nozzle.monitor_distance_mm >= min(nozzle.sad_x_mm, nozzle.sad_y_mm):
        yield f"{where}.nozzle: monitor_distance_mm {nozzle.monitor_distance_mm} lies upstream of the virtual source"
    if nozzle.snout_mm.minimum < 0:
        yield f"{where}.nozzle.snout_mm: minimum {nozzle.snout_mm.minimum} is beyond the isocentre"
    ids = [shifter.id for shifter in nozzle.range_shifters]
    for double in sorted({i for i in ids if ids.count(i) > 1}):
        yield f"{where}.nozzle.range_shifters: {double!r} is there {ids.count(double)} times"
    if len(ids) > 16:
        yield f"{where}.nozzle.range_shifters: {len(ids)} slabs, the mask register has 16 bits"


def _gantry(where: str, gantry: GantryLimits) -> Iterator[str]:
    span = gantry.angle_deg.maximum - gantry.angle_deg.minimum
    if span > TURN_DEG:
        yield f"{where}.angle_deg: spans {span} deg, more than a turn: an encoder angle would not be unique"
    if gantry.speed_deg_s > 7.0:
        yield f"{where}.speed_deg_s: {gantry.speed_deg_s} is above 7 deg/s (IEC 60601-2-1 style limit, recalled)"
    if gantry.in_position_deg > 0.2:
        yield f"{where}.in_position_deg: {gantry.in_position_deg} is above 0.2 deg, the angle at which beam is refused"


def _missing_devices(facility: Facility) -> Iterator[str]:
    drivers = [device.driver for device in facility.devices.values() if not device.room]
    if drivers.count("accelerator") != 1:
        yield f"devices: {drivers.count('accelerator')} accelerators that all rooms share, expected 1"
    for room in facility.rooms.values():
        own = [device.driver for device in facility.devices.values() if device.room == room.name]
        needed = (*NEEDED_IN_ROOM, "gantry") if room.kind == "gantry" else NEEDED_IN_ROOM
        for driver in needed:
            if own.count(driver) != 1:
                yield f"rooms.{room.name}: {own.count(driver)} devices with driver {driver!r}, expected 1"
        if room.kind == "fixed" and "gantry" in own:
            yield f"rooms.{room.name}: a fixed room has a gantry device"


def _devices(facility: Facility) -> Iterator[str]:
    for name, device in facility.devices.items():
        where = f"devices.{name}"
        wire = WIRES.get(device.driver)
        if wire is None:
            yield f"{where}.driver: {device.driver!r} is unknown; known: {', '.join(WIRES)}"
            continue
        if device.wire != wire:
            yield f"{where}.wire: {device.wire!r}, the driver {device.driver!r} speaks on {wire!r}"
        if not device.endpoint.startswith(SCHEMES[device.wire]):
            schemes = ", ".join(SCHEMES[device.wire])
            yield f"{where}.endpoint: {device.endpoint!r}, a {device.wire} endpoint begins with {schemes}"
        if device.driver in ACTUATORS and not device.actuator:
            yield f"{where}.actuator: false, but a {device.driver} moves, powers or lets beam through"
        if device.driver in NODES:
            yield from _nodes(where, device)
        if device.endpoint.startswith("serial://") and device.baud is None:
            yield f"{where}.baud: missing; a serial bus declares its speed"
        if wire in ("channels", "messages") and not device.prefix:
            yield f"{where}.prefix: missing"
        if device.driver == "magnets" and not device.magnets:
            yield f"{where}.magnets: empty"
        if len(set(device.magnets)) != len(device.magnets):
            yield f"{where}.magnets: a name is there twice"
        if device.driver == "gantry" and device.poll_deadline_ms is None:
            yield f"{where}.poll_deadline_ms: missing; drives must stop by themselves when they are not polled"


def _nodes(where: str, device: Device) -> Iterator[str]:
    expected = NODES[device.driver]
    if len(device.unit_ids) != expected:
        yield f"{where}.unit_ids: {len(device.unit_ids)} nodes, a {device.driver} has {expected}"
    for unit in device.unit_ids:
        if not 1 <= unit <= 247:
            yield f"{where}.unit_ids: node {unit} is outside 1 to 247"
    vendor, _, products = device.identity.partition(":")
    codes = products.split(",")
    if not all(_is_hex(text) for text in (vendor, *codes)) or len(codes) != len(device.unit_ids):
        wanted = "a vendor and one product for each node, as in '1009:D1,D1,E1'"
        yield f"{where}.identity: {device.identity!r} does not name {wanted}"


def _is_hex(text: str) -> bool:
    return bool(text) and all(c in "0123456789abcdefABCDEF" for c in text)


def _registers(facility: Facility) -> Iterator[str]:
    used = {table for device in facility.devices.values() for table in TABLES_OF.get(device.driver, ())}
    for table in sorted(used - set(facility.registers)):
        yield f"registers.{table}: missing"
    for table, addresses in facility.registers.items():
        widths = REGISTER_WIDTHS.get(table)
        if widths is None:
            yield f"registers.{table}: unknown; known: {', '.join(REGISTER_WIDTHS)}"
            continue
        for name in sorted(set(widths) - set(addresses) - {*AGED_COMMANDS, *MOTION_RELAY}):
            yield f"registers.{table}.{name}: missing"
        if len(have := [name for name in MOTION_RELAY if name in addresses]) == 1:
            yield f"registers.{table}.{have[0]}: needs {' and '.join(MOTION_RELAY)}, or neither (a room without a motion relay)"
        yield from _token(table, addresses)
        for name in sorted(set(addresses) - set(widths)):
            yield f"registers.{table}.{name}: unknown"
        spans = sorted((address, address + widths[name], name) for name, address in addresses.items() if name in widths)
        for first, last, name in spans:
            if first < 0 or last > 0x10000:
                yield f"registers.{table}.{name}: {first} to {last - 1} is outside 0 to 65535"
        for (_, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                yield f"registers.{table}: {other} at {start} overlaps {name}, which ends at {end - 1}"


def _token(table: str, addresses: Mapping[str, int]) -> Iterator[str]:
    """A device that drops old commands tells its cycles in the status block, and takes the token in the command's frame."""
    have = [name for name in AGED_COMMANDS if name in addresses]
    if len(have) == 1:
        (other,) = set(AGED_COMMANDS) - set(have)
        yield f"registers.{table}.{have[0]}: needs {other}, or neither (a device that cannot tell how old a command is)"
    command = COMMANDED.get(table, "")
    if len(have) < 2 or not {command, "counter"} <= set(addresses):
        return
    if addresses["command_token"] + 2 != addresses[command]:
        where = f"{addresses['command_token']}, {command} at {addresses[command]}"
        yield f"registers.{table}.command_token: at {where}; one frame must carry both, the token in front"
    if addresses["cycles"] != addresses["counter"] + 1:
        where = f"{addresses['cycles']}, the counter at {addresses['counter']}"
        yield f"registers.{table}.cycles: at {where}; the cycles follow the counter at the end of the status block"


def _shared_lines(facility: Facility) -> Iterator[str]:
    lines: dict[str, list[tuple[str, Device]]] = defaultdict(list)
    for name, device in facility.devices.items():
        if device.wire == "stream":
            lines[device.endpoint].append((name, device))
    for endpoint, members in lines.items():
        owners: dict[int, str] = {}
        for name, device in members:
            for unit in device.unit_ids:
                if unit in owners:
                    yield f"{endpoint}: node {unit} belongs to both {owners[unit]} and {name}"
                owners[unit] = name
        bauds = sorted({device.baud for _, device in members if device.baud is not None})
        if len(bauds) > 1:
            yield f"{endpoint}: devices declare different speeds: {', '.join(map(str, bauds))} baud"
        elif bauds and any(device.baud is None for _, device in members):
            without = ", ".join(name for name, device in members if device.baud is None)
            yield f"{endpoint}: {without} declares no baud rate, others on this bus do"
        elif bauds and bauds[0] <= 0:
            yield f"{endpoint}: {bauds[0]} baud"
        elif bauds:
            yield from _scan(endpoint, bauds[0], members)


def scan_time_s(baud: int, devices: Iterable[Device]) -> float:
    """Time in s that one status poll of every node takes on a serial bus."""
    total = 0.0
    for device in devices:
        registers = POLLED_REGISTERS.get(device.driver, 10)
        size = FRAME_OVERHEAD_BYTES + 2 * registers + 2 * FRAME_GAP_BYTES
        total += len(device.unit_ids) * (size * BITS_PER_BYTE / baud + TURNAROUND_S)
    return total


def _scan(endpoint: str, baud: int, members: list[tuple[str, Device]]) -> Iterator[str]:
    scan_s = scan_time_s(baud, (device for _, device in members))
    deadlines = [_Deadline(name, device.deadline_ms / 1000.0, "its values must not get older") for name, device in members]
    deadlines += [
        _Deadline(name, device.poll_deadline_ms / 1000.0 * POLL_SHARE, "half of the time after which it stops by itself")
        for name, device in members
        if device.poll_deadline_ms is not None
    ]
    for device, limit_s, why in deadlines:
        if scan_s > limit_s:
            nodes = sum(len(d.unit_ids) for _, d in members)
            yield (
                f"{endpoint}: a scan of {nodes} nodes at {baud} baud takes {math.ceil(scan_s * 1000)} ms, {device} allows"
                f" {limit_s * 1000:g} ms ({why}); raise the speed or split the bus"
            )


def _real_and_simulated(facility: Facility) -> Iterator[str]:
    """A real actuator is never enabled by a simulated permit."""
    chains = {
        device.room: (name, device)
        for name, device in facility.devices.items()
        if device.driver == "room_access" and device.room
    }
    for name, device in facility.devices.items():
        if not device.actuator or device.simulated:
            continue
        guarding = [chains[device.room]] if device.room in chains else list(chains.values()) if not device.room else []
        for chain_name, chain in guarding:
            if chain.simulated:
                yield (
                    f"devices.{name}: real ({device.endpoint}), but the safety chain of {chain.room} ({chain_name},"
                    f" {chain.endpoint}) is simulated; a real actuator is never enabled by a simulated permit"
                )
