"""One Modbus node with a status block and a counter: reading it, its life, its connection.

What couch, nozzle, safety I/O and permit relay have in common. Not responsible for what the block means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drivers.devices.connect import Connection, Liveness, check_identity, deadline_ns, prove_alive, standing
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError, CommunicationError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Quality
from drivers.wire.codecs.registers import int32, uint64
from drivers.wire.modbus import ModbusLine


class Node:
    """A node and its last status block.

    Args:
        name: device, for messages and events.
        config: its entry in the facility file (one node).
        client: the line.
        table: its registers.
        block: names of the first and the last register of the status block (the last one is a single register); `cycles`,
            where the table has it, follows.
        bus: where the connection is told.
        counter: name of the liveness register inside the block.

    Attributes:
        words: the last block; empty before the first.
        t_ns: loop time at which it was read.
        life: liveness by the counter.
    """

    def __init__(
        self,
        name: str,
        config: Device,
        client: ModbusLine,
        table: Mapping[str, int],
        block: tuple[str, str],
        bus: EventBus,
        *,
        counter: str = "counter",
    ) -> None:
        self.unit = config.unit_ids[0]
        self.first = table[block[0]]
        self._cycles = table["cycles"] - self.first if "cycles" in table else None
        self.count = table[block[1]] + 1 - self.first if self._cycles is None else self._cycles + 2
        self.words: tuple[int, ...] = ()
        self.t_ns = 0
        self.life = Liveness(deadline_ns(config))
        self.connection = Connection(name, bus, self.establish)
        self._name = name
        self._config = config
        self._client = client
        self._table = table
        self._counter = table[counter] - self.first

    async def read(self) -> tuple[int, ...]:
        """Read the status block now. Raises CommunicationError when the node is silent."""
        try:
            words = await self._client.read(self.unit, self.first, self.count)
        except CommunicationError as error:
            self.connection.lost(error)
            raise
        self.take(words)
        self.judge()
        return words

    def judge(self) -> bool:
        """Whether the node lives by its last block; one that stands still too long is lost, like one that is silent."""
        still_ns = self.life.still_ns(self.t_ns)
        if still_ns <= self.life.deadline_ns:
            return True
        self.connection.lost(standing(self._name, still_ns))
        return False

    async def read_quietly(self) -> None:
        """Read the block unless the connection is down; a failure has been told when this returns."""
        if self.connection.up:
            try:
                await self.read()
            except BeamlineError:
                return

    def take(self, words: Sequence[int]) -> bool:
        """Keep a block that was read; True when the counter has moved."""
        self.words = tuple(words)
        self.t_ns = now_ns()
        return self.life.see(words[self._counter], self.t_ns)

    @property
    def token(self) -> tuple[int, ...]:
        """The node's own cycles as last read, two registers, which it wants back with a command; empty when it tells none."""
        at = self._cycles
        return () if at is None else self.words[at : at + 2]

    async def command(self, register: str, values: Sequence[int], within_s: float) -> None:
        """Write registers from the named one on, once, in one frame with the token in front of them where there is one.

        Raises:
            CommunicationError: no sound answer, or it waited longer than `within_s` for the line.
            DeviceError: refused, as too old for example.
        """
        token = self.token
        await self._client.write(self.unit, self._table[register] - len(token), [*token, *values], within_s=within_s)

    async def read_back(self, register: str, count: int) -> tuple[int, ...]:
        """Read registers outside the block."""
        return await self._client.read(self.unit, self._table[register], count)

    def word(self, register: str) -> int:
        """A single register of the last block, by name."""
        return self.words[self._table[register] - self.first]

    def number(self, register: str, index: int = 0) -> int:
        """A signed 32-bit value of the last block; `index` counts values from the named register on."""
        return int32(self.words, self._table[register] - self.first + 2 * index)

    def total(self, register: str) -> int:
        """An unsigned 64-bit value of the last block."""
        return uint64(self.words, self._table[register] - self.first)

    def quality(self) -> Quality:
        """Quality of the last block, now."""
        if not self.words:
            return Quality.DISCONNECTED
        if not self.connection.up:
            return self.connection.quality_down
        return self.life.quality(now_ns())

    async def establish(self) -> None:
        """Open the line, check the identity, read the block, see the counter move."""
        await self._client.connect()
        await check_identity(self._name, self._config, self._client, self._table["identity"])
        self.life.restart()

        async def poll() -> None:
            self.take(await self._client.read(self.unit, self.first, self.count))

        await poll()
        first_ns = self.t_ns
        await prove_alive(self._name, poll, lambda: (self.life.moved_ns or 0) > first_ns, self._config.deadline_ms / 1000.0)
