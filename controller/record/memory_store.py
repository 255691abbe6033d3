"""A disk in memory that behaves like a page cache over a platter, and can lose power or fail at any primitive.

What was written is visible at once and durable only after a sync; a name is durable only after its directory was synced. Used
for simulated worlds that keep nothing, and for crash tests: `crash_at` and `errors` count primitives that change the disk,
starting at 1.

Not responsible for timing: every operation takes no time.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from controller.record.store import Busy, Lock, RawFile


class PowerCut(BaseException):  # not an Exception: nothing in the program may survive it by catching errors
    """The power went off at this primitive."""


class Loss(Enum):
    """What becomes of data that was written and not synced."""

    LOST = "lost"  # the platter never saw it
    KEPT = "kept"  # the kernel had already written it
    TORN = "torn"  # a prefix arrived; sometimes the size did and the data did not, and zeros stand there


@dataclass(slots=True, eq=False)
class _Content:
    """What a file holds in the cache, and how much of it the platter has: normally a prefix, so that a sync copies nothing."""

    cached: bytearray = field(default_factory=bytearray)
    synced_bytes: int = 0
    before_cut: bytes | None = None  # what the platter holds while a truncation is not synced
    doomed: bool = False  # a sync failed: pages are marked clean and will never be written

    @property
    def durable(self) -> bytes:
        return bytes(self.cached[: self.synced_bytes]) if self.before_cut is None else self.before_cut

    def sync(self) -> None:
        self.synced_bytes, self.before_cut = len(self.cached), None

    def truncate(self, size: int) -> None:
        if size < self.synced_bytes and self.before_cut is None:
            self.before_cut = self.durable
        del self.cached[size:]


@dataclass(slots=True, eq=False)
class MemoryStore:
    """A Store in memory.

    Attributes:
        crash_at: raise PowerCut at this primitive (an append takes effect in the cache first); 0 never.
        errors: errno to raise at the numbered primitives; a failing write leaves half its data behind, as ENOSPC does.
        operations: primitives so far.
    """

    crash_at: int = 0
    errors: dict[int, int] = field(default_factory=dict)
    operations: int = 0
    _names: dict[Path, _Content] = field(default_factory=dict)
    _durable_names: dict[Path, _Content] = field(default_factory=dict)
    _directories: set[Path] = field(default_factory=set)
    _locks: set[Path] = field(default_factory=set)

    def _step(self) -> None:
        self.operations += 1
        if self.operations == self.crash_at:
            raise PowerCut(f"power cut at primitive {self.operations}")
        if self.operations in self.errors:
            number = self.errors[self.operations]
            raise OSError(number, errno.errorcode.get(number, "error"))

    def exists(self, path: Path) -> bool:
        return path in self._names or path in self._directories or path == path.parent

    def read(self, path: Path, start: int = 0) -> bytes:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return bytes(self._names[path].cached[start:])

    def read_durable(self, path: Path, start: int = 0) -> bytes:
        """What a power cut now would leave of a file; empty when its name would be lost."""
        content = self._durable_names.get(path)
        if content is None:
            return b""
        return bytes(content.cached[start : content.synced_bytes]) if content.before_cut is None else content.durable[start:]

    def open(self, path: Path, *, empty: bool = False) -> RawFile:
        if path not in self._names or empty:
            self._step()
        if path not in self._names:
            self._names[path] = _Content()
        elif empty:
            self._names[path].truncate(0)
        return _MemoryFile(self, self._names[path])

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        self._names[target] = self._names.pop(source)

    def sync_directory(self, path: Path) -> None:
        self._step()
        self._durable_names = {name: c for name, c in self._durable_names.items() if name.parent != path}
        self._durable_names.update({name: c for name, c in self._names.items() if name.parent == path})

    def make_directory(self, path: Path) -> None:
        self._step()
        self._directories.add(path)

    def lock(self, path: Path, *, wait_s: float = 0.0) -> Lock:
        if path in self._locks:
            raise Busy(f"{path} is in use by another process", code=4190, hint="wait for it, or stop it, then try again")
        self._locks.add(path)
        return _MemoryLock(self, path)

    def after_power_cut(self, loss: Loss, rng: np.random.Generator) -> MemoryStore:
        """The disk as the next start finds it. Directories are taken to survive; locks are gone."""
        after = MemoryStore(_directories=set(self._directories))
        names = self._names if loss is Loss.KEPT else self._durable_names
        for path, content in names.items():
            data = self._survivor(content, loss, rng)
            after._names[path] = after._durable_names[path] = _Content(bytearray(data), len(data))
        return after

    def flip_bit(self, path: Path, byte: int, bit: int) -> None:
        """Rot: change one bit of a file, in the cache and on the platter."""
        content = self._names[path]
        content.cached[byte] ^= 1 << bit
        content.sync()

    def cut_file(self, path: Path, size: int) -> None:
        """Roll a file back to its first `size` bytes, in the cache and on the platter."""
        content = self._names[path]
        content.truncate(size)
        content.sync()

    @staticmethod
    def _survivor(content: _Content, loss: Loss, rng: np.random.Generator) -> bytes:
        cached, durable = bytes(content.cached), content.durable
        if loss is Loss.LOST or content.doomed:
            return durable
        if loss is Loss.KEPT or not cached.startswith(durable):
            return cached if loss is Loss.KEPT else durable
        pending = cached[len(durable) :]
        arrived = int(rng.integers(0, len(pending) + 1))
        zeros = len(pending) - arrived if rng.integers(0, 2) else 0
        return durable + pending[:arrived] + bytes(zeros)


class _MemoryFile:
    """RawFile on a content."""

    def __init__(self, store: MemoryStore, content: _Content):
        self._store = store
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content.cached)

    def write(self, data: bytes) -> None:
        try:
            self._store._step()
        except PowerCut:
            self._content.cached += data
            raise
        except OSError:
            self._content.cached += data[: len(data) // 2]
            raise
        self._content.cached += data

    def sync(self) -> None:
        try:
            self._store._step()
        except OSError:
            self._content.doomed = True
            raise
        if not self._content.doomed:
            self._content.sync()

    def truncate(self, size: int) -> None:
        self._store._step()
        self._content.truncate(size)

    def close(self) -> None:
        """Closing syncs nothing."""


class _MemoryLock:
    def __init__(self, store: MemoryStore, path: Path):
        self._store = store
        self._path = path

    def release(self) -> None:
        self._store._locks.discard(self._path)
