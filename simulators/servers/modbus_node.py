"""A Modbus node of the plant: what can be read, what can be written, what is refused.

A node knows areas of registers, each made at once by one function, because a request costs tens of microseconds and there are
thousands in a run. Numbers of 32 bits must be written whole. Reserved registers inside an area read 0; everything else that
is not in the tables is "illegal data address", and so is writing what can only be read. Not responsible for frames
(`drivers.wire.framing`, the only thing shared with the drivers) nor for what the plant does.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

from drivers.wire.framing import ILLEGAL_ADDRESS, ILLEGAL_VALUE
from simulators.plant.kernel import Kernel

VENDOR = 0x1009
REVISION = 1
NS_PER_S = 1_000_000_000

COMMAND_AGE_NS = 200_000_000  # docs/wires.md, "Old commands"
COMMAND_TOO_OLD = 7  # Modbus "negative acknowledge"
TOKEN = 14  # a command token, two registers, in front of what is commanded

Words = Sequence[int]
Image = Callable[[], Words]


class ModbusRefusal(Exception):
    """A request that must be answered with an exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code}")
        self.code = code


def words32(value: int) -> tuple[int, int]:
    """A signed 32-bit number as two registers, high word first; clipped to what fits."""
    if not -0x8000_0000 <= value <= 0x7FFF_FFFF:
        value = 0x7FFF_FFFF if value > 0 else -0x8000_0000
    return value >> 16 & 0xFFFF, value & 0xFFFF


def words64(value: int) -> tuple[int, int, int, int]:
    """An unsigned 64-bit number as four registers, high word first."""
    return value >> 48 & 0xFFFF, value >> 32 & 0xFFFF, value >> 16 & 0xFFFF, value & 0xFFFF


def signed32(high: int, low: int) -> int:
    """Two registers as a signed 32-bit number."""
    value = high << 16 | low
    return value - 0x1_0000_0000 if value & 0x8000_0000 else value


def word16(value: int) -> int:
    """A signed 16-bit number as a register, clipped to what fits."""
    return max(-0x8000, min(value, 0x7FFF)) & 0xFFFF


class Numbers:
    """Numbers that follow one another in registers, packed all at once.

    Args:
        form: one letter per number, as of `struct`: H one register, i as of `words32`, Q as of `words64`.
    """

    __slots__ = ("_form", "_pack", "_unpack")

    def __init__(self, form: str) -> None:
        whole = struct.Struct(">" + form)
        self._form = form
        self._pack = whole.pack
        self._unpack = struct.Struct(f">{whole.size // 2}H").unpack

    def words(self, *values: int) -> Words:
        """The registers. What one letter cannot hold is clipped as those functions do; an H stays what it is."""
        try:
            return self._unpack(self._pack(*values))
        except struct.error:
            wide = {"H": lambda value: (value,), "i": words32, "Q": words64}
            return [word for letter, value in zip(self._form, values, strict=True) for word in wide[letter](value)]


class ModbusNode:
    """One node: identity, areas that can be read, one block that can be written.

    Args:
        kernel: plant time, for the liveness counter.
        product: product code.
        device: name of the device; its serial number is made from it.
        cycle_s: period of the liveness counter.
        written: first register of the writable block.
        initial: its contents at power-up; its length is the block's.
        pairs: registers of the block that hold the high word of a 32-bit number.

    Attributes:
        frozen: what it answered when it froze is what it answers (a planted fault); writes are acknowledged and lost.
        silent: it does not answer (a planted fault).
    """

    def __init__(
        self,
        kernel: Kernel,
        product: int,
        device: str,
        cycle_s: float,
        written: int,
        initial: Words,
        pairs: Sequence[int] = (),
    ) -> None:
        self._kernel = kernel
        self._cycle_ns = round(cycle_s * NS_PER_S)
        self._first = written
        self._block = list(initial)
        self._lows = frozenset(high + 1 for high in pairs)
        identity = (VENDOR, product, REVISION, zlib.crc32(device.encode()) & 0xFFFF)
        self._areas: list[tuple[int, int, Image]] = [(0, 4, lambda: identity)]
        if self._block:
            self._areas.append((written, written + len(self._block), lambda: self._block))
        self._snapshot: list[tuple[int, int, Image]] | None = None
        self._found: dict[tuple[int, int], tuple[Image, slice]] = {}  # where spans that were read before lie
        self.silent = False

    def add_area(self, first: int, length: int, image: Image) -> None:
        """Registers `first` on can be read; `image` makes all `length` of them."""
        self._areas.insert(0, (first, first + length, image))
        self._found.clear()

    @property
    def frozen(self) -> bool:
        """Whether it only repeats itself."""
        return self._snapshot is not None

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self._found.clear()
        if not value:
            self._snapshot = None
        elif self._snapshot is None:
            self._snapshot = [(first, end, self._constant(tuple(image()))) for first, end, image in self._areas]

    def read(self, register: int, count: int) -> list[int]:
        """Registers from `register` on. Raises ModbusRefusal when they are not all in one area."""
        self.heard()
        image, part = self._found.get((register, count)) or self._find(register, count)
        return list(image()[part])

    def write(self, register: int, values: Words) -> None:
        """Write registers. Raises ModbusRefusal when one is not writable, half a number, or means nothing."""
        self.heard()
        first = self._first
        end = register + len(values)
        if register < first or end > first + len(self._block) or register in self._lows or end in self._lows:
            raise ModbusRefusal(ILLEGAL_ADDRESS)
        if self._snapshot is not None:
            return
        before = self._block
        self._block = [*before[: register - first], *values, *before[end - first :]]
        try:
            self.accept(register, end)
        except (ValueError, ModbusRefusal) as error:
            self._block = before
            raise error if isinstance(error, ModbusRefusal) else ModbusRefusal(ILLEGAL_VALUE) from None

    def _find(self, register: int, count: int) -> tuple[Image, slice]:
        end = register + count
        for first, last, image in self._snapshot or self._areas:
            if first <= register and end <= last:
                found = self._found[register, count] = image, slice(register - first, end - first)
                return found
        raise ModbusRefusal(ILLEGAL_ADDRESS)

    def heard(self) -> None:
        """The node was addressed: its device's supervision wants to know."""

    def accept(self, register: int, end: int) -> None:
        """Act on registers `register` to `end - 1` of the block, already in place; ValueError refuses them."""

    def word(self, register: int) -> int:
        """A register of the writable block."""
        return self._block[register - self._first]

    def pair(self, register: int) -> int:
        """A signed 32-bit number of the writable block."""
        at = register - self._first
        return signed32(self._block[at], self._block[at + 1])

    @property
    def counter(self) -> int:
        """Liveness: +1 per device cycle."""
        return self._kernel.now_ns // self._cycle_ns & 0xFFFF

    @staticmethod
    def _constant(words: Words) -> Image:
        return lambda: words


class CommandedNode(ModbusNode):
    """A node whose device moves: registers from 14 on, of which 14 and 15 are the command token.

    The token is the device's own count of cycles as the client read it last. Only the device can tell how long a command was
    under way, and only by its own clock: a command without a token, or with one that is too old, is refused and changes
    nothing. The count has 32 bits: one of 16 bits comes round every 11 minutes, about as long as a network may keep a frame.

    Args:
        kernel, product, device, cycle_s: as for a node.
        initial: registers from 16 on at power-up.
        pairs: as for a node.
    """

    def __init__(
        self, kernel: Kernel, product: int, device: str, cycle_s: float, initial: Words, pairs: Sequence[int] = ()
    ) -> None:
        super().__init__(kernel, product, device, cycle_s, TOKEN, (0, 0, *initial), (TOKEN, *pairs))
        # The count stands for the time since its cycle began: a command of n cycles may be almost n + 1 cycles old.
        self._age_max = COMMAND_AGE_NS // self._cycle_ns - 1

    @property
    def cycles(self) -> tuple[int, int]:
        """The device's count of cycles, high word first."""
        count = self._kernel.now_ns // self._cycle_ns
        return count >> 16 & 0xFFFF, count & 0xFFFF

    def require_young(self, register: int) -> None:
        """Refuse a frame that begins at `register` unless it carries a token, and a young one."""
        token = self.word(TOKEN) << 16 | self.word(TOKEN + 1)
        age = (self._kernel.now_ns // self._cycle_ns - token) & 0xFFFF_FFFF
        if register != TOKEN or age > self._age_max:
            raise ModbusRefusal(COMMAND_TOO_OLD)
