"""The RT Ion Beams Treatment Record (PS3.3 A.30.2.10, module C.8.8.26): what was delivered, for every other system.

One instance per fraction and dosimeter unit. A layer is its pair of control points, as in the plan; the first carries every
delivered piece of a spot in the order of delivery: measured position and size, meterset, time, and the index of the
prescribed spot it belongs to, so the record is the spot log. Re-painted and interrupted spots are separate entries
(C.8.8.26.2: that counts as reordered). Metersets of control points are cumulative in the plan's order. The standard has no
place for the second monitor at a control point; a private block (group 3009) holds it.

Not responsible for what was delivered before this session, nor for sending the file anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.record.outcome import BeamOutcome, FractionOutcome, Interlock, Override, Status
from controller.record.spots import Table
from controller.record.whole_file import whole_file
from drivers.hal.capabilities import ScanMode
from drivers.hal.clock import NS_PER_S, NS_PER_US

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ION_RECORD_CLASS = "1.2.840.10008.5.1.4.1.1.481.9"
IMPLEMENTATION_UID = "2.25.166094237263215087396411790837316573249"
FWHM_PER_SIGMA = 2.3548200450309493

# What an override set aside, as a tag: the record points to it.
_OVERRIDDEN = {"machine": 0x300A00B2, "approval": 0x300E0002}
_SESSION_BEAMS = 0x30080021
_MODE_TYPE = {ScanMode.SPOT: "STATIONARY", ScanMode.RASTER: "LEAPING"}


def write_records(outcome: FractionOutcome, table: Table, directory: Path) -> list[Path]:
    """Write `record.dcm` (and `record-2.dcm` where beams of one plan count in different units); returns the paths.

    A beam that was begun and got nothing is recorded with zero; when none was begun there is no record. Raises OSError.
    """
    paths = []
    for number, dataset in enumerate(build_records(outcome, table), start=1):
        path = directory / ("record.dcm" if number == 1 else f"record-{number}.dcm")
        with whole_file(path) as draft:
            dataset.save_as(draft, enforce_file_format=True)
        paths.append(path)
    return paths


def build_records(outcome: FractionOutcome, table: Table) -> list[Dataset]:
    """The datasets of a fraction, one per dosimeter unit, with file meta information."""
    begun = [b for b in outcome.beams if b.passes or b.status is not Status.REFUSED]
    units = list(dict.fromkeys(b.beam.meterset_unit for b in begun))
    return [
        _record(outcome, [b for b in begun if b.beam.meterset_unit == unit], table, unit, n) for n, unit in enumerate(units, 1)
    ]


def _record(outcome: FractionOutcome, beams: Sequence[BeamOutcome], table: Table, unit: str, number: int) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    from controller.record import dicom_values as v

    begin, implicit = outcome.utc(beams[0].t_begin_ns), _needs_implicit(beams)
    identity = (
        outcome.plan.uid,
        outcome.fraction,
        outcome.machine.room,
        outcome.started_utc.isoformat(),
        outcome.run_id,
        tuple(beam.beam.number for beam in outcome.beams),
        number,
    )
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = ION_RECORD_CLASS
    ds.SOPInstanceUID = v.make_uid("record", *identity)
    ds.InstanceCreationDate, ds.InstanceCreationTime = v.date_of(begin), v.time_of(begin)
    ds.TimezoneOffsetFromUTC = begin.strftime("%z")
    _patient_and_study(ds, outcome)
    _series_and_equipment(ds, outcome, identity)
    ds.InstanceNumber = number
    ds.TreatmentDate, ds.TreatmentTime = v.date_of(begin), v.time_of(begin)
    ds.ReferencedRTPlanSequence = []
    if outcome.plan.kind == "dicom":
        reference = Dataset()
        reference.ReferencedSOPClassUID = outcome.plan.sop_class_uid
        reference.ReferencedSOPInstanceUID = outcome.plan.uid
        ds.ReferencedRTPlanSequence = [reference]
    _setups(ds, beams)
    ds.TreatmentMachineSequence = [_machine_item(outcome)]
    ds.ReferencedFractionGroupNumber = outcome.plan.fraction_group
    ds.NumberOfFractionsPlanned = outcome.plan.fractions_planned
    ds.PrimaryDosimeterUnit = unit
    ds.TreatmentSessionIonBeamSequence = [_beam_item(outcome, b, table, implicit) for b in beams]

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(ION_RECORD_CLASS)
    meta.MediaStorageSOPInstanceUID = UID(ds.SOPInstanceUID)
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "IONGANTRY"
    ds.file_meta = meta
    return ds


def _needs_implicit(beams: Sequence[BeamOutcome]) -> bool:
    from controller.record.dicom_values import fits_explicit

    for b in beams:
        pieces: dict[int, int] = {}
        for p in b.passes:
            pieces[p.grant.layer_index] = pieces.get(p.grant.layer_index, 0) + int(p.pieces.size)
        if any(not fits_explicit(max(n, b.beam.layers[i].spots), len(str(b.beam.layers[i].spots))) for i, n in pieces.items()):
            return True
    return False


def _patient_and_study(ds: Dataset, outcome: FractionOutcome) -> None:
    from controller.record import dicom_values as v

    patient, study = outcome.plan.patient, outcome.plan.study
    ds.PatientName, ds.PatientID = v.text(patient.name, 64), v.text(patient.id, 64)
    ds.PatientBirthDate = v.date_or_empty(patient.birth_date)
    ds.PatientSex = patient.sex if patient.sex in ("M", "F", "O") else ""
    ds.StudyInstanceUID = v.uid_or(study.study_uid, "study", outcome.plan.uid)
    ds.StudyID = v.text(study.study_id, 16)
    ds.StudyDate, ds.StudyTime = v.date_or_empty(study.date), v.time_or_empty(study.time)
    ds.AccessionNumber = v.text(study.accession_number, 16)
    ds.ReferringPhysicianName = v.text(study.referring_physician, 64)


def _series_and_equipment(ds: Dataset, outcome: FractionOutcome, identity: tuple[object, ...]) -> None:
    from controller.record import dicom_values as v

    said = "SIMULATED, " if outcome.machine.simulated else ""
    said += "research, " if outcome.research else ""
    ds.Modality = "RTRECORD"
    ds.SeriesInstanceUID = v.make_uid("series", *identity[:-1])
    ds.SeriesNumber = outcome.fraction
    ds.SeriesDescription = v.text(f"{said}fraction {outcome.fraction}, {outcome.status.value}", 64)
    ds.OperatorsName = v.text(outcome.operator, 64)
    ds.Manufacturer = _manufacturer(outcome)
    ds.ManufacturerModelName = v.text(outcome.machine.model, 64)
    ds.InstitutionName = v.text(outcome.machine.institution, 64)
    ds.StationName = v.text(f"{outcome.machine.room} SIMULATED" if outcome.machine.simulated else outcome.machine.room, 16)
    ds.DeviceSerialNumber = v.text(outcome.machine.serial_number, 64)
    ds.SoftwareVersions = v.text(outcome.machine.software_version, 64)


def _manufacturer(outcome: FractionOutcome) -> str:
    return outcome.machine.manufacturer + (" (SIMULATED)" if outcome.machine.simulated else "")


def _setups(ds: Dataset, beams: Sequence[BeamOutcome]) -> None:
    from pydicom.dataset import Dataset

    items = []
    for setup in dict.fromkeys(b.beam.setup for b in beams if b.beam.setup is not None):
        item = Dataset()
        item.PatientSetupNumber = setup.number
        item.PatientPosition = setup.position
        items.append(item)
    if items:
        ds.PatientSetupSequence = items


def _machine_item(outcome: FractionOutcome) -> Dataset:
    from pydicom.dataset import Dataset

    from controller.record import dicom_values as v

    item = Dataset()
    item.TreatmentMachineName = v.text(outcome.machine.machine_name, 16)
    item.Manufacturer = _manufacturer(outcome)
    item.InstitutionName = v.text(outcome.machine.institution, 64)
    item.ManufacturerModelName = v.text(
        f"{outcome.machine.model} {outcome.machine.facility}" + (" SIMULATED" if outcome.machine.simulated else ""), 64
    )
    item.DeviceSerialNumber = v.text(outcome.machine.serial_number, 64)
    return item


def _beam_item(outcome: FractionOutcome, b: BeamOutcome, table: Table, implicit: bool) -> Dataset:
    from pydicom.dataset import Dataset

    from controller.record import dicom_values as v

    beam, item = b.beam, Dataset()
    mine = table["beam_number"] == beam.number
    item.ReferencedBeamNumber = beam.number
    item.BeamName = v.text(beam.name, 64) or f"Beam {beam.number}"
    if beam.description:
        item.BeamDescription = v.text(beam.description, 1024)
    item.BeamType, item.RadiationType, item.ScanMode = beam.beam_type, beam.radiation_type, beam.scan_mode
    if beam.scan_mode.startswith("MODULATED"):  # demanded with MODULATED_SPEC, by dciodvfy with MODULATED too: say how it was
        mode = b.passes[0].grant.scan_mode if b.passes else ScanMode.RASTER
        item.ModulatedScanModeType = beam.modulated_scan_mode or _MODE_TYPE[mode]
    if beam.radiation_type == "ION":
        item.RadiationMassNumber = beam.ion.mass_number
        item.RadiationAtomicNumber = beam.ion.atomic_number
        item.RadiationChargeState = beam.charge_state
    item.TreatmentDeliveryType = "CONTINUATION" if b.continuation else beam.delivery_type
    item.PatientSupportType = beam.patient_support_type
    if beam.patient_support_id:
        item.PatientSupportID = v.text(beam.patient_support_id, 16)
    if beam.setup is not None:
        item.ReferencedPatientSetupNumber = beam.setup.number
    if beam.tolerance is not None:
        item.ReferencedToleranceTableNumber = beam.tolerance.number
    item.CurrentFractionNumber = outcome.fraction
    item.TreatmentTerminationStatus = b.termination.value
    if b.status is not Status.COMPLETE:
        item.TreatmentTerminationDescription = v.text(b.reason or "ended early", 1024)
    if (interval := outcome.interval_of(beam.number)) is not None:
        said = f"{b.reason}; {interval}" if b.reason else str(interval)
        item.TreatmentTerminationDescription = v.text(said[:1].upper() + said[1:], 1024)
    # No verification system apart from this one looked at it; only an override is known.
    item.TreatmentVerificationStatus = "VERIFIED_OVR" if outcome.overrides else ""
    item.SpecifiedPrimaryMeterset = item.SpecifiedSecondaryMeterset = v.decimal(beam.meterset)
    item.DeliveredPrimaryMeterset = v.decimal(table["mu_primary"][mine].sum())
    item.DeliveredSecondaryMeterset = v.decimal(table["mu_secondary"][mine].sum())
    item.DeliveredTreatmentTime = v.decimal(b.irradiation_s)
    _devices(item, b)
    points = _control_points(outcome, b, {name: column[mine] for name, column in table.items()}, implicit)
    if outcome.overrides:
        points[0].OverrideSequence = [_override_item(o) for o in outcome.overrides]
    item.IonControlPointDeliverySequence = points
    item.NumberOfControlPoints = len(points)
    trips = [i for i in outcome.interlocks if b.t_begin_ns <= i.t_ns <= max(b.t_end_ns, b.t_begin_ns)]
    if trips:
        item.InterlockSequence = [_interlock_item(outcome, i) for i in trips]
    return item


def _devices(item: Dataset, b: BeamOutcome) -> None:
    """What was in the beam. Only snout and range shifters exist here; a plan that needs more is refused before."""
    from pydicom.dataset import Dataset

    from controller.record import dicom_values as v

    for name in ("Wedges", "Compensators", "Boli", "Blocks", "LateralSpreadingDevices", "RangeModulators"):
        setattr(item, f"NumberOf{name}", 0)
    recorded = []
    for number, identity in _range_shifters(b):
        shifter = Dataset()
        shifter.ReferencedRangeShifterNumber = number
        shifter.RangeShifterID = v.text(identity, 16)
        recorded.append(shifter)
    item.NumberOfRangeShifters = len(recorded)
    if recorded:
        item.RecordedRangeShifterSequence = recorded
    if b.beam.snout_id:
        snout = Dataset()
        snout.SnoutID = v.text(b.beam.snout_id, 16)
        item.RecordedSnoutSequence = [snout]


def _range_shifters(b: BeamOutcome) -> list[tuple[int, str]]:
    """Number and name of every range shifter of the plan, then of those that were in without being planned."""
    known = [(r.number, r.id) for r in b.beam.range_shifters]
    extra = [identity for identity in b.range_shifters if identity not in {r.id for r in b.beam.range_shifters}]
    first = max((number for number, _ in known), default=0) + 1
    return known + list(enumerate(extra, start=first))


def _control_points(outcome: FractionOutcome, b: BeamOutcome, mine: Table, implicit: bool) -> list[Dataset]:
    """Pairs of control points of all layers that were begun, in the plan's order; `mine` holds this beam's rows.

    Of a beam without a grant it is the first layer, with zero: the standard demands a control point.
    """
    begun = sorted({p.grant.layer_index for p in b.passes}) or [0]
    order = np.argsort(mine["t_start_ns"], kind="stable")
    by_layer = {i: order[mine["layer_index"][order] == i] for i in begun}
    n = len(b.beam.layers)
    primary, secondary = (
        np.bincount(mine["layer_index"], weights=mine[c], minlength=n) for c in ("mu_primary", "mu_secondary")
    )
    points: list[Dataset] = []
    for i in begun:
        rows = {name: column[by_layer[i]] for name, column in mine.items()}
        before = (float(primary[:i].sum()), float(secondary[:i].sum()))
        after = (before[0] + float(primary[i]), before[1] + float(secondary[i]))
        points += _layer_pair(outcome, b, i, rows, before, after, implicit)
    _geometry(points[0], b)
    return points


def _layer_pair(
    outcome: FractionOutcome,
    b: BeamOutcome,
    index: int,
    rows: Table,
    before: tuple[float, float],
    after: tuple[float, float],
    implicit: bool,
) -> list[Dataset]:
    from pydicom.dataset import Dataset

    from controller.record import dicom_values as v

    layer = b.beam.layers[index]
    n = int(rows["t_start_ns"].size)
    passes = [p for p in b.passes if p.grant.layer_index == index]
    t_start_ns = int(rows["t_start_ns"][0]) if n else passes[0].t_started_ns if passes else b.t_end_ns
    t_end_ns = int(rows["t_end_ns"].max()) if n else passes[-1].t_ended_ns if passes else b.t_end_ns
    specified = [sum(other.meterset_total for other in b.beam.layers[:k]) for k in (index, index + 1)]
    pair = []
    for k, (t_ns, delivered) in enumerate(((t_start_ns, before), (t_end_ns, after))):
        point = Dataset()
        point.ReferencedControlPointIndex = layer.control_point_index + k
        moment = outcome.utc(t_ns)
        point.TreatmentControlPointDate, point.TreatmentControlPointTime = v.date_of(moment), v.time_of(moment)
        point.SpecifiedMeterset, point.DeliveredMeterset = v.decimal(specified[k]), v.decimal(delivered[0])
        v.put_private(point, 1, "DS", v.decimal(specified[k]))
        v.put_private(point, 2, "DS", v.decimal(delivered[1]))
        point.NominalBeamEnergy = v.decimal(layer.energy_mev_u)
        point.ScanSpotTuneID = v.text(layer.tune_id, 16) or "1"
        point.NumberOfPaintings = layer.paintings
        pair.append(point)
    first, second = pair
    if n == 0:  # begun and nothing delivered: the place where it would have started
        for point in pair:
            _place(point, layer.x_mm[:1], layer.y_mm[:1], np.zeros(1), implicit)
        return pair
    _place(first, rows["x_mm"], rows["y_mm"], rows["mu_primary"], implicit)
    _place(second, rows["x_mm"], rows["y_mm"], np.zeros(n), implicit)
    sizes = v.interleave(rows["sigma_x_mm"], rows["sigma_y_mm"]) * FWHM_PER_SIGMA
    v.put_floats(first, "ScanSpotSizesDelivered", sizes, implicit=implicit)
    v.put_floats(first, "ScanSpotTimeOffset", (rows["t_start_ns"] - t_start_ns) / NS_PER_US, implicit=implicit)
    as_prescribed = n == layer.spots and bool(np.array_equal(rows["spot_index"], np.arange(n)))
    first.ScanSpotReordered = "NO" if as_prescribed else "YES"
    if not as_prescribed:  # forbidden otherwise: the map is then the plan's, spot by spot
        v.put_integers(first, "ScanSpotPrescribedIndices", rows["spot_index"].tolist(), implicit=implicit)
    v.put_private(first, 3, "OF", rows["mu_secondary"].astype("<f4").tobytes())
    on_s = float((rows["t_end_ns"] - rows["t_start_ns"]).sum()) / NS_PER_S
    if on_s > 0:
        first.MetersetRateDelivered = float(rows["mu_primary"].sum()) / on_s * 60.0
    return pair


def _place(point: Dataset, x_mm: Any, y_mm: Any, metersets: Any, implicit: bool) -> None:
    from controller.record import dicom_values as v

    point.NumberOfScanSpotPositions = len(metersets)
    v.put_floats(point, "ScanSpotPositionMap", v.interleave(x_mm, y_mm), implicit=implicit)
    v.put_floats(point, "ScanSpotMetersetsDelivered", metersets, implicit=implicit)


def _geometry(point: Dataset, b: BeamOutcome) -> None:
    """Measured angles and positions; they stand for the whole beam. Empty where nothing was read."""
    from pydicom.dataset import Dataset

    from controller.record import dicom_values as v

    point.GantryAngle = v.decimal(round(b.gantry_angle_deg % 360.0, 3) % 360.0)
    point.PatientSupportAngle = v.decimal(round(b.couch.get("angle_deg", 0.0) % 360.0, 3) % 360.0)
    for keyword, axis in (("Vertical", "vertical_mm"), ("Longitudinal", "longitudinal_mm"), ("Lateral", "lateral_mm")):
        setattr(point, f"TableTop{keyword}Position", v.decimal(round(b.couch[axis], 3)) if axis in b.couch else "")
    point.TableTopPitchAngle = b.couch.get("pitch_deg", 0.0)
    point.TableTopRollAngle = b.couch.get("roll_deg", 0.0)
    point.GantryPitchAngle = 0.0
    for name in ("Gantry", "PatientSupport", "TableTopPitch", "TableTopRoll", "GantryPitch"):
        setattr(point, f"{name}RotationDirection", "NONE")
    point.SnoutPosition = b.snout_mm
    settings = []
    for number, identity in _range_shifters(b):
        setting = Dataset()
        setting.ReferencedRangeShifterNumber = number
        setting.RangeShifterSetting = "IN" if identity in b.range_shifters else "OUT"
        settings.append(setting)
    if settings:
        point.RangeShifterSettingsSequence = settings


def _override_item(override: Override) -> Dataset:
    from pydicom.dataset import Dataset

    from controller.record import dicom_values as v

    item = Dataset()
    item.OperatorsName = v.text(override.operator, 64)
    item.ParameterSequencePointer = _SESSION_BEAMS
    item.OverrideParameterPointer = _OVERRIDDEN.get(override.name, 0x300A00C2)
    item.ParameterItemIndex = 1
    item.OverrideReason = v.text(f"{override.name}: {override.reason}; {override.detail}".rstrip("; "), 1024)
    return item


def _interlock_item(outcome: FractionOutcome, trip: Interlock) -> Dataset:
    from pydicom.dataset import Dataset

    from controller.record import dicom_values as v

    item = Dataset()
    item.InterlockDateTime = v.moment_of(outcome.utc(trip.t_ns))
    order = "first out" if trip.first_out else "consequential"
    item.InterlockDescription = v.text(f"{trip.name} ({order}): {trip.description}", 1024)
    item.InterlockOriginDescription = v.text(trip.device or outcome.machine.room, 1024)
    item.InterlockCodeSequence = [v.code_item(trip.name, trip.name)]
    item.InterlockResolutionCodeSequence = [
        v.code_item("CLEARED" if trip.resolution else "STANDING", trip.resolution or "not cleared")
    ]
    item.InterlockResolutionUserSequence = []
    return item
