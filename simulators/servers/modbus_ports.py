"""Modbus nodes of the plant on real wires: RTU on a pty that takes the time of a serial line, TCP for any number of clients.

Each port can be started, stopped as if its server had died, and started again under the same name or port. Nobody waits for
anything here: requests are answered in the callback that brings them. Not responsible for registers (`room_nodes`) or answers
(`modbus`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, cast

from simulators.servers.modbus import ModbusNodes, responder
from simulators.servers.pty_line import PtyLine

RECEIVE_BYTES = 4096  # per receive; asyncio's own 256 KiB is allocated each time
LOOPBACK = "127.0.0.1"

Respond = Callable[[bytes], list[bytes]]


class ModbusPort(Protocol):
    """Where nodes can be reached.

    Attributes:
        silent: clients are accepted and their bytes taken, and nobody answers.
    """

    silent: bool

    @property
    def endpoint(self) -> str:
        """Address as an endpoint map names it. Raises RuntimeError before the first start."""
        ...

    @property
    def running(self) -> bool:
        """Whether clients can connect."""
        ...

    async def start(self) -> None:
        """Begin to serve, anew after `stop`. Raises OSError when the system refuses."""
        ...

    async def stop(self) -> None:
        """End as if the server had died: clients see the line lost, and whoever comes finds nobody."""
        ...

    async def until_closed(self) -> None:
        """Wait until `stop`."""
        ...


class _Lifetime:
    """Whether a port runs, and who waits for its end."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def running(self) -> bool:
        """Whether clients can connect."""
        return not self._ended.is_set()

    async def until_closed(self) -> None:
        """Wait until `stop`."""
        await self._ended.wait()


class PtyPort(_Lifetime):
    """Nodes on a serial line, RTU; fulfils `ModbusPort`.

    Args:
        nodes: who answers here, by node number.
        before: called before each request; advances the plant to now.
        baud: bits per second of the line; None takes no time.
        link: stable name of the pty, as a symbolic link (its directory exists). None: the system gives a name at each start,
            and may give the old one to another line.
    """

    def __init__(
        self, nodes: ModbusNodes, before: Callable[[], None], *, baud: int | None = 115200, link: Path | None = None
    ) -> None:
        super().__init__()
        self.silent = False
        self._nodes, self._before, self._baud = nodes, before, baud
        self._line = PtyLine(self._arrived, baud, link)
        self._respond: Respond | None = None

    @property
    def path(self) -> Path:
        """The tty that clients open."""
        return self._line.path

    @property
    def endpoint(self) -> str:
        """``serial:///dev/pts/5?baudrate=115200``."""
        return f"serial://{self._line.path}" + (f"?baudrate={self._baud}" if self._baud else "")

    @property
    def overruns(self) -> int:
        """Bytes of answers that no client took."""
        return self._line.overruns

    async def start(self) -> None:
        """Make the pty and answer on it. Raises OSError when the system has none left."""
        if self.running:
            return
        _prepare()
        self._respond = responder(self._nodes, self._before, "rtu")
        self._line.open()
        self._ended.clear()

    async def stop(self) -> None:
        """Let the pty disappear, with what is under way."""
        self._line.close()
        self._ended.set()

    def _arrived(self, data: bytes) -> None:
        if self.silent or self._respond is None:
            return
        for reply in self._respond(data):
            self._line.send(reply)


class TcpPort(_Lifetime):
    """Nodes on TCP; fulfils `ModbusPort`.

    Args:
        nodes: who answers here, by node number.
        before: called before each request; advances the plant to now.
        host: address to listen on.
        port: TCP port; 0 takes a free one at the first start and keeps it.
        framing: ``"tcp"`` (Modbus TCP) or ``"rtu"`` (a serial line behind a terminal server, without its line time).
    """

    def __init__(
        self,
        nodes: ModbusNodes,
        before: Callable[[], None],
        *,
        host: str = LOOPBACK,
        port: int = 0,
        framing: Literal["tcp", "rtu"] = "tcp",
    ) -> None:
        super().__init__()
        self.silent = False
        self.host, self.port, self.framing = host, port, framing
        self._nodes, self._before = nodes, before
        self._server: asyncio.Server | None = None
        self._stopped = True
        self._clients: set[_Client] = set()

    @property
    def endpoint(self) -> str:
        """``tcp://127.0.0.1:40123``, with ``?framing=rtu`` where it is not Modbus TCP."""
        if not self.port:
            raise RuntimeError("the port is not known before the first start")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}" + ("?framing=rtu" if self.framing == "rtu" else "")

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    async def start(self) -> None:
        """Listen and answer. Raises OSError when the address cannot be had."""
        if self.running:
            return
        _prepare()
        loop = asyncio.get_running_loop()
        self._stopped = False
        self._server = await loop.create_server(lambda: _Client(self), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._ended.clear()

    async def stop(self) -> None:
        """Close the door and drop everyone."""
        server, self._server = self._server, None
        self._stopped = True
        if server is None:
            return
        server.close()
        gone = [client.drop() for client in self._clients]
        if gone:
            await asyncio.wait(gone)
        await server.wait_closed()
        self._ended.set()

    def responder(self) -> Respond:
        """What one connection answers: each has frames of its own."""
        return responder(self._nodes, self._before, self.framing)

    def came(self, client: _Client) -> bool:
        """A client has connected; False when it is too late for that."""
        if self._stopped:
            return False
        self._clients.add(client)
        return True

    def left(self, client: _Client) -> None:
        """A client has gone."""
        self._clients.discard(client)


class _Client(asyncio.Protocol):
    """One connection. A client that does not read its answers is not listened to until it does."""

    def __init__(self, port: TcpPort) -> None:
        self._port = port
        self._respond = port.responder()
        self._transport: asyncio.Transport | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.max_size = RECEIVE_BYTES  # type: ignore[attr-defined]  # of asyncio's own selector transport
        if not self._port.came(self):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._port.silent or self._transport is None:
            return
        for reply in self._respond(data):
            self._transport.write(reply)

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._port.left(self)
        if not self._gone.done():
            self._gone.set_result(None)

    def drop(self) -> asyncio.Future[None]:
        """End the connection; the future is done when it is gone."""
        if self._transport is not None:
            self._transport.abort()
        return self._gone


def _prepare() -> None:
    """Load what sizes foreign requests now (60 ms), and not when the first garbage arrives in beam."""
    import pymodbus.pdu  # noqa: F401
