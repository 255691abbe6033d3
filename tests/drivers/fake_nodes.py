"""Small Modbus nodes for unit tests: registers by the interface document, the least behaviour that a driver can be tried on.

Not the plant: the simulated one lives in `simulators`, and drivers are tried on it in `test_drivers_on_plant`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from drivers.wire.framing import ILLEGAL_ADDRESS, Kind, ServerFramer
from drivers.wire.memory import MemoryLine

TOKEN = 14
STO, SBC, TORQUE_PROVEN = 1, 4, 32


def words32(value: int) -> list[int]:
    """A signed 32-bit integer as two registers."""
    return [value >> 16 & 0xFFFF, value & 0xFFFF]


def value32(words: Sequence[int]) -> int:
    """Two registers as a signed 32-bit integer."""
    value = words[0] << 16 | words[1]
    return value - 2**32 if value >= 2**31 else value


class FakeNode:
    """Registers 0 to 199, an identity, a counter that follows time unless `frozen` (or only it stands: `counter_stands`)."""

    def __init__(self, product: int, counter: int) -> None:
        self.registers = [0] * 200
        self.registers[0:4] = [0x1009, product, 1, 77]
        self.counter = counter
        self.cycle_s = 0.01
        self.frozen = False
        self.counter_stands = False
        self.silent = False
        self.reads = 0
        self.writes: list[tuple[float, int, tuple[int, ...]]] = []
        self.tokens: list[int] = []  # what came in front of what was written

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def read(self, register: int, count: int) -> list[int]:
        self.reads += 1
        if not self.frozen:
            self.update()
            if not self.counter_stands:
                cycles = self.cycles()
                self.registers[self.counter] = cycles & 0xFFFF
                if self.counter in (41, 47):
                    self.registers[self.counter + 1 : self.counter + 3] = words32(cycles)
        return self.registers[register : register + count]

    def cycles(self) -> int:
        return int(self.now_s() / self.cycle_s + 1)

    def write(self, register: int, values: Sequence[int]) -> None:
        if register == TOKEN:
            self.tokens.append(value32(values))
            register, values = register + 2, values[2:]
        self.writes.append((self.now_s(), register, tuple(values)))
        self.registers[register : register + len(values)] = values
        self.written(register)

    def update(self) -> None:
        """Bring the status registers up to now."""

    def written(self, register: int) -> None:
        """Act on what was written."""


class FakeRing:
    """Two drives and a load encoder on one ring that turns at constant speed, with faults to plant."""

    def __init__(self) -> None:
        self.angle_deg = 0.0
        self.drives = (FakeDrive(self, 0), FakeDrive(self, 1))
        self.encoder = FakeEncoder(self)
        self.nodes: dict[int, FakeNode] = {1: self.drives[0], 2: self.drives[1], 3: self.encoder}
        self.load_offset_deg = 0.0
        self.load_sign = 1.0
        self.axis_sign = 1.0
        self.slips_when_braked_deg = 0.0
        self.stops_short_deg = 0.0
        self.brake_works = True
        self._start_deg, self._start_s, self._target_deg = 0.0, 0.0, 0.0
        self.moving = False
        self.speed_deg_s = 3.0

    def position(self, now_s: float) -> float:
        if self.moving:
            travel = self._target_deg - self._start_deg
            length = max(abs(travel) - self.stops_short_deg, 0.0)
            done = min((now_s - self._start_s) * self.speed_deg_s, length)
            sign = (1.0 if travel > 0 else -1.0) * self.axis_sign
            self.angle_deg = self._start_deg + sign * done
            if done >= length:
                self.moving = False
        return self.angle_deg

    def start(self, target_deg: float, now_s: float) -> None:
        self._start_deg, self._start_s, self._target_deg = self.position(now_s), now_s, target_deg
        self.moving = True

    def halt(self, now_s: float) -> None:
        self.position(now_s)
        self.moving = False


STATUSWORDS = {"disabled": 0x40, "ready": 0x21, "on": 0x23, "enabled": 0x27, "quick": 0x07, "fault": 0x08}


class FakeDrive(FakeNode):
    """One drive: the CiA 402 states by the words of the standard, without delays."""

    def __init__(self, ring: FakeRing, index: int) -> None:
        super().__init__(0xD1, 41)
        self.ring = ring
        self.index = index
        self.state = "disabled"
        self.acknowledged = False
        self.sto = False
        self.error = 0
        self.deaf_to: set[int] = set()
        self.keeps_target = False

    def update(self) -> None:
        ring, now_s = self.ring, self.now_s()
        position = ring.position(now_s)
        braked = self.state in ("disabled", "ready", "on", "fault") and ring.brake_works
        word = STATUSWORDS[self.state] | 0x200
        if self.acknowledged:
            word |= 1 << 12
        if self.state == "enabled" and not ring.moving:
            word |= 1 << 10
        registers = self.registers
        registers[32] = word
        registers[33] = registers[17]
        registers[34:36] = words32(round(position * 1000))
        registers[36:38] = words32(round(ring.speed_deg_s * 1000) if ring.moving else 0)
        registers[39] = self.error
        registers[40] = (SBC if braked else 0) | (STO if self.sto else 0) | (TORQUE_PROVEN if self.state == "enabled" else 0)

    def written(self, register: int) -> None:
        if self.keeps_target and register <= 18:
            self.registers[18:20] = [0, 0]
        if register == 16 and self.registers[16] not in self.deaf_to:
            self.command(self.registers[16])

    def command(self, word: int) -> None:
        now_s = self.now_s()
        if self.state == "fault":
            if word & 0x80:
                self.state, self.error = "disabled", 0
            return
        if word & 0x0F == 0x02:
            self.ring.halt(now_s)
            self.state = "quick" if self.state in ("enabled", "quick") else "disabled"
            self.acknowledged = False
        elif word & 0x0F == 0x00:
            self.ring.halt(now_s)
            if self.state in ("enabled", "quick"):
                self.ring.angle_deg += self.ring.slips_when_braked_deg
            self.state = "disabled"
        elif word & 0x0F == 0x06:
            self.state = "ready" if self.state != "quick" else "quick"
        elif word & 0x0F == 0x07 and self.state != "disabled":
            if self.state == "enabled" and self.index == 0:
                self.ring.angle_deg += self.ring.slips_when_braked_deg
            self.state = "on" if not self.sto else "disabled"
        elif word & 0x0F == 0x0F and self.state in ("on", "enabled"):
            self.state = "enabled"
            if word & 0x10 and self.index == 0:
                targets = {value32(drive.registers[18:20]) for drive in self.ring.drives}
                if len(targets) == 1 and all(drive.state == "enabled" for drive in self.ring.drives):
                    self.acknowledged = True
                    self.ring.start(targets.pop() / 1000.0, now_s)
            elif not word & 0x10:
                self.acknowledged = False


class FakeEncoder(FakeNode):
    """The load encoder."""

    def __init__(self, ring: FakeRing) -> None:
        super().__init__(0xE1, 41)
        self.ring = ring
        self.valid = True

    def update(self) -> None:
        angle = self.ring.load_sign * self.ring.position(self.now_s()) + self.ring.load_offset_deg
        self.registers[32] = int(self.valid)
        self.registers[34:36] = words32(round(angle * 1000))


async def serve(line: MemoryLine, nodes: dict[int, FakeNode], kind: Kind = "rtu") -> None:
    """Answer on the server's end of a line, for ever."""
    framer = ServerFramer(kind, nodes.keys())
    while True:
        for request in framer.feed(await line.server.read()):
            node = nodes[request.unit]
            if node.silent:
                continue
            if request.fault or max(request.read_address + request.read_count, request.write_address) > 200:
                await line.server.write(framer.refuse(request, request.fault or ILLEGAL_ADDRESS))
                continue
            if request.write_values:
                node.write(request.write_address, request.write_values)
            registers = node.read(request.read_address, request.read_count) if request.read_count else ()
            await line.server.write(framer.answer(request, registers))


class FakeCouch(FakeNode):
    """A couch that arrives after `travel_s`, with faults to plant."""

    def __init__(self) -> None:
        super().__init__(0xC1, 47)
        self.state = "disabled"
        self.travel_s = 4.0
        self.actuals = [0.0] * 6
        self.stuck_axis: int | None = None
        self.sags_um = 0
        self.brake_works = True
        self._start = [0.0] * 6
        self._targets = [0.0] * 6
        self._start_s = 0.0
        self._acknowledged = False
        self.moving = False

    def update(self) -> None:
        if self.moving:
            share = min((self.now_s() - self._start_s) / self.travel_s, 1.0)
            for axis in range(6):
                if axis != self.stuck_axis:
                    self.actuals[axis] = self._start[axis] + share * (self._targets[axis] - self._start[axis])
            self.moving = share < 1.0
        word = STATUSWORDS[self.state] | (0x1000 if self._acknowledged else 0)
        if self.state == "enabled" and not self.moving:
            word |= 1 << 10
        self.registers[32] = word
        self.registers[34:46] = [w for value in self.actuals for w in words32(round(value))]
        self.registers[46] = int(self.brake_works and self.state in ("disabled", "ready", "on", "fault"))

    def written(self, register: int) -> None:
        if register != 16:
            return
        self.update()
        word = self.registers[16]
        if self.state == "fault":
            self.state, self.registers[33] = ("disabled", 0) if word & 0x80 else ("fault", self.registers[33])
        elif word & 0x0F == 0x02:
            self.moving, self.state = False, "quick" if self.state in ("enabled", "quick") else "disabled"
        elif word & 0x0F == 0x00:
            self.moving, self.state = False, "disabled"
        elif word & 0x0F == 0x06:
            self.state = "ready"
        elif word & 0x0F == 0x07:
            self.actuals[2] -= self.sags_um if self.state == "enabled" else 0
            self.state = "on"
        elif word & 0x0F == 0x0F:
            self.state = "enabled"
            self._acknowledged = bool(word & 0x10)
            if word & 0x10:
                self._start = list(self.actuals)
                self._targets = [float(value32(self.registers[18 + 2 * i : 20 + 2 * i])) for i in range(6)]
                self._start_s = self.now_s()
                self.moving = True


class FakeNozzle(FakeNode):
    """A nozzle that is where it was sent after `travel_s`."""

    def __init__(self) -> None:
        super().__init__(0x41, 41)
        self.travel_s = 3.0
        self.stuck = False
        self.fault = False
        self.snout_um = 500_000
        self.mask = 0
        self.barriers: int | None = None  # what the light barriers see, where it is not what the switches say
        self._since_s = -100.0
        self.registers[18:20] = words32(self.snout_um)

    def update(self) -> None:
        arrived = self.now_s() - self._since_s >= self.travel_s
        if arrived and not self.stuck:
            self.snout_um, self.mask = value32(self.registers[18:20]), self.registers[16]
        self.registers[32] = (1 if arrived else 2) | (4 if self.fault else 0)
        self.registers[33] = self.mask
        self.registers[37] = self.mask if self.barriers is None else self.barriers
        self.registers[34:36] = words32(self.snout_um)

    def written(self, register: int) -> None:
        self._since_s = self.now_s()


class FakeSafetyIO(FakeNode):
    """Remote I/O that keeps its pulses."""

    def __init__(self) -> None:
        super().__init__(0x51, 8)
        self.room_bits = 1 | 2 | 4 | 8
        self.contributions = 0
        self.pulses: list[tuple[float, int]] = []
        self.beats: list[tuple[float, int]] = []

    def update(self) -> None:
        self.registers[9:13] = [self.room_bits, self.contributions, 127, 2]
        self.registers[14:16] = words32(-90_000)
        self.registers[20:24] = [0, 1, 0, 5]

    def write(self, register: int, values: Sequence[int]) -> None:
        super().write(register, values)
        if register <= 128 < register + len(values):
            self.pulses.append((self.now_s(), self.registers[128]))
        if register <= 127 < register + len(values):
            self.beats.append((self.now_s(), self.registers[127]))


class FakeRelay(FakeNode):
    """The permit relay of the interlock system; `pulsing` is the daemon's life."""

    def __init__(self) -> None:
        super().__init__(0x52, 199)
        self.pulsing = True
        self.closed = True
        self.trips = 0
        self.first_out = 0
        self.evidence = [0, 0, 0, 0, 0xFFFF]

    def update(self) -> None:
        if self.pulsing:
            self.registers[16] = int(self.now_s() / 0.02) & 0xFFFF
        self.registers[17:25] = [4711, self.first_out, self.trips, *self.evidence]
        self.registers[32] = int(self.closed)
