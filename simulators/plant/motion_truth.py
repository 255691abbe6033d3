"""How the moving parts and the rooms of a simulated facility truly are: `simulators/plants/NAME.motion.toml`, as frozen values.

A file has one table `[rooms.NAME]` per room; a table `[defaults]` is laid under each of them. Tables nest as the
dataclasses do, and no key may be missing or unknown. The sources of the figures stand beside them in the files. The
controller never reads these.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class PlantTableError(ValueError):
    """A table of the plant's truth is incomplete or nonsense; names the key."""


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
            PlantTableError: no such plant, or a table is wrong.
        """
        shipped = resources.files("simulators") / "plants" / f"{name_or_path}.motion.toml"
        file: Any = shipped if shipped.is_file() else Path(name_or_path)
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PlantTableError(f"no motion tables of a plant in {name_or_path!r}: {error}") from None
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> MotionTruth:
        """Truth from a parsed file, `{"defaults": {...}, "rooms": {name: {...}}}`.

        Raises:
            PlantTableError: a key is missing, unknown, of the wrong type or not finite.
        """
        defaults = table.get("defaults", {})
        rooms: dict[str, RoomMotionTruth] = {}
        for name, own in table.get("rooms", {}).items():
            merged = _merge(defaults, own)
            if merged.get("kind") != "gantry":
                merged.pop("gantry", None)
            merged.setdefault("ports_deg", ())
            room = _build(RoomMotionTruth, {**merged, "name": name}, f"rooms.{name}")
            _judge(room)
            rooms[name] = room
        if not rooms:
            raise PlantTableError("no [rooms.NAME] table")
        return cls(rooms)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one table over another, tables inside tables included."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a table; every key must be there and mean something."""
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise PlantTableError(f"{where}: unknown key(s) {', '.join(unknown)}")
    values: dict[str, Any] = {}
    for key, field in known.items():
        if key not in table:
            if field.default is MISSING:
                raise PlantTableError(f"{where}.{key} is missing")
            continue
        values[key] = _value(hints[key], table[key], f"{where}.{key}")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise PlantTableError(f"{where}: {value!r} is not a list")
        return tuple(_value(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    for option in get_args(hint) or (hint,):
        if isinstance(option, type) and is_dataclass(option) and isinstance(value, Mapping):
            return _build(option, value, where)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if option in (int, str) and isinstance(value, option) and not isinstance(value, bool):
            return value
    raise PlantTableError(f"{where}: {value!r} does not fit {getattr(hint, '__name__', hint)}")


def _judge(room: RoomMotionTruth) -> None:
    """Relations between numbers that no plant can break."""
    where = f"rooms.{room.name}"
    if room.kind not in ("gantry", "fixed"):
        raise PlantTableError(f"{where}.kind: {room.kind!r} is neither 'gantry' nor 'fixed'")
    if room.kind == "gantry" and room.gantry is None:
        raise PlantTableError(f"{where}.gantry is missing")
    if room.kind == "fixed" and not room.ports_deg:
        raise PlantTableError(f"{where}.ports_deg: a fixed room needs at least one port")
    couch = room.couch
    for key in ("initial", "minimum", "maximum", "speed", "acceleration", "jerk"):
        if len(getattr(couch, key)) != 6:
            raise PlantTableError(f"{where}.couch.{key}: {len(getattr(couch, key))} values, needs 6")
    if any(low >= high for low, high in zip(couch.minimum, couch.maximum, strict=True)):
        raise PlantTableError(f"{where}.couch: a minimum is not below its maximum")
    if len(room.nozzle.range_shifter_ids) != len(room.nozzle.range_shifter_wet_mm):
        raise PlantTableError(f"{where}.nozzle: range_shifter_ids and range_shifter_wet_mm differ in length")
    if room.gantry is not None:
        g = room.gantry
        if not g.soft_limit_deg < g.hard_limit_deg < g.final_limit_deg < g.buffer_deg:
            raise PlantTableError(f"{where}.gantry: limits must rise from soft to hard to final to buffer")
        if g.axis_sign not in (1, -1):
            raise PlantTableError(f"{where}.gantry.axis_sign: {g.axis_sign} is neither 1 nor -1")
