"""Writing a made plan as a DICOM RT Ion Plan (PS3.3 A.49), implicit VR little endian as clinical systems export it.

Every Type 1 and 2 attribute is there. Dates are left empty and UIDs are derived from the content, so the same plan is the
same file. Imports pydicom: import this module late.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import asdict
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ImplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from controller.plan.dicom import RT_ION_PLAN
from drivers.hal.facility import Room
from drivers.hal.ions import Ion

if TYPE_CHECKING:
    from controller.plan.make import MadeBeam, MadeLayer, PlanSpec

MANUFACTURER = "iongantry"
_NAMESPACE = uuid.UUID("0b2f2a3c-7a5e-5a0d-8d7c-5f7b7a4b1e90")  # fixed: the same plan has the same UIDs everywhere
_IMPLEMENTATION = "2.25.186174623091239483920127452013428891733"
# Where a phantom lies on the table: table-top axes, mm (assumed).
_TABLE_MM = {"vertical": -120.0, "longitudinal": 350.0, "lateral": 0.0}
_SNOUT_MM = 375.0  # clears the couch at every gantry angle while the couch looks straight ahead
_SHIFTER_TO_ISOCENTRE_MM = _SNOUT_MM + 50.0  # behind the snout's face, assumed


def write_dicom(
    spec: PlanSpec, ion: Ion, room: Room, fractions: int, paintings: int, dose_gy: float, beams: tuple[MadeBeam, ...]
) -> bytes:
    """The bytes of the plan file.

    Args:
        spec: names, label, approval, scale, seed.
        ion: species of all beams.
        room: gives machine name and source-axis distances.
        fractions, paintings: as planned.
        dose_gy: prescribed to the target, over all beams.
        beams: what to deliver.
    """
    key = _key(spec, room, beams)
    ds = FileDataset("", {}, file_meta=_meta(_uid(key, "plan")), preamble=b"\0" * 128)
    _general(ds, spec, key)
    ds.DoseReferenceSequence = Sequence([_dose_reference(key, dose_gy)])
    ds.IonToleranceTableSequence = Sequence([_tolerance_table()])
    setup = Dataset()
    setup.PatientPosition = "HFS"
    setup.PatientSetupNumber = 1
    setup.SetupTechnique = "ISOCENTRIC"
    ds.PatientSetupSequence = Sequence([setup])
    ds.FractionGroupSequence = Sequence([_fraction_group(fractions, dose_gy, beams)])
    ds.IonBeamSequence = Sequence([_beam(beam, spec, ion, room, paintings) for beam in beams])
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _key(spec: PlanSpec, room: Room, beams: tuple[MadeBeam, ...]) -> str:
    """A digest of everything that makes the plan what it is."""
    digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    digest.update("/".join(room.machine_names).encode())
    for beam in beams:
        digest.update(str(beam.gantry_angle_deg).encode())
        for layer in beam.layers:
            for array in (np.array([layer.energy_mev_u]), layer.x_mm, layer.y_mm, layer.meterset_mu):
                digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()


def _uid(key: str, kind: str) -> UID:
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, f'{key}/{kind}').int}")


def _number(value: float) -> DSfloat:
    """A decimal string of at most 16 characters."""
    return DSfloat(float(value), auto_format=True)


def _meta(uid: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(RT_ION_PLAN)
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    meta.ImplementationVersionName = "IONGANTRY"
    return meta


def _general(ds: Dataset, spec: PlanSpec, key: str) -> None:
    """Patient, study, series, frame of reference, equipment, plan and approval."""
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = RT_ION_PLAN
    ds.SOPInstanceUID = _uid(key, "plan")
    ds.StudyDate = ds.StudyTime = ""
    ds.AccessionNumber = ""
    ds.Modality = "RTPLAN"
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = "plan"
    ds.ReferringPhysicianName = ""
    ds.OperatorsName = ""
    ds.PatientName = spec.patient_name
    ds.PatientID = spec.patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = ""
    ds.StudyInstanceUID = _uid(key, "study")
    ds.SeriesInstanceUID = _uid(key, "series")
    ds.StudyID = ""
    ds.SeriesNumber = 1
    ds.FrameOfReferenceUID = _uid(key, "frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.RTPlanLabel = (spec.label or f"{spec.species} {spec.shape}")[:16]
    ds.RTPlanName = f"{spec.species} {spec.shape}"
    ds.RTPlanDate = ds.RTPlanTime = ""
    ds.PlanIntent = "MACHINE_QA" if spec.shape in ("qa-grid", "benchmark") else "CURATIVE"
    ds.RTPlanGeometry = "TREATMENT_DEVICE"
    ds.ApprovalStatus = spec.approval
    if spec.approval in ("APPROVED", "REJECTED"):
        ds.ReviewDate = ds.ReviewTime = ""
        ds.ReviewerName = ""


def _dose_reference(key: str, dose_gy: float) -> Dataset:
    item = Dataset()
    item.DoseReferenceNumber = 1
    item.DoseReferenceUID = _uid(key, "dose reference")
    item.DoseReferenceStructureType = "SITE"
    item.DoseReferenceDescription = "target, physical dose"
    item.DoseReferenceType = "TARGET"
    item.TargetPrescriptionDose = _number(dose_gy)
    return item


def _tolerance_table() -> Dataset:
    item = Dataset()
    item.ToleranceTableNumber = 1
    item.ToleranceTableLabel = "T1"
    item.GantryAngleTolerance = "0.2"
    item.PatientSupportAngleTolerance = "1"
    item.TableTopPitchAngleTolerance = 1.0
    item.TableTopRollAngleTolerance = 1.0
    item.TableTopVerticalPositionTolerance = "20"
    item.TableTopLongitudinalPositionTolerance = "20"
    item.TableTopLateralPositionTolerance = "20"
    item.SnoutPositionTolerance = 5.0
    return item


def _fraction_group(fractions: int, dose_gy: float, beams: tuple[MadeBeam, ...]) -> Dataset:
    group = Dataset()
    group.FractionGroupNumber = 1
    group.NumberOfFractionsPlanned = fractions
    group.NumberOfBeams = len(beams)
    group.NumberOfBrachyApplicationSetups = 0
    references = []
    for beam in beams:
        item = Dataset()
        if beam.dose_gy > 0.0:
            item.BeamDose = _number(beam.dose_gy)
        item.BeamMeterset = _number(beam.meterset_mu)
        item.ReferencedBeamNumber = beam.number
        references.append(item)
    group.ReferencedBeamSequence = Sequence(references)
    return group


def _beam(beam: MadeBeam, spec: PlanSpec, ion: Ion, room: Room, paintings: int) -> Dataset:
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    item.TreatmentMachineName = room.machine_names[0]
    item.PrimaryDosimeterUnit = "MU"
    item.BeamNumber = beam.number
    item.BeamName = f"{beam.gantry_angle_deg:g} deg"
    item.BeamType = "STATIC"
    item.RadiationType = "PROTON" if ion.mass_number == 1 else "ION"
    if ion.mass_number > 1:
        item.RadiationMassNumber = ion.mass_number
        item.RadiationAtomicNumber = ion.atomic_number
        item.RadiationChargeState = ion.atomic_number
    item.TreatmentDeliveryType = "TREATMENT"
    item.NumberOfWedges = item.NumberOfCompensators = item.NumberOfBoli = item.NumberOfBlocks = 0
    item.ScanMode = "MODULATED"
    item.ModulatedScanModeType = "STATIONARY"
    item.VirtualSourceAxisDistances = [room.nozzle.sad_x_mm, room.nozzle.sad_y_mm]
    snout = Dataset()
    snout.SnoutID = "S1"
    item.SnoutSequence = Sequence([snout])
    item.NumberOfRangeShifters = 0 if beam.range_shifter is None else 1
    if beam.range_shifter is not None:
        shifter = Dataset()
        shifter.RangeShifterNumber = 1
        shifter.RangeShifterID = beam.range_shifter.id
        shifter.RangeShifterType = "BINARY"
        item.RangeShifterSequence = Sequence([shifter])
    item.NumberOfLateralSpreadingDevices = item.NumberOfRangeModulators = 0
    item.PatientSupportType = "TABLE"
    item.PatientSupportID = "Couch"
    item.ReferencedPatientSetupNumber = 1
    item.ReferencedToleranceTableNumber = 1
    # Weights are float32 in the file: cumulative weights follow what is really written.
    weights = [(layer.meterset_mu / spec.scale).astype(np.float32) for layer in beam.layers]
    ends = np.cumsum([w.astype(np.float64).sum() for w in weights])
    item.FinalCumulativeMetersetWeight = _number(ends[-1])
    item.NumberOfControlPoints = 2 * len(beam.layers)
    points = []
    for index, (layer, weight) in enumerate(zip(beam.layers, weights, strict=True)):
        start = float(ends[index - 1]) if index else 0.0
        first = _control_point(2 * index, layer, start, weight, paintings)
        if index == 0:
            _geometry(first, beam, spec, room)
        points += [first, _control_point(2 * index + 1, layer, float(ends[index]), np.zeros_like(weight), paintings)]
    item.IonControlPointSequence = Sequence(points)
    return item


def _control_point(
    index: int, layer: MadeLayer, cumulative: float, weights: np.ndarray[tuple[int], np.dtype[np.float32]], paintings: int
) -> Dataset:
    point = Dataset()
    point.ControlPointIndex = index
    point.CumulativeMetersetWeight = _number(cumulative)
    point.NominalBeamEnergy = _number(layer.energy_mev_u)
    point.ScanSpotTuneID = "1"
    point.NumberOfScanSpotPositions = int(weights.size)
    point.ScanSpotPositionMap = np.stack([layer.x_mm, layer.y_mm], axis=1).astype(np.float32).ravel().tolist()
    point.ScanSpotMetersetWeights = weights.tolist()
    point.ScanSpotReorderingAllowed = "ALLOWED"
    point.NumberOfPaintings = paintings
    return point


def _geometry(point: Dataset, beam: MadeBeam, spec: PlanSpec, room: Room) -> None:
    """What the first control point of a static beam says once."""
    point.GantryAngle = _number(beam.gantry_angle_deg % 360.0)
    point.GantryRotationDirection = "NONE"
    point.PatientSupportAngle = _number(spec.couch_angle_deg % 360.0)
    point.PatientSupportRotationDirection = "NONE"
    point.TableTopVerticalPosition = _number(_TABLE_MM["vertical"])
    point.TableTopLongitudinalPosition = _number(_TABLE_MM["longitudinal"])
    point.TableTopLateralPosition = _number(_TABLE_MM["lateral"])
    point.TableTopPitchAngle = point.TableTopRollAngle = 0.0
    point.TableTopPitchRotationDirection = point.TableTopRollRotationDirection = "NONE"
    point.GantryPitchAngle = 0.0
    point.GantryPitchRotationDirection = "NONE"
    point.IsocenterPosition = [_number(0.0)] * 3
    snout = room.nozzle.snout_mm
    point.SnoutPosition = min(max(_SNOUT_MM, snout.minimum), snout.maximum)
    if beam.range_shifter is not None:
        setting = Dataset()
        setting.RangeShifterSetting = "IN"
        setting.IsocenterToRangeShifterDistance = _SHIFTER_TO_ISOCENTRE_MM
        setting.RangeShifterWaterEquivalentThickness = beam.range_shifter.wet_mm
        setting.ReferencedRangeShifterNumber = 1
        point.RangeShifterSettingsSequence = Sequence([setting])
