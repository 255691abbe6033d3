"""One controller per room on this computer: whoever holds the room's safety line holds the room.

A lock of the operating system on a file named after the line's address, given back when its process ends, however it ends.
Serial lines lock themselves; TCP, Channel Access and MQTT take any number of clients. Not responsible for two computers: there
the room token on the safety line is what counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

from drivers.hal.errors import CommandRejected
from drivers.hal.facility import Facility

IN_USE = 4192


class RoomLock:
    """The lock of one room.

    Args:
        facility: with its devices where they answer.
        room: to hold.
        who: said to the next one who comes.
    """

    def __init__(self, facility: Facility, room: str, who: str) -> None:
        self._room = room
        self._who = f"{who}, process {os.getpid()}"
        line = facility.devices[f"{room}-safety"].endpoint
        key = hashlib.sha256(f"{room} {line}".encode()).hexdigest()[:24]
        self._path = Path(tempfile.gettempdir()) / f"iongantry-{os.getuid()}-{key}.lock"
        self._handle: int | None = None

    def take(self) -> None:
        """Hold the room.

        Raises:
            CommandRejected: another process of this computer holds it (4192).
        """
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 200).decode("utf-8", "replace")
            os.close(handle)
            raise CommandRejected(
                f"the room is in use by {holder or 'another process'}",
                code=IN_USE,
                device=self._room,
                hint="one controller commands a room; end the other one first",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, self._who.encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Give the room back."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
