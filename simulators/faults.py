"""The catalogue of faults that a simulated run can plant, and when they strike.

Written `NAME[:VALUE][@WHEN]`. WHEN is `start` (the default), `t=SECONDS` of plant time, `beam` or `beam+SECONDS` after the
first beam, or `grant=N` at the start of the N-th grant. Each entry says what breaks and what must follow. Not responsible for
what follows: that is the business of hardware, interlocks and controller, and the invariants judge it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from simulators.faults_guards import GUARD_FAULTS
from simulators.faults_motion import MOTION_FAULTS
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import TruthEvent
from simulators.plant.room import RoomPlant

Plant = Callable[[FacilityPlant, RoomPlant, float], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: as written on the command line.
        row: of the fault list in the safety notes; 0 when it has none.
        does: what breaks.
        unit, default: of VALUE; no unit: it takes none.
        expected: what must follow.
        plant: breaks it.
    """

    name: str
    row: int
    does: str
    unit: str
    default: float
    expected: str
    plant: Plant

    @property
    def arguments(self) -> str:
        """How VALUE is written."""
        return f":VALUE ({self.unit}, default {self.default:g})" if self.unit else ""


@dataclass(frozen=True, slots=True)
class When:
    """When a fault strikes: kind `start`, `t`, `beam` or `grant`, and the number that goes with it."""

    kind: str = "start"
    number: float = 0.0


@dataclass(frozen=True, slots=True)
class TimedFault:
    """A fault, its value, and when it strikes; `text` is how it was asked for."""

    fault: Fault
    value: float
    when: When
    text: str = ""


CATALOGUE: dict[str, Fault] = {}

_AT_REST = "while its brakes hold the ring nothing follows; the next move is refused or stopped"
_MOTION_EXPECTED = {
    "load-encoder-frozen": f"a move stops where encoders differ by 0.2 deg: brakes set, no beam; {_AT_REST}",
    "load-encoder-jump": "encoders differ: standstill is not proven, so chain A takes the beam away, the field ends; no move",
    "load-encoder-drift": "noticed at 0.2 deg: standstill is not proven, beam off by chain A, the field ends",
    "load-encoder-mirrored": "encoders differ 0.1 deg away from zero: move stopped, brakes set, or beam off by chain A",
    "motor-encoder-frozen": f"a move stops where encoders differ by 0.2 deg: brakes set, no beam; {_AT_REST}",
    "motor-encoder-jump": "encoders differ: standstill is not proven, so chain A takes the beam away, the field ends; no move",
    "safety-encoder-frozen": "the interlock system sees the ring off its preset angle: never armed; while it stands nothing",
    "safety-encoder-jump": "the interlock system sees encoders differ: never armed, or beam off by relay B within 150 ms",
    "safety-encoder-drift": "the interlock system notices 0.1 deg from armed, or 0.2 deg of difference: beam off by relay B",
    "brake-fails-to-set": f"the drives keep holding the ring and tell a fault: the session ends before beam; {_AT_REST}",
    "brake-fails-to-release": f"no move: brake fault, the session ends before beam; {_AT_REST}",
    "brake-slow": f"one brake holds; the move ends in a brake fault, the session ends before beam; {_AT_REST}",
    "brake-drags": f"following error: torque off, brakes set, the session ends before beam; {_AT_REST}",
    "drive-fault": f"brakes stop the ring, the session ends before beam; {_AT_REST}",
    "drive-ignores-stop": "no effect until a stop is asked for: then torque is taken away and the brakes stop the ring",
    "drive-weak": f"its torque is not proven, the brakes stay closed, the session ends before beam; {_AT_REST}",
    "gantry-axis-mirrored": f"encoders differ as the ring moves: brakes set, no beam; {_AT_REST}",
    "gantry-creeps": "standstill is lost: beam off by chain A, the field ends; before beam no move is begun",
    "door-contact-welded": "the contacts disagree while the door is open: latched, never armed; the other contact still acts",
    "door-contact-bounce": "the search is void and chain A open at once: beam off, the field ends; before a search nothing",
    "door-opened": "beam off by chain A within 1 ms, search void, the field ends; a visitor found in the search is sent out",
    "estop": "beam off and torque off without any program; the room waits for an acknowledgement; partial record",
    "range-shifter-stuck": "not in position within 60 s: the session ends before beam; no effect on plans without it",
    "range-shifter-switch-lies": "its light barrier differs from its switch: the session ends before beam",
}


def _register(name: str, row: int, does: str, expected: str, unit: str = "", default: float = 0.0) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        CATALOGUE[name] = Fault(name, row, does, unit, default, expected, plant)
        return plant

    return register


def _on_room(act: Callable[[RoomPlant, float], None]) -> Plant:
    return lambda _plant, room, value: act(room, value)


for _motion in MOTION_FAULTS.values():
    CATALOGUE[_motion.name] = Fault(
        _motion.name,
        _motion.row,
        _motion.title,
        _motion.unit,
        _motion.default,
        _MOTION_EXPECTED[_motion.name],
        _on_room(_motion.plant),
    )


for _guard in GUARD_FAULTS.values():
    CATALOGUE[_guard.name] = Fault(
        _guard.name, _guard.row, _guard.title, _guard.unit, _guard.default, _guard.expected, _guard.plant
    )


@_register("mu1-dead", 11, "monitor 1 gives no counts", "self-test fails, never armed; in beam: off within 2 ms, unit latched")
def _mu1_dead(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit.monitor.dead = True


@_register("mu2-dead", 11, "monitor 2 gives no counts", "self-test fails, never armed; in beam: off within 2 ms, unit latched")
def _mu2_dead(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit2.monitor.dead = True


@_register(
    "mu1-gain", 12, "gain of monitor 1 changes", "self-test fails; in beam monitors disagree: off, unit latched", "factor", 1.2
)
def _mu1_gain(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.monitor.gain_factor = value


@_register(
    "mu2-gain", 12, "gain of monitor 2 changes", "self-test fails; in beam monitors disagree: off, unit latched", "factor", 0.8
)
def _mu2_gain(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit2.monitor.gain_factor = value


@_register(
    "hv-sag",
    14,
    "high voltage of chamber 1 sags",
    "self-test fails, never armed; in beam: off within 2 ms, unit latched",
    "relative",
    0.95,
)
def _hv_sag(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.monitor.hv_rel = value


@_register(
    "counter-wrap",
    15,
    "shown totals of monitor 1 wrap",
    "no effect: the record comes from the results of each grant",
    "bits",
    16,
)
def _wrap(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.wrap_bits = int(value)


@_register(
    "stray-counts",
    0,
    "charge arrives with no spot open",
    "the unit latches: never armed, or beam off; the counts belong to no spot",
    "counts",
    100,
)
def _stray(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.leak(int(value), int(value))


@_register(
    "scanner-mirrored", 21, "horizontal scanner has the wrong polarity", "the first spots are off: unit latches, the field ends"
)
def _mirrored(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.scanner.mirrored_x = True


@_register(
    "scanner-swapped",
    21,
    "the scanner supplies feed each other's magnet",
    "the first spots are off: unit latches, the field ends",
)
def _swapped(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.scanner.swapped = True


@_register(
    "scanner-scale",
    20,
    "kick of both scanners changes",
    "noticed at the end of a slice, or by spots that are off: the field ends",
    "factor",
    1.05,
)
def _scale(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.scanner.scale = value


@_register("scanner-stuck", 19, "scanner supplies do not follow", "the first spots are off: unit latches, the field ends")
def _stuck(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.scanner.stuck = True


@_register("strips-dead", 17, "the horizontal plane of the position monitor reads zero", "spots look off: paused or latched")
def _strips_dead(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit.strips.dead_x = True


@_register(
    "strips-swapped", 18, "the planes of the position monitor are exchanged", "spots look off: unit latches, the field ends"
)
def _strips_swapped(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit.strips.swapped = True


@_register(
    "magnet-off",
    22,
    "dipole supply 5 is off its set-point",
    "never settles: the session ends before beam; in beam: off, unit latched",
    "relative",
    0.005,
)
def _magnet_off(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.magnets.offset_supply(_magnet(room), value)


@_register(
    "calibration-row",
    0,
    "field of dipole 5 per ampere is not the commissioned one",
    "the first spots are off: unit latches, the field ends",
    "relative",
    0.002,
)
def _calibration(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.magnets.offset_field(_magnet(room), value)


@_register(
    "magnets-swapped",
    98,
    "supplies of the first dipole and its quadrupole are exchanged",
    "the first spots are off: unit latches, the field ends",
)
def _magnets_swapped(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.magnets.swap(0, len(room.magnets.names))


@_register(
    "quench", 24, "a gantry magnet quenches", "no tuning; in beam: off within 10 ms, coils dumped, unit latched; partial record"
)
def _quench(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.magnets.quench(_magnet(room))


@_register(
    "spill-spike",
    25,
    "one burst of the spill is too intense",
    "above 3 times the rate the unit latches; above 2 it pauses and the operator may resume",
    "factor",
    4.0,
)
def _spike(plant: FacilityPlant, _room: RoomPlant, value: float) -> None:
    plant.synchrotron.faults.spike_factor = value


@_register(
    "spill-early-end", 26, "only part of each fill comes out", "refills in between: delivered as prescribed", "fraction", 0.3
)
def _early_end(plant: FacilityPlant, _room: RoomPlant, value: float) -> None:
    plant.synchrotron.faults.early_end = value


@_register("no-spill", 27, "extraction gives nothing", "nothing is counted for 5 s of beam: unit latches, the field ends")
def _no_spill(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.no_spill = True


@_register(
    "wrong-energy",
    28,
    "the flattop is off the energy asked",
    "told by the measurement before an ion of it is delivered: the field ends",
    "MeV/u",
    2.0,
)
def _wrong_energy(plant: FacilityPlant, _room: RoomPlant, value: float) -> None:
    plant.synchrotron.faults.energy_offset_mev_u = value


@_register(
    "wrong-species",
    28,
    "the source gives helium, and its read-back shows it",
    "told before the first ion; in beam: off by relay B within 150 ms",
)
def _wrong_species(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.wrong_species_token = 2004


@_register(
    "rfko-stuck",
    29,
    "extraction does not stop when told",
    "the chopper does; one spot has more than a quantum too much: unit latches",
)
def _rfko(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.rfko_stuck_on = True


@_register("chopper-slow", 30, "the chopper takes longer", "no effect: extraction stops first", "us", 300.0)
def _chopper(plant: FacilityPlant, _room: RoomPlant, value: float) -> None:
    plant.synchrotron.faults.chopper_extra_us = value


@_register(
    "unit-power-dip",
    36,
    "the delivery unit loses power for 0.2 s",
    "beam off, dose memory kept, the record says what was given; no resume",
)
def _power(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit.power_cycle(0.2)


@_register(
    "unit2-power-dip",
    36,
    "the second dose unit loses power for 0.2 s",
    "its line opens at once: beam off by chain A, unit latched; no effect before its ceilings are loaded",
)
def _power2(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit2.power_cycle(0.2)


def _magnet(room: RoomPlant) -> int:
    return min(4, len(room.magnets.names) - 1)


def parse_fault(text: str) -> TimedFault:
    """One `NAME[:VALUE][@WHEN]`. Raises ValueError with what is wrong and what is known."""
    head, _, when = text.partition("@")
    name, _, value = head.partition(":")
    fault = CATALOGUE.get(name)
    if fault is None:
        raise ValueError(f"fault {name!r} is unknown; `iongantry faults` lists them")
    number = fault.default
    if value:
        if not fault.unit:
            raise ValueError(f"fault {name}: takes no value, got {value!r}")
        number = _number(value, f"fault {name}: value")
    return TimedFault(fault, number, _parse_when(name, when), text)


def _parse_when(name: str, text: str) -> When:
    if text in ("", "start"):
        return When()
    if text == "beam":
        return When("beam")
    for prefix, kind in (("t=", "t"), ("beam+", "beam"), ("grant=", "grant")):
        if text.startswith(prefix):
            number = _number(text.removeprefix(prefix), f"fault {name}: {prefix}")
            if number >= 0:
                return When(kind, number)
    raise ValueError(f"fault {name}: when {text!r}: expected start, t=SECONDS, beam, beam+SECONDS or grant=N")


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} {text!r} is not a number")
    return number


def fault_texts(specs: Iterable[str], scenario: Path | None) -> tuple[list[str], list[str]]:
    """Faults as written on the command line and in a scenario file (`faults = ["NAME:VALUE@WHEN", ...]`), and what is wrong
    with that file."""
    texts, wrong = list(specs), []
    if scenario is not None:
        try:
            table = tomllib.loads(scenario.read_text(encoding="utf-8"))
            listed = table.get("faults", [])
            unknown = sorted(set(table) - {"title", "faults"})
            if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed) or unknown:
                wrong.append(f'scenario {scenario}: expected title and faults = ["NAME@WHEN", ...], got {", ".join(table)}')
            else:
                texts += listed
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            wrong.append(f"scenario {scenario}: {error}")
    return texts, wrong


def read_faults(specs: Iterable[str], scenario: Path | None) -> list[TimedFault]:
    """Faults of the command line and of a scenario file.

    Raises:
        ValueError: one line per thing that is wrong.
    """
    texts, wrong = fault_texts(specs, scenario)
    found = []
    for text in texts:
        try:
            found.append(parse_fault(text))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def inject(plant: FacilityPlant, room: RoomPlant, faults: Iterable[TimedFault], done: Callable[[TimedFault], None]) -> None:
    """Plant faults, each at its time; `done` is told when one struck."""
    for timed in faults:
        _arrange(plant, room, timed, done)


def _arrange(plant: FacilityPlant, room: RoomPlant, timed: TimedFault, done: Callable[[TimedFault], None]) -> None:
    kernel, when = plant.kernel, timed.when

    def strike(_t_ns: int = 0) -> None:
        timed.fault.plant(plant, room, timed.value)
        done(timed)

    if when.kind == "start":
        strike()
        return
    if when.kind == "t":
        kernel.at(round(when.number * 1e9), strike)
        return
    kind = "beam.on" if when.kind == "beam" else "grant.accepted"
    left = 1 if when.kind == "beam" else max(1, round(when.number))
    delay_ns = round(when.number * 1e9) if when.kind == "beam" else 0

    def listen(event: TruthEvent) -> None:
        nonlocal left
        if left and event.kind == kind and event.data.get("room") == room.name:
            left -= 1
            if not left:
                kernel.after(delay_ns, strike)

    kernel.observe(listen)
