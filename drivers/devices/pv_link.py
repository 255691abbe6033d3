"""What every device on process variables needs: identity, a status with a heartbeat, and waiting without polling.

A status is alive while its counter moves; a connection proves nothing (a frozen server looks connected and unchanging). A wait
ends when its condition holds after a monitor, when the status stands still, or at its deadline, whichever comes first.

The channels reconnect by themselves and tell the values anew, whoever answers now. So nothing that comes over a new connection
is believed before the identity (`pv_identity`) has been asked again; a wrong device is told once and asked again with pauses.

Not responsible for what a status means (the caller's `decode`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from drivers.devices.pv_identity import PvIdentity
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError, CommunicationError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Quality
from drivers.wire.channels import Channels, PutValue, Sample, Severity, as_int_array

S = TypeVar("S")
T = TypeVar("T")

HEARTBEAT_NS = 1_200_000_000  # a status is posted at least once a second (docs/wires.md), and has to travel
MIN_TIMEOUT_S = 1.0
GET_TRIES = 2  # questions may be repeated; assumed: one answer may be lost
NO_EFFECT = 2104  # code of a wait whose deadline passed while the device lived


@dataclass(frozen=True, slots=True)
class StatusWords(Generic[S]):
    """Which variable is the status, how many words it has, and what they mean: `decode(words, t_ns)`."""

    pv: str
    size: int
    decode: Callable[[Sequence[int], int], S]


class PvLink(Generic[S]):
    """One device's variables.

    Args:
        device: name of the device, for messages.
        config: its row of the facility file: identity, deadline.
        channels: the wire.
        bus: ``device.down`` and ``device.up`` are emitted once each, from the device, and ``device.refused`` when another
            device answers in its place.
        status: the status variable; its first word is the counter.
    """

    def __init__(self, device: str, config: Device, channels: Channels, bus: EventBus, status: StatusWords[S]) -> None:
        self.device = device
        self._config = config
        self._channels = channels
        self._bus = bus
        self._status_words = status
        self._status: S | None = None
        self._counter: int | None = None
        self._severity = Severity.NO_ALARM
        self._fresh_ns = 0
        self._down = ""
        self._limit_ns = max(HEARTBEAT_NS, round(config.deadline_ms * NS_PER_MS))
        self._cancels: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._identity = PvIdentity(device, config.identity, channels, self._identified)
        self._held: dict[int, tuple[Callable[[Sample], None], Sample]] = {}  # told over a connection not yet believed
        self._told_refused = ""
        self._at_address = config.endpoint.startswith("memory:")

    @property
    def simulated(self) -> bool:
        """Whether a simulator answers, by its endpoint or by what it says of itself."""
        return self._at_address or self._identity.says_simulated

    async def open(self, identity_pv: str | None) -> None:
        """Check the identity, start the monitors, and see the counter move.

        Raises:
            CommunicationError: not connected, or the counter stands still.
            DeviceError: another device answers (3101).
        """
        self._identity.begin(identity_pv)
        await self._identity.confirm()
        self._down, self._counter = "", None
        await self.refresh()
        first = self._counter
        self.watch(self._status_words.pv, self._take_status)
        if identity_pv is not None:
            self._cancels.append(self._channels.monitor(identity_pv, self._identity.take))
        await self.until(lambda: self._counter != first or None, 2 * self._limit_ns / NS_PER_S, "heartbeat")

    async def end(self) -> None:
        """`close`, and wait until nothing of this link runs any more."""
        self.close()
        await self._identity.ended()

    def close(self) -> None:
        """End monitors and timer; who still waits is told that the link is down."""
        self._identity.end()
        self._held.clear()
        for cancel in self._cancels:
            cancel()
        self._cancels.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._down = "closed"
        self._wake()

    def watch(self, pv: str, callback: Callable[[Sample], None]) -> None:
        """Monitor another variable; waits are looked at again after each of its values.

        What is told over a new connection waits until the identity has been asked again.
        """
        key = len(self._cancels)

        def take(sample: Sample) -> None:
            if not self._identity.known:
                self._held[key] = callback, sample
                self._identity.ask()
                return
            callback(sample)
            self._wake()

        self._cancels.append(self._channels.monitor(pv, take))

    async def put(self, pv: str, value: PutValue, timeout_s: float = 1.0, *, anyone: bool = False) -> None:
        """Write with completion, once: what may have been taken is never sent again.

        Args:
            pv: variable.
            value: what to write.
            timeout_s: longest wait for completion.
            anyone: also to a device whose identity has not been confirmed since the connection was lost; for what can only end
                beam, and must not wait.

        Raises:
            CommunicationError: no completion, or the identity is not confirmed (2107).
            DeviceError: another device answers (3101).
            CommandRejected: access denied.
        """
        if not anyone and not self._identity.known:
            raise self._identity.unknown()
        await self._channels.put(pv, value, timeout_s)

    async def get(self, pv: str) -> Sample:
        """Ask the server, and after silence once more.

        Raises:
            CommunicationError: no answer, or the connection changed meanwhile.
            DeviceError: another device answers (3101).
        """
        tries = GET_TRIES
        while True:
            await self._identity.confirm()
            try:
                sample = await self._channels.get(pv)
            except CommunicationError:
                tries -= 1
                if tries == 0 or not self._channels.connected(pv):
                    raise
                continue
            if not self._identity.known:  # it may be of the new connection
                raise self._identity.unknown()
            return sample

    async def refresh(self) -> S:
        """Ask for the status now, after everything put before; returns it.

        Raises:
            CommunicationError: no answer, or no sense in it (2105).
        """
        self._take_status(await self.get(self._status_words.pv))
        return self.status

    @property
    def status(self) -> S:
        """The last known status. Raises CommunicationError (2101) when there never was one."""
        if self._status is None:
            raise CommunicationError("no status was ever received", code=2101, device=self.device, hint="connect first")
        return self._status

    @property
    def quality(self) -> Quality:
        """How far the last status may be trusted now."""
        if not self._channels.connected(self._status_words.pv):
            self._identity.lost()
            return Quality.DISCONNECTED
        if not self._identity.known:
            return Quality.DISCONNECTED if self._identity.refused is not None else Quality.STALE
        if self._alarmed:
            return Quality.ALARM
        if self._status is None or now_ns() - self._fresh_ns > self._limit_ns:
            return Quality.STALE
        return Quality.GOOD

    @property
    def _alarmed(self) -> bool:
        """Whether the server itself says that its status is not to be relied on; MINOR is a warning."""
        return self._severity >= Severity.MAJOR

    @property
    def fresh_ns(self) -> int:
        """Loop time at which the counter last moved."""
        return self._fresh_ns

    def require_fresh(self) -> S:
        """The status, if it is alive.

        Raises:
            CommunicationError: never received (2101), not connected (2102) or standing still (2103).
            DeviceError: another device answers (3101), or its server marks the status as in alarm (3102).
        """
        status = self.status
        if (quality := self.quality) is not Quality.GOOD or self._down == "closed":
            raise self._not_good(quality)
        return status

    async def until(self, check: Callable[[], T | None], timeout_s: float, what: str) -> T:
        """Wait until `check` returns something; it is called now and after every monitor, and may raise.

        Raises:
            CommunicationError: the status stands still (2103), is not connected (2102), or the deadline passed (2104).
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + max(timeout_s, MIN_TIMEOUT_S)
        while True:
            result = check()
            if result is not None:
                return result
            self.require_fresh()
            future: asyncio.Future[None] = loop.create_future()
            self._waiters.append(future)
            try:
                async with asyncio.timeout_at(deadline_s):
                    await future
            except TimeoutError:
                raise CommunicationError(
                    f"no {what} within {timeout_s:.3g} s",
                    code=NO_EFFECT,
                    device=self.device,
                    hint="look at the device and its server",
                    retryable=True,
                ) from None
            finally:
                if future in self._waiters:
                    self._waiters.remove(future)

    def _identified(self) -> None:
        """The identity was confirmed, or refused: what was told over this connection counts now, or never."""
        refused = self._identity.refused
        if refused is None:
            self._told_refused = ""
            held, self._held = self._held, {}
            for callback, sample in held.values():
                callback(sample)
            self._wake()
            return
        self._held.clear()
        if refused.message == self._told_refused:
            return
        self._told_refused = refused.message
        if self._down:
            self._bus.emit(self.device, "device.refused", error=str(refused), code=refused.code)
        else:
            self._set_down(str(refused))
        self._wake()

    def _take_status(self, sample: Sample) -> None:
        try:
            words: list[int] = as_int_array(self._status_words.pv, sample, self._status_words.size).tolist()
            status = self._status_words.decode(words, sample.t_ns)
        except (BeamlineError, ValueError) as error:
            self._set_down(f"its status makes no sense: {error}")
            return
        self._status, self._severity = status, sample.severity
        if self._alarmed:
            self._set_down(self._alarm_words)
            return
        if words[0] == self._counter:
            return  # a value that is replayed, or asked for again, is no sign of life
        self._counter = words[0]
        self._fresh_ns = now_ns()
        if self._down:
            self._down = ""
            self._bus.emit(self.device, "device.up")
        self._arm()

    def _arm(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later((self._fresh_ns + self._limit_ns - now_ns()) / NS_PER_S + 1e-6, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.quality is Quality.GOOD:
            self._arm()
            return
        if not self._channels.connected(self._status_words.pv):
            why = "not connected"
        elif not self._identity.known:
            why = "its identity has not been confirmed since it was connected again"
        elif self._alarmed:
            why = self._alarm_words
        else:
            why = "its counter stands still"
        self._set_down(why)
        self._wake()

    @property
    def _alarm_words(self) -> str:
        return f"its server marks {self._status_words.pv} with severity {self._severity.name}"

    def _set_down(self, why: str) -> None:
        if not self._down:
            self._down = why
            self._bus.emit(self.device, "device.down", reason=why)

    def _not_good(self, quality: Quality) -> BeamlineError:
        age_ms = (now_ns() - self._fresh_ns) / NS_PER_MS
        if self._down == "closed":
            return CommunicationError("the device was closed", code=2106, device=self.device, hint="connect again")
        if self._channels.connected(self._status_words.pv) and not self._identity.known:
            return self._identity.unknown()
        if quality is Quality.ALARM:
            return DeviceError(self._alarm_words, code=3102, device=self.device, hint="look at the device and its server")
        if quality is Quality.DISCONNECTED:
            return CommunicationError(
                f"{self._status_words.pv} is not connected",
                code=2102,
                device=self.device,
                hint="start its server",
                retryable=True,
            )
        limit_ms = self._limit_ns / NS_PER_MS
        return CommunicationError(
            f"the counter of {self._status_words.pv} has not moved for {age_ms:.0f} ms (limit {limit_ms:.0f} ms)",
            code=2103,
            device=self.device,
            hint="the server is frozen or gone: restart it",
            retryable=True,
        )

    def _wake(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def int64(high: int, low: int) -> int:
    """A 64-bit integer from two signed 32-bit words, low word unsigned."""
    return (high << 32) | (low & 0xFFFFFFFF)


def words64(value: int) -> tuple[int, int]:
    """Two signed 32-bit words (high, low) of a 64-bit integer."""
    return int(np.int32(value >> 32)), int(np.uint32(value & 0xFFFFFFFF).astype(np.int32))
