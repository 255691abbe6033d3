"""The console's end of the published process variables: starts their process, tells it what rooms show, starts it again.

Loopback unless told otherwise; Channel Access knows neither sign-in nor encryption, and what is served can only be read.
Nothing here waits: where the process takes nothing, only the last value of each variable waits for it. Not responsible for what
a variable shows (`published_pvs_table`) nor for serving it (`published_pvs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from controller.console.shown import View
from controller.published_pvs_table import Post, Table
from drivers.hal.errors import ConfigError

HOST = "127.0.0.1"
SETTLE_S = 0.5  # new variables come in bunches: so long nothing new, then the process is started with all of them
START_S = 30.0  # measured 1 s for 300 variables; a loaded machine takes its time
PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 60.0  # between a process that ended by itself and the next
UNSENT_BYTES_MAX = 1 << 20
ARRAY_BYTES_MAX = 100_000

_log = logging.getLogger(__name__)


class PublishedVariables:
    """Rooms as process variables on one Channel Access port. Fits `controller.console.outward.Variables`.

    Args:
        port: TCP and UDP.
        host: address of the interface that is served.
        log: file that takes what the process prints; nowhere when None.

    Attributes:
        starts: how often the process was started.
    """

    def __init__(self, port: int, host: str = HOST, *, log: Path | None = None) -> None:
        self.starts = 0
        self._port, self._host, self._log_file = port, host, log
        self._table = Table()
        self._seen_version = self._served_version = 0
        self._numbers: dict[str, int] = {}
        self._posts: dict[str, dict[str, Post]] = {}  # by room and name: the latest
        self._due: dict[str, set[str]] = {}  # by room: names that are to be told
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether the process serves what was told."""
        return self._writer is not None

    @property
    def pid(self) -> int | None:
        """Of the process; None when there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def unsent_bytes(self) -> int:
        """What the process has not taken yet."""
        return self._writer.transport.get_write_buffer_size() if self._writer is not None else 0

    async def start(self) -> None:
        """Begin; the process itself is started when the first room has shown itself.

        Raises:
            ConfigError: the port is taken: two servers on one port would answer by turns (1321).
        """
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                if kind == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._host, self._port))
                except OSError as error:
                    raise ConfigError(
                        f"EPICS port {self._host}:{self._port} cannot be served: {error.strerror}",
                        code=1321,
                        hint="choose another --epics-port",
                    ) from None
        self._task = asyncio.create_task(self._run(), name="published variables")

    async def close(self) -> None:
        """End the process and everything here."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._end()

    def show(self, view: View) -> None:
        """A room's view, decoded. Never waits."""
        room = str(view["room"])
        latest, due = self._posts.setdefault(room, {}), self._due.setdefault(room, set())
        for name, post in self._table.posts(view):
            last = latest.get(name)
            if last is None or last[:3] != post[:3]:
                latest[name] = post
                due.add(name)
        if self._table.version != self._seen_version:  # once for each news: the process is started when they have ended
            self._seen_version = self._table.version
            self._changed.set()
        self._tell(room)

    def gone(self, room: str) -> None:
        """The room's process is lost: what it showed stays to be read, marked as invalid."""
        self._send({"gone": room})

    # --- inside ------------------------------------------------------------------------------------------------------

    def _tell(self, room: str) -> None:
        due, latest = self._due[room], self._posts[room]
        if self._writer is None or self.unsent_bytes > UNSENT_BYTES_MAX:
            return
        told = [[self._numbers[name], *latest[name]] for name in due if name in self._numbers]
        due.clear()
        self._send({"room": room, "set": told})

    def _send(self, told: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(told).encode() + b"\n")

    async def _run(self) -> None:
        pause_s = PAUSE_FIRST_S
        while True:
            await self._changed.wait()
            while self._changed.is_set():  # wait until nothing new comes
                self._changed.clear()
                await asyncio.sleep(SETTLE_S)
            began_s = asyncio.get_running_loop().time()
            try:
                lost = await self._serve()
            except (OSError, TimeoutError) as error:
                _log.warning("published variables: %s", error)
                lost = True
            finally:
                await self._end()
            if not lost:
                pause_s = PAUSE_FIRST_S
                continue
            if asyncio.get_running_loop().time() - began_s > PAUSE_MAX_S:
                pause_s = PAUSE_FIRST_S
            _log.warning("published variables: their process has ended; started again in %g s", pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            self._changed.set()

    async def _serve(self) -> bool:
        """One life of the process. True when it ended by itself, False when there are other variables to be served."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(theirs)
        self.starts += 1
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            version, served = self._table.version, list(self._table.variables.values())
            writer.write(json.dumps({"have": served}).encode() + b"\n")
            async with asyncio.timeout(START_S):
                if not await reader.readline():
                    return True
            self._numbers = {variable.name: number for number, variable in enumerate(served)}
            self._served_version, self._writer = version, writer
            for room, latest in self._posts.items():
                self._due[room] = set(latest)
                self._tell(room)
            ended = asyncio.ensure_future(reader.read(1))
            changed = asyncio.ensure_future(self._other())
            try:
                await asyncio.wait({ended, changed}, return_when=asyncio.FIRST_COMPLETED)
                return ended.done()
            finally:
                for waiting in (ended, changed):
                    waiting.cancel()
                await asyncio.gather(ended, changed, return_exceptions=True)
        finally:
            self._writer, self._served_version, self._numbers = None, 0, {}
            writer.transport.abort()

    async def _other(self) -> None:
        """Returns when the variables that are known are not those that are served."""
        while True:
            await self._changed.wait()
            if self._table.version != self._served_version:
                return
            self._changed.clear()

    def _spawn(self, link: socket.socket) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "EPICS_CAS_INTF_ADDR_LIST": self._host,
            "EPICS_CAS_SERVER_PORT": str(self._port),
            "EPICS_CA_SERVER_PORT": str(self._port),
            "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_CAS_BEACON_ADDR_LIST": self._host,
            "EPICS_CA_MAX_ARRAY_BYTES": str(ARRAY_BYTES_MAX),
        }
        command = [sys.executable, "-P", "-m", "controller.published_pvs", "--parent", str(os.getpid())]
        with contextlib.ExitStack() as stack:
            log: int | IO[bytes] = subprocess.DEVNULL
            if self._log_file is not None:
                log = stack.enter_context(self._log_file.open("ab"))
            return subprocess.Popen(command, stdin=link.fileno(), stdout=log, stderr=log, env=environment)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it keeps nothing
            await asyncio.to_thread(process.wait)
