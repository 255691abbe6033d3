"""What is left of a beam that earlier sessions delivered in part, as a schedule of its own.

Per spot: planned less received, floored at zero, where `received` is the upper bound: uncertainty can only under-dose. Two
things bend that rule by at most one reaction quantum. In raster mode the unit credits ions in transit to the next spot, so a
finished spot may be a few counts over or under while the running sum is right: such differences are carried along the scan,
not delivered one by one. And a rest within the quantum cannot be delivered, so it is not owed.

What was received is counted to the paintings of a layer in the order of their passes. Pure. Not responsible for knowing what
was received (`record.ledger`), nor for interruptions within a session (`grants.still_owed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from controller.plan.model import Beam
from controller.plan.schedule import BeamSchedule, Pass

Counts = NDArray[np.int64]


def remaining_schedule(beam: Beam, schedule: BeamSchedule, received: Counts) -> BeamSchedule:
    """The passes that are still owed, in the order of `schedule`, with the counts that are still owed.

    Args:
        beam: the plan's beam.
        schedule: of the whole beam.
        received: counts of monitor 1 that each spot received at most, flat in the plan's order, shape (spots,).

    Returns:
        A schedule without passes when nothing is left that could be delivered.

    Raises:
        ValueError: `received` has another shape.
    """
    offsets = np.concatenate([[0], np.cumsum([layer.spots for layer in beam.layers])])
    if received.shape != (int(offsets[-1]),):
        raise ValueError(f"beam {beam.number} has {int(offsets[-1])} spots, not {received.shape}")
    by_layer: dict[int, list[int]] = {}
    for number, scheduled in enumerate(schedule.passes):
        by_layer.setdefault(scheduled.layer_index, []).append(number)
    owed: dict[int, Counts] = {}
    for layer, numbers in by_layer.items():
        mine = [schedule.passes[n] for n in numbers]
        owed.update(zip(numbers, _owed_of_layer(mine, received[offsets[layer] : offsets[layer + 1]]), strict=True))
    kept = [_part(schedule.passes[n], owed[n]) for n in range(len(schedule.passes)) if owed[n].any()]
    cycles = {old: new for new, old in enumerate(dict.fromkeys(p.cycle_index for p in kept))}
    passes = tuple(replace(p, cycle_index=cycles[p.cycle_index]) for p in kept)
    overhead_s = schedule.duration_s - sum(p.duration_s for p in schedule.passes)
    share = len(passes) / max(len(schedule.passes), 1)
    return BeamSchedule(beam.number, passes, len(cycles), overhead_s * share + sum(p.duration_s for p in passes))


def _owed_of_layer(passes: Sequence[Pass], received: Counts) -> list[Counts]:
    """Counts owed per row of each pass of one layer; `received` has shape (spots of the layer,)."""
    quantum = max(p.quantum_counts for p in passes)
    planned = np.zeros(received.shape, np.int64)
    for p in passes:
        np.add.at(planned, p.spot_index, p.counts1)
    scan = np.concatenate([p.spot_index for p in passes if p.painting == passes[0].painting])
    left = np.zeros(received.shape, np.int64)
    left[scan] = carried_rest(planned[scan], received[scan], quantum)
    owed: list[Counts] = []
    for p in reversed(passes):  # what was received went to the first paintings, so what is left belongs to the last
        taken = np.minimum(left[p.spot_index], p.counts1 + quantum)
        left[p.spot_index] -= taken
        owed.append(taken)
    return owed[::-1]


def carried_rest(planned: Counts, received: Counts, quantum_counts: int) -> Counts:
    """What to deliver to each spot along the scan; all of shape (n,). Each is zero or above one quantum, and at most the plan.

    The difference of planned and received is carried from spot to spot while it stays within a quantum either way; above that
    it is owed at the spot where it was found. So no spot is owed more than its own rest and one quantum.
    """
    owed = np.zeros(planned.shape, np.int64)
    carry = 0
    for k, (whole, missing) in enumerate(zip(planned.tolist(), (planned - received).tolist(), strict=True)):
        want = missing + carry
        if want > quantum_counts:
            owed[k] = min(want, whole)
            carry = want - int(owed[k])
        else:
            carry = max(want, -quantum_counts)
    return owed


def _part(scheduled: Pass, owed: Counts) -> Pass:
    """The rows of a pass that owe something."""
    rows = np.flatnonzero(owed)
    planned, counts1 = scheduled.counts1[rows], owed[rows]
    share = counts1 / planned
    part = float(counts1.sum()) / float(scheduled.counts1.sum())
    return replace(
        scheduled,
        spot_index=scheduled.spot_index[rows],
        x_um=scheduled.x_um[rows],
        y_um=scheduled.y_um[rows],
        counts1=counts1,
        counts2=np.rint(scheduled.counts2[rows] * share).astype(np.int64),
        meterset=scheduled.meterset[rows] * share,
        ions=scheduled.ions * part,
        duration_s=scheduled.duration_s * part,
    )
