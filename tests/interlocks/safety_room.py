"""A room as the safety node shows it, in registers (written from docs/wires.md), with the relay of contribution B.

Used by the interlock tests only; shares no code with the decoder under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlocks.daemon import InterlockNode
from interlocks.matrix import Limits, load

MS = 1_000_000
LIMITS = load()

# name: (register, words) or (register, bit)
BITS = {
    "door_a_closed": (9, 1),
    "door_b_closed": (9, 2),
    "search_complete": (9, 4),
    "estop_healthy": (9, 8),
    "lamp_lit": (9, 16),
    "stopper_closed": (9, 32),
    "beam_present": (9, 64),
    "permit_a": (10, 1),
    "permit_b": (10, 2),
    "permit_r": (10, 4),
    "beam_enabled": (10, 8),
    "motion_permit": (10, 16),
    "chain_estop": (11, 1),
    "chain_door_search": (11, 2),
    "chain_dose1": (11, 4),
    "chain_dose2": (11, 8),
    "chain_standstill": (11, 16),
    "chain_torque_off": (11, 32),
    "chain_quench": (11, 64),
    "chain_beam_off": (11, 128),
    "chain_collision": (11, 256),
    "stopper_asked": (52, 4),
    "stopper_confirmed": (52, 1024),
    "collision_free": (64, 1),
    "vacuum_good": (64, 2),
    "power_good": (64, 4),
    "monitor1_hv": (36, 1),
    "monitor1_fresh": (36, 2),
    "monitor2_hv": (36, 4),
    "monitor2_fresh": (36, 8),
}
NUMBERS = {
    "search_state": (12, 1),
    "ring_angle_mdeg": (14, 2),
    "motor_angle_mdeg": (16, 2),
    "standstill": (18, 1),
    "counts1": (20, 4),
    "counts2": (24, 4),
    "spot_error_um": (28, 2),
    "magnet_deviation_ppm": (30, 2),
    "species_token": (32, 2),
    "signal_per_ion_permille": (34, 2),
    "service_mode": (37, 1),
    "heartbeat": (127, 1),
    "beam_off_level": (53, 1),
    "residual_counts": (54, 2),
    "couch_lateral_um": (56, 2),
    "couch_longitudinal_um": (58, 2),
    "couch_vertical_um": (60, 2),
    "nozzle_switches": (62, 1),
    "nozzle_barriers": (63, 1),
    "flow_a_permille": (65, 1),
    "flow_b_permille": (66, 1),
    "flow_c_permille": (67, 1),
    "coil_margin_a_mk": (68, 2),
    "coil_margin_b_mk": (70, 2),
    "coil_margin_c_mk": (72, 2),
    "area_dose_rate": (74, 2),
    "unit2_state": (76, 1),
    "unit2_field_ceiling": (77, 2),
    "unit2_spot_ceiling": (79, 2),
    "room_token": (129, 1),
    "preset_angle_mdeg": (130, 2),
    "preset_species_token": (132, 2),
    "armed": (134, 1),
    "granted_field": (38, 4),
    "granted_row": (42, 2),
    "granted_layer_number": (44, 1),
    "granted_layer": (45, 4),
    "granted_plan": (49, 2),
    "granted_beam": (51, 1),
    "preset_plan": (135, 2),
    "preset_beam": (137, 1),
    "plan_known": (140, 1),
    "plan_angle_mdeg": (141, 2),
    "plan_species_token": (143, 2),
    "plan_field_ceiling": (145, 4),
    "plan_layer_ceiling": (149, 4),
    "plan_row_ceiling": (153, 2),
    "granted_since_armed": (155, 4),
    "plan_field_ceiling2": (159, 2),
    "plan_spot_ceiling2": (161, 2),
    "proof_age_s": (163, 2),
    "pulse_gap_ms": (165, 1),
}
WIRE_SIZE = 138  # what the node shows; the rest is the interlock system's own
CARBON = 6012
SAFE = {
    **dict.fromkeys(BITS, 1),
    "beam_present": 0,
    "permit_b": 0,
    "permit_r": 0,
    "beam_enabled": 0,
    "motion_permit": 0,
    "stopper_asked": 0,
    "stopper_confirmed": 0,
    "search_state": 2,
    "ring_angle_mdeg": -30_000,
    "motor_angle_mdeg": -30_020,
    "standstill": 1,
    "counts1": 123_456_789_012,
    "counts2": 123_456_700_000,
    "spot_error_um": 150,
    "magnet_deviation_ppm": -40,
    "species_token": CARBON,
    "signal_per_ion_permille": 1003,
    "service_mode": 0,
    "heartbeat": 0,
    "beam_off_level": 0,
    "residual_counts": 0,
    "couch_lateral_um": 1_200,
    "couch_longitudinal_um": -35_000,
    "couch_vertical_um": -120_400,
    "nozzle_switches": 0x8002,
    "nozzle_barriers": 0x8002,
    "flow_a_permille": 1000,
    "flow_b_permille": 990,
    "flow_c_permille": 1010,
    "coil_margin_a_mk": 1500,
    "coil_margin_b_mk": 1450,
    "coil_margin_c_mk": 1500,
    "area_dose_rate": 8,
    "unit2_state": 1,
    "unit2_field_ceiling": 130_000,
    "unit2_spot_ceiling": 965,
    "room_token": 1,
    "preset_angle_mdeg": -30_000,
    "preset_species_token": CARBON,
    "armed": 0,
    "granted_field": 100_000,
    "granted_row": 900,
    "granted_layer_number": 3,
    "granted_layer": 20_000,
    "granted_plan": 4711,
    "granted_beam": 2,
    "preset_plan": 4711,
    "preset_beam": 2,
    "plan_known": 1,
    "plan_angle_mdeg": -30_000,
    "plan_species_token": CARBON,
    "plan_field_ceiling": 100_000,
    "plan_layer_ceiling": 20_000,
    "plan_row_ceiling": 900,
    "granted_since_armed": 100_000,
    "plan_field_ceiling2": 130_000,
    "plan_spot_ceiling2": 965,
    "proof_age_s": 3600,
    "pulse_gap_ms": 0,
}


def image_of(values: dict[str, int], counter: int) -> list[int]:
    """The registers that say `values`, the interlock system's own included."""
    image = [0] * 166
    image[0:4] = [0x1009, 0x51, 1, 77]
    image[8] = counter & 0xFFFF
    for name, (register, bit) in BITS.items():
        image[register] |= bit if values[name] else 0
    for name, (register, words) in NUMBERS.items():
        for i in range(words):
            image[register + words - 1 - i] = values[name] >> (16 * i) & 0xFFFF
    return image


@dataclass
class SafetyRoom:
    """Values one may set, a counter that runs with time, and a relay that falls 100 ms after the last change of the pulse."""

    values: dict[str, int] = field(default_factory=lambda: dict(SAFE))
    now_ns: int = 0
    link_up: bool = True
    counter_runs: bool = True
    controller_lives: bool = True
    pulse: int = 0
    pulsed_ns: int = -(10**12)
    boot_id: int = 0
    first_out_code: int = 0
    active_trips: int = 0
    _counter: int = 0
    relay_welded: bool = False
    evidence: Sequence[int] = ()  # value, limit, input of the first-out, as registers
    motion_pulse: int = 0
    motion_pulsed_ns: int = -(10**12)
    motion_code: int = 0
    motion_welded: bool = False

    def relay_closed(self) -> bool:
        return self.relay_welded or self.now_ns - self.pulsed_ns < 100 * MS

    def motion_possible(self) -> bool:
        return self.motion_welded or self.now_ns - self.motion_pulsed_ns < 100 * MS

    def beam_possible(self) -> bool:
        return bool(self.values["permit_a"] and self.values["permit_r"] and self.relay_closed())

    def read_image(self) -> Sequence[int]:
        if not self.link_up:
            raise ConnectionError("link is down")
        if self.counter_runs:
            self._counter = self.now_ns // (10 * MS)
        if self.controller_lives:
            self.values["heartbeat"] = self.now_ns // (50 * MS) & 0xFFFF
        self.values["permit_b"] = int(self.relay_closed())
        self.values["beam_enabled"] = int(self.beam_possible())
        self.values["motion_permit"] = int(self.motion_possible())
        return image_of(self.values, self._counter)[:WIRE_SIZE]

    def read_pulses(self) -> Sequence[int]:
        if not self.link_up:
            raise ConnectionError("link is down")
        return [self.pulse, *[0] * 8, self.motion_pulse]

    def write_permit(self, pulse: int, boot_id: int, first_out_code: int, active_trips: int, *more: int) -> None:
        if not self.link_up:
            raise ConnectionError("link is down")
        if pulse != self.pulse:
            self.pulsed_ns = self.now_ns
        self.pulse, self.boot_id, self.first_out_code, self.active_trips = pulse, boot_id, first_out_code, active_trips
        *self.evidence, motion_pulse, self.motion_code = more
        if motion_pulse != self.motion_pulse:
            self.motion_pulsed_ns = self.now_ns
        self.motion_pulse = motion_pulse


class _Node(InterlockNode):
    """What this system works out by itself is set in these tests like everything else."""

    def __init__(self, room: SafetyRoom, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown = room

    def own_registers(self, image: Sequence[int], now_ns: int) -> list[int]:
        return image_of(self._shown.values, 0)[140:]


class Bench:
    """A room with its interlock node on a clock of its own, stepped as a world would step it."""

    def __init__(self, limits: Limits = LIMITS, journal: Callable[[object], None] | None = None, **values: int) -> None:
        self.room = SafetyRoom()
        self.room.values.update(values)
        self.limits = limits
        self.records: list[object] = []
        self.wake_ns = 0
        self.start(journal or self.records.append)

    def start(self, journal: Callable[[object], None] | None = None, latched: Sequence[str] = ()) -> None:
        """Start, or start again, the node: as a new process."""
        self.node = _Node(
            self.room,
            self.room.read_image,
            self.room.write_permit,
            self.limits,
            boot_id=0x1234,
            read_pulses=self.room.read_pulses,
            latched=latched,
            journal=journal or self.records.append,
        )

    def step(self) -> None:
        self.wake_ns = self.node.step(self.room.now_ns)

    def run(self, ms: float, poll_ms: float = 50.0) -> None:
        """Let time pass, stepping when asked to and at least every `poll_ms`."""
        end_ns = self.room.now_ns + round(ms * MS)
        steps_left = 100 + 10 * round(ms)
        while self.room.now_ns < end_ns:
            steps_left -= 1
            assert steps_left, "the engine asks to be called without end"
            self.room.now_ns = min(end_ns, max(self.wake_ns, self.room.now_ns + 1), self.room.now_ns + round(poll_ms * MS))
            self.step()

    def set(self, **values: int) -> None:
        """Change what the room shows, and step once."""
        unknown = values.keys() - self.room.values.keys()
        assert not unknown, unknown
        self.room.values.update(values)
        self.room.now_ns += 1 * MS
        self.step()

    def press(self, role: str) -> tuple[str, ...]:
        """Press and release a reset button; what it cleared."""
        self.room.now_ns += 1 * MS
        self.node.reset(self.room.now_ns, role, True)
        self.room.now_ns += 1 * MS
        cleared = self.node.reset(self.room.now_ns, role, False).cleared
        self.run(20)
        return cleared

    @property
    def permit(self) -> bool:
        assert self.node.decision is not None
        return self.node.decision.permit

    @property
    def tripped(self) -> tuple[str, ...]:
        assert self.node.decision is not None
        return self.node.decision.tripped

    @property
    def withheld(self) -> tuple[str, ...]:
        assert self.node.decision is not None
        return self.node.decision.withheld


def ready(limits: Limits = LIMITS, **values: int) -> Bench:
    """Started, reset with the key, permit given, nothing armed."""
    bench = Bench(limits, **values)
    bench.step()
    bench.run(100)
    bench.press("key")
    bench.run(200)
    return bench


def moving() -> Bench:
    """Not armed, the gantry turning (and, for the test, without getting anywhere)."""
    bench = ready()
    bench.set(standstill=0, chain_standstill=0)
    return bench


def armed(limits: Limits = LIMITS, beam: bool = False) -> Bench:
    """Armed; with `beam` also requested, and beam measured."""
    bench = ready(limits)
    bench.set(armed=1)
    bench.run(100)
    if beam:
        bench.set(permit_r=1)
        bench.run(60)
        bench.set(beam_present=1)
        bench.run(100)
    return bench
