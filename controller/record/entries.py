"""The kinds of record in a treatment's journal, and how grants and results are written to it and read back.

Order of one grant: GRANT is durable, then it is sent; STARTED once the unit acknowledged the start; DONE with all pieces,
once they were pulled. A beam is framed by CLAIMED and CLOSED. Everything a record, a spot table or a recovery needs is in
here.

Not responsible for deciding what an unfinished grant delivered: see `reconcile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.journal import OPENED, Journal, Record
from drivers.hal.capabilities import EndReason, Grant, ScanMode
from drivers.hal.errors import DataError


class Kind(IntEnum):
    """What a journal record says."""

    OPENED = OPENED
    CLAIMED = 1  # a beam: planned counts, counter base
    GRANT = 2
    STARTED = 3
    DONE = 4  # all pieces of a grant
    OVERRIDE = 5  # a check that somebody set aside for this session
    INTERLOCK = 6  # a trip, or a finding on a slice
    RECONCILED = 8  # the outcome of a grant that had no DONE
    CLOSED = 9  # a beam


@dataclass(frozen=True, slots=True, eq=False)
class BeamClaim:
    """A beam as its delivery began. Arrays are flat, in the plan's order: layer after layer, spot after spot.

    Attributes:
        plan_uid, fraction, beam_number, plan_hash: which beam.
        unit_boot_id: of the delivery unit.
        counts1_base, counts2_base: the unit's totals before the first grant, read after the field was started in both units.
        counts2_per_count1: expected ratio of the monitors, from the library.
        layer_spots: spots per layer, shape (layers,).
        claimed_counts1: what is to be delivered in this attempt, shape (sum of layer_spots,), int64.
    """

    plan_uid: str
    fraction: int
    beam_number: int
    plan_hash: int
    unit_boot_id: int
    counts1_base: int
    counts2_base: int
    counts2_per_count1: float
    layer_spots: NDArray[np.int32]
    claimed_counts1: NDArray[np.int64]

    def flat_index(self, layer_index: int, spot_index: NDArray[np.int32]) -> NDArray[np.int64]:
        """Positions of spots of a layer in the flat arrays."""
        return int(self.layer_spots[:layer_index].sum()) + spot_index.astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A grant's end: why, and all pieces (PIECE_DTYPE)."""

    grant_id: int
    reason: EndReason
    pieces: NDArray[np.void]


_GRANT_ARRAYS = ("spot_index", "x_um", "y_um", "counts1_max", "counts2_max")
_GRANT_NUMBERS = tuple(f.name for f in fields(Grant) if f.name not in _GRANT_ARRAYS)


def write_claim(journal: Journal, claim: BeamClaim) -> None:
    """CLAIMED: delivery of a beam begins."""
    data = {f.name: getattr(claim, f.name) for f in fields(BeamClaim) if f.name not in ("layer_spots", "claimed_counts1")}
    journal.append(Kind.CLAIMED, data, {"layer_spots": claim.layer_spots, "claimed_counts1": claim.claimed_counts1})


def write_grant(journal: Journal, grant: Grant, *, attempt: int = 1) -> None:
    """GRANT: durable when this returns; only then may it be sent. `attempt` counts grants of one layer and painting from 1."""
    data = {name: getattr(grant, name) for name in _GRANT_NUMBERS}
    journal.append(Kind.GRANT, {**data, "attempt": attempt}, {name: getattr(grant, name) for name in _GRANT_ARRAYS})


def write_started(journal: Journal, grant_id: int, crc: int) -> None:
    """STARTED: the unit acknowledged the start."""
    journal.append(Kind.STARTED, {"grant_id": grant_id, "crc": crc})


def write_done(journal: Journal, grant_id: int, reason: EndReason, pieces: NDArray[np.void]) -> None:
    """DONE: the grant is closed with these pieces (PIECE_DTYPE)."""
    journal.append(Kind.DONE, {"grant_id": grant_id, "reason": reason}, {"pieces": pieces})


def write_override(journal: Journal, name: str, reason: str, *, operator: str, detail: str) -> None:
    """OVERRIDE: a check was set aside before anything moved; `detail` is what it would have refused."""
    journal.append(Kind.OVERRIDE, {"name": name, "reason": reason, "operator": operator, "detail": detail})


def write_interlock(journal: Journal, name: str, message: str, *, source: str, device: str, t_ns: int) -> None:
    """INTERLOCK: something tripped, at `t_ns`."""
    journal.append(Kind.INTERLOCK, {"name": name, "message": message, "source": source, "device": device}, t_ns=t_ns)


def write_closed(journal: Journal, beam_number: int, status: str, reason: str) -> None:
    """CLOSED: the beam is over, `status` complete, partial or reconciled."""
    journal.append(Kind.CLOSED, {"beam_number": beam_number, "status": status, "reason": reason})


def read_claim(record: Record) -> BeamClaim:
    """BeamClaim of a CLAIMED record."""
    _expect(record, Kind.CLAIMED)
    values: dict[str, Any] = {**record.data, **record.arrays}
    return BeamClaim(**values)


def read_grant(record: Record) -> Grant:
    """Grant of a GRANT record."""
    _expect(record, Kind.GRANT)
    values: dict[str, Any] = {name: record.data[name] for name in _GRANT_NUMBERS} | dict(record.arrays)
    values["scan_mode"] = ScanMode(values["scan_mode"])
    return Grant(**values)


def read_done(record: Record) -> Done:
    """Done of a DONE record."""
    _expect(record, Kind.DONE)
    return Done(record.data["grant_id"], EndReason(record.data["reason"]), record.arrays["pieces"])


@dataclass(frozen=True, slots=True, eq=False)
class BeamHistory:
    """One claim of a beam and everything the journal says of it, by grant id in the order of granting."""

    claim: BeamClaim
    grants: dict[int, Grant]
    attempts: dict[int, int]
    started: frozenset[int]
    done: dict[int, Done]
    reconciled: dict[int, Record]
    closed: bool


def beam_histories(records: Sequence[Record]) -> list[BeamHistory]:
    """Fold a journal into its beams. DataError (5130) when a grant stands outside a beam."""
    histories: list[BeamHistory] = []
    current: _Open | None = None
    for record in records:
        if record.kind == Kind.CLAIMED:
            if current is not None:
                histories.append(current.freeze(closed=False))
            current = _Open(read_claim(record))
            continue
        if record.kind not in (Kind.GRANT, Kind.STARTED, Kind.DONE, Kind.RECONCILED, Kind.CLOSED):
            continue
        if current is None:
            raise DataError(
                f"journal record {record.seq} belongs to no claimed beam", code=5130, hint="the journal is incomplete"
            )
        if record.kind == Kind.CLOSED:
            histories.append(current.freeze(closed=True))
            current = None
        else:
            current.take(record)
    if current is not None:
        histories.append(current.freeze(closed=False))
    return histories


class _Open:
    """A beam while its records are being read."""

    def __init__(self, claim: BeamClaim):
        self._claim = claim
        self._grants: dict[int, Grant] = {}
        self._attempts: dict[int, int] = {}
        self._started: set[int] = set()
        self._done: dict[int, Done] = {}
        self._reconciled: dict[int, Record] = {}

    def take(self, record: Record) -> None:
        grant_id = int(record.data["grant_id"])
        if record.kind == Kind.GRANT:
            self._grants[grant_id] = read_grant(record)
            self._attempts[grant_id] = int(record.data["attempt"])
        elif record.kind == Kind.STARTED:
            self._started.add(grant_id)
        elif record.kind == Kind.DONE:
            self._done[grant_id] = read_done(record)
        else:
            self._reconciled[grant_id] = record

    def freeze(self, *, closed: bool) -> BeamHistory:
        return BeamHistory(
            self._claim, self._grants, self._attempts, frozenset(self._started), self._done, self._reconciled, closed
        )


def _expect(record: Record, kind: Kind) -> None:
    if record.kind != kind:
        raise DataError(f"journal record {record.seq} is of kind {record.kind}, not {kind.name}", code=5131)
