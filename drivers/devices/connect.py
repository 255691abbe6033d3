"""What every device on a wire shares: identity at each connect, back-off, one word down and one word up, life by a counter.

A connection says nothing about life: a frozen device stays connected and shows good, unchanging values. So quality comes from
the device's own counter (`Liveness`). Not responsible for what a device does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from drivers.hal.clock import NS_PER_MS, now_ns
from drivers.hal.errors import BeamlineError, CommunicationError, ConfigError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Quality
from drivers.wire.modbus import ModbusLine

WRONG_IDENTITY = 3002
NOT_ALIVE = 3003


class Liveness:
    """Whether a device lives, told by the counter that it must raise itself.

    Args:
        deadline_ns: longest time for which the counter may stand still.
    """

    __slots__ = ("_counter", "_restarted", "deadline_ns", "moved_ns")

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        self.moved_ns: int | None = None  # when the counter was last seen to differ
        self._counter: int | None = None
        self._restarted = False

    def see(self, counter: int, t_ns: int) -> bool:
        """Take the counter read at `t_ns`; True when it has moved."""
        if counter == self._counter:
            return False
        self._counter = counter
        if self._restarted:
            self._restarted = False
            return False
        self.moved_ns = t_ns
        return True

    def forget(self) -> None:
        """Start anew, after a reconnection: another device may be there."""
        self._counter = self.moved_ns = None

    def restart(self) -> None:
        """Start anew, and let the first counter prove nothing: it has to move. What was last seen alive stays that old."""
        self._counter = None
        self._restarted = True

    def still_ns(self, at_ns: int) -> int:
        """For how long the counter has stood still; 0 when it was never seen, which is no standing still."""
        return 0 if self.moved_ns is None else at_ns - self.moved_ns

    def quality(self, at_ns: int) -> Quality:
        """GOOD while the counter moves, STALE when it has stood still too long, DISCONNECTED when it was never seen."""
        if self.moved_ns is None:
            return Quality.DISCONNECTED
        return Quality.GOOD if at_ns - self.moved_ns <= self.deadline_ns else Quality.STALE


def deadline_ns(config: Device) -> int:
    """How old values of a device may get, in ns."""
    return round(config.deadline_ms * NS_PER_MS)


class Connection:
    """Keeps a device connected: tells once when it is lost, tries again with growing pauses, tells once when it is back.

    Args:
        device: name, for events and messages.
        bus: where ``device.up`` and ``device.down`` are told, and ``device.refused``: another device answers instead.
        establish: opens, flushes, checks the identity and reads the state; raises BeamlineError when any of it fails.
        backoff_s: first and longest pause between tries, assumed.

    Attributes:
        up: whether the device is connected, known and alive.
    """

    def __init__(
        self,
        device: str,
        bus: EventBus,
        establish: Callable[[], Awaitable[None]],
        backoff_s: tuple[float, float] = (0.2, 5.0),
    ) -> None:
        self.up = False
        self._device = device
        self._bus = bus
        self._establish = establish
        self._backoff_s = backoff_s
        self._retry: asyncio.Task[None] | None = None
        self._told_down = False
        self._why: BeamlineError | None = None
        self._told_refused = ""

    @property
    def quality_down(self) -> Quality:
        """How values are to be shown while it is not up: STALE when something answers that does not live."""
        return Quality.STALE if self._why is not None and self._why.code == NOT_ALIVE else Quality.DISCONNECTED

    def unavailable(self) -> BeamlineError:
        """The error of a command to the device while it is not up: which wrong device answers, or that none does."""
        if self._why is not None and self._why.code in (WRONG_IDENTITY, NOT_ALIVE):
            return self._why
        return silent(self._device)

    async def open(self) -> None:
        """Connect now; raises what `establish` raises."""
        try:
            await self._establish()
        except BeamlineError as error:
            self._tell_down(error)
            raise
        self._tell_up()

    def lost(self, error: BeamlineError) -> None:
        """A transaction failed: the device counts as gone until its identity has been checked again."""
        if not self.up:
            return
        self._tell_down(error)
        if self._retry is None or self._retry.done():
            self._retry = asyncio.get_running_loop().create_task(self._try_again(), name=f"{self._device}-reconnect")

    async def close(self) -> None:
        """Stop trying."""
        self.up = False
        await end_task(self._retry)
        self._retry = None

    async def _try_again(self) -> None:
        pause_s, longest_s = self._backoff_s
        while not self.up:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            try:
                await self._establish()
            except BeamlineError as error:
                self._why = error
                self._tell_refused(error)
                continue
            self._tell_up()

    def _tell_up(self) -> None:
        if not self.up:
            self.up = True
            self._told_down = False
            self._why, self._told_refused = None, ""
            self._bus.emit(self._device, "device.up")

    def _tell_down(self, error: BeamlineError) -> None:
        self.up = False
        self._why = error
        if not self._told_down:
            self._told_down = True
            if error.code == WRONG_IDENTITY:
                self._told_refused = error.message
            self._bus.emit(self._device, "device.down", error=str(error), code=error.code)

    def _tell_refused(self, error: BeamlineError) -> None:
        """It was lost for another reason, and now a wrong device answers in its place: told once for each such device."""
        if error.code == WRONG_IDENTITY and error.message != self._told_refused:
            self._told_refused = error.message
            self._bus.emit(self._device, "device.refused", error=str(error), code=error.code)


class Poller:
    """Repeats an action in the background, with a pause that may change and that `kick` cuts short.

    Args:
        device: name, for the event ``device.fault`` that tells of an exception nobody foresaw. Polling then ends, values
            become stale, and nothing that needs them goes on.
        action: one poll; deals with BeamlineError itself.
        period_s: pause before the next poll.
    """

    def __init__(
        self, device: str, bus: EventBus, action: Callable[[], Awaitable[None]], period_s: Callable[[], float]
    ) -> None:
        self._device = device
        self._bus = bus
        self._action = action
        self._period_s = period_s
        self._task: asyncio.Task[None] | None = None
        self._pause: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin, unless it runs."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"{self._device}-poll")

    def kick(self) -> None:
        """Poll now instead of at the end of the pause."""
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def stop(self) -> None:
        """End the polling."""
        await end_task(self._task)
        self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            try:
                await self._action()
            except Exception as error:  # noqa: BLE001 - told, and then silence makes the values stale
                self._bus.emit(self._device, "device.fault", error=repr(error))
                return
            now_s = loop.time()
            due_s = max(due_s + self._period_s(), now_s)
            self._pause = loop.create_future()
            timer = loop.call_at(due_s, self.kick)
            try:
                await self._pause
            finally:
                timer.cancel()
            due_s = min(due_s, loop.time())


async def end_task(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it is gone; a task that ends itself is left alone."""
    if task is None or task is asyncio.current_task():
        return
    task.cancel()
    await asyncio.wait([task])


def expected_identity(name: str, config: Device) -> Mapping[int, tuple[int, int]]:
    """Vendor and product by node, from an identity like ``"1009:D1,D1,E1"`` (hexadecimal, one product per unit id).

    Raises:
        ConfigError: the text is not of that form.
    """
    try:
        vendor, products = config.identity.split(":")
        codes = [int(product, 16) for product in products.split(",")]
        wanted = {unit: (int(vendor, 16), code) for unit, code in zip(config.unit_ids, codes, strict=True)}
    except ValueError:
        raise ConfigError(
            f"identity {config.identity!r} does not name a vendor and one product for each of nodes {config.unit_ids}",
            code=1005,
            device=name,
            hint='for example "1009:D1,D1,E1" for three nodes',
        ) from None
    return wanted


async def check_identity(name: str, config: Device, client: ModbusLine, register: int) -> None:
    """Ask every node who it is.

    Raises:
        CommunicationError: a node is silent.
        DeviceError: another device answers.
    """
    for unit, wanted in expected_identity(name, config).items():
        vendor, product, revision, serial = await client.read(unit, register, 4)
        if (vendor, product) != wanted:
            raise DeviceError(
                f"node {unit} says vendor 0x{vendor:04X}, product 0x{product:02X} (revision {revision}, serial {serial});"
                f" expected vendor 0x{wanted[0]:04X}, product 0x{wanted[1]:02X}",
                code=WRONG_IDENTITY,
                device=name,
                hint="check the endpoint and the node numbers",
            )


def check_named_identity(name: str, config: Device, answered: str) -> None:
    """Compare a device's identity text with the facility's. Raises DeviceError when they differ."""
    if config.identity and answered != config.identity:
        raise DeviceError(
            f"says {answered!r}, expected {config.identity!r}", code=WRONG_IDENTITY, device=name, hint="check the endpoint"
        )


async def prove_alive(
    name: str, poll: Callable[[], Awaitable[None]], lives: Callable[[], bool], within_s: float, period_s: float = 0.02
) -> None:
    """Poll until `lives` (every counter has been seen to move); DeviceError when that does not happen within `within_s`."""
    deadline = now_ns() + round(within_s * 1e9)
    await poll()
    while not lives():
        if now_ns() >= deadline:
            raise DeviceError(
                f"answers, but its counter stands still for {within_s:g} s",
                code=NOT_ALIVE,
                device=name,
                hint="restart the device",
            )
        await asyncio.sleep(period_s)
        await poll()


def standing(name: str, still_ns: int) -> DeviceError:
    """The error of a device that answers and does not live: its counter has stood still for `still_ns`."""
    return DeviceError(
        f"answers, but its counter stands still for {still_ns / NS_PER_MS:.0f} ms",
        code=NOT_ALIVE,
        device=name,
        hint="restart the device",
        retryable=True,
    )


def silent(name: str) -> CommunicationError:
    """The error of a command to a device that is not connected."""
    return CommunicationError("not connected", code=2004, device=name, hint="it is being tried again", retryable=True)
