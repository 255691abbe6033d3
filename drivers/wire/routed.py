"""Several Modbus lines behind one face: which line a node hangs on is a matter of wiring, and no business of its driver.

On a rig one node of a device (drive A of a ring) may have a tty of its own while its sisters stay on the shared line. Every
error is that of the line concerned and names it. Not responsible for what nodes mean, nor for choosing lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from drivers.hal.errors import BeamlineError, ConfigError
from drivers.wire.modbus import LineCounts, ModbusLine

NO_LINE = 1105


class RoutedClient:
    """Dispatches by node number; fulfils `drivers.wire.modbus.ModbusLine`.

    Args:
        name: for messages of its own, for example ``"G1-gantry-lines"``.
        lines: line by node number; several nodes may share one.
    """

    def __init__(self, name: str, lines: Mapping[int, ModbusLine]) -> None:
        self._name = name
        self._of_unit = dict(lines)
        self._lines = list({id(line): line for line in lines.values()}.values())

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

    @property
    def counts(self) -> LineCounts:
        """What happened on all its lines since the start."""
        totals = LineCounts()
        for line in self._lines:
            for field in fields(LineCounts):
                setattr(totals, field.name, getattr(totals, field.name) + getattr(line.counts, field.name))
        return totals

    @property
    def is_open(self) -> bool:
        """Whether all its lines are open."""
        return all(line.is_open for line in self._lines)

    def line(self, unit: int) -> ModbusLine:
        """The line of a node. Raises ConfigError when it has none."""
        line = self._of_unit.get(unit)
        if line is None:
            raise ConfigError(
                f"node {unit} is on no line; nodes with a line: {', '.join(map(str, sorted(self._of_unit))) or 'none'}",
                code=NO_LINE,
                device=self._name,
                hint="name an endpoint for it, or for the device as a whole",
            )
        return line

    async def connect(self) -> None:
        """Open every line that is not open, all at once.

        Raises:
            CommunicationError: of the first line where nobody is; those that could be opened stay open.
        """
        results = await asyncio.gather(*(line.connect() for line in self._lines), return_exceptions=True)
        for error in sorted((r for r in results if r is not None), key=lambda r: isinstance(r, BeamlineError)):
            raise error  # one that nobody foresaw goes before any that were

    async def close(self) -> None:
        """Let go of every line."""
        await asyncio.gather(*(line.close() for line in self._lines))

    async def read(self, unit: int, address: int, count: int) -> tuple[int, ...]:
        """Read holding registers of a node; errors as of `ModbusClient.read`."""
        return await self.line(unit).read(unit, address, count)

    async def write(
        self, unit: int, address: int, values: Sequence[int], *, urgent: bool = False, within_s: float | None = None
    ) -> None:
        """Write registers of a node, once; errors as of `ModbusClient.write`."""
        await self.line(unit).write(unit, address, values, urgent=urgent, within_s=within_s)

    async def read_write(
        self,
        unit: int,
        read: tuple[int, int],
        write_address: int,
        values: Sequence[int],
        *,
        guard: Callable[[], bool] | None = None,
    ) -> tuple[int, ...]:
        """Write, then read, in one transaction, once; errors as of `ModbusClient.read_write`."""
        return await self.line(unit).read_write(unit, read, write_address, values, guard=guard)
