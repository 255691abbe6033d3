"""The journal: what must be durable before beam, one record after another, each chained to the one before.

A record is `magic, length, seq, boot id, t_ns, kind, SHA-256 of the record before` + payload + CRC-32C over all of it. The
payload is canonical JSON followed by the raw bytes of arrays, so that a grant of thousands of rows costs copies, not
formatting. Because each append is synced before the next begins, only the last record can be torn: a broken end is cut off,
and a broken record with a good one after it is damage that nobody may repair silently.

Not responsible for what the records mean (`entries`), for what a patient has received over sessions (`ledger`), or for other
files.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from controller.record.canonical import canonical_bytes
from controller.record.store import AppendLog, Lock, StorageError, Store
from drivers.hal.clock import now_ns
from drivers.hal.errors import DataError

MAGIC = b"IGJ1"
_HEADER = struct.Struct("<4sIQqqI32s")  # magic, payload bytes, seq, boot id, t_ns, kind, SHA-256 of the record before
_CRC = struct.Struct("<I")
_SIZE = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _CRC.size
FIRST_PREVIOUS = bytes(32)
PAYLOAD_MAX_BYTES = 1 << 26  # a length above this is damage, not a record: the largest grant is 80 kB

OPENED = 0  # kind written by `Journal.open` itself


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One durable record.

    Attributes:
        seq: counts from 1 without gaps.
        boot_id: of the process that wrote it.
        t_ns: its loop time, ns.
        kind: see `entries.Kind`; 0 is the opening by a process.
        data: JSON values.
        arrays: numpy arrays by name, read-only.
        sha256: of this record; the next one carries it.
    """

    seq: int
    boot_id: int
    t_ns: int
    kind: int
    data: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Anchor:
    """A point of the chain, remembered elsewhere: a file that lacks it was rolled back."""

    seq: int
    sha256: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """What a file holds: its good records, where they end, and how many torn bytes follow."""

    records: tuple[Record, ...]
    good_bytes: int
    torn_bytes: int


def encode_payload(data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Canonical payload. Arrays keep dtype and shape; their order is that of their names."""
    described: list[list[Any]] = []
    blobs: list[bytes] = []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        described.append([name, _describe(array.dtype), list(array.shape)])
        blobs.append(array.tobytes())
    head = canonical_bytes({"data": data, "arrays": described})
    return b"".join((_SIZE.pack(len(head)), head, *blobs))


def decode_payload(payload: bytes) -> tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]:
    """Inverse of `encode_payload`."""
    (size,) = _SIZE.unpack_from(payload)
    head = json.loads(payload[_SIZE.size : _SIZE.size + size])
    arrays: dict[str, NDArray[Any]] = {}
    offset = _SIZE.size + size
    for name, described, shape in head["arrays"]:
        dtype = np.dtype([tuple(f) for f in described] if isinstance(described, list) else described)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(payload, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
    return head["data"], arrays


def _describe(dtype: np.dtype[Any]) -> Any:
    return [list(entry) for entry in dtype.descr] if dtype.names else dtype.str


def encode_record(seq: int, boot_id: int, t_ns: int, kind: int, previous: bytes, payload: bytes) -> tuple[bytes, bytes]:
    """Bytes of a record and its SHA-256."""
    body = _HEADER.pack(MAGIC, len(payload), seq, boot_id, t_ns, kind, previous) + payload
    return body + _CRC.pack(google_crc32c.value(body)), hashlib.sha256(body).digest()


def _record_at(data: bytes, offset: int) -> tuple[Record, bytes, int] | None:
    """The record at an offset with its previous hash and its end; None when there is no whole and sound one."""
    if len(data) - offset < _OVERHEAD:
        return None
    magic, length, seq, boot_id, t_ns, kind, previous = _HEADER.unpack_from(data, offset)
    end = offset + _OVERHEAD + length
    if magic != MAGIC or length > PAYLOAD_MAX_BYTES or end > len(data):
        return None
    body = data[offset : end - _CRC.size]
    if _CRC.unpack_from(data, end - _CRC.size)[0] != google_crc32c.value(body):
        return None
    try:
        values, arrays = decode_payload(body[_HEADER.size :])
    except (ValueError, KeyError, TypeError, struct.error):
        return None  # the checksum is right and the content is not: nobody of ours wrote it
    return Record(seq, boot_id, t_ns, kind, values, arrays, hashlib.sha256(body).digest()), previous, end


def scan(data: bytes, where: str, *, after: Anchor | None = None) -> Scan:
    """Read all records of `data`.

    Args:
        data: content of the file (from a record's first byte on).
        where: the file, for messages.
        after: the record before the first of `data`; None when `data` is the whole file.

    Raises:
        DataError: 5110 a record inside the file is damaged, 5111 the chain is broken.
    """
    records: list[Record] = []
    seq, previous = (after.seq, after.sha256) if after else (0, FIRST_PREVIOUS)
    offset = 0
    while (found := _record_at(data, offset)) is not None:
        record, carried, end = found
        if record.seq != seq + 1 or carried != previous:
            raise DataError(
                f"{where}: record {seq + 1} at byte {offset} does not continue the chain (it says {record.seq})",
                code=5111,
                hint="the file was changed or put together from two; restore it, or let a physicist reconcile by hand",
            )
        records.append(record)
        seq, previous, offset = record.seq, record.sha256, end
    later = _next_sound(data, offset + 1)
    if later is not None:
        raise DataError(
            f"{where}: record {seq + 1} at byte {offset} is damaged, and record {later.seq} after it is sound",
            code=5110,
            hint="the disk or somebody changed the file; keep it, restore a copy, or let a physicist reconcile by hand",
        )
    return Scan(tuple(records), offset, len(data) - offset)


def _next_sound(data: bytes, start: int) -> Record | None:
    offset = data.find(MAGIC, start)
    while offset >= 0:
        found = _record_at(data, offset)
        if found is not None:
            return found[0]
        offset = data.find(MAGIC, offset + 1)
    return None


def check_anchor(records: tuple[Record, ...], anchor: Anchor | None, where: str) -> None:
    """DataError (5112) when the chain lacks a record that was once durable, or has another in its place."""
    if anchor is None or anchor.seq == 0:
        return
    if len(records) < anchor.seq or records[anchor.seq - 1].sha256 != anchor.sha256:
        raise DataError(
            f"{where}: ends at record {len(records)} or differs from the anchored record {anchor.seq}",
            code=5112,
            hint="the file was rolled back, cut or replaced; nothing may be delivered from it",
        )


def read_journal(store: Store, path: Path, *, anchor: Anchor | None = None) -> Scan:
    """Read a journal without changing it; a torn end is reported, not cut. Raises DataError, StorageError."""
    try:
        data = store.read(path)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}", code=3102, hint="give the directory of a treatment"
        ) from error
    found = scan(data, str(path))
    check_anchor(found.records, anchor, str(path))
    return found


@dataclass(slots=True, eq=False)
class Journal:
    """An open journal with one writer. Use `open`.

    Attributes:
        boot_id: identifies this process's records; any number, handed in.
        clock: time of a record in ns.
    """

    boot_id: int
    clock: Callable[[], int]
    _log: AppendLog
    _lock: Lock
    _head: Anchor
    _store: Store
    _history: tuple[Record, ...] = ()
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(
        cls,
        store: Store,
        path: Path,
        *,
        boot_id: int,
        identity: Mapping[str, Any] | None = None,
        anchor: Anchor | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> Journal:
        """Open or create, verify the whole chain, cut a torn end, and record the opening.

        Args:
            store: where.
            path: the file.
            boot_id: of this process, 63 bits.
            identity: JSON values for the opening record (facility, room, plan, seed).
            anchor: a record that must be there.
            clock: loop time in ns; `now_ns` needs a running loop.

        Raises:
            Busy: another process writes it.
            DataError: damaged inside, chain broken, or rolled back.
            StorageError: the disk refused.
        """
        log = AppendLog(store, path)
        lock = store.lock(path)
        try:
            found = read_journal(store, path, anchor=anchor)
            if found.torn_bytes:
                log.cut(found.good_bytes)
            last = found.records[-1] if found.records else None
            head = Anchor(last.seq, last.sha256) if last else Anchor(0, FIRST_PREVIOUS)
            journal = cls(boot_id, clock, log, lock, head, store, found.records)
            journal.append(OPENED, {**(identity or {}), "torn_bytes": found.torn_bytes})
        except BaseException:
            log.close()
            lock.release()
            raise
        return journal

    @property
    def head(self) -> Anchor:
        """The last durable record."""
        return self._head

    @property
    def path(self) -> Path:
        """The file."""
        return self._log.path

    @property
    def history(self) -> tuple[Record, ...]:
        """Records that were there before this process opened the journal."""
        return self._history

    def records(self) -> tuple[Record, ...]:
        """Everything that is durable in it, read back from the file. Raises DataError, StorageError."""
        return read_journal(self._store, self.path, anchor=self._head).records

    def append(
        self, kind: int, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None, *, t_ns: int | None = None
    ) -> int:
        """Make one record durable; returns its seq. It may be called in a worker thread when `t_ns` is given.

        Raises:
            DataError: a value has no canonical form; nothing was written.
            StorageError: the disk refused; every later call fails likewise.
        """
        payload = encode_payload(data, arrays or {})
        when = self.clock() if t_ns is None else t_ns
        with self._mutex:
            seq = self._head.seq + 1
            record, sha256 = encode_record(seq, self.boot_id, when, kind, self._head.sha256, payload)
            self._log.append(record)
            self._head = Anchor(seq, sha256)
            return seq

    def close(self) -> None:
        """Close and release. Everything appended is already durable."""
        self._log.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def records_of(records: tuple[Record, ...], kind: int) -> Iterator[Record]:
    """Records of one kind, in order."""
    return (record for record in records if record.kind == kind)
