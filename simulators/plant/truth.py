"""How a simulated facility really is: `simulators/plants/<name>.toml` as frozen dataclasses (beam part).

The truth that no controller reads. Every table is built strictly: a missing or unknown entry is an error that names
the place. A room may be `like` another and override some entries. Motion is described in a file of its own
(`motion_truth.py`).
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

SHIPPED = ("asan", "qst", "research")

T = TypeVar("T")


class TruthError(ValueError):
    """A plant file is not what the plant needs; the message names the entry."""


@dataclass(frozen=True, slots=True)
class SpeciesTruth:
    """What source and ring really give for one ion."""

    token: int
    energy_min_mev_u: float
    energy_max_mev_u: float
    ions_per_cycle: float
    ions_spread_rel: float  # rms of the number of ions from fill to fill


@dataclass(frozen=True, slots=True)
class ExtractionTruth:
    """RF-KO extraction and the two elements that take the beam away."""

    on_us: float  # RF-KO on to full beam
    off_us: float  # decision to last ion, RF-KO
    off_jitter_us: float  # rms
    chopper_us: float  # decision to last ion, chopper
    ripple_rms: float
    ripple_hz: tuple[float, ...]
    intensity_error_rel: float  # rms of the mean intensity from spill to spill


@dataclass(frozen=True, slots=True)
class AcceleratorTruth:
    """Source, linac, ring."""

    identity: str
    species: tuple[SpeciesTruth, ...]
    initial_species: int
    species_switch_s: tuple[float, float]  # drawn uniformly
    inject_s: float  # dump, ramp down, inject
    accelerate_tm_s: float  # rigidity ramp
    settle_s: float
    injection_rigidity_tm: float
    energy_step_s: float
    energy_step_per_mev_u_s: float
    flattop_max_s: float
    energy_error_rel: float  # rms of the true energy about its set-point, per flattop
    intensity_min_per_s: float
    intensity_max_per_s: float
    extraction: ExtractionTruth


@dataclass(frozen=True, slots=True)
class MagnetsTruth:
    """The bending and focusing magnets of a room's line; tuples have one entry per magnet."""

    identity: str
    names: tuple[str, ...]
    superconducting: bool
    design_rigidity_tm: float  # nameplate currents hold this rigidity with ideal magnets
    dipole_nameplate_a: tuple[float, ...]
    dipole_radius_m: tuple[float, ...]
    dipole_gain_ppm: tuple[float, ...]
    dipole_saturation: float
    quadrupole_nameplate_a: tuple[float, ...]
    quadrupole_gain_ppm: tuple[float, ...]
    orbit_x_mm: tuple[float, ...]  # isocentre displacement per unit of relative field error
    orbit_y_mm: tuple[float, ...]
    aperture_mm: float  # orbit beyond this loses the beam
    sigma_x_response: tuple[float, ...]  # d ln sigma / d relative gradient
    sigma_y_response: tuple[float, ...]
    ramp_a_s: float
    lag_s: float  # first-order lag of the current behind its ramp
    tolerance_ppm: float
    reading_noise_ppm: float
    base_k: float
    step_heat_k: float
    heat_tau_s: float
    warn_k: float
    inhibit_k: float
    trip_k: float
    dump_tau_s: float


@dataclass(frozen=True, slots=True)
class SpotTruth:
    """Size of the beam at the isocentre."""

    optical_x_mm: float  # at the design rigidity and gradients
    optical_y_mm: float
    scatter_x0: float  # windows, chambers, air in radiation lengths
    scatter_drift_mm: float


@dataclass(frozen=True, slots=True)
class ScannerTruth:
    """Scanning magnets and their geometry."""

    kick_x_tm_per_a: float
    kick_y_tm_per_a: float
    sad_x_mm: float
    sad_y_mm: float
    rotation_mrad: float
    offset_x_mm: float
    offset_y_mm: float
    current_max_a: float
    speed_x_mm_ms: float
    speed_y_mm_ms: float
    settle_us: float
    sag_mm: float  # peak of the part of the sag that the mechanics leave at the isocentre
    sag_phase_deg: float


@dataclass(frozen=True, slots=True)
class ChambersTruth:
    """Two flat chambers and the strip monitor."""

    gap1_mm: float
    gap2_mm: float
    charge_per_count_fc: float
    charge_per_count_proton_fc: float
    gain1_rel: float  # true gain error of monitor 1
    gain2_rel: float
    ionisation_spread: float  # rms of the charge of one ion over its mean
    monitor_distance_mm: float  # strips upstream of the isocentre
    strip_gain_x_rel: float
    strip_gain_y_rel: float
    strip_offset_x_mm: float
    strip_offset_y_mm: float
    position_noise_mm: float  # one frame
    position_floor_mm: float
    frame_us: float


@dataclass(frozen=True, slots=True)
class UnitTruth:
    """The delivery unit's own constants."""

    identity: str
    boot_id: int
    sample_us: float  # counts are looked at this often
    beam_on_distance_max_mm: float
    field_x_mm: float
    field_y_mm: float


@dataclass(frozen=True, slots=True)
class SecondUnitTruth:
    """The second dose unit's own constants."""

    identity: str
    boot_id: int
    reaction_us: float


@dataclass(frozen=True, slots=True)
class RoomTruth:
    """One room's beam line and nozzle."""

    name: str
    kind: str
    routes: tuple[str, ...]
    route_switch_s: float
    magnets: MagnetsTruth
    spot: SpotTruth
    scanner: ScannerTruth
    chambers: ChambersTruth
    unit: UnitTruth
    unit2: SecondUnitTruth


@dataclass(frozen=True, slots=True)
class PlantTruth:
    """A whole facility."""

    name: str
    prefix: str  # of its process variables
    accelerator: AcceleratorTruth
    rooms: Mapping[str, RoomTruth]


def load_truth(name_or_path: str) -> PlantTruth:
    """The truth of a shipped plant by name, or of a plant file by path.

    Raises:
        TruthError: unreadable, missing, unknown or ill-typed entries.
    """
    try:
        if name_or_path in SHIPPED:
            return _shipped(name_or_path)
        raw = tomllib.loads(Path(name_or_path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TruthError(f"plant {name_or_path!r}: {error}") from None
    return parse_truth(raw)


@cache
def _shipped(name: str) -> PlantTruth:
    """A shipped file never changes while the program runs; a campaign asks for it thousands of times."""
    truth = parse_truth(tomllib.loads((resources.files("simulators") / "plants" / f"{name}.toml").read_text(encoding="utf-8")))
    return dataclasses.replace(truth, rooms=MappingProxyType(dict(truth.rooms)))


def parse_truth(raw: Mapping[str, Any]) -> PlantTruth:
    """Build the truth from a parsed plant file; see `load_truth`."""
    tables: dict[str, dict[str, Any]] = {}
    for name, table in raw.get("rooms", {}).items():
        like = table.get("like")
        if like is not None and like not in tables:
            raise TruthError(f"rooms.{name}.like: no earlier room {like!r}")
        own = {key: value for key, value in table.items() if key != "like"}
        tables[name] = {**_merged(tables[like] if like else {}, own), "name": name}
    rooms = {name: build(RoomTruth, table, f"rooms.{name}") for name, table in tables.items()}
    if missing := [key for key in ("name", "prefix", "accelerator", "rooms") if not raw.get(key)]:
        raise TruthError(f"plant file: missing {', '.join(missing)}")
    accelerator = build(AcceleratorTruth, raw["accelerator"], "accelerator")
    for room in rooms.values():
        _same_lengths(room)
    return PlantTruth(str(raw["name"]), str(raw["prefix"]), accelerator, rooms)


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a frozen dataclass from a table, nested tables and lists included.

    Raises:
        TruthError: names the entry that is missing, unknown or of another type.
    """
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := set(table) - names:
        raise TruthError(f"{where}: unknown {', '.join(sorted(unknown))}")
    if missing := names - set(table):
        raise TruthError(f"{where}: missing {', '.join(sorted(missing))}")
    return cls(**{name: _value(hints[name], table[name], f"{where}.{name}") for name in sorted(names)})


def _value(hint: Any, raw: Any, where: str) -> Any:
    if get_origin(hint) is tuple and isinstance(raw, list):
        args = get_args(hint)
        if args[-1] is not Ellipsis and len(args) != len(raw):
            raise TruthError(f"{where}: {len(raw)} values, {len(args)} needed")
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if dataclasses.is_dataclass(hint) and isinstance(raw, dict):
        return build(hint, raw, where)  # type: ignore[arg-type]
    if hint is float and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return float(raw)
    if (
        isinstance(hint, type)
        and not isinstance(hint, UnionType)
        and isinstance(raw, hint)
        and (hint is bool) == isinstance(raw, bool)
    ):
        return raw
    raise TruthError(f"{where}: {raw!r} is not a {getattr(hint, '__name__', hint)}")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return out


def _same_lengths(room: RoomTruth) -> None:
    count = len(room.magnets.names)
    for field in dataclasses.fields(MagnetsTruth):
        value = getattr(room.magnets, field.name)
        if isinstance(value, tuple) and len(value) != count:
            raise TruthError(f"rooms.{room.name}.magnets.{field.name}: {len(value)} values for {count} magnets")
