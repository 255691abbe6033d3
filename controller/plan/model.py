"""A plan as values: what delivery needs of it, and what the treatment record must repeat.

Spots are numpy arrays, read-only, in the plan's own order: `layer_index` and spot index count from 0 in that order whatever
the order of delivery. Angles are the plan's (IEC 61217, as written, 0 to 360 or signed); spot positions are mm at the
isocentre plane in IEC gantry axes. Not responsible for reading files (`dicom`, `rst`) nor for judging them
(`deliverability`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drivers.hal.ions import Ion

MetersetUnit = Literal["MU", "NP"]
PlanKind = Literal["dicom", "rst"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Patient:
    """Identity as the plan gives it; may be empty strings."""

    name: str = ""
    id: str = ""
    birth_date: str = ""
    sex: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """Where the plan belongs, for the record. Dates and times as written in the file (DICOM DA, TM)."""

    study_uid: str = ""
    series_uid: str = ""
    study_id: str = ""
    date: str = ""
    time: str = ""
    accession_number: str = ""
    referring_physician: str = ""
    frame_of_reference_uid: str = ""
    position_reference: str = ""


@dataclass(frozen=True, slots=True)
class DoseReference:
    """One item of the prescription."""

    number: int
    uid: str
    structure_type: str
    description: str
    kind: str
    target_dose_gy: float | None


@dataclass(frozen=True, slots=True)
class ToleranceTable:
    """Tolerances of one table of the plan; None where the table is silent. Degrees and mm."""

    number: int
    label: str
    gantry_deg: float | None = None
    couch_angle_deg: float | None = None
    couch_pitch_deg: float | None = None
    couch_roll_deg: float | None = None
    couch_vertical_mm: float | None = None
    couch_longitudinal_mm: float | None = None
    couch_lateral_mm: float | None = None
    snout_mm: float | None = None


@dataclass(frozen=True, slots=True)
class PatientSetup:
    """How the patient lies, and the motion technique the plan asks for (empty: none)."""

    number: int
    position: str
    technique: str = ""
    label: str = ""
    motion_technique: str = ""


@dataclass(frozen=True, slots=True)
class CouchTargets:
    """Table-top position of a beam; None where the plan leaves it to the room (measured at setup)."""

    lateral_mm: float | None = None
    longitudinal_mm: float | None = None
    vertical_mm: float | None = None
    angle_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None

    def given(self) -> dict[str, float]:
        """The axes the plan does specify, by the names of `drivers.hal.capabilities.COUCH_AXES`."""
        pairs = (
            ("lateral_mm", self.lateral_mm),
            ("longitudinal_mm", self.longitudinal_mm),
            ("vertical_mm", self.vertical_mm),
            ("angle_deg", self.angle_deg),
            ("pitch_deg", self.pitch_deg),
            ("roll_deg", self.roll_deg),
        )
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True, slots=True)
class RangeShifterUse:
    """A range shifter the plan names. `setting` is IN, OUT, or empty where the plan does not say."""

    number: int
    id: str
    kind: str  # BINARY or ANALOG
    setting: str
    wet_mm: float | None = None

    @property
    def is_in(self) -> bool:
        """Whether the plan puts it into the beam."""
        return self.setting == "IN"


@dataclass(frozen=True, slots=True)
class Accessories:
    """How many of each beam modifier the beam declares; the record repeats the counts."""

    wedges: int = 0
    compensators: int = 0
    boli: int = 0
    blocks: int = 0
    range_shifters: int = 0
    lateral_spreading_devices: int = 0
    range_modulators: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A parameter that differs from its first value at a later control point."""

    what: str
    control_point: int
    first: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One energy layer: a pair of control points with one map of spots.

    `x_mm`, `y_mm`, `meterset` have shape (n,), float64, read-only. `meterset` is per spot over all paintings, in the beam's
    unit, already scaled (weight x BeamMeterset / FinalCumulativeMetersetWeight). `control_point_index` is the pair's first.
    """

    index: int
    control_point_index: int
    cumulative_weight_start: float
    cumulative_weight_end: float
    energy_mev_u: float
    x_mm: Floats
    y_mm: Floats
    meterset: Floats
    paintings: int = 1
    tune_id: str = ""
    spot_size_fwhm_mm: tuple[float, float] | None = None
    reordering_allowed: bool = False

    @property
    def spots(self) -> int:
        """Number of spot positions, those of zero weight included."""
        return int(self.meterset.size)

    @property
    def meterset_total(self) -> float:
        """Sum over spots, in the beam's unit."""
        return float(self.meterset.sum())


@dataclass(frozen=True, eq=False)
class Beam:
    """One treatment beam."""

    number: int
    name: str
    description: str
    machine_name: str
    radiation_type: str
    ion: Ion
    charge_state: int
    meterset_unit: MetersetUnit
    meterset: float
    final_cumulative_weight: float
    gantry_angle_deg: float
    layers: tuple[Layer, ...]
    control_points: int
    couch: CouchTargets = CouchTargets()
    isocentre_mm: tuple[float, float, float] | None = None
    snout_mm: float | None = None
    snout_id: str = ""
    range_shifters: tuple[RangeShifterUse, ...] = ()
    accessories: Accessories = Accessories()
    virtual_sad_mm: tuple[float, float] | None = None
    scan_mode: str = "MODULATED"
    modulated_scan_mode: str = ""
    beam_type: str = "STATIC"
    delivery_type: str = "TREATMENT"
    patient_support_type: str = "TABLE"
    patient_support_id: str = ""
    fixation: str = ""
    duration_limit_s: float | None = None
    dose_gy: float | None = None
    dose_reference_uid: str = ""
    tolerance: ToleranceTable | None = None
    setup: PatientSetup | None = None
    changes: tuple[Change, ...] = ()

    @cached_property
    def spots(self) -> int:
        """Number of spot positions in all layers."""
        return sum(layer.spots for layer in self.layers)

    @cached_property
    def energies_mev_u(self) -> Floats:
        """Energies of the layers in the plan's order, shape (layers,)."""
        return np.array([layer.energy_mev_u for layer in self.layers], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole plan: one fraction group and its treatment beams."""

    uid: str
    sop_class_uid: str
    label: str
    name: str
    approval: str
    intent: str
    fractions_planned: int
    beams: tuple[Beam, ...]
    sha256: str
    plan_hash: int
    source: str
    kind: PlanKind
    patient: Patient = Patient()
    study: Study = Study()
    fraction_group: int = 1
    dose_references: tuple[DoseReference, ...] = ()
    setups: tuple[PatientSetup, ...] = ()
    tolerance_tables: tuple[ToleranceTable, ...] = ()
    notes: tuple[str, ...] = ()

    def beam(self, number: int) -> Beam:
        """The beam of that number.

        Raises:
            KeyError: the plan has no such treatment beam.
        """
        for beam in self.beams:
            if beam.number == number:
                return beam
        raise KeyError(number)

    def selected(self, numbers: Iterable[int] | None = None) -> tuple[Beam, ...]:
        """Beams to treat, in the plan's order; all of them when no numbers are given. Unknown numbers are left out."""
        wanted = None if numbers is None else set(numbers)
        return tuple(beam for beam in self.beams if wanted is None or beam.number in wanted)

    @cached_property
    def ions(self) -> tuple[Ion, ...]:
        """Species of the plan, each once, in order of appearance."""
        return tuple(dict.fromkeys(beam.ion for beam in self.beams))


def plan_hash_of(sha256_hex: str) -> int:
    """Positive 31-bit identity of a plan file on the wires, from the first 32 bits of its SHA-256; never 0."""
    return (int(sha256_hex[:8], 16) & 0x7FFFFFFF) or 1


def read_only(values: Floats) -> Floats:
    """The same array, no longer writeable."""
    values.flags.writeable = False
    return values
