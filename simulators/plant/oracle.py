"""What the machine alone would have needed: the same grants, the same draws, fed without any delay.

The plant logs every grant (START, first beam, end, time held by the controller alone) and every operation of ring and
magnets (`machine_log`). From that the oracle reckons, exactly, instead of delivering everything a second time:

- Inside a grant everything after the first beam is the machine's: rows, beam-off steps, refills with their drawn
  ions, gates. All of it follows from draws keyed by grant and spill, so it is the same however early or late the
  grant began. Time held by nothing but the controller (its own gate, a pause it had not acknowledged) is taken out.
- Between two grants of a beam the machine needs what was asked of it: ring operations follow each other, magnet
  ramps follow each other, ring and magnets act at the same time, and none can begin before the last ion of the
  grant before. A ramp that the magnets held back themselves (too warm) counts with its wait.
- Everything else between them (round trips, journalling, deciding) is overhead, and absent here.

`test_oracle` feeds the same grants without delay to a fresh plant and compares. Limits: a controller so slow that a
flattop expires causes a refill which is counted as the machine's, because somebody asked for it; and a faster feed
would heat coils a little more.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from simulators.plant.machine_log import REFILL, GrantRun, Machine, MachineLog, Operation


def machine_limited_s(log: MachineLog, room: str, beam: int | None = None, since_ns: int = 0) -> float:
    """Least time in s from the first beam of the first grant to the end of the last one.

    Args:
        log: the plant's log.
        room: the room.
        beam: one beam's grants only; None takes all of the room as one sequence.
        since_ns: leave out what began earlier (another fraction).

    Returns:
        0.0 when no grant had beam.
    """
    runs = _runs(log, room, beam, since_ns)
    operations = sorted((op for op in log.operations if op.kind != REFILL), key=lambda op: op.requested_ns)
    requested = [op.requested_ns for op in operations]
    total_ns = sum(run.ended_ns - run.begun_ns - run.controller_hold_ns for run in runs)
    for before, after in itertools.pairwise(runs):
        asked = operations[bisect_left(requested, before.ended_ns) : bisect_right(requested, after.begun_ns)]
        total_ns += _busy_ns(asked, room)
    return total_ns * 1e-9


def irradiation_s(log: MachineLog, room: str, beam: int | None = None, since_ns: int = 0) -> float:
    """The time that really passed between the same two instants, in s: overhead is this over `machine_limited_s`, less one."""
    runs = _runs(log, room, beam, since_ns)
    return (runs[-1].ended_ns - runs[0].begun_ns) * 1e-9 if runs else 0.0


def _runs(log: MachineLog, room: str, beam: int | None, since_ns: int) -> list[GrantRun]:
    """Ended grants of a room (and beam) that had beam, in order."""
    return [
        run
        for run in log.grants
        if run.room == room
        and (beam is None or run.beam == beam)
        and run.begun_ns >= 0
        and run.ended_ns >= 0
        and run.started_ns >= since_ns
    ]


def _busy_ns(operations: Iterable[Operation], room: str) -> int:
    """What operations between two grants take: source and ring one after the other, magnets and switchyard beside them."""
    ring = magnets = yard = 0
    for operation in operations:
        length = operation.end_ns - operation.requested_ns
        if operation.machine in (Machine.RING, Machine.SOURCE):
            ring += length
        elif operation.machine is Machine.SWITCHYARD:
            yard += length
        elif operation.room == room:
            magnets += length
    return max(ring, magnets, yard)
