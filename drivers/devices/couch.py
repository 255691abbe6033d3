"""The six-axis couch: all axes go together under one CiA 402 drive word, inside the room's limits, and are read back.

Not responsible for where the patient should be (`controller.room.positioning`) or for collisions.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

from drivers.devices.connect import Poller
from drivers.devices.drive_group import DriveGroup, DriveView
from drivers.devices.node import Node
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device, Range, Room
from drivers.hal.reading import Quality, Reading
from drivers.wire.codecs.cia402 import DriveState, Status
from drivers.wire.codecs.registers import words_of_milli
from drivers.wire.modbus import ModbusLine

IN_POSITION_MM = 0.5  # accuracy of a robotic couch, assumed
IN_POSITION_DEG = 0.2
RESOLUTION = 0.002  # the wire carries thousandths
PROGRESS_S = 5.0  # assumed: an axis group that has not moved for so long and has not arrived is stuck
IN_POSITION_S = 0.3  # assumed
SLOW_POLL_S = 1.0
POLL_DEADLINE_MS = 200.0

STALE = 3306
STUCK = 3303
NOT_BRAKED = 3305
READ_BACK = 3309
STOPPED_SAFELY = 3313
OUT_OF_LIMITS = 4001
BUSY = 4002
NOT_AT_STANDSTILL = 4003


def unit_of(axis: str) -> str:
    """``"mm"`` or ``"deg"``, from the axis's name."""
    return axis.rsplit("_", 1)[1]


def tolerance_of(axis: str) -> float:
    """How near to its target an axis must come, in its unit."""
    return IN_POSITION_MM if unit_of(axis) == "mm" else IN_POSITION_DEG


class SixAxisCouch:
    """`AxisGroup` of a room: `COUCH_AXES`.

    Args:
        name: device, for example ``"G1-couch"``.
        config: its entry in the facility file.
        room: limits.
        client: the room's motion line.
        registers: register table ``couch``.
        bus: where motion and connection are told.
    """

    def __init__(
        self,
        name: str,
        config: Device,
        room: Room,
        client: ModbusLine,
        registers: Mapping[str, Mapping[str, int]],
        bus: EventBus,
    ) -> None:
        self._name = name
        self._config = config
        self._limits: dict[str, Range] = {axis: getattr(room.couch, axis) for axis in COUCH_AXES}
        self._bus = bus
        self._moving = False
        self._still = False
        table = registers["couch"]
        self._targets = table["targets"]
        self._node = Node(name, config, client, table, ("statusword", "counter"), bus)
        period_s = 0.4 * (config.poll_deadline_ms or POLL_DEADLINE_MS) / 1000.0
        self._group = DriveGroup(name, client, config.unit_ids, table, self._views, period_s)
        self._poller = Poller(name, bus, self._background, self._pause_s)

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    async def connect(self) -> None:
        """Open the line, check who answers, see the counter move, read the axes."""
        await self._node.connection.open()
        self._poller.start()

    async def close(self) -> None:
        """Stop polling; an enabled couch then stops by itself."""
        await self._poller.stop()
        await self._node.connection.close()

    def readings(self) -> Sequence[Reading[object]]:
        """The six axes, as last read; empty before the first."""
        if not self._node.words:
            return ()
        quality, t_ns, simulated = self._node.quality(), self._node.t_ns, self._config.simulated
        return [
            Reading(f"{self._name}.{axis}", value, unit_of(axis), t_ns, quality, simulated)
            for axis, value in self._axes().items()
        ]

    async def read_axes(self) -> Mapping[str, Reading[float]]:
        """Read the six axes now. Raises CommunicationError when the couch is silent."""
        await self._node.read()
        return self._readings_of_axes()

    async def move_to(self, targets: Mapping[str, float]) -> Mapping[str, Reading[float]]:
        """Move the named axes together, the others stay; returns the axes read after brake and torque off.

        Raises:
            CommandRejected: unknown axis, outside a limit, a motion is under way, not at standstill, or stopped.
            DeviceError: fault, frozen, stuck, brake not set.
            CommunicationError: silent; the couch stops by itself.
        """
        self._inside_limits(targets)
        if not self._node.connection.up:
            raise self._node.connection.unavailable()
        if self._moving:
            raise CommandRejected("a motion is under way", code=BUSY, device=self._name, hint="stop it first")
        self._moving = True
        stops = self._group.stops
        began = False
        try:
            await self._read()
            self._may_move()
            present = self._axes()
            wanted = {axis: float(targets.get(axis, present[axis])) for axis in COUCH_AXES}
            if any(abs(wanted[axis] - present[axis]) > tolerance_of(axis) / 10.0 for axis in targets):
                began = True
                self._bus.emit(self._name, "motion.start", **{f"to_{axis}": round(wanted[axis], 3) for axis in targets})
                await self._move(wanted, stops)
                self._bus.emit(self._name, "motion.end", **{axis: round(value, 3) for axis, value in self._axes().items()})
        except BaseException as error:
            if began:
                await self._group.halt(self._bus, error)
            raise
        finally:
            self._moving = False
            self._poller.kick()
        return self._readings_of_axes()

    async def stop(self) -> None:
        """Quick stop now, then wait for rest and brake."""
        self._bus.emit(self._name, "motion.stop")
        await self._group.quick_stop()
        await self._group.rest()

    async def acknowledge(self) -> Mapping[str, Reading[float]]:
        """Reset a fault whose cause is gone. Never starts motion."""
        await self._group.reset_faults()
        return await self.read_axes()

    def _inside_limits(self, targets: Mapping[str, float]) -> None:
        for axis, value in targets.items():
            limits = self._limits.get(axis)
            if limits is None:
                raise CommandRejected(
                    f"no axis {axis!r}", code=OUT_OF_LIMITS, device=self._name, hint=f"axes: {', '.join(COUCH_AXES)}"
                )
            if not math.isfinite(value) or not limits.holds(value):
                unit = unit_of(axis)
                raise CommandRejected(
                    f"{axis} {value:g} {unit} is outside {limits.minimum:g} to {limits.maximum:g} {unit}",
                    code=OUT_OF_LIMITS,
                    device=self._name,
                    hint="set the patient up nearer to the isocentre",
                )

    def _may_move(self) -> None:
        self._group.healthy([self._view()])
        if self._node.quality() is not Quality.GOOD:
            raise DeviceError(
                f"values are {self._node.quality().value}", code=STALE, device=self._name, hint="restart the couch"
            )
        if self._view().state is DriveState.OPERATION_ENABLED or not self._node.word("brakes"):
            raise CommandRejected(
                "not at standstill with brakes applied", code=NOT_AT_STANDSTILL, device=self._name, hint="stop it first"
            )

    async def _move(self, wanted: Mapping[str, float], stops: int) -> None:
        target_words = [word for axis in COUCH_AXES for word in words_of_milli(wanted[axis])]
        await self._group.poll(stops)  # for the couch's token, which must be young
        await self._group.write_set_point(self._targets, target_words)
        if list(await self._node.read_back("targets", len(target_words))) != target_words:
            raise DeviceError("holds other targets than those sent", code=READ_BACK, device=self._name, hint="move again")
        await self._group.enable(stops)
        await self._group.take_set_point(stops)
        await self._watch(wanted, stops)
        await self._group.disable(stops)
        self._arrived(wanted)

    async def _watch(self, wanted: Mapping[str, float], stops: int) -> None:
        """Poll until the target is reached and every axis is near it; stuck when nothing moves for `PROGRESS_S`."""
        last_moved_ns = now_ns()
        before = self._axes()
        inside_since_ns: int | None = None
        while True:
            await asyncio.sleep(self._group.period_s)
            (view,) = await self._group.poll(stops)
            axes, at_ns = self._axes(), self._node.t_ns
            if self._node.life.moved_ns is None or at_ns - self._node.life.moved_ns > 3.2 * self._group.period_s * 1e9:
                raise DeviceError(
                    "answers with a counter that stands still", code=STALE, device=self._name, hint="it is frozen"
                )
            if any(abs(axes[axis] - before[axis]) > RESOLUTION for axis in COUCH_AXES):
                last_moved_ns, before = at_ns, axes
            if view.at_rest and view.state is DriveState.SWITCH_ON_DISABLED:
                raise DeviceError(
                    f"stopped on the way by a safety function of the drives: {self._far(axes, wanted) or 'at its target'}",
                    code=STOPPED_SAFELY,
                    device=self._name,
                    hint="see whether the motion permit is withheld or an emergency stop was pressed",
                )
            if view.statusword & Status.TARGET_REACHED and not self._far(axes, wanted):
                inside_since_ns = at_ns if inside_since_ns is None else inside_since_ns
                if at_ns - inside_since_ns >= IN_POSITION_S * 1e9:
                    return
            else:
                inside_since_ns = None
            if at_ns - last_moved_ns > PROGRESS_S * 1e9:
                raise DeviceError(
                    f"stands and has not arrived: {self._far(axes, wanted) or 'target not reported as reached'}",
                    code=STUCK,
                    device=self._name,
                    hint="is something in its way?",
                )

    def _arrived(self, wanted: Mapping[str, float]) -> None:
        far = self._far(self._axes(), wanted)
        if far:
            raise DeviceError(
                f"left its place while the brake was set: {far}", code=STUCK, device=self._name, hint="move again"
            )
        if not self._node.word("brakes"):
            raise DeviceError("arrived, but brake not set", code=NOT_BRAKED, device=self._name, hint="press the emergency stop")

    def _far(self, axes: Mapping[str, float], wanted: Mapping[str, float]) -> str:
        """The axes that are not near their targets, in words; empty when all are."""
        return ", ".join(
            f"{axis} {axes[axis]:.3f}, target {wanted[axis]:.3f}"
            for axis in COUCH_AXES
            if abs(axes[axis] - wanted[axis]) > tolerance_of(axis)
        )

    def _axes(self) -> dict[str, float]:
        return {axis: self._node.number("actuals", index) / 1000.0 for index, axis in enumerate(COUCH_AXES)}

    def _readings_of_axes(self) -> Mapping[str, Reading[float]]:
        quality, t_ns, simulated = self._node.quality(), self._node.t_ns, self._config.simulated
        return {
            axis: Reading(f"{self._name}.{axis}", value, unit_of(axis), t_ns, quality, simulated)
            for axis, value in self._axes().items()
        }

    def _view(self) -> DriveView:
        node = self._node
        braked = bool(node.word("brakes"))
        still = braked or self._still
        words = node.word("statusword"), node.word("error_code")
        return DriveView(node.unit, "the couch", *words, still, braked, node.token)

    async def _views(self) -> Sequence[DriveView]:
        await self._read()
        return [self._view()]

    async def _read(self) -> None:
        """Read the block; the couch tells no speed, so it stands when two polls show the same place."""
        before = self._axes() if self._node.words else {}
        await self._node.read()
        axes = self._axes()
        self._still = bool(before) and all(abs(axes[axis] - before[axis]) <= RESOLUTION for axis in COUCH_AXES)

    async def _background(self) -> None:
        if not self._moving:
            await self._node.read_quietly()

    def _pause_s(self) -> float:
        busy = bool(self._node.words) and not self._node.word("brakes")
        return self._group.period_s if busy else min(SLOW_POLL_S, self._config.deadline_ms / 2000.0)
