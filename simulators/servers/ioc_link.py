"""The plant's side of its IOC: starts the child process, tells it every post, and carries out what clients write.

Posts never hold the plant up: they are sent together, and while the socket is full (a stopped IOC) only the last value of each
variable waits. A client's put is carried out here, after `before`, and completes at the client when its effects were sent.

Kill, suspend and resume are what a machine may do to a process, for tests and faults. Not responsible for records
(`simulators.servers.ioc`) or for what a variable means (`process_variables`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from simulators.servers.ioc_frames import (
    Frame,
    FrameReader,
    Value,
    decode_put,
    encode_done,
    encode_post,
    frame,
)

HOST = "127.0.0.1"
START_S = 20.0  # measured 0.7 to 1 s; a loaded machine takes its time
PORTS = range(20_000, 32_000)  # below what systems give out by themselves
INVALID = 3
ELEMENTS_MIN = 2  # a client tells an array from a number by the elements it may hold
ARRAY_BYTES_MAX = 1_000_000

_log = logging.getLogger(__name__)


class Served(Protocol):
    """A table of variables, as `process_variables.PvTable` is one."""

    def names(self) -> Iterable[str]: ...

    def kind(self, name: str) -> str:
        """``"int"``, ``"double"``, ``"string"``, ``"int[]"`` or ``"double[]"``."""
        ...

    def elements(self, name: str) -> int:
        """Most elements that it may hold."""
        ...

    def writable(self, name: str) -> bool: ...

    def read(self, name: str) -> Any: ...

    def write(self, name: str, value: Any) -> None:
        """A client's put. ValueError, TypeError: not taken."""
        ...

    def subscribe(self, listener: Callable[[str, Any], None], names: Container[str], /) -> object: ...


class IocServer:
    """One IOC over one table, on a Channel Access port of its own, loopback only.

    Args:
        table: the variables; what is served is fixed at each start.
        before: called before each put and before values are read (brings the plant up to now).
        port: Channel Access port, TCP and UDP; 0 takes a free one. It is kept over restarts.
        log: file that takes what the process prints; nowhere when None.
        lost: called in the loop when the process served and has gone without being asked to.

    Attributes:
        port: known after the first start.
        refused: how many puts the plant did not take.
    """

    def __init__(
        self,
        table: Served,
        before: Callable[[], None] | None = None,
        *,
        port: int = 0,
        log: Path | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self.port = port
        self.refused = 0
        self._table = table
        self._before = before or (lambda: None)
        self._log_file = log
        self._lost = lost
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted: dict[str, int] = {}  # number by name, of what is served now
        self._names: list[str] = []
        self._posts: dict[str, tuple[Value, int]] = {}
        self._shown: dict[str, Value] = {}
        self._dones: list[bytes] = []
        self._link: _Link | None = None
        self._full = False
        self._flush_planned = False
        table.subscribe(self._posted, self._wanted)

    @property
    def endpoint(self) -> str:
        """Where clients find it, for example ``ca://127.0.0.1:20123``."""
        return f"ca://{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process lives and serves (a suspended one lives)."""
        return self._link is not None

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not live."""
        return self._process.pid if self._process is not None else None

    async def start(self, timeout_s: float = START_S) -> None:
        """Start the process with the present values; returns when it serves clients.

        Raises:
            RuntimeError: it runs already, or it could not be started (the reason is named).
            TimeoutError: it does not serve within `timeout_s`.
        """
        if self._process is not None:
            raise RuntimeError(f"the IOC at {self.endpoint} runs already")
        self.port = self.port or free_port()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(theirs)
        loop = asyncio.get_running_loop()
        link = _Link(self, loop.create_future())
        try:
            transport, _ = await loop.create_connection(lambda: link, sock=ours)
            self._before()
            self._names = list(self._table.names())
            self._full = False
            self._posts.clear()
            self._dones.clear()
            self._shown = {name: self._table.read(name) for name in self._names}
            variables = [[n, self._table.kind(n), self._elements(n), self._table.writable(n)] for n in self._names]
            transport.write(frame(Frame.CONFIGURE, json.dumps(variables).encode()))
            posts = (encode_post(number, self._shown[name]) for number, name in enumerate(self._names))
            transport.write(frame(Frame.POST, b"".join(posts)))
            self._link = link
            self._wanted.update({name: number for number, name in enumerate(self._names)})
            await asyncio.wait_for(asyncio.shield(link.ready), timeout_s)
        except BaseException:
            self.kill()
            raise

    async def stop(self) -> None:
        """End it in good order: the socket is closed and the process leaves."""
        self._release()
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signal.SIGCONT)
            for _ in range(200):
                if process.poll() is not None:
                    return
                await asyncio.sleep(0.01)
            process.kill()
            process.wait()

    async def restart(self, timeout_s: float = START_S) -> None:
        """Kill it if it lives, and start it anew on the same port with the present values."""
        self.kill()
        await self.start(timeout_s)

    def kill(self) -> None:
        """SIGKILL; clients lose their connection."""
        self._release()
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()

    def suspend(self) -> None:
        """SIGSTOP: connected, silent. Returns when all of it stands still (some 0.1 ms)."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGSTOP)
            os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """SIGCONT: it works off what waited."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)

    def alarm(self, name: str, severity: int) -> None:
        """Show the present value of a variable with an alarm severity (0 none to 3 invalid), until it is posted again."""
        if name in self._wanted:
            self._post(name, self._table.read(name), severity)

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return self._link.unsent_bytes if self._link is not None else 0

    # --- inside ------------------------------------------------------------------------------------------------------

    def _elements(self, name: str) -> int:
        return max(self._table.elements(name), ELEMENTS_MIN) if self._table.kind(name).endswith("[]") else 1

    def _spawn(self, link: socket.socket) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EPICS_")}
        environment |= {
            "EPICS_CAS_INTF_ADDR_LIST": HOST,
            "EPICS_CAS_SERVER_PORT": str(self.port),
            "EPICS_CA_SERVER_PORT": str(self.port),
            "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_CAS_BEACON_ADDR_LIST": HOST,
            "EPICS_CA_ADDR_LIST": HOST,
            "EPICS_CA_AUTO_ADDR_LIST": "NO",
            "EPICS_CA_MAX_ARRAY_BYTES": str(ARRAY_BYTES_MAX),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")))
            ),
        }
        command = [sys.executable, "-m", "simulators.servers.ioc", f"--fd={link.fileno()}", f"--parent={os.getpid()}"]
        with contextlib.ExitStack() as stack:
            output: Any = subprocess.DEVNULL
            if self._log_file is not None:
                output = stack.enter_context(self._log_file.open("ab"))
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(link.fileno(),), env=environment
            )

    def _release(self) -> None:
        """Let go of the socket; nothing is told any more."""
        self._wanted.clear()
        self._posts.clear()
        self._dones.clear()
        link, self._link = self._link, None
        if link is not None:
            link.shut()

    def _posted(self, name: str, value: Any) -> None:
        if name in self._wanted:
            self._post(name, value, 0)

    def _post(self, name: str, value: Any, severity: int) -> None:
        if name in self._posts and not self._full:
            self._flush()  # values are merged only while the socket is full
        carried = value.copy() if isinstance(value, np.ndarray) else value
        self._shown[name] = carried
        self._posts[name] = carried, severity
        self._plan_flush()

    def _plan_flush(self) -> None:
        if not self._flush_planned and not self._full and self._link is not None:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush_planned_now)

    def _flush_planned_now(self) -> None:
        self._flush_planned = False
        self._flush()

    def _flush(self) -> None:
        """Send what was gathered: values first, so that a put completes after its effects are shown."""
        link = self._link
        if link is None or self._full:
            return
        if self._posts:
            entries = []
            posts, self._posts = self._posts, {}
            for name, (value, severity) in posts.items():
                try:
                    entries.append(encode_post(self._wanted[name], value, severity))
                except (struct.error, ValueError, TypeError) as error:
                    _log.error("%s: %r cannot travel: %s", name, value, error)
            if entries:
                link.write(frame(Frame.POST, b"".join(entries)))
        if self._dones:
            link.write(b"".join(self._dones))
            self._dones.clear()

    def _put(self, put: int, number: int, value: Value) -> None:
        """A client writes."""
        name = self._names[number]
        self._before()
        try:
            self._table.write(name, value)
            taken = True
        except (ValueError, TypeError, KeyError, PermissionError) as error:
            taken = False
            _log.warning("%s: a client's value is not taken: %s", name, error)
        except Exception as error:  # noqa: BLE001 - told to the loop; the server goes on, as a device would
            taken = False
            asyncio.get_running_loop().call_exception_handler({"message": f"{name} was written", "exception": error})
        if not taken:
            self.refused += 1
            self._post(name, self._table.read(name), INVALID)
        if taken and name not in self._posts:  # the record shows what the client wrote; the plant may see it otherwise
            self._post(name, self._table.read(name), 0)
        self._show_effects(name)
        self._dones.append(encode_done(put, taken))
        if not self._flush_planned:
            self._flush()

    def _show_effects(self, written: str) -> None:
        """Read-backs of the same device that differ from what is shown: a read after a put sees what the put did."""
        device = written.rsplit(":", 2)[0] + ":"
        for name in self._names:
            if name.startswith(device) and name != written and not self._table.writable(name):
                value = self._table.read(name)
                if not _equal(value, self._shown[name]):
                    self._post(name, value, 0)

    def _gone(self, link: _Link) -> None:
        """The process closed its end."""
        if link is not self._link:
            return
        self._release()
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()
        if link.served:
            _log.warning("the IOC at %s has ended", self.endpoint)
            if self._lost is not None:
                self._lost()


class _Link(asyncio.Protocol):
    """The socket to the child."""

    def __init__(self, server: IocServer, ready: asyncio.Future[None]) -> None:
        self.ready = ready
        self._server = server
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    @property
    def served(self) -> bool:
        """Whether the process came to serve clients."""
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        for kind, body in self._reader.feed(data):
            if kind is Frame.PUT and self._server._link is self:
                self._server._put(*decode_put(body))
            elif kind is Frame.READY and not self.ready.done():
                self.ready.set_result(None)
            elif kind is Frame.FAILED and not self.ready.done():
                self.ready.set_exception(RuntimeError(f"the IOC cannot serve: {bytes(body).decode(errors='replace')}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(RuntimeError("the IOC ended before it served"))
            self.ready.exception()  # looked at here: nobody may wait for it
        self._server._gone(self)

    def pause_writing(self) -> None:
        self._server._full = True

    def resume_writing(self) -> None:
        self._server._full = False
        self._server._plan_flush()

    def write(self, data: bytes) -> None:
        """Send; the transport keeps what the socket does not take, and says when that is too much."""
        if self._transport is not None:
            self._transport.write(data)

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def shut(self) -> None:
        """Close, and forget what was not sent."""
        if self._transport is not None:
            self._transport.abort()


def free_port(seed: int | None = None) -> int:
    """A port that is free for TCP and UDP on the loopback now. Raises RuntimeError when none is found."""
    choice = random.Random(seed if seed is not None else f"{os.getpid()} {os.urandom(8).hex()}")
    for _ in range(200):
        port = choice.choice(PORTS)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            try:
                tcp.bind((HOST, port))
                udp.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port of {PORTS.start} to {PORTS.stop - 1} is free on {HOST}")


def _equal(a: Value, b: Value) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
    return a == b
