"""The procedure for devices that are only looked at: load encoder, couch, nozzle, room I/O, permit relay. Nothing is written.

Not responsible for drives (`drive_procedure`), nor for the room in which they stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from controller.hil import judge_line, steps
from controller.hil.drive_bench import Lines
from controller.hil.target import Target
from controller.hil.verdict import PASSIVE_CHECKS, Notes
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError
from drivers.hal.facility import Range
from drivers.hal.register_map import REGISTER_WIDTHS
from drivers.wire.codecs.cia402 import DriveState, drive_state, fault_text
from drivers.wire.codecs.registers import int32

LOOK_S = 1.0
PERIOD_S = 0.01
DOWN_S = 0.5
ENCODERS_DEG = 0.2  # docs/wires.md: the pair of encoders on the safety I/O; starting value of the interlocks
ANGLE_WANDER_DEG = 0.05  # assumed: six standard deviations of an absolute encoder's noise, and its mounting
AXIS_WANDER = 0.1  # mm or deg, assumed
ENCODER_OVER_DEG = 10.0  # a ring's encoder may read this far beyond the soft limits, up to the buffers

# Registers of the block that is polled, first and last by name.
BLOCKS: Mapping[str, tuple[str, str]] = {
    "load_encoder": ("status", "counter"),
    "couch": ("statusword", "counter"),
    "nozzle": ("status", "counter"),
    "safety": ("counter", "room_mode"),
    "permit_relay": ("pulse", "relay_closed"),
}
# What counts by itself. The permit relay repeats the pulse that the interlock system writes, so it needs that system.
COUNTERS: Mapping[str, str] = {"permit_relay": "pulse"}


class PassiveProcedure:
    """One look at a device.

    Args:
        target: the device.
        lines: its line.
        tell: told in words what is being done.

    Attributes:
        values: what it measured last, by name, with unit.
        series: its main value over time, (s, value).
        block: registers of one status read.
    """

    def __init__(self, target: Target, lines: Lines, tell: Callable[[str], None] | None = None) -> None:
        self.notes = Notes(PASSIVE_CHECKS)
        self.identity: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self.series: list[tuple[float, float]] = []
        self.series_name = ""
        self.answers_s: list[float] = []
        self.left = "never commanded"
        self._target = target
        self._lines = lines
        self._tell = tell or (lambda _words: None)
        self._place = target.places[0]
        first, last = BLOCKS[target.kind]
        self._first = target.registers[first]
        self.block = target.registers[last] + REGISTER_WIDTHS[target.kind][last] - self._first

    async def run(self) -> None:
        """Run every check."""
        why = "the procedure ended before"
        at = "identity"
        try:
            for at, step in (
                ("identity", self._identity),
                ("registers", self._registers),
                ("liveness", self._liveness),
                ("plausible", self._look),
                ("link_return", self._link),
            ):
                self._tell(self.notes.requirement(at).name)
                await step()
                vital = [check for check in self.notes.failed if check.requirement.vital]
                if vital:
                    why = f"ended: {vital[0].requirement.name} failed: {vital[0].reason}"
                    break
        except BeamlineError as error:
            self.notes.judge(at, False, str(error), "", str(error))
            why = f"ended: {error}"
        except asyncio.CancelledError:
            why = "stopped by the technician"
            raise
        finally:
            if self.answers_s:
                baud, deadline_s = self._place.baud, self._target.poll_deadline_s
                self.notes.judge(
                    "response", *judge_line.responses(self.answers_s, self._lines.lost, self.block, baud, deadline_s)
                )
            self.notes.finish(why)

    async def _identity(self) -> None:
        self.identity = await steps.identity(self.notes, self._target, self._lines)

    async def _liveness(self) -> None:
        if self._target.kind == "permit_relay":
            words = (await self._watch(0.0))[0]
            trips = _Block(self._target, self._first, words).word("active_trips")
            if trips:
                self.notes.skip(
                    "liveness", f"the interlock system withholds its pulse: {trips} active trips; reset them and check again"
                )
                return
        await steps.liveness(self.notes, self._counters)

    async def _counters(self, seconds: float) -> Sequence[Sequence[int]]:
        at = self._target.registers[COUNTERS.get(self._target.kind, "counter")] - self._first
        return [[words[at] for words in await self._watch(seconds)]]

    async def _registers(self) -> None:
        await steps.registers(self.notes, self._target, self._lines)

    async def _look(self) -> None:
        """A second of readings: do they make sense, are they quiet."""
        seen = await self._watch(LOOK_S)
        view = _VIEWS[self._target.kind]
        told, wrong = view(self._target, _Block(self._target, self._first, seen[-1]))
        self.values = told
        measured = ", ".join(f"{name} {value}" for name, value in told.items())
        self.notes.judge("plausible", not wrong, measured, "see docs/rig.md", "; ".join(wrong))
        self.series_name, wander, limit = "", 0.0, 0.0
        for name, index, bound in _quiet(self._target):
            row = [_Block(self._target, self._first, words).number(name, index) / 1000.0 for words in seen]
            spread = max(row) - min(row)
            if not self.series_name or spread / bound > wander / limit:
                self.series_name = name if name != "actuals" else COUCH_AXES[index]
                wander, limit = spread, bound
                self.series = [(i * LOOK_S / len(row), value) for i, value in enumerate(row)]
        if self.series_name:
            reason = f"{self.series_name} wanders by {wander:.3f} in {LOOK_S:g} s" if wander > limit else ""
            self.notes.judge("steady", not reason, f"{self.series_name} within {wander:.3f}", f"{limit:g}", reason)
        else:
            self.notes.skip("steady", "it measures no position")

    async def _link(self) -> None:
        before = _identity_words(self.identity)
        await self._lines.close()
        await asyncio.sleep(DOWN_S)
        await self._lines.open()
        self.identity = await steps.identity(self.notes, self._target, self._lines)
        words = (await self._watch(0.05))[-1]
        told, wrong = _VIEWS[self._target.kind](self._target, _Block(self._target, self._first, words))
        same = _identity_words(self.identity) == before
        reason = "" if same and not wrong else "; ".join(wrong) or "another device answers after the return"
        measured = ", ".join(f"{name} {value}" for name, value in told.items())
        self.notes.judge("link_return", not reason, measured, "the same identity, values that make sense", reason)

    async def _watch(self, seconds: float) -> list[tuple[int, ...]]:
        rows: list[tuple[int, ...]] = []
        end_ns = now_ns() + round(seconds * NS_PER_S)
        while not rows or now_ns() < end_ns:
            asked_ns = now_ns()
            rows.append(await self._lines.of(self._place).read(self._place.unit, self._first, self.block))
            self.answers_s.append((now_ns() - asked_ns) / NS_PER_S)
            await asyncio.sleep(PERIOD_S)
        return rows


class _Block:
    """A status block by register names."""

    def __init__(self, target: Target, first: int, words: Sequence[int]) -> None:
        self._at = {name: register - first for name, register in target.registers.items()}
        self._words = words

    def word(self, name: str) -> int:
        return self._words[self._at[name]]

    def number(self, name: str, index: int = 0) -> int:
        return int32(self._words, self._at[name] + 2 * index)


Told = tuple[dict[str, str], list[str]]


def _identity_words(said: Mapping[str, str]) -> list[str]:
    return sorted(said.values())


def _quiet(target: Target) -> list[tuple[str, int, float]]:
    """Values that must not wander: register, index, bound."""
    if target.kind == "load_encoder":
        return [("position", 0, ANGLE_WANDER_DEG)]
    if target.kind == "couch":
        return [("actuals", index, AXIS_WANDER) for index in range(len(COUCH_AXES))]
    if target.kind == "nozzle":
        return [("snout", 0, AXIS_WANDER)]
    return [("ring_angle", 0, ANGLE_WANDER_DEG)] if target.kind == "safety" and target.room.gantry else []


def _load_encoder(target: Target, block: _Block) -> Told:
    angle = block.number("position") / 1000.0
    valid = bool(block.word("status") & 1)
    wrong = [] if valid else ["it says that its value is not valid"]
    gantry = target.room.gantry
    if gantry is not None:
        low, high = gantry.angle_deg.minimum - ENCODER_OVER_DEG, gantry.angle_deg.maximum + ENCODER_OVER_DEG
        if not low <= angle <= high:
            wrong.append(f"angle {angle:.3f} deg is outside {low:g} to {high:g} deg")
    return {"angle": f"{angle:.3f} deg", "valid": "yes" if valid else "no"}, wrong


def _couch(target: Target, block: _Block) -> Told:
    state = drive_state(block.word("statusword"))
    told = {"state": state.value, "brakes": "applied" if block.word("brakes") else "released"}
    wrong = []
    if block.word("error_code"):
        wrong.append(f"it is in fault {fault_text(block.word('error_code'))}")
    if state in (DriveState.UNKNOWN, DriveState.OPERATION_ENABLED):
        wrong.append(f"its state is {state.value} although nobody enabled it")
    if not block.word("brakes"):
        wrong.append("its brakes are not applied")
    for index, axis in enumerate(COUCH_AXES):
        value, limits = block.number("actuals", index) / 1000.0, getattr(target.room.couch, axis)
        told[axis] = f"{value:.3f}"
        wrong += _outside(axis, value, limits)
    return told, wrong


def _nozzle(target: Target, block: _Block) -> Told:
    nozzle = target.room.nozzle
    status, mask, seen = block.word("status"), block.word("shifter_mask_actual"), block.word("shifter_mask_seen")
    snout = block.number("snout") / 1000.0
    wrong = ["it says fault (status bit 4)"] if status & 4 else []
    if mask >> len(nozzle.range_shifters):
        wrong.append(f"mask {mask:#x} has a bit without a range shifter")
    if mask != seen and not status & 2:
        wrong.append(f"switches say {mask:#x}, light barriers {seen:#x}")
    if block.word("ripple_filter") > 1:
        wrong.append(f"ripple filter {block.word('ripple_filter')} is neither 0 nor 1")
    wrong += _outside("snout_mm", snout, nozzle.snout_mm)
    return {"snout": f"{snout:.3f} mm", "range shifters": f"{mask:#x}", "status": f"{status:#x}"}, wrong


def _safety(target: Target, block: _Block) -> Told:
    bits, search, mode = block.word("room_bits"), block.word("search_state"), block.word("room_mode")
    told = {
        "room bits": f"{bits:#x}",
        "contributions": f"{block.word('contributions'):#x}",
        "chain A": f"{block.word('chain_a'):#x}",
        "search": f"{search}",
    }
    wrong = [] if search <= 2 else [f"search state {search} is none of 0 to 2"]
    if bool(bits & 1) != bool(bits & 2):
        wrong.append("the two door contacts disagree")
    if block.word("contributions") & 8 and block.word("contributions") & 7 != 7:
        wrong.append("beam is enabled although a contribution is missing")
    if mode > 1:
        wrong.append(f"room mode {mode} is neither 0 nor 1")
    if target.room.gantry is not None:
        ring, motor = block.number("ring_angle") / 1000.0, block.number("motor_angle") / 1000.0
        told["ring"] = f"{ring:.3f} deg"
        told["motor"] = f"{motor:.3f} deg"
        if abs(ring - motor) > ENCODERS_DEG:
            wrong.append(f"ring {ring:.3f} deg and motor {motor:.3f} deg differ by more than {ENCODERS_DEG:g} deg")
    return told, wrong


def _permit_relay(_target: Target, block: _Block) -> Told:
    relay, trips = block.word("relay_closed"), block.word("active_trips")
    wrong = [] if relay <= 1 else [f"relay {relay} is neither 0 nor 1"]
    if relay and trips:
        wrong.append(f"the relay is closed with {trips} active trips")
    return {
        "relay": "closed" if relay else "open",
        "active trips": f"{trips}",
        "first out": f"{block.word('first_out')}",
    }, wrong


def _outside(name: str, value: float, limits: Range) -> list[str]:
    if limits.minimum - AXIS_WANDER <= value <= limits.maximum + AXIS_WANDER:
        return []
    return [f"{name} {value:.3f} is outside {limits.minimum:g} to {limits.maximum:g}"]


_VIEWS: Mapping[str, Callable[[Target, _Block], Told]] = {
    "load_encoder": _load_encoder,
    "couch": _couch,
    "nozzle": _nozzle,
    "safety": _safety,
    "permit_relay": _permit_relay,
}
