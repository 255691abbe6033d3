"""Durable files: the few operations on a disk that the journal and the ledger are built from, each of them a point of failure.

`Store` is the smallest set of primitives whose order decides what survives a power cut; everything composite (`AppendLog`,
`write_atomic`) is written once on top of it, so that a test store which fails at the n-th primitive covers all of it.

Rules: a file is in its directory only after the directory was synced; data is there only after the file was synced; a failed
sync is terminal, because the kernel may have marked the pages clean and a second sync would then succeed without having
written (Rebello et al., USENIX ATC 2020; the "fsyncgate" of PostgreSQL, 2018).

Not responsible for what the bytes mean, nor for reading damaged content: see `journal`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Protocol

from drivers.hal.errors import CommandRejected, DeviceError

LOCK_POLL_S = 0.002


class StorageError(DeviceError):
    """The disk refused: nothing written after this point may be relied on. Codes 31xx."""

    family = 3100


class Busy(CommandRejected):
    """Another process holds the lock on this file. Code 4190."""

    family = 4190


class RawFile(Protocol):
    """An open file that only grows, or is cut. Every method may raise OSError."""

    @property
    def size(self) -> int:
        """Bytes in the file as this process sees it."""
        ...

    def write(self, data: bytes) -> None:
        """Append all of `data`; not durable before `sync`."""
        ...

    def sync(self) -> None:
        """Make content and size durable."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; not durable before `sync`."""
        ...

    def close(self) -> None: ...


class Lock(Protocol):
    """A held lock; it also ends with the process that holds it."""

    def release(self) -> None: ...


class Store(Protocol):
    """Primitives of a disk. Every method may raise OSError; `lock` raises Busy when another holder exists."""

    def exists(self, path: Path) -> bool: ...

    def read(self, path: Path, start: int = 0) -> bytes:
        """Content from byte `start` to the end. FileNotFoundError when there is none."""
        ...

    def open(self, path: Path, *, empty: bool = False) -> RawFile:
        """Open for appending, create when missing; `empty` discards what was there."""
        ...

    def rename(self, source: Path, target: Path) -> None: ...

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        ...

    def make_directory(self, path: Path) -> None:
        """Create one directory; nothing when it exists."""
        ...

    def lock(self, path: Path, *, wait_s: float = 0.0) -> Lock:
        """Take the exclusive lock of a path; while another process has it, wait this long at most. The whole thread waits."""
        ...


def storage_error(action: str, path: Path, error: OSError) -> StorageError:
    """The operator's message for a disk that refused."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    do = "free space on this disk" if error.errno == errno.ENOSPC else "check the disk"
    hint = f"{do}: this session gets no more beam; what it had begun is reconciled, and the next begins only when recorded"
    return StorageError(f"cannot {action} {path}: {reason}", code=3101, hint=hint)


class AppendLog:
    """A file whose every append is durable when `append` returns. The first failure is the last call that can succeed.

    Safe to call from a worker thread: appends exclude each other.
    """

    def __init__(self, store: Store, path: Path):
        """Open or create `path`; its directory entry is durable when this returns. Raises StorageError."""
        self.path = path
        self._mutex = threading.Lock()
        self._failure: StorageError | None = None
        try:
            self._file = store.open(path)
            self._file.sync()
            store.sync_directory(path.parent)  # also when it existed: whoever created it may have died before this
        except OSError as error:
            raise storage_error("open", path, error) from error

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._file.size

    @property
    def failure(self) -> StorageError | None:
        """Why this log takes nothing more, or None."""
        return self._failure

    def append(self, data: bytes) -> None:
        """Write and sync. Raises StorageError, and from then on always the same one."""
        with self._mutex:
            self._guard()
            try:
                self._file.write(data)
                self._file.sync()
            except OSError as error:
                raise self._fail("append to", error) from error

    def cut(self, size: int) -> None:
        """Discard everything after `size` bytes, durably. Raises StorageError."""
        with self._mutex:
            self._guard()
            try:
                self._file.truncate(size)
                self._file.sync()
            except OSError as error:
                raise self._fail("truncate", error) from error

    def close(self) -> None:
        """Close the file; everything appended is already durable."""
        self._file.close()

    def _guard(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, action: str, error: OSError) -> StorageError:
        self._failure = storage_error(action, self.path, error)
        return self._failure


def write_atomic(store: Store, path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash it holds the old or the new content, never a mixture. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        file = store.open(temporary, empty=True)
        try:
            file.write(data)
            file.sync()
        finally:
            file.close()
        store.rename(temporary, path)
        store.sync_directory(path.parent)
    except OSError as error:
        raise storage_error("replace", path, error) from error


def ensure_directory(store: Store, path: Path) -> None:
    """Create a directory and its parents, durably. Raises StorageError."""
    missing: list[Path] = []
    probe = path
    while not store.exists(probe) and probe != probe.parent:
        missing.append(probe)
        probe = probe.parent
    try:
        for directory in reversed(missing):
            store.make_directory(directory)
            store.sync_directory(directory.parent)
    except OSError as error:
        raise storage_error("create directory", path, error) from error


class _DiskFile:
    """RawFile on a file descriptor."""

    def __init__(self, fd: int):
        self._fd = fd

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _DiskLock:
    """flock on a descriptor of its own: released by `release`, or by the end of the process."""

    def __init__(self, fd: int):
        self._fd = fd

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class DiskStore:
    """The real file system."""

    def exists(self, path: Path) -> bool:
        return path.exists()

    def read(self, path: Path, start: int = 0) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()

    def open(self, path: Path, *, empty: bool = False) -> RawFile:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if empty else 0)
        return _DiskFile(os.open(path, flags, 0o644))

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_directory(self, path: Path) -> None:
        with contextlib.suppress(FileExistsError):
            path.mkdir()

    def lock(self, path: Path, *, wait_s: float = 0.0) -> Lock:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        last_s = time.monotonic() + wait_s  # of the wall clock: what is waited for is another process, in no loop of ours
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    if time.monotonic() < last_s:
                        time.sleep(LOCK_POLL_S)
                        continue
                    os.close(fd)
                    raise Busy(
                        f"{path} is in use by another process", code=4190, hint="wait for it, or stop it, then try again"
                    ) from error
                os.close(fd)
                raise
            return _DiskLock(fd)
