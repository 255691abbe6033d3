"""What patients have received, for the whole facility: an append-only, hash-chained file that decides what is left to deliver.

Keyed by plan UID, fraction and beam. A beam is claimed before its first grant and closed after its last; between the two it
counts in full, so nothing that happens in between can make the ledger promise too little. Per-spot arrays stand beside the
chain, named by their SHA-256, which the chain holds. The head of the chain is anchored in a file of its own, best on a second
disk: a ledger that was rolled back or cut is refused.

Several processes (rooms) may use one ledger: every transaction takes the lock, reads what others appended, checks, appends. A
claim is in addition a lock on the beam that ends with the process, which tells a crash from a treatment in progress.

Not responsible for what a grant delivered (`reconcile`), nor for the journal of one treatment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.canonical import canonical_bytes
from controller.record.journal import (
    FIRST_PREVIOUS,
    Anchor,
    Record,
    check_anchor,
    decode_payload,
    encode_payload,
    encode_record,
    scan,
)
from controller.record.session_lock import SessionLock, occupied, occupy
from controller.record.store import AppendLog, Lock, StorageError, Store, ensure_directory, storage_error, write_atomic
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected, DataError

Counts = NDArray[np.int64]

TRANSACTION_WAIT_S = 1.0  # another room's transaction takes milliseconds; who holds longer is stuck (assumed)
CARRIED_FRACTION = 0.02  # of a spot: the reaction quantum is planned to be no more (`plan.counting`)


class LedgerKind(IntEnum):
    """Kinds of ledger record."""

    CLAIM = 1
    CLOSE = 2
    SIGN = 3


class BeamState(Enum):
    """Where a beam of a fraction stands."""

    UNTOUCHED = "untouched"
    OPEN = "open"  # being treated, or the process died
    PARTIAL = "partial"
    COMPLETE = "complete"
    LOCKED = "locked"  # an interval waits for a signature


@dataclass(frozen=True, slots=True)
class BeamKey:
    """One beam of one fraction of one plan."""

    plan_uid: str
    fraction: int
    beam_number: int

    def __str__(self) -> str:
        return f"beam {self.beam_number} of fraction {self.fraction} of plan {self.plan_uid}"

    @property
    def data(self) -> dict[str, Any]:
        """As the ledger's records carry it."""
        return {"plan_uid": self.plan_uid, "fraction": self.fraction, "beam_number": self.beam_number}


@dataclass(frozen=True, slots=True)
class Signature:
    """A physicist's acceptance of what one claim gave: who, on what, and what was in doubt."""

    signed_by: str
    reason: str
    doubt: str


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """What a beam of a fraction has received, counts of monitor 1 per spot, flat in the plan's order.

    `lower` and `upper` have shape (spots,), int64, or (0,) for an untouched beam. An open claim counts with all it claimed.
    """

    key: BeamKey
    state: BeamState
    lower: Counts
    upper: Counts
    claims: int
    journal: str  # of the last claim
    reason: str
    planned: Counts  # what the first claim asked for, shape as the bounds
    signatures: tuple[Signature, ...] = ()  # in order of signing

    def remaining(self, planned_counts1: Counts) -> Counts:
        """Plan less upper bound, floored at zero: uncertainty can only under-dose. DataError (5141) when the shapes differ."""
        if self.upper.size == 0:
            return planned_counts1.astype(np.int64)
        if self.upper.shape != planned_counts1.shape:
            raise DataError(
                f"{self.key}: the ledger knows {self.upper.size} spots, the plan has {planned_counts1.size}",
                code=5141,
                hint="this is not the plan that was delivered before",
            )
        remaining: Counts = np.maximum(planned_counts1.astype(np.int64) - self.upper, 0)
        return remaining


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The right to deliver a beam, held by this process until it is closed."""

    key: BeamKey
    number: int  # counts the claims of this beam from 1
    claimed_counts1: Counts
    lock: Lock
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    """Index of a beam: its records in order."""

    claims: list[Record]
    closes: list[Record]
    signed: dict[int, Record]  # signature by the close it accepts

    @property
    def state(self) -> BeamState:
        if not self.claims:
            return BeamState.UNTOUCHED
        if len(self.closes) < len(self.claims):
            return BeamState.OPEN
        if any(c.data["needs_signature"] and c.seq not in self.signed for c in self.closes):
            return BeamState.LOCKED
        return BeamState(self.closes[-1].data["status"])


def _refuse_excess(received: Received, claimed_counts1: Counts) -> None:
    """A resume may claim what is left and, per spot, the share of a reaction quantum that the unit carries between spots."""
    left = received.remaining(received.planned)
    if claimed_counts1.shape != left.shape:
        raise CommandRejected(f"{received.key} has {left.size} spots, not {claimed_counts1.size}", code=4110)
    excess = claimed_counts1 - left - np.ceil(CARRIED_FRACTION * received.planned)
    worst = int(np.argmax(excess)) if excess.size else 0
    if excess.size and excess[worst] > 0:
        raise CommandRejected(
            f"{received.key}: {int(claimed_counts1[worst])} counts are claimed for spot {worst}, {int(left[worst])} are left",
            code=4110,
            hint="the remainder was not computed from this ledger",
        )


class Ledger:
    """An open ledger. Close it, or use it as a context manager."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        *,
        boot_id: int,
        anchor_file: Path | None = None,
        clock: Callable[[], int] = now_ns,
    ):
        """Open or create the ledger in `directory` (`STATE/ledger`) and verify all of it.

        Args:
            store: where.
            directory: holds chain, arrays, locks, and the anchor unless `anchor_file` names another disk.
            boot_id: of this process, 63 bits.
            anchor_file: where the head of the chain is remembered.
            clock: loop time in ns.

        Raises:
            DataError: damaged, rolled back or put together from two.
            StorageError: the disk refused.
        """
        self._store, self._directory, self._boot_id, self._clock = store, directory, boot_id, clock
        for part in (directory, directory / "spots", directory / "claims"):
            ensure_directory(store, part)
        self._anchor_file = anchor_file or directory / "head.json"
        self._head = Anchor(0, FIRST_PREVIOUS)
        self._bytes = 0
        self._entries: dict[BeamKey, _Entry] = {}
        self._log = AppendLog(store, directory / "chain.bin")
        with self._transaction():
            pass

    def close(self) -> None:
        """Close the file; claims stay as they are."""
        self._log.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def begin_session(self, plan_uid: str, *, since_utc: str, outputs: str) -> SessionLock:
        """Keep other sessions of a plan away, before anything moves; see `session_lock.occupy`. Raises Busy (4191)."""
        return occupy(self._store, self._directory, plan_uid, since_utc=since_utc, outputs=outputs)

    def in_session(self, plan_uid: str) -> str:
        """Who treats this plan now, in words; empty when nobody does."""
        return occupied(self._store, self._directory, plan_uid)

    # --- questions ------------------------------------------------------------------------------------------------

    def delivered(self, plan_uid: str, fraction: int, beam_number: int) -> Received:
        """What the beam has received so far, by everything that is in the ledger now."""
        key = BeamKey(plan_uid, fraction, beam_number)
        with self._transaction():
            return self._received(key)

    def keys(self) -> tuple[BeamKey, ...]:
        """Every beam the ledger knows, in order of first claim."""
        with self._transaction():
            return tuple(self._entries)

    def unsettled(self) -> tuple[Received, ...]:
        """Beams with an open claim, whoever holds it, and beams that wait for a signature; in order of first claim."""
        with self._transaction():
            doubtful = (BeamState.OPEN, BeamState.LOCKED)
            return tuple(self._received(key) for key, entry in self._entries.items() if entry.state in doubtful)

    # --- transactions ---------------------------------------------------------------------------------------------

    def claim(
        self,
        key: BeamKey,
        claimed_counts1: Counts,
        *,
        details: Mapping[str, Any] | None = None,
        journal: str = "",
        resume: bool = False,
        after_claims: int | None = None,
    ) -> Claim:
        """Claim a beam before its first grant.

        Args:
            key: which.
            claimed_counts1: what will be granted at most, per spot; for a resume the remainder.
            details: JSON values worth keeping (room, plan hash, seed, simulated).
            journal: where this treatment's journal is, for `recover`.
            resume: allow a beam that was delivered in part.
            after_claims: how many claims the remainder was computed from; None does not ask.

        Raises:
            CommandRejected: 4101 delivered, 4102 open, 4103 partly delivered, 4104 locked, 4105 nothing to resume, 4109 it was
                claimed meanwhile, 4110 more than is left.
            Busy: another process treats it.
        """
        held = self._store.lock(self._claim_path(key))
        try:
            with self._transaction():
                entry = self._entries.get(key, _Entry([], [], {}))
                self._refuse(key, entry, resume=resume)
                if after_claims is not None and after_claims != len(entry.claims):
                    raise CommandRejected(
                        f"{key} was claimed {len(entry.claims)} times, not {after_claims}",
                        code=4109,
                        hint="somebody treated it meanwhile; look again at what is left",
                    )
                if resume:
                    _refuse_excess(self._received(key), claimed_counts1)
                data = {**key.data, "journal": journal, "details": dict(details or {}), "resume": resume}
                data["claimed"] = self._put(claimed_counts1=claimed_counts1)
                self._append(LedgerKind.CLAIM, data)
            return Claim(key, len(self._entries[key].claims), claimed_counts1, held, dict(details or {}))
        except BaseException:
            held.release()
            raise

    def adopt(self, key: BeamKey) -> Claim:
        """Take over the open claim of a process that died.

        Raises:
            CommandRejected: 4106 there is no open claim.
            Busy: its process is alive.
        """
        held = self._store.lock(self._claim_path(key))
        try:
            with self._transaction():
                entry = self._entries.get(key)
                if entry is None or entry.state is not BeamState.OPEN:
                    raise CommandRejected(f"{key} has no open claim", code=4106, hint="there is nothing to recover")
                record = entry.claims[-1]
                claimed = self._get(record.data["claimed"])["claimed_counts1"]
                return Claim(key, len(entry.claims), claimed, held, record.data["details"])
        except BaseException:
            held.release()
            raise

    def close_claim(
        self,
        claim: Claim,
        lower: Counts,
        upper: Counts,
        *,
        complete: bool,
        reason: str = "",
        needs_signature: bool = False,
    ) -> None:
        """Close a claim with what was received in it, per spot. Closing twice raises CommandRejected (4106).

        `needs_signature` locks the beam until `sign`; it is also set by any spot whose bounds differ.
        """
        with self._transaction():
            entry = self._entries[claim.key]
            if len(entry.closes) >= claim.number:
                raise CommandRejected(f"claim {claim.number} of {claim.key} is closed already", code=4106)
            doubt = needs_signature or bool(np.any(lower != upper))
            data = {
                **claim.key.data,
                "status": (BeamState.COMPLETE if complete and not doubt else BeamState.PARTIAL).value,
                "reason": reason,
                "needs_signature": doubt,
                "lower_total": int(lower.sum()),
                "upper_total": int(upper.sum()),
                "received": self._put(lower=lower, upper=upper),
            }
            self._append(LedgerKind.CLOSE, data)
        claim.lock.release()

    def sign(self, key: BeamKey, signed_by: str, reason: str) -> None:
        """A physicist accepts the stated intervals of a locked beam. CommandRejected (4107) when nothing waits."""
        with self._transaction():
            entry = self._entries.get(key)
            if entry is None or entry.state is not BeamState.LOCKED:
                raise CommandRejected(f"{key} waits for no signature", code=4107)
            if not signed_by.strip():
                raise CommandRejected(f"{key}: a signature needs a name", code=4108, hint="say who signs")
            for close in entry.closes:
                if close.data["needs_signature"] and close.seq not in entry.signed:
                    self._append(
                        LedgerKind.SIGN, {**key.data, "close_seq": close.seq, "signed_by": signed_by, "reason": reason}
                    )

    # --- inside ---------------------------------------------------------------------------------------------------

    def _refuse(self, key: BeamKey, entry: _Entry, *, resume: bool) -> None:
        match entry.state, resume:
            case (BeamState.UNTOUCHED, False) | (BeamState.PARTIAL, True):
                return
            case BeamState.UNTOUCHED, True:
                raise CommandRejected(f"{key} was never begun", code=4105, hint="treat it")
            case BeamState.PARTIAL, False:
                raise CommandRejected(f"{key} was delivered in part", code=4103, hint="resume it")
            case BeamState.COMPLETE, _:
                raise CommandRejected(f"{key} was delivered already", code=4101, hint="choose another fraction or beam")
            case BeamState.OPEN, _:
                raise CommandRejected(f"{key} is open: its process died while treating", code=4102, hint="recover it first")
            case _:
                raise CommandRejected(
                    f"{key} is locked: {entry.closes[-1].data['reason'] or 'its dose is known only as an interval'}",
                    code=4104,
                    hint="a physicist must sign the interval",
                )

    def _received(self, key: BeamKey) -> Received:
        entry = self._entries.get(key)
        empty = np.zeros(0, np.int64)
        if entry is None:
            return Received(key, BeamState.UNTOUCHED, empty, empty, 0, "", "", empty)
        lower: Counts | None = None
        upper: Counts | None = None
        for number, record in enumerate(entry.claims):
            if number < len(entry.closes):
                arrays = self._get(entry.closes[number].data["received"])
                low, high = arrays["lower"], arrays["upper"]
            else:
                high = self._get(record.data["claimed"])["claimed_counts1"]
                low = np.zeros_like(high)
            lower = low if lower is None else lower + low
            upper = high if upper is None else upper + high
        last = entry.claims[-1]
        reason = str(entry.closes[-1].data["reason"]) if entry.closes else ""
        return Received(
            key,
            entry.state,
            empty if lower is None else lower,
            empty if upper is None else upper,
            len(entry.claims),
            str(last.data["journal"]),
            reason,
            self._get(entry.claims[0].data["claimed"])["claimed_counts1"],
            tuple(
                Signature(str(s.data["signed_by"]), str(s.data["reason"]), str(close.data["reason"]))
                for close in entry.closes
                if (s := entry.signed.get(close.seq)) is not None
            ),
        )

    def _claim_path(self, key: BeamKey) -> Path:
        digest = hashlib.sha256(canonical_bytes(key.data)).hexdigest()[:32]
        return self._directory / "claims" / f"{digest}.lock"

    def _put(self, **arrays: Counts) -> str:
        payload = encode_payload({}, {name: np.asarray(a, np.int64) for name, a in arrays.items()})
        digest = hashlib.sha256(payload).hexdigest()
        write_atomic(self._store, self._directory / "spots" / f"{digest}.bin", payload)
        return digest

    def _get(self, digest: str) -> Mapping[str, Counts]:
        path = self._directory / "spots" / f"{digest}.bin"
        try:
            payload = self._store.read(path)
        except OSError as error:
            raise storage_error("read", path, error) from error
        if hashlib.sha256(payload).hexdigest() != digest:
            raise DataError(f"{path}: content does not match the ledger", code=5142, hint="restore the file from a copy")
        return decode_payload(payload)[1]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            lock = self._store.lock(self._directory / "lock", wait_s=TRANSACTION_WAIT_S)
        except OSError as error:
            raise storage_error("lock", self._directory, error) from error
        try:
            self._catch_up()
            yield
        finally:
            lock.release()

    def _catch_up(self) -> None:
        """Read and verify what was appended since; cut what a dying process left; check and mend the anchor."""
        path = self._log.path
        if self._log.failure is not None:
            raise self._log.failure
        try:
            data = self._store.read(path, self._bytes)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}", code=3102) from error
        found = scan(data, str(path), after=self._head)
        anchor = self._read_anchor()
        if self._bytes == 0:
            check_anchor(found.records, anchor, str(path))
        elif self._head.seq + len(found.records) < anchor.seq:
            raise DataError(f"{path}: ends before the anchored record {anchor.seq}", code=5112, hint="the ledger was cut")
        if found.torn_bytes:
            self._log.cut(self._bytes + found.good_bytes)
        self._bytes += found.good_bytes
        for record in found.records:
            self._index(record)
        if anchor.seq < self._head.seq:
            self._write_anchor()

    def _append(self, kind: LedgerKind, data: Mapping[str, Any]) -> None:
        payload = encode_payload(data, {})
        encoded, sha256 = encode_record(self._head.seq + 1, self._boot_id, self._clock(), kind, self._head.sha256, payload)
        self._log.append(encoded)
        self._bytes += len(encoded)
        self._index(Record(self._head.seq + 1, self._boot_id, 0, kind, json.loads(canonical_bytes(data)), {}, sha256))
        self._write_anchor()

    def _index(self, record: Record) -> None:
        self._head = Anchor(record.seq, record.sha256)
        data = record.data
        key = BeamKey(data["plan_uid"], data["fraction"], data["beam_number"])
        entry = self._entries.setdefault(key, _Entry([], [], {}))
        if record.kind == LedgerKind.CLAIM:
            entry.claims.append(record)
        elif record.kind == LedgerKind.CLOSE:
            entry.closes.append(record)
        else:
            entry.signed[int(data["close_seq"])] = record

    def _read_anchor(self) -> Anchor:
        if not self._store.exists(self._anchor_file):
            return Anchor(0, FIRST_PREVIOUS)
        try:
            content = json.loads(self._store.read(self._anchor_file))
            return Anchor(int(content["seq"]), bytes.fromhex(content["sha256"]))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self._anchor_file}: unreadable ({error})", code=5143, hint="restore it from a copy") from error

    def _write_anchor(self) -> None:
        content = canonical_bytes({"seq": self._head.seq, "sha256": self._head.sha256.hex()})
        write_atomic(self._store, self._anchor_file, content)
