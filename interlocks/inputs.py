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
# (first register, count): what has to be read. Presets before grants: the first grant of a beam comes after its presets.
IMAGE_BLOCKS = ((0, 4), (127, 11), (8, 73))
WIRE_SIZE = 138
OWN_FIRST = 140  # from here on: what this system worked out itself, as if the node had shown it (`plan_watch`, `proof`)
IMAGE_SIZE = 166
NO_ANGLE = 0x7FFFFFFF  # plan_angle_mdeg when there is no plan to hold anything against
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


def _bits(register: int, names: str, prefix: str = "") -> dict[str, Signal]:
    return {prefix + name: Signal(register, mask=1 << i) for i, name in enumerate(names.split())}


def _numbers(register: int, names: str) -> dict[str, Signal]:
    """Numbers that follow one another from a register on: `name:words`, with an s if signed; one word where it says nothing."""
    found: dict[str, Signal] = {}
    for name, _, form in (told.partition(":") for told in names.split()):
        found[name] = Signal(register, int(form.rstrip("s") or 1), signed=form.endswith("s"))
        register += found[name].words
    return found


SIGNALS: Mapping[str, Signal] = {
    **_bits(9, "door_a_closed door_b_closed search_complete estop_healthy lamp_lit stopper_closed beam_present"),
    **_bits(10, "permit_a permit_b permit_r beam_enabled motion_permit"),
    **_bits(11, "estop door_search dose1 dose2 standstill torque_off quench beam_off collision", "chain_"),
    **_numbers(12, "search_state"),
    **_numbers(14, "ring_angle_mdeg:2s motor_angle_mdeg:2s standstill"),
    **_numbers(20, "counts1:4 counts2:4 spot_error_um:2s magnet_deviation_ppm:2s species_token:2 signal_per_ion_permille:2s"),
    **_bits(36, "monitor1_hv monitor1_fresh monitor2_hv monitor2_fresh"),
    **_numbers(37, "service_mode"),
    **_numbers(38, "granted_field:4 granted_row:2 granted_layer_number granted_layer:4 granted_plan:2 granted_beam"),
    "stopper_asked": Signal(52, mask=4),
    "stopper_confirmed": Signal(52, mask=4 << 8),
    **_numbers(53, "beam_off_level residual_counts:2"),
    **_numbers(56, "couch_lateral_um:2s couch_longitudinal_um:2s couch_vertical_um:2s nozzle_switches nozzle_barriers"),
    **_bits(64, "collision_free vacuum_good power_good"),
    **_numbers(65, "flow_a_permille flow_b_permille flow_c_permille"),
    **_numbers(68, "coil_margin_a_mk:2s coil_margin_b_mk:2s coil_margin_c_mk:2s area_dose_rate:2"),
    **_numbers(76, "unit2_state unit2_field_ceiling:2 unit2_spot_ceiling:2"),
    **_numbers(127, "heartbeat"),
    **_numbers(129, "room_token preset_angle_mdeg:2s preset_species_token:2 armed preset_plan:2 preset_beam"),
    **_numbers(140, "plan_known plan_angle_mdeg:2s plan_species_token:2 plan_field_ceiling:4 plan_layer_ceiling:4"),
    **_numbers(153, "plan_row_ceiling:2 granted_since_armed:4 plan_field_ceiling2:2 plan_spot_ceiling2:2"),
    **_numbers(163, "proof_age_s:2 pulse_gap_ms"),
}


def gather(read: Callable[[int, int], Sequence[int]]) -> list[int]:
    """Read the image block by block with `read(register, count)`; registers between the blocks are 0."""
    image = [0] * WIRE_SIZE
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

    def __init__(self, now: dict[str, int], changed: tuple[str, ...], good: bool, t_ns: int, seq: int, number: int) -> None:
        self.now, self.changed, self.number = now, changed, number
        self.good, self.t_ns, self.seq = good, t_ns, seq

    def __getitem__(self, name: str) -> Sample:
        return Sample(self.now[name], self.good, self.t_ns, self.seq)

    def __iter__(self) -> Iterator[str]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


# (first, end) of registers that change together, if at all
PARTS = ((9, 13), (14, 18), (18, 38), (38, 52), (52, 68), (68, 81), (127, 138), (140, 166))
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
