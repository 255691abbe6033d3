"""The nozzle's moving parts: snout and range shifters, commanded by position and mask, proven by read-back.

Not responsible for which range shifter a plan needs. Slabs are known by the ids of the facility file, in its order (bit 0
first).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from enum import IntFlag

from drivers.devices.connect import Poller
from drivers.devices.drive_group import COMMAND_AGE_S
from drivers.devices.node import Node
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device, Room
from drivers.hal.reading import Quality, Reading
from drivers.wire.codecs.registers import words_of_milli
from drivers.wire.modbus import ModbusLine

IN_POSITION_MM = 0.5  # assumed
SET_UP_TIMEOUT_S = 60.0  # assumed: 450 mm at 20 mm/s take 24 s
SLOW_POLL_S = 1.0
POLL_DEADLINE_MS = 200.0

FAULT = 3301
NOT_ARRIVED = 3303
STALE = 3306
SENSORS_DIFFER = 3308
OUT_OF_LIMITS = 4001
BUSY = 4002
NO_SUCH_SHIFTER = 4005


class NozzleStatus(IntFlag):
    """Bits of the nozzle's status register."""

    IN_POSITION = 1
    MOVING = 2
    FAULT = 4


class Nozzle:
    """`Snout` of a room.

    Args:
        name: device, for example ``"G1-nozzle"``.
        config: its entry in the facility file.
        room: snout range and range shifters.
        client: the room's motion line.
        registers: register table ``nozzle``.
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
        self._limits = room.nozzle
        self._ids = tuple(shifter.id for shifter in room.nozzle.range_shifters)
        self._bus = bus
        table = registers["nozzle"]
        self._gap = (0,) * (table["snout_target"] - table["shifter_mask"] - 1)
        self._node = Node(name, config, client, table, ("status", "counter"), bus)
        self._period_s = 0.4 * (config.poll_deadline_ms or POLL_DEADLINE_MS) / 1000.0
        self._poller = Poller(name, bus, self._background, self._pause_s)
        self._declared: tuple[str, ...] = ()
        self._moving = False

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    async def connect(self) -> None:
        """Open the line, check who answers, see the counter move, read the state."""
        await self._node.connection.open()
        self._poller.start()

    async def close(self) -> None:
        """Stop polling."""
        await self._poller.stop()
        await self._node.connection.close()

    def readings(self) -> Sequence[Reading[object]]:
        """Snout position, range shifters in the beam, ripple filter, as last read; empty before the first."""
        if not self._node.words:
            return ()
        quality, t_ns, simulated = self._node.quality(), self._node.t_ns, self._config.simulated
        values: tuple[tuple[str, object, str], ...] = (
            ("snout", self._snout_mm(), "mm"),
            ("range_shifters", self._inserted(), ""),
            ("ripple_filter", self._node.word("ripple_filter"), ""),
        )
        return [Reading(f"{self._name}.{n}", v, u, t_ns, quality, simulated) for n, v, u in values]

    @property
    def shifter_mask(self) -> int:
        """Range shifters in the beam as their switches last said, bit per slab; 0 before the first reading."""
        return self._node.word("shifter_mask_actual") if self._node.words else 0

    async def read_set_up(self) -> tuple[Reading[float], tuple[str, ...]]:
        """Snout position and the range shifters in the beam, read now.

        Raises:
            DeviceError: switches and light barriers of the range shifters differ (3308).
            CommunicationError: silent.
        """
        await self._node.read()
        self._sensors_agree()
        return self._set_up()

    async def set_up(self, snout_mm: float | None, range_shifters: Sequence[str]) -> None:
        """Bring the snout to a position and exactly these range shifters into the beam; returns when both are read back.

        Where the room takes any range shifter (research), an id that is not in the facility file is one mounted by hand: it is
        declared in an event and named by `read_set_up`, but nothing can prove it.

        Raises:
            CommandRejected: snout outside its range, unknown range shifter, or a set-up is under way.
            DeviceError: fault, frozen, or not in position in time.
            CommunicationError: silent.
        """
        mask, declared = self._mask(range_shifters)
        if snout_mm is not None and not (math.isfinite(snout_mm) and self._limits.snout_mm.holds(snout_mm)):
            low, high = self._limits.snout_mm.minimum, self._limits.snout_mm.maximum
            raise CommandRejected(
                f"snout {snout_mm:g} mm is outside {low:g} to {high:g} mm", code=OUT_OF_LIMITS, device=self._name
            )
        if not self._node.connection.up:
            raise self._node.connection.unavailable()
        if self._moving:
            raise CommandRejected("a set-up is under way", code=BUSY, device=self._name)
        self._moving = True
        try:
            await self._node.read()
            if self._node.quality() is not Quality.GOOD:
                raise DeviceError(f"values are {self._node.quality().value}", code=STALE, device=self._name)
            if not self._is_set(snout_mm, mask):
                self._bus.emit(self._name, "motion.start", snout_mm=snout_mm, range_shifters=list(range_shifters))
                await self._move(snout_mm, mask)
                self._bus.emit(self._name, "motion.end", snout_mm=round(self._snout_mm(), 3))
        finally:
            self._moving = False
        if declared and declared != self._declared:
            self._bus.emit(self._name, "accessory.declared", range_shifters=list(declared))
        self._declared = declared

    def _mask(self, range_shifters: Sequence[str]) -> tuple[int, tuple[str, ...]]:
        """Bits of the slabs of this nozzle, and the ids mounted by hand."""
        mask, declared = 0, []
        for shifter in range_shifters:
            if shifter in self._ids:
                mask |= 1 << self._ids.index(shifter)
            elif self._limits.range_shifters_any:
                declared.append(shifter)
            else:
                known = ", ".join(self._ids) or "none"
                raise CommandRejected(
                    f"no range shifter {shifter!r}", code=NO_SUCH_SHIFTER, device=self._name, hint=f"installed: {known}"
                )
        return mask, tuple(declared)

    def _words(self, snout_mm: float | None, mask: int) -> str:
        wanted = "" if snout_mm is None else f", wanted {snout_mm} mm"
        shifters = self._node.word("shifter_mask_actual")
        return f"snout {self._snout_mm():.2f} mm{wanted}; range shifters {shifters:#x}, wanted {mask:#x}"

    async def _move(self, snout_mm: float | None, mask: int) -> None:
        node = self._node
        if snout_mm is not None and abs(self._snout_mm() - snout_mm) > IN_POSITION_MM / 10.0:
            await node.command("shifter_mask", [mask, *self._gap, *words_of_milli(snout_mm)], COMMAND_AGE_S)
        elif node.word("shifter_mask_actual") != mask:
            await node.command("shifter_mask", [mask], COMMAND_AGE_S)
        deadline_ns = now_ns() + round(SET_UP_TIMEOUT_S * 1e9)
        while True:
            await node.read()
            if node.word("status") & NozzleStatus.FAULT:
                raise DeviceError(
                    f"the nozzle reports a fault: status {node.word('status'):#06x}; it reads {self._words(snout_mm, mask)}",
                    code=FAULT,
                    device=self._name,
                    hint="it does not say which: motion is withheld (see the interlocks), nothing spoke to it for 200 ms (load"
                    " of the computer, the line), or something is in its way; look at the nozzle, then send it again",
                )
            if node.life.quality(now_ns()) is not Quality.GOOD:
                raise DeviceError("answers with a counter that stands still", code=STALE, device=self._name)
            if self._is_set(snout_mm, mask):
                self._sensors_agree()
                return
            if now_ns() >= deadline_ns:
                raise DeviceError(
                    f"not set up within {SET_UP_TIMEOUT_S:g} s: {self._words(snout_mm, mask)}",
                    code=NOT_ARRIVED,
                    device=self._name,
                    hint="look for an obstacle",
                )
            await asyncio.sleep(self._period_s)

    def _is_set(self, snout_mm: float | None, mask: int) -> bool:
        status = NozzleStatus(self._node.word("status") & 7)
        return (
            NozzleStatus.IN_POSITION in status
            and NozzleStatus.MOVING not in status
            and self._node.word("shifter_mask_actual") == mask
            and (snout_mm is None or abs(self._snout_mm() - snout_mm) <= IN_POSITION_MM)
        )

    def _sensors_agree(self) -> None:
        """A position is proven by two sensors on different parts: the switch of a slab alone may lie."""
        node = self._node
        switches, barriers = node.word("shifter_mask_actual"), node.word("shifter_mask_seen")
        if switches != barriers and not node.word("status") & NozzleStatus.MOVING:
            raise DeviceError(
                f"switches show range shifters {switches:#x} in the beam, light barriers {barriers:#x}",
                code=SENSORS_DIFFER,
                device=self._name,
                hint="look into the nozzle: a slab is not where its switch says",
            )

    def _set_up(self) -> tuple[Reading[float], tuple[str, ...]]:
        snout = Reading(
            f"{self._name}.snout", self._snout_mm(), "mm", self._node.t_ns, self._node.quality(), self._config.simulated
        )
        return snout, (*self._inserted(), *self._declared)

    def _snout_mm(self) -> float:
        return self._node.number("snout") / 1000.0

    def _inserted(self) -> tuple[str, ...]:
        mask = self._node.word("shifter_mask_actual")
        return tuple(shifter for bit, shifter in enumerate(self._ids) if mask >> bit & 1)

    async def _background(self) -> None:
        if not self._moving:
            await self._node.read_quietly()

    def _pause_s(self) -> float:
        busy = bool(self._node.words) and bool(self._node.word("status") & NozzleStatus.MOVING)
        return self._period_s if busy else min(SLOW_POLL_S, self._config.deadline_ms / 2000.0)
