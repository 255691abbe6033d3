"""CiA 402 drives that act as one: up to enabled together, one set-point, down with the brake first, quick stop at any time.

The sequence of the profile, shared by gantry (two drives on a ring) and couch (one). Not responsible for where to go, how far
is allowed or whether the machine arrived: the device that owns the group watches that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError, CommandRejected, DeviceError
from drivers.hal.events import EventBus
from drivers.wire.codecs.cia402 import Command, DriveState, Status, command_towards_enabled, drive_state, fault_text
from drivers.wire.modbus import ModbusLine

FAULT = 3301
NOT_ENABLED = 3307
NO_SET_POINT = 3308
NOT_AT_REST = 3310
STOPPED = 4010

ENABLE_TIMEOUT_S = 3.0  # assumed: torque proof and brake release take about 0.3 s
SET_POINT_TIMEOUT_S = 0.5  # assumed
REST_TIMEOUT_S = 5.0  # assumed: 3 deg/s to rest takes 2 s, setting the brake 0.1 s
COMMAND_AGE_S = 0.2  # docs/wires.md: no motion command is older than this when it is carried out


@dataclass(frozen=True, slots=True)
class DriveView:
    """One drive as the last poll saw it.

    Attributes:
        still: it does not move.
        braked: its brake is applied.
        token: the drive's own cycles, two registers, which it wants back with a motion command; empty when it tells none.
    """

    node: int
    label: str
    statusword: int
    error_code: int
    still: bool
    braked: bool
    token: tuple[int, ...] = ()

    @property
    def state(self) -> DriveState:
        """State of its power state machine."""
        return drive_state(self.statusword)

    @property
    def at_rest(self) -> bool:
        """Whether it stands with its brake applied."""
        return self.still and self.braked


class DriveGroup:
    """The drives of one machine.

    Args:
        name: device, for messages.
        client: the line they are on.
        nodes: node numbers; the first one takes the set-point.
        table: registers; `controlword`, and `command_token` in front of it where the drives drop commands that are too old.
        poll: reads all of them.
        period_s: pause between polls while something happens; well within the time after which an unpolled drive stops.
    """

    def __init__(
        self,
        name: str,
        client: ModbusLine,
        nodes: Sequence[int],
        table: Mapping[str, int],
        poll: Callable[[], Awaitable[Sequence[DriveView]]],
        period_s: float,
    ) -> None:
        self.stops = 0  # quick stops so far; a motion that sees the number change has been stopped
        self.period_s = period_s
        self._name = name
        self._client = client
        self._nodes = tuple(nodes)
        self._controlword = table["controlword"]
        self._token = table.get("command_token")
        self._poll_drives = poll
        self._seen: dict[int, DriveView] = {}

    async def poll(self, stops: int) -> Sequence[DriveView]:
        """Read the drives during a motion.

        Raises:
            CommandRejected: a quick stop was asked for since `stops`.
            DeviceError: a drive is in fault.
            CommunicationError: a drive is silent.
        """
        self._not_stopped(stops)
        views = await self._poll()
        self._not_stopped(stops)
        self.healthy(views)
        return views

    async def write_set_point(self, register: int, words: Sequence[int]) -> None:
        """Write the same set-point to every drive, each in one frame with its token. Nothing moves by it.

        The frame passes over the controlword, so it carries the one that starts nothing: disable voltage.

        Raises:
            CommunicationError: no sound answer, or it waited too long for the line.
            DeviceError: refused, as too old for example.
        """
        for node in self._nodes:
            gap = [0] * (register - self._controlword - 1)
            if self._token is None:
                await self._client.write(node, register, words, within_s=COMMAND_AGE_S)
            else:
                await self._command(node, Command.DISABLE_VOLTAGE, (*gap, *words))

    def healthy(self, views: Sequence[DriveView]) -> None:
        """Raise DeviceError when a drive is in fault."""
        for view in views:
            if view.state in (DriveState.FAULT, DriveState.FAULT_REACTION) or view.error_code:
                raise DeviceError(
                    f"{view.label} (node {view.node}) is in fault {fault_text(view.error_code)}",
                    code=FAULT,
                    device=self._name,
                    hint="remove the cause, then acknowledge the fault",
                )

    async def enable(self, stops: int) -> None:
        """Take all drives to operation enabled: torque proven, brakes released.

        Raises:
            DeviceError: fault, or not enabled in time, with the state each drive is in.
            CommandRejected, CommunicationError: as for `poll`.
        """
        commanded: dict[int, DriveState] = {}
        deadline_ns = now_ns() + round(ENABLE_TIMEOUT_S * 1e9)
        while True:
            views = await self.poll(stops)
            waiting = [view for view in views if view.state is not DriveState.OPERATION_ENABLED]
            if not waiting:
                return
            if now_ns() >= deadline_ns:
                states = "; ".join(f"{view.label}: {view.state.value}" for view in waiting)
                raise DeviceError(
                    f"not enabled within {ENABLE_TIMEOUT_S:g} s: {states}",
                    code=NOT_ENABLED,
                    device=self._name,
                    hint="see the safety word of the drive: STO keeps torque off",
                )
            progress = False
            for view in waiting:
                command = command_towards_enabled(view.state)
                if command is not None and commanded.get(view.node) is not view.state:
                    commanded[view.node] = view.state
                    await self._command(view.node, command)
                    progress = True
            if not progress:
                await asyncio.sleep(self.period_s)

    async def take_set_point(self, stops: int) -> None:
        """Start the motion to the target position already written: the set-point handshake of profile position mode.

        Raises:
            DeviceError: the set-point was not acknowledged.
            CommandRejected, CommunicationError: as for `poll`.
        """
        first = self._nodes[0]
        await self._command(first, Command.NEW_SET_POINT)
        deadline_ns = now_ns() + round(SET_POINT_TIMEOUT_S * 1e9)
        while True:
            views = await self.poll(stops)
            if any(view.node == first and view.statusword & Status.SET_POINT_ACKNOWLEDGE for view in views):
                break
            if now_ns() >= deadline_ns:
                raise DeviceError(
                    "the set-point was not acknowledged",
                    code=NO_SET_POINT,
                    device=self._name,
                    hint="all drives of the machine must be enabled and hold the same target",
                )
            await asyncio.sleep(self.period_s)
        await self._command(first, Command.ENABLE_OPERATION)

    async def disable(self, stops: int) -> None:
        """Set the brakes, then take torque away; returns when the drives say that both is done.

        Raises:
            DeviceError: a drive does not come to rest, or is in fault.
            CommandRejected, CommunicationError: as for `poll`.
        """
        for node in self._nodes:
            await self._command(node, Command.SWITCH_ON)
        await self._until(
            stops, lambda view: view.at_rest and view.state is not DriveState.OPERATION_ENABLED, "setting the brake"
        )
        for node in self._nodes:
            await self._stop(node, Command.DISABLE_VOLTAGE)
        await self._until(stops, lambda view: view.state is DriveState.SWITCH_ON_DISABLED, "taking torque away")

    async def halt(self, bus: EventBus, error: BaseException) -> None:
        """A motion ended badly: quick stop, whatever the reason; who hears no poll stops by itself. Tells both on `bus`."""
        asked = isinstance(error, BeamlineError) and error.code == STOPPED
        bus.emit(self._name, "motion.failed", error=str(error) or type(error).__name__, asked=asked)
        try:
            await self.quick_stop()
        except BeamlineError as unheard:
            bus.emit(self._name, "motion.stop_unconfirmed", error=str(unheard))

    async def quick_stop(self) -> None:
        """Send the quick stop to every drive, before anything else that waits for the line. Does not wait for rest.

        Raises:
            CommunicationError, DeviceError: of the first drive that did not take it, after all have been tried. An unpolled
                drive stops by itself.
        """
        self.stops += 1
        # All at once: of two sent one after the other, the second waits for whoever was given the line in between.
        stops = (self._stop(node, Command.QUICK_STOP, urgent=True) for node in self._nodes)
        outcomes = await asyncio.gather(*stops, return_exceptions=True)
        for failure in outcomes:
            if failure is not None:
                raise failure

    async def rest(self) -> None:
        """After a quick stop: wait until all stand with their brakes applied and without torque.

        Raises:
            DeviceError: not at rest in time.
            CommunicationError: a drive is silent.
        """
        deadline_ns = now_ns() + round(REST_TIMEOUT_S * 1e9)
        released: set[int] = set()
        while True:
            views = await self._poll()
            moving = [view for view in views if not view.at_rest]
            # A drive may stay in its quick stop, holding with torque: taking voltage away sets its brake first.
            holding = [v for v in views if v.still and v.state in (DriveState.QUICK_STOP, DriveState.OPERATION_ENABLED)]
            if not moving and not holding:
                return
            for view in holding:
                if view.node not in released:
                    released.add(view.node)
                    await self._stop(view.node, Command.DISABLE_VOLTAGE)
            if now_ns() >= deadline_ns:
                names = ", ".join(view.label for view in views if view in moving or view in holding)
                raise DeviceError(
                    f"{names} not at rest {REST_TIMEOUT_S:g} s after the quick stop",
                    code=NOT_AT_REST,
                    device=self._name,
                    hint="press the emergency stop",
                )
            await asyncio.sleep(self.period_s)

    async def reset_faults(self) -> None:
        """Acknowledge faults: the rising edge of the reset bit on each drive that is in fault. Never starts motion.

        Raises:
            DeviceError: a fault stays, its cause is still there.
            CommunicationError: a drive is silent.
        """
        for view in await self._poll():
            if view.state is DriveState.FAULT:
                await self._stop(view.node, Command.DISABLE_VOLTAGE)
                await self._command(view.node, Command.FAULT_RESET)
                await self._stop(view.node, Command.DISABLE_VOLTAGE)
        self.healthy(await self._poll())

    async def _poll(self) -> Sequence[DriveView]:
        views = await self._poll_drives()
        self._seen.update((view.node, view) for view in views)
        return views

    async def _command(self, node: int, command: Command, words: Sequence[int] = ()) -> None:
        """Send a controlword (and the registers behind it) once, with the token that the drive showed last."""
        seen = self._seen.get(node)
        if self._token is None:
            await self._client.write(node, self._controlword, [command, *words], within_s=COMMAND_AGE_S)
        else:
            token = seen.token if seen is not None else (0, 0)  # a drive that was never seen refuses it
            await self._client.write(node, self._token, [*token, command, *words], within_s=COMMAND_AGE_S)

    async def _stop(self, node: int, command: Command, *, urgent: bool = False) -> None:
        """Send a controlword that is taken whatever its age."""
        await self._client.write(node, self._controlword, [command], urgent=urgent)

    async def _until(self, stops: int, reached: Callable[[DriveView], bool], what: str) -> None:
        deadline_ns = now_ns() + round(REST_TIMEOUT_S * 1e9)
        while True:
            views = await self.poll(stops)
            late = [view for view in views if not reached(view)]
            if not late:
                return
            if now_ns() >= deadline_ns:
                names = ", ".join(f"{view.label} ({view.state.value})" for view in late)
                raise DeviceError(f"{what}: {names} not ready after {REST_TIMEOUT_S:g} s", code=NOT_AT_REST, device=self._name)
            await asyncio.sleep(self.period_s)

    def _not_stopped(self, stops: int) -> None:
        if self.stops != stops:
            raise CommandRejected("stopped by command", code=STOPPED, device=self._name, hint="move again when it is safe")
