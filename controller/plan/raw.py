"""Typed reading of DICOM elements: every fault of a value becomes a reason with its place, never an exception.

Decodes the few elements that plans need: numbers as text (DS, IS) and binary (FL, FD), text in the file's character set,
long lists of floats as numpy views. Checked as they are read: unparsable, not finite, broken length. Not responsible for
what values mean, nor for finding them in the file (`elements`).
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import KeysView
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from controller.plan.elements import Elements
from controller.plan.errors import Refusal, Why

_TEXT_VRS = frozenset(("DS", "IS", "LO", "SH", "CS", "UI", "ST", "LT", "UT", "PN", "DA", "TM", "AE", "AS", "DT", "UC"))
_BINARY = {"FL": ("f", 4), "FD": ("d", 8), "SS": ("h", 2), "US": ("H", 2), "SL": ("i", 4), "UL": ("I", 4)}
_LONGEST_TEXT = 1 << 16
_PADDING = b" \0\r\n\t"
_FLOAT32 = {True: np.dtype("<f4"), False: np.dtype(">f4")}


class Item:
    """One dataset or sequence item, with its place in words and the list that collects reasons.

    Args:
        elements: the elements of the item.
        where: its place for messages, for example ``"beam 2"``.
        reasons: shared list that faults are added to.
        encodings: Python encodings of the file's character set.
    """

    __slots__ = ("elements", "encodings", "reasons", "where")

    def __init__(self, elements: Elements, where: str, reasons: list[Refusal], encodings: list[str]):
        self.elements = elements
        self.where = where
        self.reasons = reasons
        self.encodings = encodings

    def refuse(self, why: Why, what: str, *, value: str = "", limit: str = "", hint: str = "") -> None:
        """Add a reason that lies in this item."""
        self.reasons.append(Refusal(why, what, self.where, value, limit, hint))

    @property
    def tags(self) -> KeysView[int]:
        """Tags that are present, be they empty."""
        return self.elements.table.keys()

    def text(self, tag: Tag, default: str = "") -> str:
        """Text without padding, components joined by a backslash; `default` when absent or empty."""
        element = self.elements.table.get(tag)
        if element is None or element.length == 0:
            return default
        if element.length > _LONGEST_TEXT:
            self.refuse(
                Why.BAD_VALUE, f"{tag.name} is too long", value=f"{element.length} bytes", limit=f"{_LONGEST_TEXT} bytes"
            )
            return default
        return _decode(self.elements.value(element).strip(_PADDING), self.encodings).strip() or default

    def code(self, tag: Tag, default: str = "") -> str:
        """A coded string (CS), upper case."""
        return self.text(tag, default).upper()

    def numbers(self, tag: Tag) -> tuple[float, ...]:
        """All numbers of an element; empty when absent, empty or wrong (with a reason)."""
        element = self.elements.table.get(tag)
        if element is None or element.length == 0:
            return ()
        value = self.elements.value(element)
        actual = BINARY_VR.get(tag, "DS") if element.vr in ("", "UN") else element.vr
        if actual in _BINARY:
            letter, size = _BINARY[actual]
            if len(value) % size:
                self.refuse(
                    Why.BAD_VALUE, f"{tag.name} has a broken length", value=f"{len(value)} bytes", limit=f"multiple of {size}"
                )
                return ()
            result = tuple(
                float(v)
                for v in struct.unpack(f"{'<' if self.elements.coding.little else '>'}{len(value) // size}{letter}", value)
            )
        elif actual in _TEXT_VRS and len(value) <= _LONGEST_TEXT:
            stripped = value.strip(_PADDING)
            if not stripped:
                return ()
            try:
                result = tuple(map(float, stripped.split(b"\\")))
            except ValueError:
                self.refuse(Why.BAD_VALUE, f"{tag.name} is not a number", value=repr(stripped.decode("ascii", "replace"))[:60])
                return ()
        else:
            self.refuse(Why.BAD_VALUE, f"{tag.name} has an unexpected value representation", value=actual)
            return ()
        if not all(map(math.isfinite, result)):
            self.refuse(Why.BAD_VALUE, f"{tag.name} is not finite", value="\\".join(f"{number:g}" for number in result))
            return ()
        return result

    def number(self, tag: Tag) -> float | None:
        """A single number, or None when absent or empty; several values are a fault."""
        if tag not in self.elements.table:
            return None
        values = self.numbers(tag)
        if len(values) > 1:
            self.refuse(Why.BAD_VALUE, f"{tag.name} has {len(values)} values", limit="1 value")
            return None
        return values[0] if values else None

    def integer(self, tag: Tag) -> int | None:
        """A single integer, or None when absent, empty or wrong (with a reason)."""
        value = self.number(tag)
        if value is None:
            return None
        if value != int(value) or abs(value) >= 2**31:
            self.refuse(Why.BAD_VALUE, f"{tag.name} is not a 32-bit integer", value=f"{value:g}")
            return None
        return int(value)

    def floats(self, tag: Tag) -> tuple[NDArray[np.float32] | None, bytes]:
        """The numbers of a long FL element as float32, with the bytes they came from; (None, b"") when absent, empty or broken.

        One value gives shape (1,). Not checked for being finite: the caller does that for whole layers.
        """
        element = self.elements.table.get(tag)
        if element is None or element.length == 0:
            return None, b""
        if element.vr not in ("FL", "", "UN", "OF") or element.length % 4:
            self.refuse(
                Why.BAD_VALUE,
                f"{tag.name} is not a list of 32-bit floats",
                value=f"{element.vr or 'no'} representation, {element.length} bytes",
                limit="FL",
            )
            return None, b""
        value = self.elements.value(element)
        return np.frombuffer(value, dtype=_FLOAT32[self.elements.coding.little]), value

    def items(self, tag: Tag, label: str = "") -> list[Item]:
        """Items of a sequence; empty when absent. `label` names them in messages: "{where}, {label} {n}".

        Raises:
            Damaged: the sequence is not what its lengths declare.
        """
        element = self.elements.table.get(tag)
        if element is None:
            return []
        if element.vr not in ("SQ", "", "UN"):
            self.refuse(Why.BAD_VALUE, f"{tag.name} is not a sequence", value=element.vr, limit="SQ")
            return []
        prefix = f"{self.where}, {label}" if self.where else label
        return [
            Item(elements, f"{prefix} {index}" if label else self.where, self.reasons, self.encodings)
            for index, elements in enumerate(self.elements.sequence(element))
        ]


def _decode(value: bytes, encodings: list[str]) -> str:
    """Bytes of a text element in the file's character set; what cannot be decoded is replaced, never raised."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    from pydicom.charset import decode_bytes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(decode_bytes(value, encodings, set()))
        except (LookupError, UnicodeError):
            return value.decode("ascii", "replace")


def encodings_of(elements: Elements) -> list[str]:
    """Python encodings of a file's SpecificCharacterSet; unknown ones fall back to the default repertoire."""
    raw = Item(elements, "", [], ["iso8859"]).text(Tag.SpecificCharacterSet)
    plain = {"": "iso8859", "ISO_IR 6": "iso8859", "ISO_IR 100": "latin_1", "ISO_IR 192": "UTF8"}
    if raw in plain:
        return [plain[raw]]
    from pydicom.charset import convert_encodings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return list(convert_encodings(raw.split("\\")))
        except (LookupError, ValueError):
            return ["iso8859"]


class Tag(IntEnum):
    """DICOM tags by keyword (PS3.6)."""

    SpecificCharacterSet = 0x00080005
    SOPClassUID = 0x00080016
    SOPInstanceUID = 0x00080018
    StudyDate = 0x00080020
    StudyTime = 0x00080030
    AccessionNumber = 0x00080050
    ReferringPhysicianName = 0x00080090
    PatientName = 0x00100010
    PatientID = 0x00100020
    PatientBirthDate = 0x00100030
    PatientSex = 0x00100040
    PatientPosition = 0x00185100
    RespiratoryMotionCompensationTechnique = 0x00189170
    StudyInstanceUID = 0x0020000D
    SeriesInstanceUID = 0x0020000E
    StudyID = 0x00200010
    FrameOfReferenceUID = 0x00200052
    PositionReferenceIndicator = 0x00201040
    RTPlanLabel = 0x300A0002
    RTPlanName = 0x300A0003
    PlanIntent = 0x300A000A
    DoseReferenceSequence = 0x300A0010
    DoseReferenceNumber = 0x300A0012
    DoseReferenceUID = 0x300A0013
    DoseReferenceStructureType = 0x300A0014
    DoseReferenceDescription = 0x300A0016
    DoseReferenceType = 0x300A0020
    TargetPrescriptionDose = 0x300A0026
    ToleranceTableNumber = 0x300A0042
    ToleranceTableLabel = 0x300A0043
    GantryAngleTolerance = 0x300A0044
    SnoutPositionTolerance = 0x300A004B
    PatientSupportAngleTolerance = 0x300A004C
    TableTopPitchAngleTolerance = 0x300A004F
    TableTopRollAngleTolerance = 0x300A0050
    TableTopVerticalPositionTolerance = 0x300A0051
    TableTopLongitudinalPositionTolerance = 0x300A0052
    TableTopLateralPositionTolerance = 0x300A0053
    FractionGroupSequence = 0x300A0070
    FractionGroupNumber = 0x300A0071
    NumberOfFractionsPlanned = 0x300A0078
    NumberOfBeams = 0x300A0080
    ReferencedDoseReferenceUID = 0x300A0083
    BeamDose = 0x300A0084
    BeamMeterset = 0x300A0086
    TreatmentMachineName = 0x300A00B2
    PrimaryDosimeterUnit = 0x300A00B3
    BeamNumber = 0x300A00C0
    BeamName = 0x300A00C2
    BeamDescription = 0x300A00C3
    BeamType = 0x300A00C4
    BeamDeliveryDurationLimit = 0x300A00C5
    RadiationType = 0x300A00C6
    TreatmentDeliveryType = 0x300A00CE
    NumberOfWedges = 0x300A00D0
    NumberOfCompensators = 0x300A00E0
    NumberOfBoli = 0x300A00ED
    NumberOfBlocks = 0x300A00F0
    FinalCumulativeMetersetWeight = 0x300A010E
    NumberOfControlPoints = 0x300A0110
    ControlPointIndex = 0x300A0112
    NominalBeamEnergy = 0x300A0114
    GantryAngle = 0x300A011E
    PatientSupportAngle = 0x300A0122
    TableTopVerticalPosition = 0x300A0128
    TableTopLongitudinalPosition = 0x300A0129
    TableTopLateralPosition = 0x300A012A
    IsocenterPosition = 0x300A012C
    CumulativeMetersetWeight = 0x300A0134
    TableTopPitchAngle = 0x300A0140
    TableTopRollAngle = 0x300A0144
    GantryPitchAngle = 0x300A014A
    FixationEye = 0x300A0150
    PatientSetupSequence = 0x300A0180
    PatientSetupNumber = 0x300A0182
    PatientSetupLabel = 0x300A0183
    SetupTechnique = 0x300A01B0
    RadiationMassNumber = 0x300A0302
    RadiationAtomicNumber = 0x300A0304
    RadiationChargeState = 0x300A0306
    ScanMode = 0x300A0308
    ModulatedScanModeType = 0x300A0309
    VirtualSourceAxisDistances = 0x300A030A
    SnoutSequence = 0x300A030C
    SnoutPosition = 0x300A030D
    SnoutID = 0x300A030F
    NumberOfRangeShifters = 0x300A0312
    RangeShifterSequence = 0x300A0314
    RangeShifterNumber = 0x300A0316
    RangeShifterID = 0x300A0318
    RangeShifterType = 0x300A0320
    NumberOfLateralSpreadingDevices = 0x300A0330
    NumberOfRangeModulators = 0x300A0340
    PatientSupportType = 0x300A0350
    PatientSupportID = 0x300A0352
    FixationLightAzimuthalAngle = 0x300A0356
    FixationLightPolarAngle = 0x300A0358
    RangeShifterSettingsSequence = 0x300A0360
    RangeShifterSetting = 0x300A0362
    RangeShifterWaterEquivalentThickness = 0x300A0366
    ScanSpotTuneID = 0x300A0390
    NumberOfScanSpotPositions = 0x300A0392
    ScanSpotPositionMap = 0x300A0394
    ScanSpotReorderingAllowed = 0x300A0395
    ScanSpotMetersetWeights = 0x300A0396
    ScanningSpotSize = 0x300A0398
    NumberOfPaintings = 0x300A039A
    IonToleranceTableSequence = 0x300A03A0
    IonBeamSequence = 0x300A03A2
    IonControlPointSequence = 0x300A03A8
    MotionSynchronizationSequence = 0x300A0410
    ReferencedBeamSequence = 0x300C0004
    ReferencedBeamNumber = 0x300C0006
    ReferencedPatientSetupNumber = 0x300C006A
    ReferencedToleranceTableNumber = 0x300C00A0
    ReferencedRangeShifterNumber = 0x300C0100
    ApprovalStatus = 0x300E0002


# Numbers that are binary in the standard; all others that are read here are decimal or integer strings (DS, IS).
BINARY_VR: dict[Tag, str] = {
    Tag.BeamDeliveryDurationLimit: "FD",
    Tag.RadiationChargeState: "SS",
    **dict.fromkeys(
        (
            Tag.SnoutPositionTolerance,
            Tag.TableTopPitchAngleTolerance,
            Tag.TableTopRollAngleTolerance,
            Tag.TableTopPitchAngle,
            Tag.TableTopRollAngle,
            Tag.GantryPitchAngle,
            Tag.VirtualSourceAxisDistances,
            Tag.SnoutPosition,
            Tag.FixationLightAzimuthalAngle,
            Tag.FixationLightPolarAngle,
            Tag.RangeShifterWaterEquivalentThickness,
            Tag.ScanSpotPositionMap,
            Tag.ScanSpotMetersetWeights,
            Tag.ScanningSpotSize,
        ),
        "FL",
    ),
}
