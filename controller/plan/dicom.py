"""Reading a DICOM RT Ion Plan: the file, the plan as a whole, its fraction scheme. Beams are read by `dicom_beam`.

Everything is checked before anything is returned, and every reason is reported at once. Integrity only: whether this
facility can deliver the plan is asked of `deliverability`. Values are never guessed: what is absent stays None.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from controller.plan.dicom_beam import BeamContext, read_beam
from controller.plan.elements import Damaged, split_file
from controller.plan.errors import PlanRefused, Refusal, Why
from controller.plan.model import (
    Beam,
    DoseReference,
    Patient,
    PatientSetup,
    Plan,
    Study,
    ToleranceTable,
    plan_hash_of,
)
from controller.plan.raw import Item, Tag, encodings_of

RT_ION_PLAN = "1.2.840.10008.5.1.4.1.1.481.8"
FRACTION_DOSE_MAX_GY = 25.0  # assumed: single-fraction radiosurgery and carbon in one or two fractions reach it
FILE_BYTES_MAX = 256 << 20  # assumed: 500 times the largest public plan; guards memory, not medicine


@dataclass(frozen=True, slots=True)
class _BeamReference:
    """What the fraction group says of one beam."""

    meterset: float | None
    duration_limit_s: float | None
    dose_gy: float | None
    dose_reference_uid: str


def read_dicom(path: Path, data: bytes) -> Plan:
    """Read an RT Ion Plan from the bytes of a file.

    Args:
        path: where the bytes came from, for messages and `Plan.source`.
        data: the whole file.

    Raises:
        PlanRefused: with every reason.
    """
    if data[128:132] != b"DICM":
        reason = Refusal(
            Why.NOT_DICOM,
            "not a DICOM file",
            value="no DICM prefix at byte 128" if len(data) >= 132 else f"{len(data)} bytes",
            hint="export the plan again, with file meta information (PS3.10)",
        )
        raise PlanRefused([reason], source=path.name)
    reasons: list[Refusal] = []
    plan = None
    try:
        _, elements = split_file(data, FILE_BYTES_MAX)
        root = Item(elements, "", reasons, encodings_of(elements))
        sop_class = root.text(Tag.SOPClassUID)
        if sop_class == RT_ION_PLAN:
            plan = _read_plan(root, path, data)
        else:
            reasons.append(
                Refusal(
                    Why.WRONG_SOP_CLASS, "not an RT Ion Plan", "SOPClassUID", _uid_name(sop_class), f"{RT_ION_PLAN} RT Ion Plan"
                )
            )
    except Damaged as damage:
        what, value, limit = damage.args
        reasons.append(Refusal(Why.TRUNCATED, what, value=value, limit=limit, hint="copy or export the file again"))
    if reasons or plan is None:
        raise PlanRefused(reasons, source=path.name)
    return plan


def _uid_name(uid: str) -> str:
    """A UID with its name, for messages."""
    from pydicom.uid import UID

    if not uid:
        return "absent"
    name = UID(uid, validation_mode=0).name  # 0: any text may stand here
    return uid if name == uid else f"{uid} {name}"


def _read_plan(root: Item, path: Path, data: bytes) -> Plan | None:
    """Everything below the SOP class; None when no plan can be made of it (the reasons then say why)."""
    notes: list[str] = []
    uid = root.text(Tag.SOPInstanceUID)
    if not uid:
        root.refuse(Why.MISSING, "SOPInstanceUID is missing", hint="the ledger needs the identity of the plan")
    patient = Patient(
        root.text(Tag.PatientName), root.text(Tag.PatientID), root.text(Tag.PatientBirthDate), root.text(Tag.PatientSex)
    )
    if not patient.id:
        notes.append("PatientID is missing or empty: nobody can tell whose plan this is")
    setups = tuple(_setup(item) for item in root.items(Tag.PatientSetupSequence, "patient setup"))
    tables = tuple(_tolerance(item) for item in root.items(Tag.IonToleranceTableSequence, "tolerance table"))
    group, fractions, references = _fraction_scheme(root, notes)
    beams = _beams(root, references, setups, tables, notes)
    dose_references = tuple(_dose_reference(item) for item in root.items(Tag.DoseReferenceSequence, "dose reference"))
    notes += _dose_notes(dose_references, fractions, beams)
    sha256 = hashlib.sha256(data).hexdigest()
    return Plan(
        uid=uid,
        sop_class_uid=RT_ION_PLAN,
        label=root.text(Tag.RTPlanLabel),
        name=root.text(Tag.RTPlanName),
        approval=root.code(Tag.ApprovalStatus),
        intent=root.code(Tag.PlanIntent),
        fractions_planned=fractions,
        beams=beams,
        sha256=sha256,
        plan_hash=plan_hash_of(sha256),
        source=str(path),
        kind="dicom",
        patient=patient,
        study=Study(
            study_uid=root.text(Tag.StudyInstanceUID),
            series_uid=root.text(Tag.SeriesInstanceUID),
            study_id=root.text(Tag.StudyID),
            date=root.text(Tag.StudyDate),
            time=root.text(Tag.StudyTime),
            accession_number=root.text(Tag.AccessionNumber),
            referring_physician=root.text(Tag.ReferringPhysicianName),
            frame_of_reference_uid=root.text(Tag.FrameOfReferenceUID),
            position_reference=root.text(Tag.PositionReferenceIndicator),
        ),
        fraction_group=group,
        dose_references=dose_references,
        setups=setups,
        tolerance_tables=tables,
        notes=tuple(notes),
    )


def _fraction_scheme(root: Item, notes: list[str]) -> tuple[int, int, dict[int, _BeamReference]]:
    """(group number, fractions planned, what it says of each beam). One group with beams is supported."""
    groups = root.items(Tag.FractionGroupSequence, "fraction group")
    with_beams = [group for group in groups if group.items(Tag.ReferencedBeamSequence)]
    if not with_beams:
        root.refuse(
            Why.FRACTION_SCHEME, "no fraction group references a beam", hint="a plan without BeamMeterset cannot be delivered"
        )
        return 1, 1, {}
    if len(with_beams) > 1:
        root.refuse(Why.FRACTION_SCHEME, "several fraction groups reference beams", value=str(len(with_beams)), limit="1")
    if len(groups) > len(with_beams):
        notes.append(f"{len(groups) - len(with_beams)} fraction group(s) without beams were left out")
    group = with_beams[0]
    fractions = group.integer(Tag.NumberOfFractionsPlanned)
    if fractions is not None and fractions < 1:
        group.refuse(Why.FRACTION_SCHEME, "NumberOfFractionsPlanned is below 1", value=str(fractions), limit="1")
    references: dict[int, _BeamReference] = {}
    items = group.items(Tag.ReferencedBeamSequence, "referenced beam")
    for item in items:
        number = item.integer(Tag.ReferencedBeamNumber)
        if number is None:
            item.refuse(Why.MISSING, "ReferencedBeamNumber is missing")
            continue
        if number in references:
            item.refuse(Why.DUPLICATE_BEAM, "a beam is referenced twice in the fraction group", value=f"beam {number}")
        references[number] = _BeamReference(
            item.number(Tag.BeamMeterset),
            item.number(Tag.BeamDeliveryDurationLimit),
            item.number(Tag.BeamDose),
            item.text(Tag.ReferencedDoseReferenceUID),
        )
    declared = group.integer(Tag.NumberOfBeams)
    with_meterset = sum(1 for reference in references.values() if reference.meterset is not None)
    # Some writers count treatment beams only and reference setup beams as well.
    if declared is not None and declared not in (len(items), with_meterset):
        group.refuse(
            Why.COUNT_DISAGREES,
            "NumberOfBeams disagrees with ReferencedBeamSequence",
            value=str(declared),
            limit=str(len(items)),
        )
    return group.integer(Tag.FractionGroupNumber) or 1, fractions if fractions is not None else 1, references


def _beams(
    root: Item,
    references: dict[int, _BeamReference],
    setups: tuple[PatientSetup, ...],
    tables: tuple[ToleranceTable, ...],
    notes: list[str],
) -> tuple[Beam, ...]:
    """Treatment beams in the order of the file; setup beams and beams of zero meterset are left out with a note."""
    items = root.items(Tag.IonBeamSequence, "beam item")
    if not items:
        root.refuse(Why.NO_BEAMS, "the plan has no beams", value="IonBeamSequence is absent or empty")
        return ()
    beams: list[Beam] = []
    seen: set[int] = set()
    present: set[int] = set()
    left_out = 0
    for item in items:
        number = item.integer(Tag.BeamNumber)
        if number is None:
            item.refuse(Why.MISSING, "BeamNumber is missing")
            continue
        item.where = f"beam {number}"
        if number in seen:
            item.refuse(Why.DUPLICATE_BEAM, "the beam number occurs twice", value=str(number))
        seen.add(number)
        present.add(number)
        if item.code(Tag.TreatmentDeliveryType, "TREATMENT") == "SETUP":
            notes.append(f"beam {number} ({item.text(Tag.BeamName) or 'unnamed'}) is a setup beam and is not treated")
            left_out += 1
            continue
        reference = references.get(number)
        if reference is None or reference.meterset is None:
            item.refuse(
                Why.NO_METERSET,
                "BeamMeterset is missing" if reference else "the fraction group does not reference the beam",
                hint="the absolute meterset of a beam is never guessed",
            )
            meterset = None
        else:
            meterset = reference.meterset
            if meterset == 0.0:
                notes.append(f"beam {number} has a meterset of 0 and is not treated")
                left_out += 1
                continue
        context = BeamContext(
            number=number,
            meterset=meterset,
            duration_limit_s=reference.duration_limit_s if reference else None,
            dose_gy=reference.dose_gy if reference else None,
            dose_reference_uid=reference.dose_reference_uid if reference else "",
            setups=setups,
            tables=tables,
            notes=notes,
        )
        beam = read_beam(item, context)
        if beam is not None:
            beams.append(beam)
    for number in references:
        if number not in present:
            root.refuse(Why.FRACTION_SCHEME, "the fraction group references a beam that does not exist", value=f"beam {number}")
    if left_out == len(items):
        root.refuse(Why.NO_BEAMS, "the plan has no treatment beams", value=f"{left_out} setup beam(s) or beam(s) of meterset 0")
    return tuple(beams)


def _dose_notes(references: tuple[DoseReference, ...], fractions: int, beams: tuple[Beam, ...]) -> list[str]:
    """Doses that a planner should look at again. Nothing is refused for them: metersets are delivered, doses are not."""
    doses = [
        (
            f"dose reference {r.number}: TargetPrescriptionDose over {fractions} fraction(s)",
            r.target_dose_gy / max(fractions, 1),
        )
        for r in references
        if r.target_dose_gy is not None
    ]
    doses += [(f"beam {beam.number}: BeamDose", beam.dose_gy) for beam in beams if beam.dose_gy is not None]
    return [
        f"{what} is {dose_gy:g} Gy a fraction, which is not plausible (0 to {FRACTION_DOSE_MAX_GY:g} Gy); ask the planner"
        for what, dose_gy in doses
        if not 0.0 < dose_gy <= FRACTION_DOSE_MAX_GY
    ]


def _setup(item: Item) -> PatientSetup:
    motion = [m.code(Tag.RespiratoryMotionCompensationTechnique) for m in item.items(Tag.MotionSynchronizationSequence)]
    return PatientSetup(
        number=item.integer(Tag.PatientSetupNumber) or 0,
        position=item.code(Tag.PatientPosition),
        technique=item.code(Tag.SetupTechnique),
        label=item.text(Tag.PatientSetupLabel),
        motion_technique="\\".join(technique for technique in motion if technique not in ("", "NONE")),
    )


def _tolerance(item: Item) -> ToleranceTable:
    return ToleranceTable(
        number=item.integer(Tag.ToleranceTableNumber) or 0,
        label=item.text(Tag.ToleranceTableLabel),
        gantry_deg=item.number(Tag.GantryAngleTolerance),
        couch_angle_deg=item.number(Tag.PatientSupportAngleTolerance),
        couch_pitch_deg=item.number(Tag.TableTopPitchAngleTolerance),
        couch_roll_deg=item.number(Tag.TableTopRollAngleTolerance),
        couch_vertical_mm=item.number(Tag.TableTopVerticalPositionTolerance),
        couch_longitudinal_mm=item.number(Tag.TableTopLongitudinalPositionTolerance),
        couch_lateral_mm=item.number(Tag.TableTopLateralPositionTolerance),
        snout_mm=item.number(Tag.SnoutPositionTolerance),
    )


def _dose_reference(item: Item) -> DoseReference:
    return DoseReference(
        number=item.integer(Tag.DoseReferenceNumber) or 0,
        uid=item.text(Tag.DoseReferenceUID),
        structure_type=item.code(Tag.DoseReferenceStructureType),
        description=item.text(Tag.DoseReferenceDescription),
        kind=item.code(Tag.DoseReferenceType),
        target_dose_gy=item.number(Tag.TargetPrescriptionDose),
    )
