"""Reading one beam of an RT Ion Plan: its parameters, and its layers from pairs of control points (PS3.3 C.8.8.25.7).

A layer is two control points with one map of spots: the first carries the weights, the second's are zero, and the cumulative
weight rises by the sum of the first's. Weights are float32 and cumulative weights 16-character decimals: real plans disagree
by up to 3.5e-6 of the final weight, so sums are held to 1e-5 of it. The two long elements are taken raw; nothing is a Python
loop over spots. Not responsible for whether a machine can do what the beam asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from controller.plan.errors import Why
from controller.plan.model import (
    Accessories,
    Beam,
    Change,
    CouchTargets,
    Layer,
    MetersetUnit,
    PatientSetup,
    RangeShifterUse,
    ToleranceTable,
    read_only,
)
from controller.plan.raw import Item, Tag
from drivers.hal.ions import PROTON, Ion, ion_by_numbers

CUMULATIVE_TOLERANCE = 1e-5  # of the final cumulative weight; measured worst in public plans 3.5e-6
METERSET_MAX = {"MU": 1e7, "NP": 1e14}  # assumed: far above any treatment, far below what breaks 64-bit counts
POSITION_MAX_MM = 1e4  # assumed: no nozzle is ten metres wide
PAINTINGS_MAX = 1000  # assumed
FULL_TURN_DEG = 360.0

_Row = TypeVar("_Row", PatientSetup, ToleranceTable)

# Parameters that stay as the first control point sets them in a STATIC beam; absent later means unchanged.
_GEOMETRY: dict[int, Tag] = {
    int(tag): tag
    for tag in (
        Tag.GantryAngle,
        Tag.PatientSupportAngle,
        Tag.TableTopVerticalPosition,
        Tag.TableTopLongitudinalPosition,
        Tag.TableTopLateralPosition,
        Tag.TableTopPitchAngle,
        Tag.TableTopRollAngle,
        Tag.GantryPitchAngle,
        Tag.IsocenterPosition,
        Tag.SnoutPosition,
    )
}


@dataclass(frozen=True, slots=True)
class BeamContext:
    """What the rest of the plan says about a beam. `meterset` is None where it is missing (a reason was given)."""

    number: int
    meterset: float | None
    duration_limit_s: float | None
    dose_gy: float | None
    dose_reference_uid: str
    setups: tuple[PatientSetup, ...]
    tables: tuple[ToleranceTable, ...]
    notes: list[str]


def read_beam(item: Item, context: BeamContext) -> Beam | None:
    """Read one treatment beam; None when its reasons leave nothing to build. Reasons go to `item.reasons`."""
    before = len(item.reasons)
    radiation = item.code(Tag.RadiationType)
    ion, charge = _species(item, radiation)
    unit = _unit(item)
    meterset = context.meterset
    if meterset is not None and unit is not None and not 0.0 < meterset <= METERSET_MAX[unit]:
        item.refuse(
            Why.NO_METERSET, "BeamMeterset is not plausible", value=f"{meterset:g} {unit}", limit=f"0 to {METERSET_MAX[unit]:g}"
        )
    scan_mode = item.code(Tag.ScanMode)
    points = item.items(Tag.IonControlPointSequence, "control point")
    declared = item.integer(Tag.NumberOfControlPoints)
    if declared is None:
        item.refuse(Why.MISSING, "NumberOfControlPoints is missing")
    elif declared != len(points):
        item.refuse(
            Why.COUNT_DISAGREES,
            "NumberOfControlPoints disagrees with IonControlPointSequence",
            value=str(declared),
            limit=f"{len(points)} items",
        )
    if not points:
        item.refuse(Why.MISSING, "the beam has no control points")
        return None
    final = item.number(Tag.FinalCumulativeMetersetWeight)
    if final is None or final <= 0.0:
        item.refuse(
            Why.MISSING if final is None else Why.BAD_VALUE,
            "FinalCumulativeMetersetWeight is missing" if final is None else "FinalCumulativeMetersetWeight is not positive",
            value="" if final is None else f"{final:g}",
            hint="it is the denominator of the meterset scale",
        )
        final = None
    first = points[0]
    gantry_angle = first.number(Tag.GantryAngle)
    if gantry_angle is None:
        first.refuse(Why.MISSING, "GantryAngle is missing")
    elif not -FULL_TURN_DEG <= gantry_angle <= FULL_TURN_DEG:
        first.refuse(
            Why.BAD_VALUE,
            "GantryAngle is not an IEC 61217 angle",
            value=f"{gantry_angle:g} deg",
            limit=f"0 to {FULL_TURN_DEG:g} deg, or the same turned backwards",
            hint="it is not guessed by full turns; correct the plan",
        )
    isocentre = first.numbers(Tag.IsocenterPosition)
    if len(isocentre) not in (0, 3):
        first.refuse(Why.BAD_VALUE, "IsocenterPosition needs 3 values", value=str(len(isocentre)))
    changes = _changes(points)
    shifters = _range_shifters(item, points, changes)
    layers: list[Layer] = []
    if scan_mode == "MODULATED":
        scale = meterset / final if meterset is not None and final is not None else 0.0
        layers = _layers(item, points, final, scale)
    elif not scan_mode:
        item.refuse(Why.MISSING, "ScanMode is missing")
    if len(item.reasons) > before or ion is None or unit is None or meterset is None or final is None or gantry_angle is None:
        return None
    snouts = item.items(Tag.SnoutSequence)
    sad = item.numbers(Tag.VirtualSourceAxisDistances)
    fixation = _fixation(item, first)
    return Beam(
        number=context.number,
        name=item.text(Tag.BeamName),
        description=item.text(Tag.BeamDescription),
        machine_name=item.text(Tag.TreatmentMachineName),
        radiation_type=radiation,
        ion=ion,
        charge_state=charge,
        meterset_unit=unit,
        meterset=meterset,
        final_cumulative_weight=final,
        gantry_angle_deg=gantry_angle,
        layers=tuple(layers),
        control_points=len(points),
        couch=CouchTargets(
            lateral_mm=first.number(Tag.TableTopLateralPosition),
            longitudinal_mm=first.number(Tag.TableTopLongitudinalPosition),
            vertical_mm=first.number(Tag.TableTopVerticalPosition),
            angle_deg=first.number(Tag.PatientSupportAngle),
            pitch_deg=first.number(Tag.TableTopPitchAngle),
            roll_deg=first.number(Tag.TableTopRollAngle),
        ),
        isocentre_mm=(isocentre[0], isocentre[1], isocentre[2]) if len(isocentre) == 3 else None,
        snout_mm=first.number(Tag.SnoutPosition),
        snout_id=snouts[0].text(Tag.SnoutID) if snouts else "",
        range_shifters=shifters,
        accessories=Accessories(
            wedges=item.integer(Tag.NumberOfWedges) or 0,
            compensators=item.integer(Tag.NumberOfCompensators) or 0,
            boli=item.integer(Tag.NumberOfBoli) or 0,
            blocks=item.integer(Tag.NumberOfBlocks) or 0,
            range_shifters=item.integer(Tag.NumberOfRangeShifters) or 0,
            lateral_spreading_devices=item.integer(Tag.NumberOfLateralSpreadingDevices) or 0,
            range_modulators=item.integer(Tag.NumberOfRangeModulators) or 0,
        ),
        virtual_sad_mm=(sad[0], sad[1]) if len(sad) == 2 else None,
        scan_mode=scan_mode,
        modulated_scan_mode=item.code(Tag.ModulatedScanModeType),
        beam_type=item.code(Tag.BeamType),
        delivery_type=item.code(Tag.TreatmentDeliveryType, "TREATMENT"),
        patient_support_type=item.code(Tag.PatientSupportType),
        patient_support_id=item.text(Tag.PatientSupportID),
        fixation=fixation,
        duration_limit_s=context.duration_limit_s,
        dose_gy=context.dose_gy,
        dose_reference_uid=context.dose_reference_uid,
        tolerance=_referenced(item, Tag.ReferencedToleranceTableNumber, context.tables),
        setup=_referenced(item, Tag.ReferencedPatientSetupNumber, context.setups),
        changes=tuple(changes),
    )


def _species(item: Item, radiation: str) -> tuple[Ion | None, int]:
    """The ion and its charge state; None with a reason when it is not one we know."""
    if radiation == "PROTON":
        return PROTON, 1
    if radiation != "ION":
        item.refuse(Why.BAD_SPECIES, "RadiationType is not PROTON or ION", value=radiation or "absent")
        return None, 0
    mass, atomic = item.integer(Tag.RadiationMassNumber), item.integer(Tag.RadiationAtomicNumber)
    if mass is None or atomic is None:
        item.refuse(Why.BAD_SPECIES, "RadiationMassNumber or RadiationAtomicNumber is missing for RadiationType ION")
        return None, 0
    ion = ion_by_numbers(atomic, mass)
    if ion is None:
        item.refuse(Why.BAD_SPECIES, "the ion is unknown", value=f"Z {atomic}, A {mass}", limit="p, He-4, C-12, O-16, Ne-20")
        return None, 0
    charge = item.integer(Tag.RadiationChargeState)
    return ion, ion.atomic_number if charge is None else charge


def _unit(item: Item) -> MetersetUnit | None:
    unit = item.code(Tag.PrimaryDosimeterUnit)
    if unit == "MU":
        return "MU"
    if unit == "NP":
        return "NP"
    item.refuse(Why.BAD_UNIT, "PrimaryDosimeterUnit is not MU or NP", value=unit or "absent")
    return None


def _fixation(item: Item, first: Item) -> str:
    """What the beam says about eye fixation, in words; empty when nothing."""
    parts = []
    for holder in (item, first):
        if eye := holder.code(Tag.FixationEye):
            parts.append(f"FixationEye {eye}")
        for tag in (Tag.FixationLightAzimuthalAngle, Tag.FixationLightPolarAngle):
            if (angle := holder.number(tag)) is not None:
                parts.append(f"{tag.name} {angle:g} deg")
    return ", ".join(dict.fromkeys(parts))


def _referenced(item: Item, tag: Tag, table: tuple[_Row, ...]) -> _Row | None:
    number = item.integer(tag)
    return next((row for row in table if row.number == number), None)


def _changes(points: list[Item]) -> list[Change]:
    """Parameters that a later control point sets to another value."""
    changes: list[Change] = []
    first = points[0]
    start: dict[int, tuple[float, ...]] = {number: first.numbers(tag) for number, tag in _GEOMETRY.items()}
    watched = _GEOMETRY.keys()
    for index, point in enumerate(points[1:], start=1):
        for number in watched & point.tags:
            tag = _GEOMETRY[number]
            value = point.numbers(tag)
            if value and value != start[number] and not any(change.what == tag.name for change in changes):
                changes.append(Change(tag.name, index, _words(start[number]), _words(value)))
    return changes


def _words(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "empty"


def _range_shifters(item: Item, points: list[Item], changes: list[Change]) -> tuple[RangeShifterUse, ...]:
    """Range shifters the beam declares, with the setting of the first control point that gives one."""
    declared = item.items(Tag.RangeShifterSequence, "range shifter")
    count = item.integer(Tag.NumberOfRangeShifters)
    if count is not None and count != len(declared):
        item.refuse(
            Why.COUNT_DISAGREES,
            "NumberOfRangeShifters disagrees with RangeShifterSequence",
            value=str(count),
            limit=str(len(declared)),
        )
    settings: dict[int, tuple[str, float | None]] = {}
    for index, point in enumerate(points):
        for setting in point.items(Tag.RangeShifterSettingsSequence, "range shifter setting"):
            number = setting.integer(Tag.ReferencedRangeShifterNumber) or 0
            value = setting.code(Tag.RangeShifterSetting)
            wet = setting.number(Tag.RangeShifterWaterEquivalentThickness)
            if number not in settings:
                settings[number] = (value, wet)
            elif settings[number][0] != value and not any(change.what == "RangeShifterSetting" for change in changes):
                changes.append(Change("RangeShifterSetting", index, settings[number][0], value))
    uses = []
    for shifter in declared:
        number = shifter.integer(Tag.RangeShifterNumber) or 0
        setting_value, wet_mm = settings.pop(number, ("", None))
        uses.append(
            RangeShifterUse(number, shifter.text(Tag.RangeShifterID), shifter.code(Tag.RangeShifterType), setting_value, wet_mm)
        )
    for number, (setting_value, _) in settings.items():
        if setting_value != "OUT":
            item.refuse(Why.COUNT_DISAGREES, "a range shifter setting references no declared range shifter", value=str(number))
    return tuple(uses)


def _layers(beam: Item, points: list[Item], final: float | None, scale: float) -> list[Layer]:
    """Layers of a MODULATED beam from its pairs of control points."""
    if len(points) % 2:
        beam.refuse(
            Why.COUNT_DISAGREES,
            "control points of a MODULATED beam come in pairs",
            value=f"{len(points)} control points",
            limit="even",
        )
    tolerance = CUMULATIVE_TOLERANCE * final if final is not None else float("inf")
    layers: list[Layer] = []
    energy: float | None = None
    previous = 0.0
    total = 0.0
    for index in range(0, len(points) - 1, 2):
        one, two = points[index], points[index + 1]
        _check_index(one, index)
        _check_index(two, index + 1)
        energy = _energy(one, two, energy)
        paintings = _paintings(one, two)
        weights, x_mm, y_mm = _spots(one, two, final + tolerance if final is not None else float(np.finfo(np.float32).max))
        start, end = one.number(Tag.CumulativeMetersetWeight), two.number(Tag.CumulativeMetersetWeight)
        for point, value in ((one, start), (two, end)):
            if value is None:
                point.refuse(Why.MISSING, "CumulativeMetersetWeight is missing")
        if start is None or end is None or weights is None or x_mm is None or y_mm is None:
            previous = end if end is not None else previous
            continue
        layer_sum = float(weights.sum())
        total += layer_sum
        _check_cumulative(one, two, previous, start, end, layer_sum, tolerance)
        previous = end
        size = one.numbers(Tag.ScanningSpotSize)
        layers.append(
            Layer(
                index=index // 2,
                control_point_index=index,
                cumulative_weight_start=start,
                cumulative_weight_end=end,
                energy_mev_u=energy if energy is not None else 0.0,
                x_mm=read_only(x_mm),
                y_mm=read_only(y_mm),
                meterset=read_only(weights * scale),
                paintings=paintings,
                tune_id=one.text(Tag.ScanSpotTuneID),
                spot_size_fwhm_mm=(size[0], size[1]) if len(size) == 2 else None,
                reordering_allowed=one.code(Tag.ScanSpotReorderingAllowed) == "ALLOWED",
            )
        )
    if final is not None and layers and abs(total - final) > tolerance and abs(previous - final) <= tolerance:
        beam.refuse(
            Why.CUMULATIVE_MISSES,
            "spot weights miss FinalCumulativeMetersetWeight",
            value=f"{total:.9g}",
            limit=f"{final:.9g} within 1e-5",
        )
    if final is not None and abs(previous - final) > tolerance:
        beam.refuse(
            Why.CUMULATIVE_MISSES,
            "the last CumulativeMetersetWeight misses FinalCumulativeMetersetWeight",
            value=f"{previous:.9g}",
            limit=f"{final:.9g} within 1e-5",
        )
    return layers


def _check_index(point: Item, expected: int) -> None:
    index = point.integer(Tag.ControlPointIndex)
    if index != expected:
        point.refuse(Why.COUNT_DISAGREES, "ControlPointIndex is out of order", value=str(index), limit=str(expected))


def _energy(one: Item, two: Item, inherited: float | None) -> float | None:
    """Energy of a pair: given by the first, else inherited; the second may repeat it, never change it."""
    given, repeated = one.number(Tag.NominalBeamEnergy), two.number(Tag.NominalBeamEnergy)
    energy = given if given is not None else inherited
    if energy is None:
        one.refuse(Why.MISSING, "NominalBeamEnergy is missing", hint="the first control point of a beam must give it")
    elif energy <= 0.0:
        one.refuse(Why.BAD_VALUE, "NominalBeamEnergy is not positive", value=f"{energy:g}")
    if repeated is not None and energy is not None and repeated != energy:
        two.refuse(Why.PAIR_DIFFERS, "NominalBeamEnergy changes within a pair", value=f"{repeated:g}", limit=f"{energy:g}")
    return energy


def _paintings(one: Item, two: Item) -> int:
    """Number of paintings of a pair; 1 where it is not given."""
    paintings, second = one.integer(Tag.NumberOfPaintings), two.integer(Tag.NumberOfPaintings)
    if paintings is not None and not 1 <= paintings <= PAINTINGS_MAX:
        one.refuse(Why.BAD_VALUE, "NumberOfPaintings is out of range", value=str(paintings), limit=f"1 to {PAINTINGS_MAX}")
    if paintings is not None and second is not None and paintings != second:
        two.refuse(Why.PAIR_DIFFERS, "NumberOfPaintings differs within a pair", value=str(second), limit=str(paintings))
    return paintings or 1


def _check_cumulative(
    one: Item, two: Item, previous: float, start: float, end: float, layer_sum: float, tolerance: float
) -> None:
    """Cumulative weights rise from 0, only within pairs, by the sum of the pair's weights."""
    if start < previous - tolerance or end < start - tolerance:
        point, low, high = (one, start, previous) if start < previous - tolerance else (two, end, start)
        point.refuse(Why.CUMULATIVE_FALLS, "CumulativeMetersetWeight falls", value=f"{low:.9g}", limit=f"{high:.9g}")
        return
    if start > previous + tolerance:
        one.refuse(
            Why.CUMULATIVE_MISSES, "CumulativeMetersetWeight rises between pairs", value=f"{start:.9g}", limit=f"{previous:.9g}"
        )
    if abs(end - start - layer_sum) > tolerance:
        one.refuse(
            Why.CUMULATIVE_MISSES,
            "the sum of spot weights misses the rise of CumulativeMetersetWeight",
            value=f"{layer_sum:.9g}",
            limit=f"{end - start:.9g} within 1e-5 of the final weight",
        )


def _spots(
    one: Item, two: Item, weight_max: float
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """(weights, x, y) of a pair, float64, or Nones with reasons; `weight_max` is the final cumulative weight."""
    weights, _ = one.floats(Tag.ScanSpotMetersetWeights)
    positions, position_bytes = one.floats(Tag.ScanSpotPositionMap)
    count = one.integer(Tag.NumberOfScanSpotPositions)
    if weights is None or positions is None:
        for name, values in (("ScanSpotMetersetWeights", weights), ("ScanSpotPositionMap", positions)):
            if values is None:
                one.refuse(Why.MISSING, f"{name} is missing or unreadable")
        return None, None, None
    if count is None or count != weights.size or positions.size != 2 * weights.size:
        one.refuse(
            Why.COUNT_DISAGREES,
            "NumberOfScanSpotPositions, positions and weights disagree",
            value=f"{count} declared, {positions.size / 2:g} positions, {weights.size} weights",
        )
        return None, None, None
    _check_second(two, count, positions, position_bytes)
    wide = weights.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())  # a NaN makes both NaN
    if not low >= 0.0 or not high <= weight_max:
        bad = ~(np.isfinite(wide) & (wide >= 0.0) & (wide <= weight_max))
        row = int(np.argmax(bad))
        one.refuse(
            Why.BAD_WEIGHT,
            "a spot weight is negative, not finite or huge",
            value=f"{wide[row]:g} at spot {row}" + (f", {int(bad.sum())} such spots" if bad.sum() > 1 else ""),
            limit=f"0 to {weight_max:g}",
        )
        return None, None, None
    places = positions.astype(np.float64)
    if not float(np.abs(places).max()) <= POSITION_MAX_MM:
        row = int(np.argmax(~(np.abs(places) <= POSITION_MAX_MM))) // 2
        one.refuse(
            Why.BAD_POSITION,
            "a spot position is not finite or far away",
            value=f"({places[2 * row]:g}, {places[2 * row + 1]:g}) mm at spot {row}",
            limit=f"{POSITION_MAX_MM:g} mm",
        )
        return None, None, None
    return wide, places[0::2].copy(), places[1::2].copy()


def _check_second(two: Item, count: int, positions: NDArray[np.float32], position_bytes: bytes) -> None:
    """The second of a pair repeats the map and carries no weight. Left out, both are taken as repeated and zero."""
    repeated, repeated_bytes = two.floats(Tag.ScanSpotPositionMap)
    same = repeated is None or repeated_bytes == position_bytes or np.array_equal(repeated, positions)
    second_count = two.integer(Tag.NumberOfScanSpotPositions)
    if not same or second_count not in (None, count):
        two.refuse(
            Why.PAIR_DIFFERS,
            "the spot map differs from that of the first control point of the pair",
            value=f"{second_count} positions",
            limit=f"{count} positions, the same",
        )
    zero, zero_bytes = two.floats(Tag.ScanSpotMetersetWeights)
    if zero is None or zero_bytes.count(0) == len(zero_bytes) == 4 * count:
        return
    if zero.size != count:
        two.refuse(
            Why.COUNT_DISAGREES,
            "the number of weights differs from the number of positions",
            value=str(zero.size),
            limit=str(count),
        )
    if np.any(zero != 0.0):
        row = int(np.argmax(zero != 0.0))
        two.refuse(
            Why.PAIR_WEIGHTS,
            "both control points of a pair carry weights",
            value=f"{zero[row]:g} at spot {row}",
            limit="0 on the second",
        )
