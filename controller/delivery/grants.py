"""From a scheduled pass to a grant: what is still owed of it, as at most so many counts at each place.

Pure. Not responsible for journalling or sending a grant (`layers`), nor for the intensity and the counts planned (`schedule`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.plan.schedule import Pass
from drivers.hal.capabilities import Grant

SECOND_MONITOR_FRACTION = 0.05  # monitor 2 may end a spot at +5 % (IBA layer check, used per spot: assumed)
SECOND_MONITOR_COUNTS = 20


@dataclass(frozen=True, slots=True)
class UnitIdentity:
    """What a grant must name so that the unit takes it."""

    boot_id: int
    next_grant_id: int


def build_grant(
    scheduled: Pass,
    owed: NDArray[np.int64],
    unit: UnitIdentity,
    *,
    plan_hash: int,
    fraction: int,
    counts2_per_count1: float,
) -> tuple[Grant, NDArray[np.int64]]:
    """A grant for what is owed of a pass.

    Args:
        scheduled: the pass.
        owed: counts of monitor 1 still owed per row of the pass, shape (rows,); rows that owe nothing are left out.
        unit: boot id and grant id.
        plan_hash: 31-bit identity of the plan.
        fraction: fraction number.
        counts2_per_count1: expected ratio of the monitors.

    Returns:
        The grant, and for each of its rows the row of the pass it stands for.
    """
    rows = np.flatnonzero(owed > 0)
    counts1 = owed[rows]
    room_for_carry = counts1 + scheduled.quantum_counts
    counts2 = np.ceil(room_for_carry * counts2_per_count1 * (1.0 + SECOND_MONITOR_FRACTION)) + SECOND_MONITOR_COUNTS
    grant = Grant(
        unit_boot_id=unit.boot_id,
        grant_id=unit.next_grant_id,
        plan_hash=plan_hash,
        fraction=fraction,
        beam_number=scheduled.beam_number,
        layer_index=scheduled.layer_index,
        painting=scheduled.painting,
        species_token=scheduled.ion.token,
        energy_kev_u=round(scheduled.energy_mev_u * 1000.0),
        scan_mode=scheduled.scan_mode,
        intensity_per_s=math.floor(scheduled.intensity_per_s),
        quantum_counts=scheduled.quantum_counts,
        spot_index=scheduled.spot_index[rows].astype(np.int32),
        x_um=scheduled.x_um[rows].astype(np.int32),
        y_um=scheduled.y_um[rows].astype(np.int32),
        counts1_max=counts1.astype(np.int32),
        counts2_max=counts2.astype(np.int32),
    )
    return grant, rows


def still_owed(scheduled: Pass, received: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts still owed per row of a pass, shape (rows,), never negative.

    The unit works through the rows in order, and in raster mode ions in transit are credited to the next spot: a single row
    may be a little over or under although the running sum is right. What is owed is therefore what the running sum has not
    reached; a rest within the reaction quantum cannot be delivered and is not owed.

    Args:
        scheduled: the pass.
        received: counts of monitor 1 per row of the pass so far, shape (rows,).
    """
    planned = np.asarray(scheduled.counts1, dtype=np.int64)
    total = int(received.sum())
    if int(planned.sum()) - total <= scheduled.quantum_counts:
        return np.zeros_like(planned)
    reached = np.minimum(np.cumsum(planned), total)
    owed: NDArray[np.int64] = planned - np.diff(reached, prepend=0)
    return owed
