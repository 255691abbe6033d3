"""After a crash: what did every grant deliver, and how surely do we know?

A grant with its pieces in the journal, or still held by the unit, is known. The open one is compared with the unit's latch,
which survives a power loss: both monitors against the granted rows that the latch calls finished. Equal within the reaction
quantum closes it by itself; a latch that disagrees, belongs to another boot or is lost leaves the interval from nothing to
the grant and one reaction quantum for every row. Pieces of a grant whose monitors are doubted leave the interval between what
the one and the other counted. An interval locks the beam, and needs a physicist's signature. Resuming delivers the plan less
the upper bound, so uncertainty can only under-dose.

Pure apart from `record_outcomes`. Doing it twice gives the same: outcomes already recorded are taken from the journal.
Not responsible for moving or beaming anything, nor for the ledger (`ledger`), which takes the arrays from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from controller.record.entries import BeamClaim, BeamHistory, Kind, beam_histories
from controller.record.journal import Journal, Record
from drivers.hal.capabilities import EndReason, Grant, ScanMode, UnitLatch

CARRIED_MARGIN_COUNTS = 2  # rounding of counts (assumed)
MONITORS_FRACTION = 0.05  # monitors may differ by 5 % or 20 counts (starting values of the limits file)
MONITORS_COUNTS = 20
MONITORS_AT_ONCE_FRACTION = 0.10


MONITORS_DOUBTED = (EndReason.MONITORS_DISAGREE, EndReason.MONITOR_DEAD)


def counts_between(
    pieces: NDArray[np.void], reason: EndReason, counts2_per_count1: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What each piece of a grant stands for at least and at most, counts of monitor 1, shape (pieces,): equal unless doubted.

    Where the grant ended because a monitor was not to be trusted, or its sums differ by more than the monitors may, nobody
    knows which of the two was right: every piece lies between what the one and the other say.
    """
    counts1 = pieces["counts1"].astype(np.int64)
    if not monitors_doubted(pieces, reason, counts2_per_count1):
        return counts1, counts1
    like1 = pieces["counts2"] / counts2_per_count1
    return np.minimum(counts1, np.floor(like1).astype(np.int64)), np.maximum(counts1, np.ceil(like1).astype(np.int64))


def monitors_doubted(pieces: NDArray[np.void], reason: EndReason, counts2_per_count1: float) -> bool:
    """Whether the unit ended a grant for its monitors, or they differ beyond their limits over all of it or in one piece.

    The last covers a monitor that died in the grant's last moments, after which the grant had no time to end for that.
    """
    if reason in MONITORS_DOUBTED:
        return True
    counts1, like1 = pieces["counts1"].astype(np.float64), pieces["counts2"] / counts2_per_count1
    if abs(counts1.sum() - like1.sum()) > max(MONITORS_COUNTS, MONITORS_FRACTION * counts1.sum()):
        return True
    larger = np.maximum(counts1, like1)
    return bool(np.any(np.abs(counts1 - like1) > np.maximum(MONITORS_COUNTS, MONITORS_AT_ONCE_FRACTION * larger)))


class How(Enum):
    """What the outcome of a grant rests on."""

    DONE = "done"  # pieces in the journal
    RESULTS = "results"  # pieces still held by the unit
    LATCH = "latch"  # counters that survived
    NOT_DELIVERED = "not delivered"  # the unit never took the grant
    INTERVAL = "interval"  # between nothing and all of it, and a reaction quantum


@dataclass(frozen=True, slots=True, eq=False)
class GrantOutcome:
    """What one grant delivered, per granted row: counts of monitor 1 between `lower` and `upper`, shape (rows,), int64.

    In raster mode the unit carries up to one reaction quantum between rows, so a row known by LATCH is known to
    `quantum_counts` while the sum is the counter's own.
    """

    grant: Grant
    how: How
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    counts2: int
    reason: str
    recorded: bool = False  # the journal holds it already
    shown_counts1: int | None = None  # what monitor 1 itself counted, where its pieces are known

    @property
    def exact(self) -> bool:
        """Whether there is nothing to sign."""
        return self.how is not How.INTERVAL and bool(np.array_equal(self.lower, self.upper))

    @property
    def counts1(self) -> int:
        """Share of this grant in the unit's total of monitor 1."""
        return int(self.lower.sum()) if self.shown_counts1 is None else self.shown_counts1

    @property
    def quantum_counts(self) -> int:
        """How finely a single row is known when the sum is exact."""
        return self.grant.quantum_counts if self.how is How.LATCH else 0


@dataclass(frozen=True, slots=True, eq=False)
class BeamReconciliation:
    """All grants of one claimed beam.

    Attributes:
        claim: the beam.
        outcomes: in the order of granting.
        unexplained_counts1: counts in the unit's total that no journalled grant allows; always 0 with a whole journal.
        closed: the journal already holds the end of this beam.
    """

    claim: BeamClaim
    outcomes: tuple[GrantOutcome, ...]
    unexplained_counts1: int
    closed: bool

    @property
    def needs_signature(self) -> bool:
        """Whether the beam stays locked until a physicist has signed."""
        return self.unexplained_counts1 > 0 or any(not outcome.exact for outcome in self.outcomes)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a signature is needed, for the operator."""
        found = tuple(o.reason for o in self.outcomes if not o.exact)
        if self.unexplained_counts1:
            found += (f"the unit counted {self.unexplained_counts1} more than all journalled grants of this beam allow",)
        return found

    def received(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lower and upper counts of monitor 1 per spot, flat in the plan's order."""
        n = int(self.claim.layer_spots.sum())
        lower, upper = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for outcome in self.outcomes:
            at = self.claim.flat_index(outcome.grant.layer_index, outcome.grant.spot_index)
            np.add.at(lower, at, outcome.lower)
            np.add.at(upper, at, outcome.upper)
        return lower, upper


def reconcile(
    records: Sequence[Record],
    latch: UnitLatch | None,
    kept: Mapping[int, NDArray[np.void]] | None = None,
    *,
    boot_id: int | None = None,
) -> list[BeamReconciliation]:
    """Outcome of every grant of every beam in a journal.

    Args:
        records: the whole verified journal.
        latch: what survived in the unit; None when it cannot be read or its CRC is wrong.
        kept: pieces the unit still holds, by grant id, whole and checked.
        boot_id: the unit's boot id under which `kept` was read; pieces of another boot are ignored.
    """
    histories = beam_histories(records)
    return [_beam(h, latch if h is histories[-1] else None, kept or {}, boot_id) for h in histories]


def record_outcomes(journal: Journal, reconciliation: BeamReconciliation, *, signed_by: str = "") -> None:
    """Write RECONCILED for each grant whose outcome the journal lacks. After a crash in between, reconcile again, then this."""
    for outcome in reconciliation.outcomes:
        if outcome.recorded:
            continue
        data = {
            "grant_id": outcome.grant.grant_id,
            "how": outcome.how,
            "counts2": outcome.counts2,
            "reason": outcome.reason,
            "signed_by": signed_by,
        }
        journal.append(Kind.RECONCILED, data, {"lower": outcome.lower, "upper": outcome.upper})


def _beam(
    history: BeamHistory, latch: UnitLatch | None, kept: Mapping[int, NDArray[np.void]], kept_boot_id: int | None
) -> BeamReconciliation:
    outcomes: dict[int, GrantOutcome] = {}
    ratio = history.claim.counts2_per_count1
    for grant_id, grant in history.grants.items():
        if grant_id in history.done:
            done = history.done[grant_id]
            outcomes[grant_id] = _from_pieces(grant, done.pieces, done.reason, ratio, How.DONE)
        elif grant_id in history.reconciled:
            outcomes[grant_id] = _from_record(grant, history.reconciled[grant_id])
        elif grant_id in kept and kept_boot_id in (None, grant.unit_boot_id):
            outcomes[grant_id] = _from_pieces(grant, kept[grant_id], EndReason.NONE, ratio, How.RESULTS)
    open_ids = [grant_id for grant_id in history.grants if grant_id not in outcomes]
    known1 = sum(o.counts1 for o in outcomes.values())
    known2 = sum(o.counts2 for o in outcomes.values())
    for grant_id in open_ids:
        outcomes[grant_id] = _from_latch(history, history.grants[grant_id], latch, known1, known2)
    ordered = tuple(outcomes[grant_id] for grant_id in history.grants)
    return BeamReconciliation(history.claim, ordered, _unexplained(history, ordered, latch), history.closed)


def _from_pieces(grant: Grant, pieces: NDArray[np.void], ended: EndReason, ratio: float, how: How) -> GrantOutcome:
    lower, upper = np.zeros(grant.rows, np.int64), np.zeros(grant.rows, np.int64)
    for bound, counts in zip((lower, upper), counts_between(pieces, ended, ratio), strict=True):
        np.add.at(bound, pieces["row"], counts)
    sum1, sum2 = int(pieces["counts1"].sum()), int(pieces["counts2"].sum())
    doubt = "" if np.array_equal(lower, upper) else f"grant {grant.grant_id}: the monitors disagree, {sum1} and {sum2} counts"
    return GrantOutcome(grant, how, lower, upper, sum2, doubt, how is How.DONE, sum1)


def _from_record(grant: Grant, record: Record) -> GrantOutcome:
    data = record.data
    how = How(data["how"])
    bounds = record.arrays["lower"], record.arrays["upper"]
    return GrantOutcome(grant, how, *bounds, int(data["counts2"]), str(data["reason"]), recorded=True)


def _from_latch(history: BeamHistory, grant: Grant, latch: UnitLatch | None, known1: int, known2: int) -> GrantOutcome:
    """Outcome of a grant without pieces. `known1`, `known2`: counts of this beam that other grants account for."""
    claim = history.claim
    if latch is None:
        return _interval(grant, "the unit's latch is not known (lost, unreadable, or not asked)")
    if latch.boot_id != grant.unit_boot_id:
        return _interval(grant, f"the latch belongs to boot {latch.boot_id}, the grant to boot {grant.unit_boot_id}")
    delta1 = latch.total_counts1 - claim.counts1_base - known1
    delta2 = latch.total_counts2 - claim.counts2_base - known2
    difference2 = abs(delta2 - delta1 * claim.counts2_per_count1)
    allowed2 = max(MONITORS_COUNTS, MONITORS_FRACTION * abs(delta1)) * claim.counts2_per_count1
    if difference2 > allowed2:
        return _interval(grant, f"the monitors disagree by {difference2:.0f} counts, beyond {allowed2:.0f}")
    if delta1 < -MONITORS_COUNTS:
        return _interval(grant, f"the unit's total is {-delta1} counts below what is accounted for: its memory was lost")
    if latch.grant_id < grant.grant_id:
        if grant.grant_id in history.started:
            return _interval(grant, "the unit started this grant, and its latch knows nothing of it: its memory was lost")
        later = [g for g in history.grants if g <= latch.grant_id and g not in history.done]
        if not later and abs(delta1) > MONITORS_COUNTS:
            return _interval(grant, f"the unit never took this grant, yet its total moved by {delta1} counts")
        zeros = np.zeros(grant.rows, np.int64)
        return GrantOutcome(grant, How.NOT_DELIVERED, zeros, zeros, 0, "the unit never took this grant")
    if latch.grant_id > grant.grant_id:
        return _interval(grant, f"the unit went on to grant {latch.grant_id} and this grant's results are gone")
    return _finished_rows(grant, latch, delta1, delta2)


def _finished_rows(grant: Grant, latch: UnitLatch, delta1: int, delta2: int) -> GrantOutcome:
    """The latch speaks of this grant: rows up to the last finished got their counts, the open one what the latch counted."""
    finished = latch.last_finished_row + 1
    if not 0 <= finished <= grant.rows:
        return _interval(grant, f"the latch says row {latch.last_finished_row} of {grant.rows}")
    counts = np.zeros(grant.rows, np.int64)
    counts[:finished] = grant.counts1_max[:finished]
    carried = delta1 - latch.open_row_counts1 - int(counts.sum())
    allowed = grant.quantum_counts + CARRIED_MARGIN_COUNTS
    if grant.scan_mode is ScanMode.SPOT:
        allowed *= max(1, finished)  # nothing is carried there: each row may end one reaction late
    if abs(carried) > allowed:
        return _interval(grant, f"counter and finished rows differ by {carried} counts, beyond the reaction quantum {allowed}")
    if finished < grant.rows:
        if latch.open_row_counts1 > int(grant.counts1_max[finished]) + allowed:
            return _interval(grant, f"row {finished} counted {latch.open_row_counts1}, more than it was granted")
        counts[finished] = latch.open_row_counts1
    elif finished:
        counts[finished - 1] += latch.open_row_counts1
    _spread(counts, carried, max(finished, 1))
    return GrantOutcome(
        grant, How.LATCH, counts, counts, delta2, f"{finished} of {grant.rows} rows finished, both counters agree"
    )


def _spread(counts: NDArray[np.int64], carried: int, rows: int) -> None:
    """Book what was carried where it stood at that instant: on the last finished rows, never below zero."""
    for row in range(rows - 1, -1, -1):
        if carried >= 0:
            counts[row] += carried
            return
        taken = min(int(counts[row]), -carried)
        counts[row] -= taken
        carried += taken


def _interval(grant: Grant, reason: str) -> GrantOutcome:
    upper = grant.counts1_max.astype(np.int64) + grant.quantum_counts  # whichever row was the last, its cut-off came late
    return GrantOutcome(grant, How.INTERVAL, np.zeros_like(upper), upper, 0, f"grant {grant.grant_id}: {reason}")


def _unexplained(history: BeamHistory, outcomes: tuple[GrantOutcome, ...], latch: UnitLatch | None) -> int:
    claim = history.claim
    if latch is None or history.closed or latch.boot_id != claim.unit_boot_id:
        return 0
    quantum = max((o.grant.quantum_counts for o in outcomes), default=0)
    excess = latch.total_counts1 - claim.counts1_base - sum(int(o.upper.sum()) for o in outcomes)
    unknown_grant = bool(history.grants) and latch.grant_id > max(history.grants)
    return max(0, excess) if excess > quantum + MONITORS_COUNTS or (unknown_grant and excess > 0) else 0
