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
    """A fault, its value, and when it strikes."""

    fault: Fault
    value: float
    when: When


CATALOGUE: dict[str, Fault] = {}

_MOTION_EXPECTED = {
    "load-encoder-frozen": "encoders disagree: drives stop, brakes set; no beam",
    "load-encoder-jump": "encoders disagree: drives stop, brakes set; no beam",
    "load-encoder-drift": "noticed at 0.2 deg: brakes set, beam off",
    "brake-fails-to-set": "drives keep holding torque, fault told; no beam",
    "drive-fault": "the other drive and the brakes stop the ring; the treatment ends before beam",
    "drive-ignores-stop": "torque is taken away, brakes stop the ring",
    "gantry-creeps": "standstill is lost: beam off by chain A, field terminated",
    "door-contact-welded": "the contacts disagree: chain A and a latched interlock",
    "door-opened": "beam off by chain A within 1 ms, search void, field terminated",
    "estop": "beam off and torque off without any program, room in fault",
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
        _MOTION_EXPECTED.get(_motion.name, "refused before beam, or beam off and brakes set"),
        _on_room(_motion.plant),
    )


@_register("mu1-dead", 11, "monitor 1 gives no counts", "beam off within 2 ms, latched; partial record")
def _mu1_dead(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit.monitor.dead = True


@_register("mu2-dead", 11, "monitor 2 gives no counts", "beam off within 2 ms, latched; partial record")
def _mu2_dead(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit2.monitor.dead = True


@_register("mu1-gain", 12, "gain of monitor 1 changes", "monitors disagree: beam off, latched", "factor", 1.2)
def _mu1_gain(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.monitor.gain_factor = value


@_register("mu2-gain", 12, "gain of monitor 2 changes", "monitors disagree: beam off, latched", "factor", 0.8)
def _mu2_gain(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit2.monitor.gain_factor = value


@_register(
    "hv-sag", 14, "high voltage of chamber 1 sags", "beam off, arming refused until a self-test passes", "relative", 0.95
)
def _hv_sag(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.monitor.hv_rel = value


@_register("counter-wrap", 15, "shown totals of monitor 1 wrap", "no effect on the record: differences are exact", "bits", 16)
def _wrap(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.wrap_bits = int(value)


@_register("stray-counts", 0, "charge arrives with no spot open", "the unit latches; partial record", "counts", 100)
def _stray(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.unit.leak(int(value), int(value))


@_register("scanner-mirrored", 21, "horizontal scanner has the wrong polarity", "first spots off: unit latches, terminated")
def _mirrored(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.scanner.mirrored_x = True


@_register("scanner-swapped", 21, "the scanner supplies feed each other's magnet", "first spots off: unit latches, terminated")
def _swapped(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.scanner.swapped = True


@_register("scanner-scale", 20, "kick of both scanners changes", "noticed within a slice: terminated", "factor", 1.05)
def _scale(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.scanner.scale = value


@_register("scanner-stuck", 19, "scanner supplies do not follow", "first spots off: unit latches, terminated")
def _stuck(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.scanner.stuck = True


@_register("magnet-off", 22, "dipole supply 5 is off its set-point", "refused or beam off: supply deviates", "relative", 0.005)
def _magnet_off(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.magnets.offset_supply(_magnet(room), value)


@_register(
    "calibration-row", 0, "field of dipole 5 per ampere is not the commissioned one", "noticed in a slice", "relative", 0.002
)
def _calibration(_plant: FacilityPlant, room: RoomPlant, value: float) -> None:
    room.magnets.offset_field(_magnet(room), value)


@_register(
    "magnets-swapped",
    98,
    "supplies of the first dipole and its quadrupole are exchanged",
    "no beam or first spots off: terminated",
)
def _magnets_swapped(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.magnets.swap(0, len(room.magnets.names))


@_register("quench", 24, "a gantry magnet quenches", "beam off within 10 ms, coils dumped, latched; partial record")
def _quench(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.magnets.quench(_magnet(room))


@_register("spill-spike", 25, "one burst of the spill is too intense", "beam paused or off by rate", "factor", 4.0)
def _spike(plant: FacilityPlant, _room: RoomPlant, value: float) -> None:
    plant.synchrotron.faults.spike_factor = value


@_register("spill-early-end", 26, "only part of each fill comes out", "refills in between; delivered", "fraction", 0.3)
def _early_end(plant: FacilityPlant, _room: RoomPlant, value: float) -> None:
    plant.synchrotron.faults.early_end = value


@_register("no-spill", 27, "extraction gives nothing", "held, then interrupted and terminated")
def _no_spill(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.no_spill = True


@_register("wrong-energy", 28, "the flattop is off the energy asked", "refused before the first ion", "MeV/u", 2.0)
def _wrong_energy(plant: FacilityPlant, _room: RoomPlant, value: float) -> None:
    plant.synchrotron.faults.energy_offset_mev_u = value


@_register("wrong-species", 28, "the source gives helium, and its read-back shows it", "refused before the first ion")
def _wrong_species(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.wrong_species_token = 2004


@_register("rfko-stuck", 29, "extraction does not stop when told", "the next element takes the beam away")
def _rfko(plant: FacilityPlant, _room: RoomPlant, _value: float) -> None:
    plant.synchrotron.faults.rfko_stuck_on = True


@_register("unit-power-dip", 36, "the delivery unit loses power for 0.2 s", "beam off, latch kept, record says what was given")
def _power(_plant: FacilityPlant, room: RoomPlant, _value: float) -> None:
    room.unit.power_cycle(0.2)


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
    return TimedFault(fault, number, _parse_when(name, when))


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


def read_faults(specs: Iterable[str], scenario: Path | None) -> list[TimedFault]:
    """Faults of the command line and of a scenario file (`faults = ["NAME:VALUE@WHEN", ...]`).

    Raises:
        ValueError: one line per thing that is wrong.
    """
    texts, wrong, found = list(specs), [], []
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
