"""EPICS Channel Access: `Channels` over libca, by pyepics.

A request waits for the library's answer as a future; a monitor keeps the last few values that the loop has not taken yet, so a
flood costs bounded memory and the last value always arrives. A lost variable is searched again and again with short pauses.

A hung server is given up by the library after some 7 s, and looks connected until then (docs/wire-semantics.md, C11).
Not responsible for what a variable means, for whether anybody lives at the other end, or for threads (`ca_context`).
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from drivers.hal.errors import BeamlineError, CommandRejected, CommunicationError, DataError
from drivers.wire import ca_library as ca
from drivers.wire.ca_context import CaContext, parse_addresses
from drivers.wire.channels import PutValue, Sample, Severity, normalise

SEARCH_S = 2.0  # how long a request waits for a variable that was never seen before
SEARCH_ANEW_S = (1.0, 5.0)  # the library searches ever more rarely; a channel made anew begins with short pauses
SETTLE_S = 0.02  # assumed: the library takes the rights of a lost variable away up to so long before it tells of the loss
PENDING_MONITOR = 8  # updates of one monitor that wait for the loop; older ones give way to newer ones
PENDING_BYTES_MAX = 256_000  # of requests not yet answered: beyond 360 kB the library's calls begin to wait
REQUEST_BYTES = 32

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Monitor:
    """One subscription of one caller.

    The library's thread appends to `pending` and then looks at `queued`; the loop clears `queued` and then takes what is there:
    so nothing is left lying, without a lock.
    """

    number: int
    channel: _Channel
    callback: Callable[[Sample], None]
    pending: deque[tuple[int, int, bytes, int]] = field(default_factory=lambda: deque(maxlen=PENDING_MONITOR))
    queued: bool = False
    subscription: int | None = None
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Channel:
    """One variable. `number` is a new one each time it is made anew; what speaks of an old number is not heard."""

    name: str
    number: int
    made_s: float
    chid: int | None = None
    connected: bool = False
    connections: int = 0
    lost_s: float = 0.0
    pause_s: float = SEARCH_ANEW_S[0]
    kind: int = -1
    elements: int = 0
    server: str = ""
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    monitors: list[_Monitor] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Request:
    """A get or put under way: kept until the library has answered, even when nobody waits any more."""

    channel: _Channel
    server: str
    future: asyncio.Future[Any]
    size: int
    put: bool


class EpicsChannels:
    """Channels onto one or several IOCs; fulfils `drivers.wire.channels.Channels`.

    Made in the main thread, used in one loop.

    Args:
        addresses: ``"ca://HOST:PORT"``, ``"host:port host:port"``, or a sequence of such.

    Raises:
        ConfigError: an address names no host and port, or the library cannot be used.
    """

    def __init__(self, addresses: str | Sequence[str]) -> None:
        self.addresses = tuple(parse_addresses(addresses))
        self._lib = ca.load()
        self._context = CaContext(self._lib, self.addresses)
        self._closed = False
        self._numbers = itertools.count(1)
        self._channels: dict[str, _Channel] = {}
        self._by_number: dict[int, _Channel] = {}
        self._monitors: dict[int, _Monitor] = {}
        self._requests: dict[int, _Request] = {}
        self._pending_bytes: Counter[str] = Counter()  # by server
        self._revival: asyncio.TimerHandle | None = None
        # the library keeps these addresses: they live as long as this object
        self._on_connection = ca.CONNECTION_CALLBACK(self._hear_connection)
        self._on_get = ca.EVENT_CALLBACK(self._hear_get)
        self._on_put = ca.EVENT_CALLBACK(self._hear_put)
        self._on_monitor = ca.EVENT_CALLBACK(self._hear_monitor)

    # --- the contract --------------------------------------------------------------------------------------------------

    async def get(self, name: str, timeout_s: float = 1.0) -> Sample:
        """Ask the server for the present value; see `Channels.get`. A variable never asked for before is searched first."""
        loop = self._start()
        deadline_s = loop.time() + timeout_s
        channel = await self._connect(name, timeout_s)
        number, request = self._request(channel, REQUEST_BYTES, put=False)
        status = self._lib.ca_array_get_callback(ca.TIME + channel.kind, 0, channel.chid, self._on_get, number)
        kind, count, data, t_ns = await self._answer(number, request, status, deadline_s, timeout_s)
        try:
            value, severity = ca.decode(kind, count, data, array=channel.elements > 1)
        except DataError as error:
            raise DataError(f"{name}: {error.message}", code=error.code) from None
        return Sample(value, t_ns, Severity(severity))

    async def put(self, name: str, value: PutValue, timeout_s: float = 1.0) -> None:
        """Write with completion; see `Channels.put`.

        Raises:
            DataError: also when the variable is of another type, or holds fewer elements: that is not sent.
        """
        carried = normalise(name, value)
        loop = self._start()
        deadline_s = loop.time() + timeout_s
        channel = await self._connect(name, timeout_s)
        if not self._lib.ca_write_access(channel.chid):
            await asyncio.sleep(SETTLE_S)
            channel = await self._connect(name, timeout_s)
            if not self._lib.ca_write_access(channel.chid):
                raise _denied(name)
        kind, count, data = ca.encode(name, carried, channel.kind, channel.elements)
        number, request = self._request(channel, REQUEST_BYTES + len(data), put=True)
        status = self._lib.ca_array_put_callback(kind, count, channel.chid, data, self._on_put, number)
        await self._answer(number, request, status, deadline_s, timeout_s)

    def monitor(self, name: str, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Present value, then changes; see `Channels.monitor`. An array of text is never told, and after `close` nothing is."""
        if self._closed:
            return lambda: None
        self._start()
        channel = self._channel(name)
        monitor = _Monitor(next(self._numbers), channel, callback)
        channel.monitors.append(monitor)
        self._monitors[monitor.number] = monitor
        if channel.connected:
            self._subscribe(monitor)
            self._context.flush()

        def cancel() -> None:
            if monitor.ended:
                return
            monitor.ended = True
            self._monitors.pop(monitor.number, None)
            channel.monitors.remove(monitor)
            self._unsubscribe(monitor)

        return cancel

    def connected(self, name: str) -> bool:
        """Whether the variable is connected. True for a frozen server, until the library gives it up."""
        channel = self._channels.get(name)
        return channel is not None and channel.connected and not self._closed

    def connections(self, name: str) -> int:
        """How often the variable has been connected; see `CountsConnections`."""
        channel = self._channels.get(name)
        return 0 if channel is None else channel.connections

    async def close(self) -> None:
        """End all monitors, fail what is under way, and let go of the library; afterwards no callback comes."""
        if self._closed:
            return
        self._closed = True
        for request in self._requests.values():
            _fail(request.future, _closed(request.channel.name))
        for channel in self._channels.values():
            channel.connected = False
            for waiter in channel.waiters:
                _fail(waiter, _closed(channel.name))
        if self._revival is not None:
            self._revival.cancel()
        self._monitors.clear()
        await self._context.close()
        self._requests.clear()
        self._by_number.clear()

    # --- requests: the loop's thread -----------------------------------------------------------------------------------

    async def _connect(self, name: str, timeout_s: float) -> _Channel:
        """The connected channel; one that was never seen is waited for, one that was lost is not."""
        channel = self._channel(name)
        if channel.connected:
            return channel
        loop = asyncio.get_running_loop()
        patience_s = min(timeout_s, channel.made_s + SEARCH_S - loop.time())
        if channel.connections == 0 and patience_s > 0:
            waiter: asyncio.Future[None] = loop.create_future()
            channel.waiters.append(waiter)
            try:
                async with asyncio.timeout(patience_s):
                    await waiter
            except TimeoutError:
                pass
            finally:
                if waiter in channel.waiters:
                    channel.waiters.remove(waiter)
        if not channel.connected:
            known = "not connected" if channel.connections else f"no server at {' '.join(self.addresses)} knows such a variable"
            raise CommunicationError(f"{name}: {known}", code=2004, hint="start its server", retryable=True)
        return channel

    def _request(self, channel: _Channel, size: int, *, put: bool) -> tuple[int, _Request]:
        pending = self._pending_bytes[channel.server]
        if pending + size > PENDING_BYTES_MAX:
            raise CommunicationError(
                f"{channel.name}: the server has not answered requests of {pending} bytes, the wire is full"
                f" (limit {PENDING_BYTES_MAX})",
                code=2007,
                hint="the server is frozen or overloaded: restart it",
                retryable=True,
            )
        number = next(self._numbers)
        request = _Request(channel, channel.server, asyncio.get_running_loop().create_future(), size, put)
        self._requests[number] = request
        self._pending_bytes[channel.server] += size
        return number, request

    async def _answer(self, number: int, request: _Request, status: int, deadline_s: float, timeout_s: float) -> Any:
        """Wait for the library's answer to what was just asked."""
        if status != ca.NORMAL:
            self._forget(number)
            error = self._refusal(request, status)
            if status == ca.DISCONNECTED:
                self._lose(request.channel)
            raise error
        self._context.flush()
        late = CommunicationError(f"{request.channel.name}: no answer within {timeout_s:g} s", code=2001, retryable=True)
        timer = asyncio.get_running_loop().call_at(deadline_s, _fail, request.future, late)
        try:
            return await request.future
        finally:
            timer.cancel()

    def _forget(self, number: int) -> _Request | None:
        request = self._requests.pop(number, None)
        if request is not None:
            self._pending_bytes[request.server] -= request.size
        return request

    def _answered(self, number: int, answer: object) -> None:
        request = self._forget(number)
        if request is not None:
            _finish(request.future, answer)

    def _refused(self, number: int, status: int) -> None:
        request = self._forget(number)
        if request is not None:
            _fail(request.future, self._refusal(request, status))
            if status == ca.DISCONNECTED:  # of a variable that is lost, requests are told first
                self._lose(request.channel)

    def _refusal(self, request: _Request, status: int) -> BeamlineError:
        name = request.channel.name
        if status == ca.DISCONNECTED:
            return _lost(name)
        if status == ca.NO_WRITE_ACCESS:
            return _denied(name)
        words = ca.message(self._lib, status)
        if request.put:
            return DataError(f"{name}: not taken by the server: {words}", code=5006)
        return CommunicationError(f"{name}: not answered by the server: {words}", code=2008, retryable=True)

    # --- channels and monitors: the loop's thread ----------------------------------------------------------------------

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = _Channel(name, next(self._numbers), asyncio.get_running_loop().time())
            self._channels[name] = channel
            self._make(channel)
        return channel

    def _make(self, channel: _Channel) -> None:
        self._by_number[channel.number] = channel
        name, number = channel.name.encode(), channel.number

        def make() -> None:
            chid = ctypes.c_void_p()
            status = self._context.make_channel(name, self._on_connection, number, ctypes.byref(chid))
            self._context.tell(self._made, number, chid.value, status)

        self._context.do(make)
        self._plan_revival()

    def _made(self, number: int, chid: int | None, status: int) -> None:
        channel = self._by_number.get(number)
        if channel is None:
            if chid is not None:
                self._context.do(lambda: self._lib.ca_clear_channel(chid))
        elif chid is None:
            _log.warning("%s: no channel can be made: %s", channel.name, ca.message(self._lib, status))
        else:
            channel.chid = chid

    def _up(self, number: int, chid: int) -> None:
        if self._closed:  # the channel may be gone already
            return
        channel = self._by_number.get(number)
        kind, elements = self._lib.ca_field_type(chid), self._lib.ca_element_count(chid)
        if channel is None or kind < 0:  # made anew meanwhile, or lost again
            return
        retyped = channel.connections > 0 and (kind, elements) != (channel.kind, channel.elements)
        channel.chid, channel.kind, channel.elements = chid, kind, elements
        channel.server = self._lib.ca_host_name(chid).decode(errors="replace")
        channel.connected = True
        channel.connections += 1
        channel.pause_s = SEARCH_ANEW_S[0]
        for waiter in channel.waiters:
            _finish(waiter, None)
        channel.waiters.clear()
        for monitor in channel.monitors:
            if retyped:
                self._unsubscribe(monitor)
                self._monitors.pop(monitor.number)
                monitor.number = next(self._numbers)
                self._monitors[monitor.number] = monitor
            if monitor.subscription is None:  # the library renews one that it has
                self._subscribe(monitor)
        self._context.flush()

    def _down(self, number: int) -> None:
        channel = self._by_number.get(number)
        if channel is not None:
            self._lose(channel)

    def _lose(self, channel: _Channel) -> None:
        """The variable has no server any more; what is under way fails. A second loss before it is back does nothing."""
        if not channel.connected:
            return
        channel.connected = False
        channel.lost_s = asyncio.get_running_loop().time()
        for asked in [n for n, request in self._requests.items() if request.channel is channel]:
            request = self._requests[asked]
            self._forget(asked)
            _fail(request.future, _lost(channel.name))
        self._plan_revival()

    def _plan_revival(self) -> None:
        if self._revival is None and not self._closed:
            self._revival = asyncio.get_running_loop().call_later(SEARCH_ANEW_S[0], self._search_anew)

    def _search_anew(self) -> None:
        """Make every channel anew that was not found for a while, so that it is searched with short pauses again."""
        self._revival = None
        now_s = asyncio.get_running_loop().time()
        lost = [channel for channel in self._channels.values() if not channel.connected]
        for channel in lost:
            old = channel.chid
            if old is None or now_s - max(channel.made_s, channel.lost_s) < 0.9 * channel.pause_s:
                continue
            channel.pause_s = min(2 * channel.pause_s, SEARCH_ANEW_S[1])
            del self._by_number[channel.number]
            self._context.do(lambda chid=old: self._lib.ca_clear_channel(chid))  # type: ignore[misc]
            channel.number, channel.chid, channel.made_s = next(self._numbers), None, now_s
            for monitor in channel.monitors:
                monitor.subscription = None  # it ended with its channel
            self._make(channel)
        if lost:
            self._plan_revival()

    def _subscribe(self, monitor: _Monitor) -> None:
        channel = monitor.channel
        subscription = ctypes.c_void_p()
        status = self._lib.ca_create_subscription(
            ca.TIME + channel.kind,
            0,
            channel.chid,
            ca.VALUE_OR_ALARM,
            self._on_monitor,
            monitor.number,
            ctypes.byref(subscription),
        )
        if status == ca.NORMAL:
            monitor.subscription = subscription.value
        else:
            _log.warning("%s: cannot be monitored: %s", channel.name, ca.message(self._lib, status))

    def _unsubscribe(self, monitor: _Monitor) -> None:
        subscription, monitor.subscription = monitor.subscription, None
        if subscription is not None:
            self._context.do(lambda: self._lib.ca_clear_subscription(subscription))

    def _deliver(self, monitor: _Monitor) -> None:
        monitor.queued = False
        while monitor.pending and not monitor.ended and not self._closed:
            kind, count, data, t_ns = monitor.pending.popleft()
            try:
                value, severity = ca.decode(kind, count, data, array=monitor.channel.elements > 1)
                monitor.callback(Sample(value, t_ns, Severity(severity)))
            except DataError as error:
                _log.warning("%s: %s", monitor.channel.name, error.message)
            except Exception as error:  # noqa: BLE001 - as asyncio's own loop does; the other monitors must be told
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"Exception in the monitor of {monitor.channel.name}", "exception": error}
                )

    # --- the library's threads: hand over, never wait, never raise -------------------------------------------------------

    def _hear_connection(self, event: ca.ConnectionArguments) -> None:
        number = self._lib.ca_puser(event.chid)
        if event.op == ca.CONNECTION_UP:
            self._context.tell(self._up, number, event.chid)
        else:
            self._context.tell(self._down, number)

    def _hear_get(self, event: ca.EventArguments) -> None:
        if event.status == ca.NORMAL and event.dbr:
            self._context.tell(self._answered, event.usr, (*ca.copy_event(event), self._context.now_ns()))
        else:
            self._context.tell(self._refused, event.usr, event.status)

    def _hear_put(self, event: ca.EventArguments) -> None:
        if event.status == ca.NORMAL:
            self._context.tell(self._answered, event.usr, None)
        else:
            self._context.tell(self._refused, event.usr, event.status)

    def _hear_monitor(self, event: ca.EventArguments) -> None:
        monitor = self._monitors.get(event.usr)
        if monitor is None or event.status != ca.NORMAL or not event.dbr:
            return
        monitor.pending.append((*ca.copy_event(event), self._context.now_ns()))
        if not monitor.queued:
            monitor.queued = True
            self._context.tell(self._deliver, monitor)

    # --- life ---------------------------------------------------------------------------------------------------------

    def _start(self) -> asyncio.AbstractEventLoop:
        """Begin at the first use; refuse after the end."""
        if self._closed:
            raise CommunicationError("the channels were closed", code=2006, hint="make new ones")
        if not self._context.started:
            self._context.start(self)
        return asyncio.get_running_loop()


def _lost(name: str) -> CommunicationError:
    return CommunicationError(f"lost the server while waiting for {name}", code=2005, retryable=True)


def _closed(name: str) -> CommunicationError:
    return CommunicationError(f"{name}: the channels were closed", code=2006, hint="make new ones")


def _denied(name: str) -> CommandRejected:
    return CommandRejected(f"{name}: access denied", code=4101, hint="the variable is read only")


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _finish(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)
