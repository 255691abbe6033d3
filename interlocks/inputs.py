"""What the interlock system sees: the register image of the room safety node, decoded into samples with quality and age.

Written from docs/wires.md ("Modbus TCP, one per room: ROOM-safety"), sharing no code with any driver or server. Age is measured
by the plant's own counter: registers that are answered but no longer alive grow old. Not responsible for how the registers
are fetched (`modbus`), nor for what a value means (`conditions`, `engine`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

VENDOR, PRODUCT = 0x1009, 0x51  # registers 0 and 1 of the room safety node
IMAGE_BLOCKS = ((0, 4), (8, 30), (128, 7))  # (first register, count): what has to be read
IMAGE_SIZE = 135
COUNTER_REGISTER = 8


class Sample(NamedTuple):
    """One input at one time."""

    value: int
    good: bool  # quality: the image was whole, of the right node, and its counter ran forward
    t_ns: int  # when the plant was last seen alive
    seq: int  # the plant's counter, as evidence


class Signal(NamedTuple):
    """Where an input stands in the image. With a mask the value is 0 or 1."""

    register: int
    words: int = 1  # high word first
    mask: int = 0
    signed: bool = False


SIGNALS: Mapping[str, Signal] = {
    "door_a_closed": Signal(9, mask=1),
    "door_b_closed": Signal(9, mask=2),
    "search_complete": Signal(9, mask=4),
    "estop_healthy": Signal(9, mask=8),
    "lamp_lit": Signal(9, mask=16),
    "stopper_closed": Signal(9, mask=32),
    "beam_present": Signal(9, mask=64),
    "permit_a": Signal(10, mask=1),
    "permit_b": Signal(10, mask=2),
    "permit_r": Signal(10, mask=4),
    "beam_enabled": Signal(10, mask=8),
    "chain_estop": Signal(11, mask=1),
    "chain_door_search": Signal(11, mask=2),
    "chain_dose1": Signal(11, mask=4),
    "chain_dose2": Signal(11, mask=8),
    "chain_standstill": Signal(11, mask=16),
    "chain_torque_off": Signal(11, mask=32),
    "chain_quench": Signal(11, mask=64),
    "search_state": Signal(12),
    "ring_angle_mdeg": Signal(14, 2, signed=True),
    "motor_angle_mdeg": Signal(16, 2, signed=True),
    "standstill": Signal(18),
    "counts1": Signal(20, 4),
    "counts2": Signal(24, 4),
    "spot_error_um": Signal(28, 2, signed=True),
    "magnet_deviation_ppm": Signal(30, 2, signed=True),
    "species_token": Signal(32, 2),
    "signal_per_ion_permille": Signal(34, 2, signed=True),
    "monitor1_hv": Signal(36, mask=1),
    "monitor1_fresh": Signal(36, mask=2),
    "monitor2_hv": Signal(36, mask=4),
    "monitor2_fresh": Signal(36, mask=8),
    "service_mode": Signal(37),
    "room_token": Signal(129),
    "preset_angle_mdeg": Signal(130, 2, signed=True),
    "preset_species_token": Signal(132, 2),
    "armed": Signal(134),
}


def gather(read: Callable[[int, int], Sequence[int]]) -> list[int]:
    """Read the image block by block with `read(register, count)`; registers between the blocks are 0."""
    image = [0] * IMAGE_SIZE
    for first, count in IMAGE_BLOCKS:
        block = list(read(first, count))
        if len(block) != count:
            return []  # decoded as bad quality
        image[first : first + count] = block
    return image


def value_of(signal: Signal, image: Sequence[int]) -> int:
    """The integer a signal has in an image."""
    if signal.mask:
        return 1 if image[signal.register] & signal.mask else 0
    value = 0
    for word in image[signal.register : signal.register + signal.words]:
        value = value << 16 | word
    if signal.signed and value >> (16 * signal.words - 1):
        value -= 1 << (16 * signal.words)
    return value


class Image(Mapping[str, Sample]):
    """One reading of the node: samples by name, all of one quality and one age, and which of them differ from the last reading.

    Attributes:
        now: value of every signal.
        changed: names whose value differs from that in the image before; all of them in the first.
        good, t_ns, seq: see `Sample`.
        number: of the image at its reader, from 1.
    """

    __slots__ = ("changed", "good", "now", "number", "seq", "t_ns")

    def __init__(self, now: dict[str, int], changed: tuple[str, ...], good: bool, t_ns: int, seq: int, number: int) -> None:
        self.now, self.changed, self.number = now, changed, number
        self.good, self.t_ns, self.seq = good, t_ns, seq

    def __getitem__(self, name: str) -> Sample:
        return Sample(self.now[name], self.good, self.t_ns, self.seq)

    def __iter__(self) -> Iterator[str]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


PARTS = ((9, 13), (14, 18), (18, 38), (128, 135))  # (first, end) of registers that change together, if at all
AT: dict[int, list[tuple[str, Signal]]] = {}  # signals by every register that they take
for _name, _signal in SIGNALS.items():
    for _register in range(_signal.register, _signal.register + _signal.words):
        AT.setdefault(_register, []).append((_name, _signal))


class ImageReader:
    """Turns images into samples. Keeps the last image, to see the counter run and to decode only what changed."""

    def __init__(self) -> None:
        self._image: list[int] = []
        self._values: dict[str, int] = dict.fromkeys(SIGNALS, 0)
        self._alive_ns: int | None = None
        self._number = 0

    def decode(self, image: Sequence[int], now_ns: int) -> Image:
        """Samples of all signals. An image that is short, of another node, or whose counter ran backwards is of bad quality.

        While the counter stands still the samples keep the time of its last step, so they become stale.
        """
        self._number += 1
        old, new = self._image, list(image)
        sound = len(new) == IMAGE_SIZE and new[0] == VENDOR and new[1] == PRODUCT
        parts = [part for part in PARTS if old[slice(*part)] != new[slice(*part)]] if sound else []
        news = [at for part in parts for at in range(*part) if at in AT and (not old or old[at] != new[at])]
        try:
            array("H", [new[register] for register in (COUNTER_REGISTER, *news)])  # what is no register is no news
        except (OverflowError, TypeError, IndexError):
            sound = False
        if not sound:
            alive_ns = now_ns if self._alive_ns is None else self._alive_ns
            return Image(self._values, (), False, alive_ns, 0, self._number)
        self._image = new
        seq = new[COUNTER_REGISTER]
        steps = (seq - old[COUNTER_REGISTER]) & 0xFFFF if old else 1
        if steps or self._alive_ns is None:
            self._alive_ns = now_ns
        good = steps < 0x8000  # more than half way round is a step back: the node restarted, or an old answer was replayed
        now = {name: value_of(signal, new) for register in news for name, signal in AT[register]}
        changed = tuple([name for name, value in now.items() if value != self._values[name] or not old])
        self._values = {**self._values, **now}
        return Image(self._values, changed, good, self._alive_ns, seq, self._number)
