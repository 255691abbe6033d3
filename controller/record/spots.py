"""The spot table: a row per delivered piece of a spot, with what was planned for it; and its sums per spot of the plan.

Everything is computed on whole arrays. `mu_planned` is a piece's share of its spot: the count the unit was asked for in this
painting, in the beam's meterset, shared among the painting's pieces by what each delivered. Over the pieces and paintings of a
fully delivered spot the shares sum to the plan's own value, exactly.

Not responsible for judging (`report`), nor for the record that other systems read (`dicom_record`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.outcome import BeamOutcome, Floats, FractionOutcome, PassOutcome
from controller.record.whole_file import whole_file
from drivers.hal.capabilities import PIECE_DTYPE, EndReason, PieceFlag

Table = dict[str, NDArray[Any]]

SCHEMA_VERSION = "1"
_UM_PER_MM = 1000.0


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `spots.parquet`."""

    name: str
    dtype: str
    unit: str
    description: str


COLUMNS: tuple[Column, ...] = (
    Column("beam_number", "int32", "", "BeamNumber of the plan"),
    Column("layer_index", "int32", "", "layer in the plan's order, from 0"),
    Column("spot_index", "int32", "", "spot of the layer in the plan's order, from 0"),
    Column("painting", "int32", "", "painting of the layer, from 0"),
    Column("attempt", "int32", "", "grants of this layer and painting, from 1"),
    Column("grant_id", "int32", "", "grant that permitted this piece"),
    Column("spill", "int32", "", "spill of the synchrotron"),
    Column("energy_mev_u", "float64", "MeV/u", "energy of the layer as granted"),
    Column("intensity_per_s", "int32", "1/s", "intensity asked of the extraction, ions"),
    Column("x_planned_mm", "float64", "mm", "plan, isocentre plane, IEC gantry"),
    Column("y_planned_mm", "float64", "mm", "plan, isocentre plane, IEC gantry"),
    Column("mu_planned", "float64", "meterset", "this piece's share of the planned meterset of its spot"),
    Column("x_mm", "float64", "mm", "measured, isocentre plane, IEC gantry"),
    Column("y_mm", "float64", "mm", "measured, isocentre plane, IEC gantry"),
    Column("sigma_x_mm", "float64", "mm", "measured spot size, isocentre plane"),
    Column("sigma_y_mm", "float64", "mm", "measured spot size, isocentre plane"),
    Column("mu_primary", "float64", "meterset", "monitor 1"),
    Column("mu_secondary", "float64", "meterset", "monitor 2"),
    Column("t_start_ns", "int64", "ns", "first ion, loop time"),
    Column("t_end_ns", "int64", "ns", "last ion, loop time"),
    Column("gantry_angle_deg", "float64", "deg", "measured when the grant was started"),
    Column("gate", "bool", "", "the breathing gate was open"),
    Column("interlock", "str", "", "what cut this piece; empty when nothing did"),
)

_CUTS = int(PieceFlag.CUT_PERMIT | PieceFlag.CUT_UNIT)


def build_spots(beams: Sequence[BeamOutcome]) -> Table:
    """The whole table, rows in the order of delivery, columns as in COLUMNS; empty arrays when nothing was delivered."""
    tables = [_beam_table(b) for b in beams if b.pieces.size]
    if not tables:
        return {c.name: np.zeros(0, "U1" if c.dtype == "str" else c.dtype) for c in COLUMNS}
    return {c.name: np.concatenate([t[c.name] for t in tables]) for c in COLUMNS}


def _beam_table(outcome: BeamOutcome) -> Table:
    passes = [p for p in outcome.passes if p.pieces.size]
    pieces = outcome.pieces
    sizes = [p.pieces.size for p in passes]
    layer = np.repeat(np.array([p.grant.layer_index for p in passes], np.int32), sizes)
    painting = np.repeat(np.array([p.grant.painting for p in passes], np.int32), sizes)
    flat = outcome.layer_offsets[layer] + pieces["spot_index"]
    x_plan, y_plan, _ = plan_arrays(outcome)

    def repeated(values: Sequence[float], dtype: str) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), sizes)

    cut = (pieces["flags"] & _CUTS) != 0
    names = np.repeat(np.array([interlock_name(p) for p in passes]), sizes)
    return {
        "beam_number": np.full(pieces.size, outcome.beam.number, np.int32),
        "layer_index": layer,
        "spot_index": pieces["spot_index"],
        "painting": painting,
        "attempt": repeated([p.attempt for p in passes], "int32"),
        "grant_id": repeated([p.grant.grant_id for p in passes], "int32"),
        "spill": pieces["spill"],
        "energy_mev_u": repeated([p.grant.energy_kev_u / 1000.0 for p in passes], "float64"),
        "intensity_per_s": repeated([p.grant.intensity_per_s for p in passes], "int32"),
        "x_planned_mm": x_plan[flat],
        "y_planned_mm": y_plan[flat],
        "mu_planned": _planned_shares(outcome, flat, painting, pieces["counts1"]),
        "x_mm": pieces["x_um"] / _UM_PER_MM,
        "y_mm": pieces["y_um"] / _UM_PER_MM,
        "sigma_x_mm": pieces["sigma_x_um"] / _UM_PER_MM,
        "sigma_y_mm": pieces["sigma_y_um"] / _UM_PER_MM,
        "mu_primary": pieces["counts1"] / outcome.counts1_per_meterset[layer],
        "mu_secondary": pieces["counts2"] / outcome.counts2_per_meterset[layer],
        "t_start_ns": pieces["t_start_ns"],
        "t_end_ns": pieces["t_end_ns"],
        "gantry_angle_deg": repeated([p.gantry_angle_deg for p in passes], "float64"),
        "gate": (pieces["flags"] & int(PieceFlag.GATE_OPEN)) != 0,
        "interlock": np.where(cut, names, ""),
    }


def interlock_name(outcome: PassOutcome) -> str:
    """What ended a pass early; empty when it finished or the controller ended it."""
    if outcome.interlock:
        return outcome.interlock
    if outcome.reason in (EndReason.NONE, EndReason.FINISHED, EndReason.ABORTED):
        return ""
    return outcome.reason.name.lower()


def plan_arrays(outcome: BeamOutcome) -> tuple[Floats, Floats, Floats]:
    """Planned x_mm, y_mm and meterset of all spots of a beam, flat in the plan's order."""
    layers = outcome.beam.layers
    x, y, meterset = ([getattr(layer, name) for layer in layers] for name in ("x_mm", "y_mm", "meterset"))
    return np.concatenate(x), np.concatenate(y), np.concatenate(meterset)


def _planned_shares(
    outcome: BeamOutcome, flat: NDArray[np.int64], painting: NDArray[np.int32], counts1: NDArray[np.int64]
) -> Floats:
    """`mu_planned` of each piece; arguments and result have shape (pieces,)."""
    grants = [p.grant for p in outcome.passes]
    rows = [g.rows for g in grants]
    paintings = 1 + max(g.painting for g in grants)
    layer_of_row = np.repeat(np.array([g.layer_index for g in grants], np.int64), rows)
    painting_of_row = np.repeat(np.array([g.painting for g in grants], np.int64), rows)
    spot_of_row = np.concatenate([g.spot_index for g in grants])
    key_of_row = (outcome.layer_offsets[layer_of_row] + spot_of_row) * paintings + painting_of_row
    granted = np.concatenate([g.counts1_max for g in grants])
    granted = np.where(
        np.repeat([p.attempt == 1 for p in outcome.passes], rows), granted, 0
    )  # later ones ask for the rest of it
    keys, first, key_index = np.unique(key_of_row, return_index=True, return_inverse=True)
    target = np.bincount(key_index, weights=granted) / outcome.counts1_per_meterset[layer_of_row[first]]

    # Counts are whole numbers: where a spot's paintings sum to the plan but for that rounding, take the plan's own value.
    spot_of_key = keys // paintings
    total = np.bincount(spot_of_key, weights=target, minlength=int(outcome.layer_offsets[-1]))
    many = np.bincount(spot_of_key, minlength=int(outcome.layer_offsets[-1]))
    planned = plan_arrays(outcome)[2]
    one_count = 1.0 / np.repeat(outcome.counts1_per_meterset, np.diff(outcome.layer_offsets))
    whole = (np.abs(total - planned) <= (many + 0.5) * one_count) & (total > 0)
    scale = np.where(whole, planned / np.where(total > 0, total, 1.0), 1.0)
    target *= scale[spot_of_key]

    group = np.searchsorted(keys, flat * paintings + painting)
    sums = np.bincount(group, weights=counts1, minlength=keys.size)
    members = np.bincount(group, minlength=keys.size)
    shares: Floats = np.where(sums[group] > 0, counts1 / np.maximum(sums[group], 1), 1.0 / members[group])
    return target[group] * shares


@dataclass(frozen=True, slots=True, eq=False)
class SpotSums:
    """Per spot of one beam, flat in the plan's order, shape (spots,): what was planned and what all pieces together delivered.

    Positions and sizes are weighted by monitor 1 and NaN where nothing was delivered.
    """

    layer: NDArray[np.int64]
    x_planned_mm: Floats
    y_planned_mm: Floats
    planned: Floats
    primary: Floats
    secondary: Floats
    x_mm: Floats
    y_mm: Floats
    sigma_x_mm: Floats
    sigma_y_mm: Floats
    pieces: NDArray[np.int64]

    @property
    def delivered(self) -> NDArray[np.bool_]:
        """Spots that received anything."""
        return self.primary > 0


def sum_spots(outcome: BeamOutcome, table: Table) -> SpotSums:
    """Fold a beam's rows of the spot table into its spots."""
    mine = table["beam_number"] == outcome.beam.number
    layer, primary = table["layer_index"][mine], table["mu_primary"][mine]
    flat = outcome.layer_offsets[layer] + table["spot_index"][mine]
    n = int(outcome.layer_offsets[-1])
    total: Floats = np.bincount(flat, weights=primary, minlength=n).astype(np.float64)

    def mean(column: str) -> Floats:
        weighted = np.bincount(flat, weights=primary * table[column][mine], minlength=n)
        means: Floats = np.divide(weighted, total, out=np.full(n, np.nan), where=total > 0)
        return means

    x, y, planned = plan_arrays(outcome)
    return SpotSums(
        layer=np.repeat(np.arange(len(outcome.beam.layers)), np.diff(outcome.layer_offsets)),
        x_planned_mm=x,
        y_planned_mm=y,
        planned=planned,
        primary=total,
        secondary=np.bincount(flat, weights=table["mu_secondary"][mine], minlength=n).astype(np.float64),
        x_mm=mean("x_mm"),
        y_mm=mean("y_mm"),
        sigma_x_mm=mean("sigma_x_mm"),
        sigma_y_mm=mean("sigma_y_mm"),
        pieces=np.bincount(flat, minlength=n),
    )


def write_spots(table: Table, path: Path, outcome: FractionOutcome) -> None:
    """Write `spots.parquet`: units and descriptions in the column metadata, who and what in the file's. Raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    units = {str(b.beam.number): b.beam.meterset_unit for b in outcome.beams}
    unit = "/".join(sorted(set(units.values()))) or "MU"
    fields, arrays = [], []
    for column in COLUMNS:
        values = table[column.name]
        if column.dtype == "str":
            names, codes = np.unique(values, return_inverse=True)
            array = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names.tolist(), pa.string()))
        else:
            array = pa.array(values.astype(column.dtype, copy=False))
        shown = unit if column.unit == "meterset" else column.unit
        metadata = {"unit": shown, "description": column.description}
        fields.append(pa.field(column.name, array.type, nullable=False, metadata=metadata))
        arrays.append(array)
    about: Mapping[str, str] = {
        "schema_version": SCHEMA_VERSION,
        "plan_uid": outcome.plan.uid,
        "fraction": str(outcome.fraction),
        "facility": outcome.machine.facility,
        "room": outcome.machine.room,
        "simulated": str(outcome.machine.simulated).lower(),
        "t_origin_ns": str(outcome.t_origin_ns),
        "started_utc": outcome.started_utc.isoformat(),
        "meterset_units": ",".join(f"{number}:{name}" for number, name in units.items()),
    }
    schema = pa.schema(fields, metadata=dict(about))
    few = [c.name for c in COLUMNS if c.dtype in ("int32", "str") or c.name in _FEW_VALUES]
    with whole_file(path) as draft:
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=schema),
            draft,
            compression="zstd",
            compression_level=1,
            use_dictionary=few,
            write_statistics=False,
        )


_FEW_VALUES = ("energy_mev_u", "gantry_angle_deg")


def empty_pieces() -> NDArray[np.void]:
    """No pieces, with the right dtype."""
    return np.zeros(0, PIECE_DTYPE)
