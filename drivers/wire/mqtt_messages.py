"""Messages over MQTT 3.1.1: aiomqtt (the maintained name of asyncio-mqtt), kept connected, with bounded queues both ways.

aiomqtt does not reconnect: here a task connects, sends the birth message, restores the subscriptions, tells the watchers, and
begins again after a growing pause when the broker is lost. Everything is sent at most once (QoS 0): what is old is not worth
sending again. Only runs with real wires import this module. Not responsible for what messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import aiomqtt

from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError
from drivers.wire.messages import Message, Notice
from drivers.wire.subscriptions import Subscriptions, minimal_filters
from drivers.wire.waiting import WaitingMessages

NO_BROKER = 2006
NOT_TAKEN = 2007

# Assumed: a broker on a facility's network answers in ms; a person waits a few seconds at a start.
CONNECT_S = 3.0
START_S = 5.0
BACKOFF_S = (0.1, 5.0)  # first and longest pause between tries
KEEPALIVE_S = 5  # a hung broker is noticed within two of these; a hung client by its broker within one and a half
STEADY_S = 10.0  # a connection that lived this long begins with the shortest pause again
FAREWELL_S = 1.0
STUCK_MAX = 100  # publishes that ran out of time on one connection: more are refused at once until it is renewed
AT_ONCE = 16  # posted messages sent before others in the loop have their turn

_log = logging.getLogger("iongantry.mqtt")
_log.addHandler(logging.NullHandler())  # the bus tells what matters; a library's log must not land on a terminal
_log.propagate = False


class MqttMessages:
    """A client of an MQTT broker; fulfils `drivers.wire.messages.Messages`.

    Args:
        host, port: of the broker.
        client_id: unique at the broker: two of the same name throw each other out.
        will: what the broker says when this client is lost without a farewell.
        birth: said at each connection, before anything else.
        connect_s: longest time for one try, s.
        backoff_s: first and longest pause between tries, s.
        keepalive_s: how often each side proves life when nothing else is said, whole s.

    Attributes:
        connections: how often the broker was reached.
        why_down: what the last try or loss said; empty before the first.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        will: tuple[str, bytes] | Notice | None = None,
        birth: tuple[str, bytes] | Notice | None = None,
        connect_s: float = CONNECT_S,
        backoff_s: tuple[float, float] = BACKOFF_S,
        keepalive_s: int = KEEPALIVE_S,
    ) -> None:
        self.connections = 0
        self.why_down = ""
        self._address = host, port
        self._client_id = client_id
        self._will = None if will is None else Notice(*will)
        self._birth = None if birth is None else Notice(*birth)
        self._connect_s = connect_s
        self._backoff_s = backoff_s
        self._keepalive_s = keepalive_s
        self._subscriptions = Subscriptions()
        self._outgoing = WaitingMessages()
        self._client: aiomqtt.Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._stuck = 0
        self._fresh: list[str] = []  # filters asked for and not yet at the broker
        self._changed = asyncio.Event()  # subscriptions differ from the broker's
        self._settled = asyncio.Event()  # they do not
        self._posted = asyncio.Event()
        self._first = asyncio.Event()  # connected once
        self._stop = asyncio.Event()
        self._silently = False

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        client_id: str,
        *,
        will: tuple[str, bytes] | Notice | None = None,
        birth: tuple[str, bytes] | Notice | None = None,
    ) -> MqttMessages:
        """A started client. Raises CommunicationError (2006) when no broker answers."""
        client = cls(host, port, client_id, will=will, birth=birth)
        await client.start()
        return client

    async def start(self, timeout_s: float = START_S, *, required: bool = True) -> None:
        """Connect, and stay connected until `close`.

        Args:
            timeout_s: longest wait for the first connection, s.
            required: False returns without a broker too, and goes on trying.

        Raises:
            CommunicationError: no broker in time (2006); nothing is tried any more.
        """
        if self._task is None:
            self._stop.clear()
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"{self._client_id}-mqtt")
        try:
            async with asyncio.timeout(timeout_s):
                await self._first.wait()
        except TimeoutError:
            if required:
                await self.close()
                raise self._no_broker() from None

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable."""
        return self._client is not None

    @property
    def dropped(self) -> int:
        """Messages, in and out, that were dropped because too many waited."""
        return self._subscriptions.waiting.dropped + self._outgoing.dropped

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = 1.0) -> None:
        """Hand a message to the broker; see `Messages.publish`."""
        client = self._client
        if client is None:
            raise self._no_broker()
        if self._stuck >= STUCK_MAX:
            raise self._not_taken(topic, f"{self._stuck} messages wait")
        try:
            if self._settled.is_set() and not self._outgoing:
                await client.publish(topic, payload, retain=retain, timeout=timeout_s)
                return
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()  # an answer must not come before the subscription that awaits it
                await self._send_waiting(client)
                await client.publish(topic, payload, retain=retain, timeout=math.inf)
        except (TimeoutError, aiomqtt.MqttError) as error:
            if self._client is not client:
                raise self._no_broker() from None
            self._stuck += 1
            raise self._not_taken(topic, str(error) or f"no progress for {timeout_s:g} s") from None

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish without waiting; see `Messages.post`."""
        if self._client is None:
            return False
        self._outgoing.put(Message(topic, payload, 0, retain))
        self._posted.set()
        return True

    def subscribe(self, pattern: str, callback: Callable[[Message], None], *, retained: bool = True) -> Callable[[], None]:
        """Messages that match, retained ones first; see `Messages.subscribe`."""
        entry = self._subscriptions.add(pattern, callback, retained)
        self._fresh.append(pattern)
        self._settled.clear()
        self._changed.set()

        def end() -> None:
            self._subscriptions.remove(entry)
            self._changed.set()

        return end

    def watch(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Tell losses and returns of the broker; see `Messages.watch`."""
        return self._subscriptions.watch(callback)

    async def close(self) -> None:
        """Send what was posted, say farewell; the last will is not sent."""
        client = self._client
        if client is not None and self._outgoing and not self._stop.is_set():
            with contextlib.suppress(TimeoutError, aiomqtt.MqttError):
                async with asyncio.timeout(FAREWELL_S):
                    await self._send_waiting(client)
        await self._end()

    async def abort(self) -> None:
        """Vanish as a process that dies: no farewell, so the broker publishes the last will. For planted faults."""
        self._silently = True
        await self._end()

    async def _end(self) -> None:
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task = None
        self._subscriptions.clear()

    # --- one connection after the other -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s, longest_s = self._backoff_s
        while not self._stop.is_set():
            begun_s = loop.time()
            try:
                await self._connection()
            except Exception as error:  # noqa: BLE001 - whatever ended a connection is told by `why_down`, and the next one tried
                self.why_down = str(error) or type(error).__name__
            self._lost()
            if loop.time() - begun_s > STEADY_S:
                pause_s = self._backoff_s[0]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
            pause_s = min(2 * pause_s, longest_s)

    async def _connection(self) -> None:
        """Connect and serve until the broker is lost (MqttError) or this client is closed."""
        client = self._made()
        try:
            await client.__aenter__()
        except BaseException:
            await _abandon(client)
            raise
        try:
            await self._greet(client)
            await self._serve(client)
        finally:
            self._lost()
            if not self._silently:
                with contextlib.suppress(aiomqtt.MqttError):
                    await client.__aexit__(None, None, None)
            await _abandon(client)

    def _made(self) -> aiomqtt.Client:
        host, port = self._address
        will = self._will
        client = aiomqtt.Client(
            host,
            port,
            identifier=self._client_id,
            will=None if will is None else aiomqtt.Will(will.topic, will.payload, 0, will.retain),
            keepalive=self._keepalive_s,
            timeout=self._connect_s,
            queue_type=_diverted(self._take),
            logger=_log,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        client._client.connect_timeout = self._connect_s  # the library's own is longer, and its thread cannot be cancelled
        client.pending_calls_threshold = STUCK_MAX
        return client

    async def _greet(self, client: aiomqtt.Client) -> None:
        if self._birth is not None:
            await client.publish(self._birth.topic, self._birth.payload, retain=self._birth.retain)
        self._fresh.clear()
        filters = minimal_filters(self._subscriptions.patterns)
        if filters:
            await client.subscribe([(pattern, 0) for pattern in filters])
        self._client = client
        self._stuck = 0
        self.connections += 1
        if self._fresh:  # asked for meanwhile
            self._changed.set()
        else:
            self._settled.set()
        self._first.set()
        self._subscriptions.tell(True)

    async def _serve(self, client: aiomqtt.Client) -> None:
        jobs: list[Coroutine[Any, Any, None]] = [_until_lost(client), self._send_posted(client), self._keep_subscribed(client)]
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(job, name=f"{self._client_id}-mqtt-{i}") for i, job in enumerate(jobs)]
        tasks.append(loop.create_task(_set(self._stop), name=f"{self._client_id}-mqtt-stop"))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end_all(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _lost(self) -> None:
        self._client = None
        self._outgoing.clear()
        self._settled.clear()
        self._subscriptions.tell(False)

    # --- outward ----------------------------------------------------------------------------------------------------------

    async def _send_posted(self, client: aiomqtt.Client) -> None:
        while True:
            await self._posted.wait()
            self._posted.clear()
            await self._settled.wait()
            await self._send_waiting(client)

    async def _send_waiting(self, client: aiomqtt.Client) -> None:
        """Send what was posted. Two may do so at once: between taking and handing to the library nobody else runs."""
        sent = 0
        while (message := self._outgoing.take()) is not None:
            await client.publish(message.topic, message.payload, retain=message.retained, timeout=math.inf)
            sent += 1
            if sent % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _no_broker(self) -> CommunicationError:
        host, port = self._address
        why = f": {self.why_down}" if self.why_down else ""
        return CommunicationError(
            f"no broker at {host}:{port}{why}", code=NO_BROKER, hint="start the broker, or check the endpoint", retryable=True
        )

    def _not_taken(self, topic: str, why: str) -> CommunicationError:
        host, port = self._address
        return CommunicationError(
            f"the broker at {host}:{port} does not take {topic}: {why}", code=NOT_TAKEN, hint="check the broker", retryable=True
        )

    # --- inward -----------------------------------------------------------------------------------------------------------

    def _take(self, message: aiomqtt.Message) -> None:
        payload = message.payload if isinstance(message.payload, bytes) else b""
        self._subscriptions.arrive(Message(message.topic.value, payload, now_ns(), message.retain))

    async def _keep_subscribed(self, client: aiomqtt.Client) -> None:
        """Bring the broker's filters in line. A new subscriber's own filter always goes there, for what is retained."""
        there = set(minimal_filters(self._subscriptions.patterns)) - set(self._fresh)
        while True:
            await self._changed.wait()
            self._changed.clear()
            patterns = self._subscriptions.patterns
            fresh = [pattern for pattern in dict.fromkeys(self._fresh) if pattern in patterns]
            self._fresh.clear()
            wanted = minimal_filters(patterns)
            for pattern in dict.fromkeys([*fresh, *(p for p in wanted if p not in there)]):
                await client.subscribe(pattern)
            if not self._fresh:
                self._settled.set()
            for pattern in sorted((there | set(fresh)) - set(wanted)):
                await client.unsubscribe(pattern)
            there = set(wanted)


def _diverted(take: Callable[[aiomqtt.Message], None]) -> type[asyncio.Queue[aiomqtt.Message]]:
    """The library's place for messages that arrive, which hands them on instead: nothing waits there, nothing is unbounded."""

    class Diverted(asyncio.Queue[aiomqtt.Message]):
        def put_nowait(self, item: aiomqtt.Message) -> None:
            take(item)

    return Diverted


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _end_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are gone: an answer of that moment may swallow a cancellation in `asyncio.wait_for`."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)


async def _until_lost(client: aiomqtt.Client) -> None:
    """Returns never: raises MqttError when the connection is gone."""
    async for _ in client.messages:
        pass


async def _abandon(client: aiomqtt.Client) -> None:
    """Close the socket that the library leaves open after a failed connection or a farewell that nobody took."""
    paho = client._client
    for _ in range(50):
        open_socket = paho.socket()
        if not isinstance(open_socket, socket.socket):
            break
        with contextlib.suppress(OSError):
            open_socket.shutdown(socket.SHUT_RDWR)
        await asyncio.sleep(0.002)  # its reader sees the end and closes
    if client._disconnected.done():
        client._disconnected.exception()  # nobody else asks, and an unasked exception would be told at exit
    task = client._misc_task
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
