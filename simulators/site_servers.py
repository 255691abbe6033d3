"""The servers of a simulator process behind one face: each can be started, stopped, killed, suspended, resumed, made silent.

``stop`` ends a server in good order, ``kill`` as a machine kills a process, ``suspend`` freezes it (connected, and no answer),
``silent`` lets it take everything and say nothing. Nothing starts again by itself: a server that was killed stays dead until
somebody starts it, because that is what a rig is for. Not responsible for what a server serves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from simulators.children import Child
from simulators.clock import wall_limit

if TYPE_CHECKING:
    from simulators.servers.modbus_ports import ModbusPort
    from simulators.servers.room_messages import RoomMessages

ACTIONS = ("start", "stop", "kill", "suspend", "resume", "silent")
SERVING, SUSPENDED, SILENT, STOPPED = "serving", "suspended", "silent", "stopped"
START_S = 20.0  # wall time for a process to serve, on a loaded computer; assumed
STOP_S = 5.0  # wall time for a server to end in good order; assumed


class Process(Protocol):
    """What IOC and broker have in common (`servers.ioc_link`, `servers.broker`)."""

    @property
    def endpoint(self) -> str: ...

    @property
    def running(self) -> bool: ...

    @property
    def pid(self) -> int | None: ...

    async def start(self, timeout_s: float = ..., /) -> None: ...

    async def stop(self) -> None: ...

    def kill(self) -> None: ...

    def suspend(self) -> None: ...

    def resume(self) -> None: ...


class SiteServer(ABC):
    """One server.

    Args:
        name: as people and the backdoor call it, for example ``"G1-motion"``.
        kind: what it is, in a word or two, for people.

    Attributes:
        last_words: what it said when it ended by itself.
    """

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.last_words = ""

    @property
    def endpoint(self) -> str:
        """Where it answers; empty when it has no address of its own."""
        return ""

    @property
    def pid(self) -> int | None:
        """Process id, of a process of its own that lives."""
        return None

    @property
    @abstractmethod
    def state(self) -> str:
        """``serving``, ``suspended``, ``silent`` or ``stopped``."""

    @abstractmethod
    async def start(self) -> None:
        """Serve, anew after `stop` or `kill`; ends what suspends it. Raises OSError, RuntimeError or TimeoutError."""

    @abstractmethod
    async def stop(self) -> None:
        """End in good order."""

    async def kill(self) -> None:
        """End at once."""
        await self.stop()

    @abstractmethod
    async def suspend(self) -> None:
        """Live and do nothing."""

    @abstractmethod
    async def resume(self) -> None:
        """End `suspend` and `silent`."""

    async def silent(self) -> None:
        """Take everything and answer nothing; what a suspended process does as well."""
        await self.suspend()

    async def act(self, action: str) -> None:
        """Do one of `ACTIONS`. Raises ValueError for any other."""
        if action not in ACTIONS:
            raise ValueError(f"server {self.name}: no action {action!r}; there are {', '.join(ACTIONS)}")
        await getattr(self, action)()

    def view(self) -> dict[str, object]:
        """For people and the backdoor."""
        return {
            "kind": self.kind,
            "state": self.state,
            "endpoint": self.endpoint,
            "pid": self.pid,
            "last_words": self.last_words,
        }


class LineServer(SiteServer):
    """A Modbus line: it lives in the simulator process, so that to be killed and to be stopped are the same."""

    def __init__(self, name: str, port: ModbusPort) -> None:
        super().__init__(name, "Modbus line")
        self.port = port
        self._endpoint = ""

    @property
    def endpoint(self) -> str:
        return self._endpoint  # also while nobody answers there

    @property
    def state(self) -> str:
        if not self.port.running:
            return STOPPED
        return SILENT if self.port.silent else SERVING

    async def start(self) -> None:
        self.port.silent = False
        await self.port.start()
        self._endpoint = self.port.endpoint

    async def stop(self) -> None:
        await self.port.stop()

    async def suspend(self) -> None:
        self.port.silent = True

    async def resume(self) -> None:
        self.port.silent = False


class MessageServer(SiteServer):
    """Imaging system, environment and breathing of a room, as one client of the broker."""

    def __init__(self, name: str, messages: RoomMessages) -> None:
        super().__init__(name, "messages of the room")
        self.messages = messages

    @property
    def state(self) -> str:
        if not self.messages.running:
            return STOPPED
        return SILENT if self.messages.silent else SERVING

    async def start(self) -> None:
        self.messages.silent = False
        self.messages.start()

    async def stop(self) -> None:
        self.messages.stop()

    async def suspend(self) -> None:
        self.messages.silent = True

    async def resume(self) -> None:
        self.messages.silent = False


class ProcessServer(SiteServer):
    """A server that looks after a process of its own: the IOC of all process variables, the broker.

    Args:
        name, kind: see `SiteServer`.
        server: the process.
        factor: simulated seconds per second: its time limits are in simulated time, and a process takes wall time.
    """

    def __init__(self, name: str, kind: str, server: Process, factor: Callable[[], float]) -> None:
        super().__init__(name, kind)
        self._server = server
        self._factor = factor
        self._suspended = False

    @property
    def endpoint(self) -> str:
        return self._server.endpoint

    @property
    def pid(self) -> int | None:
        return self._server.pid

    @property
    def state(self) -> str:
        if not self._server.running:
            return STOPPED
        return SUSPENDED if self._suspended else SERVING

    async def start(self) -> None:
        if self._server.running:
            await self.resume()
            return
        self._suspended = False
        await self._server.start(START_S * max(1.0, self._factor()))

    async def stop(self) -> None:
        await self.resume()
        try:
            await wall_limit(self._server.stop(), STOP_S)
        except TimeoutError:
            self._server.kill()

    async def kill(self) -> None:
        self._server.kill()
        self._suspended = False

    async def suspend(self) -> None:
        if self._server.running:
            self._server.suspend()
            self._suspended = True

    async def resume(self) -> None:
        self._server.resume()
        self._suspended = False


class ChildServer(SiteServer):
    """A process of its own that is not watched by anybody else: the interlock system of a room.

    Args:
        name, kind: see `SiteServer`.
        child: the process.
        ready: returns when it is seen to work.
    """

    def __init__(
        self, name: str, kind: str, child: Child, ready: Callable[[], Awaitable[None]], start_s: float = START_S
    ) -> None:
        super().__init__(name, kind)
        self.child = child
        self._ready = ready
        self._start_s = start_s

    @property
    def pid(self) -> int | None:
        return self.child.pid

    @property
    def state(self) -> str:
        if not self.child.alive:
            return STOPPED
        return SUSPENDED if self.child.suspended else SERVING

    async def start(self) -> None:
        if self.child.alive:
            self.child.resume()
            return
        await self.child.start()
        try:
            await wall_limit(self._ready(), self._start_s)
        except TimeoutError:
            words = self.child.words
            await self.child.kill()
            raise TimeoutError(f"{self.name} shows no life after {self._start_s:g} s; it said: {words or 'nothing'}") from None

    async def stop(self) -> None:
        await self.child.stop()

    async def kill(self) -> None:
        await self.child.kill()

    async def suspend(self) -> None:
        self.child.suspend()

    async def resume(self) -> None:
        self.child.resume()
