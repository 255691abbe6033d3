"""How the moving parts and the rooms of a simulated facility truly are: `simulators/plants/NAME.motion.toml`, as frozen values.

A file has one table `[rooms.NAME]` per room; a table `[defaults]` is laid under each of them. Tables nest as the
dataclasses do, and no key may be missing or unknown. The sources of the figures stand beside them in the files. The
controller never reads these.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from simulators.plant.truth import TruthError, build


@dataclass(frozen=True, slots=True)
class EncoderTruth:
    """An absolute encoder: reads sign x scale x angle + offset + run-out + noise.

    Attributes:
        offset_mdeg: error of its zero.
        sign: 1, or -1 when it is mounted mirrored.
        scale: 1 when its line count is what its electronics believes.
        runout_mdeg: amplitude of the once-per-turn error of its bearing.
        runout_phase_deg: ring angle of the zero of that error.
        noise_mdeg: standard deviation of a reading.
    """

    offset_mdeg: float
    sign: int
    scale: float
    runout_mdeg: float
    runout_phase_deg: float
    noise_mdeg: float


@dataclass(frozen=True, slots=True)
class GantryTruth:
    """The ring, its two drives and brakes. deg, s, N m, kg m2."""

    initial_deg: float
    speed_max_deg_s: float
    acceleration_deg_s2: float
    jerk_deg_s3: float
    stop_deceleration_deg_s2: float
    stop_jerk_deg_s3: float
    sls_deg_s: float
    soft_limit_deg: float
    hard_limit_deg: float
    final_limit_deg: float
    buffer_deg: float
    in_position_deg: float
    settle_s: float
    standstill_window_s: float
    standstill_speed_deg_s: float
    standstill_position_deg: float
    axis_sign: int
    backlash_mdeg: float
    sag_mdeg: float
    sag_phase_deg: float
    inertia_kg_m2: float
    rated_torque_nm: float
    unbalance_torque_nm: float
    friction_torque_nm: float
    torque_prove_s: float
    brake_release_s: float
    brake_set_s: float
    brake_feedback_timeout_s: float
    brake_deceleration_deg_s2: float
    supervision_s: float
    stop_monitor_s: float
    following_error_deg: float
    encoder_pair_deg: float
    encoder_check_s: float
    cycle_s: float
    load_encoder: EncoderTruth
    load_encoder2: EncoderTruth
    motor_encoder_a: EncoderTruth
    motor_encoder_b: EncoderTruth


@dataclass(frozen=True, slots=True)
class CouchTruth:
    """The six-axis couch; six values are lateral, longitudinal, vertical (mm) and angle, pitch, roll (deg)."""

    initial: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    speed: tuple[float, ...]
    acceleration: tuple[float, ...]
    jerk: tuple[float, ...]
    stop_factor: float
    pose_error_mm: float
    pose_error_deg: float
    settle_s: float
    brake_release_s: float
    brake_set_s: float
    supervision_s: float
    cycle_s: float


@dataclass(frozen=True, slots=True)
class NozzleTruth:
    """Snout, range shifters, ripple filter."""

    range_shifter_ids: tuple[str, ...]
    range_shifter_wet_mm: tuple[float, ...]
    range_shifter_travel_s: float
    snout_initial_mm: float
    snout_minimum_mm: float
    snout_maximum_mm: float
    snout_speed_mm_s: float
    snout_acceleration_mm_s2: float
    snout_jerk_mm_s3: float
    snout_error_mm: float
    ripple_filter_travel_s: float
    supervision_s: float
    cycle_s: float


@dataclass(frozen=True, slots=True)
class AccessTruth:
    """Door, search, warning lamp, E-stop buttons."""

    search_buttons: tuple[str, ...]
    search_time_s: float
    leave_time_s: float
    warning_s: float
    door_contact_b_delay_s: float
    estop_buttons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChainTruth:
    """Delays of the hard-wired chain."""

    permit_fall_us: float
    permit_rise_ms: float
    pulse_relay_ms: float


@dataclass(frozen=True, slots=True)
class PatientTruth:
    """How well patients are set up, how good imaging is, how they breathe; standard deviations."""

    setup_mm: float
    setup_deg: float
    imaging_mm: float
    imaging_deg: float
    breathing_period_s: float
    breathing_amplitude_mm: float


@dataclass(frozen=True, slots=True)
class RoomMotionTruth:
    """Everything that moves or guards one room."""

    name: str
    kind: str
    ports_deg: tuple[float, ...]
    couch: CouchTruth
    nozzle: NozzleTruth
    access: AccessTruth
    chain: ChainTruth
    patient: PatientTruth
    gantry: GantryTruth | None = None


@dataclass(frozen=True, slots=True)
class MotionTruth:
    """The rooms of one facility."""

    rooms: Mapping[str, RoomMotionTruth]

    @classmethod
    def load(cls, name_or_path: str) -> MotionTruth:
        """Truth of a shipped plant by name, or from a file.

        Raises:
            TruthError: no such plant, or a table is wrong.
        """
        if (loaded := _shipped(name_or_path)) is not None:
            return loaded
        try:
            table = tomllib.loads(Path(name_or_path).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TruthError(f"no motion tables of a plant in {name_or_path!r}: {error}") from None
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> MotionTruth:
        """Truth from a parsed file, `{"defaults": {...}, "rooms": {name: {...}}}`.

        Raises:
            TruthError: a key is missing, unknown or of the wrong type.
        """
        defaults = table.get("defaults", {})
        rooms = {name: _room(name, _merge(defaults, own)) for name, own in table.get("rooms", {}).items()}
        if not rooms:
            raise TruthError("no [rooms.NAME] table")
        return cls(rooms)


@cache
def _shipped(name: str) -> MotionTruth | None:
    """A shipped plant's, None when there is none of that name; it never changes while the program runs."""
    file = resources.files("simulators") / "plants" / f"{name}.motion.toml"
    if not file.is_file():
        return None
    truth = MotionTruth.from_table(tomllib.loads(file.read_text(encoding="utf-8")))
    return MotionTruth(MappingProxyType(dict(truth.rooms)))


_PARTS: dict[str, type[Any]] = {
    "couch": CouchTruth,
    "nozzle": NozzleTruth,
    "access": AccessTruth,
    "chain": ChainTruth,
    "patient": PatientTruth,
}


def _room(name: str, table: Mapping[str, Any]) -> RoomMotionTruth:
    """Build one room; a fixed room has ports, a gantry room has a gantry (the defaults' gantry is not for a fixed room)."""
    where = f"rooms.{name}"
    kind = table.get("kind")
    if kind not in ("gantry", "fixed"):
        raise TruthError(f"{where}.kind: {kind!r} is neither 'gantry' nor 'fixed'")
    own = {"gantry": GantryTruth} if kind == "gantry" else {}
    needed = {**_PARTS, **own}
    known = {"kind", "ports_deg", "gantry", *_PARTS}
    if unknown := sorted(set(table) - known):
        raise TruthError(f"{where}: unknown {', '.join(unknown)}")
    if missing := sorted(set(needed) - set(table)):
        raise TruthError(f"{where}: missing {', '.join(missing)}")
    parts: dict[str, Any] = {key: build(cls, table[key], f"{where}.{key}") for key, cls in needed.items()}
    ports_deg = tuple(float(port) for port in table.get("ports_deg", ()))
    room = RoomMotionTruth(name=name, kind=kind, ports_deg=ports_deg, **parts)
    _judge(room)
    return room


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one table over another, tables inside tables included."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _judge(room: RoomMotionTruth) -> None:
    """Relations between numbers that no plant can break."""
    where = f"rooms.{room.name}"
    if room.kind == "fixed" and not room.ports_deg:
        raise TruthError(f"{where}.ports_deg: a fixed room needs at least one port")
    couch = room.couch
    for key in ("initial", "minimum", "maximum", "speed", "acceleration", "jerk"):
        if len(getattr(couch, key)) != 6:
            raise TruthError(f"{where}.couch.{key}: {len(getattr(couch, key))} values, needs 6")
    if any(low >= high for low, high in zip(couch.minimum, couch.maximum, strict=True)):
        raise TruthError(f"{where}.couch: a minimum is not below its maximum")
    if len(room.nozzle.range_shifter_ids) != len(room.nozzle.range_shifter_wet_mm):
        raise TruthError(f"{where}.nozzle: range_shifter_ids and range_shifter_wet_mm differ in length")
    if room.gantry is not None:
        g = room.gantry
        if not g.soft_limit_deg < g.hard_limit_deg < g.final_limit_deg < g.buffer_deg:
            raise TruthError(f"{where}.gantry: limits must rise from soft to hard to final to buffer")
        if g.axis_sign not in (1, -1):
            raise TruthError(f"{where}.gantry.axis_sign: {g.axis_sign} is neither 1 nor -1")
