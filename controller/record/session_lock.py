"""One session at a time per plan: a lock beside the ledger, taken before anything moves and held until the session is over.

The lock is the kernel's (`Store.lock`) and ends with the process that holds it, however it dies: a stale one cannot be left
behind. What stands in the file only tells the next comer who is there. Not responsible for the right to deliver a beam: that is
the ledger's claim.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.record.canonical import canonical_bytes
from controller.record.store import Busy, Lock, Store, ensure_directory, storage_error

HOST_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere a process is known by its number alone
CODE = 4191


@dataclass(frozen=True, slots=True, eq=False)
class SessionLock:
    """A held lock. Release it, or use it as a context manager."""

    _store: Store
    _path: Path
    _lock: Lock

    def release(self) -> None:
        """Give it back; the file is left empty."""
        with contextlib.suppress(OSError):
            self._store.open(self._path, empty=True).close()
        self._lock.release()

    def __enter__(self) -> SessionLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


def occupy(store: Store, ledger: Path, plan_uid: str, *, since_utc: str, outputs: str) -> SessionLock:
    """Take the lock of a plan in a ledger's directory.

    Args:
        store: of the ledger.
        ledger: its directory.
        plan_uid: the plan.
        since_utc, outputs: when this session began and where it writes, for others to read.

    Raises:
        Busy: 4191 another session holds it, with what is known of that one.
        StorageError: the disk refused.
    """
    path = _path(ledger, plan_uid)
    ensure_directory(store, path.parent)
    try:
        lock = store.lock(path)
    except Busy:
        raise _busy(store, path, plan_uid) from None
    except OSError as error:
        raise storage_error("lock", path, error) from error
    try:
        file = store.open(path, empty=True)
        try:
            file.write(canonical_bytes({**_this_process(), "since_utc": since_utc, "outputs": outputs}))
        finally:
            file.close()
    except OSError as error:
        lock.release()
        raise storage_error("write to", path, error) from error
    return SessionLock(store, path, lock)


def occupied(store: Store, ledger: Path, plan_uid: str) -> str:
    """Who treats a plan now, as a reason to refuse another session; empty when nobody does. Nothing is made or changed."""
    path = _path(ledger, plan_uid)
    if not store.exists(path):
        return ""
    try:
        store.lock(path).release()
    except Busy:
        return str(_busy(store, path, plan_uid))
    except OSError as error:
        return str(storage_error("lock", path, error))
    return ""


def _path(ledger: Path, plan_uid: str) -> Path:
    return ledger / "sessions" / f"{hashlib.sha256(plan_uid.encode()).hexdigest()[:32]}.lock"


def _busy(store: Store, path: Path, plan_uid: str) -> Busy:
    return Busy(
        f"plan {plan_uid} is being treated by {_who(store, path)}",
        code=CODE,
        hint="wait until it is over, or stop it there; nothing was moved here",
    )


def _who(store: Store, path: Path) -> str:
    """The holder as it described itself; one that is known to be dead left its words to a holder that has not written yet."""
    try:
        said: Mapping[str, Any] = json.loads(store.read(path))
        if _gone(said):
            return "another process"
        return f"process {said['pid']} on {said['host']} since {said['since_utc']}, outputs {said['outputs'] or 'none'}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _gone(said: Mapping[str, Any]) -> bool:
    here = _this_process()
    if said["host"] != here["host"]:
        return False
    if said["host_boot_id"] != here["host_boot_id"]:
        return True
    try:
        os.kill(int(said["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _this_process() -> dict[str, Any]:
    boot_id = ""
    with contextlib.suppress(OSError):
        boot_id = HOST_BOOT_ID.read_text(encoding="ascii").strip()
    return {"pid": os.getpid(), "host": socket.gethostname(), "host_boot_id": boot_id}
