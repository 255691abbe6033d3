"""The first steps of every procedure: who is there, does it live, can its whole register map be read.

Not responsible for anything that moves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

from controller.hil.drive_bench import Lines
from controller.hil.target import Target
from controller.hil.verdict import Notes
from drivers.hal.errors import BeamlineError, DeviceError
from drivers.hal.register_map import REGISTER_WIDTHS
from drivers.wire.modbus import REFUSED

COUNTER_S = 0.25  # counters of a machine in use may stand still for three polls, as the gantry's driver allows


async def identity(notes: Notes, target: Target, lines: Lines) -> dict[str, str]:
    """Ask every node who it is; returns what they said. Silence is a failure, not an error."""
    said, reason = {}, ""
    limit = ", ".join(dict.fromkeys(f"vendor 0x{p.vendor:04X}, product 0x{p.product:02X}" for p in target.places))
    for place in target.places:
        try:
            await lines.of(place).connect()
            vendor, product, revision, serial = await lines.of(place).read(place.unit, target.registers["identity"], 4)
        except BeamlineError as error:
            said[place.label] = "no answer"
            reason = reason or f"{place.label} (node {place.unit} at {place.address}): {error}"
            continue
        words = f"vendor 0x{vendor:04X}, product 0x{product:02X}, revision {revision}, serial {serial}"
        said[place.label] = words
        if (vendor, product) != (place.vendor, place.product):
            reason = reason or f"another device answers: {words}"
    notes.judge("identity", not reason, "; ".join(f"{label}: {words}" for label, words in said.items()), limit, reason)
    return said


async def liveness(notes: Notes, counters: Callable[[float], Awaitable[Sequence[Sequence[int]]]]) -> None:
    """See every counter move. `counters(seconds)` watches for a time and returns what each node counted."""
    seen = await counters(COUNTER_S)
    moves = [sum(1 for a, b in pairwise(row) if a != b) for row in seen]
    limit = f"moves within {COUNTER_S:g} s"
    good = all(moves)
    measured = ", ".join(f"{count} changes in {COUNTER_S:g} s" for count in moves)
    notes.judge(
        "liveness", good, measured, limit, "" if good else f"its counter stands still for {COUNTER_S:g} s: it is frozen"
    )


async def registers(notes: Notes, target: Target, lines: Lines) -> None:
    """Read each register of the map by itself."""
    missing, found = [], 0
    widths = REGISTER_WIDTHS[target.kind]
    for place in target.places:
        for name, register in target.registers.items():
            try:
                await lines.of(place).read(place.unit, register, widths.get(name, 1))
            except DeviceError as error:
                if error.code != REFUSED:
                    raise
                missing.append(f"{name} ({register})")
                continue
            found += 1
    reason = f"no register {', '.join(missing)}: the device answers with an exception" if missing else ""
    notes.judge("registers", not missing, f"{found} values read", f"{len(target.registers)} values per node", reason)
