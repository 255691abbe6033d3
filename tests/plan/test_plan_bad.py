"""Bad plans: each fault gives its reason with place, value and limit; all faults of a plan are told at once."""

import io

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_edit import beam, cp, ref, weights

from controller.plan.errors import PlanRefused, Why
from controller.plan.reading import read_plan


def _nan(ds):
    w = weights(ds)
    w[2] = np.nan
    cp(ds).ScanSpotMetersetWeights = w.tolist()


def _negative(ds):
    w = weights(ds)
    w[2] = -w[2]
    cp(ds).ScanSpotMetersetWeights = w.tolist()


def _huge(ds):
    w = weights(ds)
    w[0] = 3e30
    cp(ds).ScanSpotMetersetWeights = w.tolist()


def _infinite(ds):
    w = weights(ds)
    w[0] = np.inf
    cp(ds).ScanSpotMetersetWeights = w.tolist()


def _both(ds):
    cp(ds, 1).ScanSpotMetersetWeights = cp(ds, 0).ScanSpotMetersetWeights


def _falls(ds):
    cp(ds, 3).CumulativeMetersetWeight = "0"


def _misses(ds):
    w = weights(ds)
    w[0] += 3e-5 * float(beam(ds).FinalCumulativeMetersetWeight)
    cp(ds).ScanSpotMetersetWeights = w.tolist()


def _final(ds):
    beam(ds).FinalCumulativeMetersetWeight = float(beam(ds).FinalCumulativeMetersetWeight) * 1.001


def _between(ds):
    step = 0.1 * float(beam(ds).FinalCumulativeMetersetWeight)
    for point in beam(ds).IonControlPointSequence[2:]:
        point.CumulativeMetersetWeight = f"{float(point.CumulativeMetersetWeight) + step:.9g}"


def _short_map(ds):
    cp(ds).ScanSpotPositionMap = list(cp(ds).ScanSpotPositionMap)[:-2]


def _count(ds):
    cp(ds).NumberOfScanSpotPositions = int(cp(ds).NumberOfScanSpotPositions) + 1


def _odd(ds):
    del beam(ds).IonControlPointSequence[-1]
    beam(ds).NumberOfControlPoints = int(beam(ds).NumberOfControlPoints) - 1


def _moved(ds):
    positions = list(cp(ds, 1).ScanSpotPositionMap)
    positions[0] += 1.0
    cp(ds, 1).ScanSpotPositionMap = positions


def _far(ds):
    positions = list(cp(ds).ScanSpotPositionMap)
    positions[3] = float("nan")
    cp(ds).ScanSpotPositionMap = positions


def _raw(element, value):
    """A decimal string pydicom itself would not write."""

    def edit(ds):
        target = {"energy": cp(ds), "meterset": ref(ds), "cumulative": cp(ds, 1)}[element]
        keyword = {"energy": "NominalBeamEnergy", "meterset": "BeamMeterset", "cumulative": "CumulativeMetersetWeight"}[element]
        tag = pydicom.datadict.tag_for_keyword(keyword)
        target._dict[pydicom.tag.Tag(tag)] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), "DS", len(value), value, 0, True, True
        )

    return edit


# name: (edit, kind, words that must be in the message)
BAD = {
    "no beams": (lambda ds: delattr(ds, "IonBeamSequence"), Why.NO_BEAMS, "no beams"),
    "empty beam sequence": (lambda ds: setattr(ds, "IonBeamSequence", []), Why.NO_BEAMS, "no beams"),
    "wrong SOP class": (lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.5"), Why.WRONG_SOP_CLASS, "RT Plan"),
    "duplicate beam number": (lambda ds: setattr(beam(ds, 1), "BeamNumber", 1), Why.DUPLICATE_BEAM, "beam 1"),
    "referenced twice": (lambda ds: setattr(ref(ds, 1), "ReferencedBeamNumber", 1), Why.DUPLICATE_BEAM, "beam 1"),
    "beam count": (lambda ds: setattr(ds.FractionGroupSequence[0], "NumberOfBeams", 5), Why.COUNT_DISAGREES, "NumberOfBeams"),
    "control point count": (
        lambda ds: setattr(beam(ds), "NumberOfControlPoints", 3),
        Why.COUNT_DISAGREES,
        "NumberOfControlPoints",
    ),
    "odd control points": (_odd, Why.COUNT_DISAGREES, "pairs"),
    "control point index": (lambda ds: setattr(cp(ds, 2), "ControlPointIndex", 9), Why.COUNT_DISAGREES, "control point 2"),
    "control point index of a second": (
        lambda ds: setattr(cp(ds, 3), "ControlPointIndex", 2),
        Why.COUNT_DISAGREES,
        "control point 3",
    ),
    "map shorter than weights": (_short_map, Why.COUNT_DISAGREES, "positions"),
    "spot count": (_count, Why.COUNT_DISAGREES, "declared"),
    "NaN weight": (_nan, Why.BAD_WEIGHT, "nan at spot 2"),
    "negative weight": (_negative, Why.BAD_WEIGHT, "at spot 2"),
    "infinite weight": (_infinite, Why.BAD_WEIGHT, "inf at spot 0"),
    "huge weight": (_huge, Why.BAD_WEIGHT, "3e+30"),
    "NaN position": (_far, Why.BAD_POSITION, "nan"),
    "cumulative falls": (_falls, Why.CUMULATIVE_FALLS, "control point 3"),
    "sum misses": (_misses, Why.CUMULATIVE_MISSES, "1e-5"),
    "final misses": (_final, Why.CUMULATIVE_MISSES, "FinalCumulativeMetersetWeight"),
    "rises between pairs": (_between, Why.CUMULATIVE_MISSES, "between pairs"),
    "weights on both": (_both, Why.PAIR_WEIGHTS, "control point 1"),
    "maps differ": (_moved, Why.PAIR_DIFFERS, "spot map differs"),
    "energy changes within pair": (lambda ds: setattr(cp(ds, 1), "NominalBeamEnergy", 77), Why.PAIR_DIFFERS, "77"),
    "paintings differ": (lambda ds: setattr(cp(ds, 1), "NumberOfPaintings", 2), Why.PAIR_DIFFERS, "NumberOfPaintings"),
    "no paintings": (
        lambda ds: [setattr(p, "NumberOfPaintings", 0) for p in beam(ds).IonControlPointSequence[:2]],
        Why.BAD_VALUE,
        "NumberOfPaintings",
    ),
    "no energy": (
        lambda ds: [delattr(p, "NominalBeamEnergy") for p in beam(ds).IonControlPointSequence],
        Why.MISSING,
        "NominalBeamEnergy",
    ),
    "energy not a number": (_raw("energy", b"2..5 "), Why.BAD_VALUE, "NominalBeamEnergy"),
    "energy not finite": (_raw("energy", b"nan "), Why.BAD_VALUE, "not finite"),
    "no BeamMeterset": (lambda ds: delattr(ref(ds), "BeamMeterset"), Why.NO_METERSET, "BeamMeterset is missing"),
    "BeamMeterset empty": (lambda ds: setattr(ref(ds), "BeamMeterset", None), Why.NO_METERSET, "BeamMeterset is missing"),
    "BeamMeterset negative": (lambda ds: setattr(ref(ds), "BeamMeterset", "-5"), Why.NO_METERSET, "-5 MU"),
    "BeamMeterset infinite": (_raw("meterset", b"inf "), Why.BAD_VALUE, "BeamMeterset"),
    "BeamMeterset huge": (lambda ds: setattr(ref(ds), "BeamMeterset", "1e12"), Why.NO_METERSET, "1e+12"),
    "cumulative not finite": (_raw("cumulative", b"inf "), Why.BAD_VALUE, "control point 1"),
    "no final weight": (
        lambda ds: delattr(beam(ds), "FinalCumulativeMetersetWeight"),
        Why.MISSING,
        "FinalCumulativeMetersetWeight",
    ),
    "final weight zero": (
        lambda ds: setattr(beam(ds), "FinalCumulativeMetersetWeight", 0),
        Why.BAD_VALUE,
        "FinalCumulativeMetersetWeight",
    ),
    "beam not referenced": (
        lambda ds: setattr(ref(ds), "ReferencedBeamNumber", 9),
        Why.NO_METERSET,
        "does not reference the beam",
    ),
    "no fraction group": (lambda ds: delattr(ds, "FractionGroupSequence"), Why.FRACTION_SCHEME, "fraction group"),
    "no fractions": (
        lambda ds: setattr(ds.FractionGroupSequence[0], "NumberOfFractionsPlanned", 0),
        Why.FRACTION_SCHEME,
        "NumberOfFractionsPlanned",
    ),
    "unit": (lambda ds: setattr(beam(ds), "PrimaryDosimeterUnit", "MINUTE"), Why.BAD_UNIT, "MINUTE"),
    "photons": (lambda ds: setattr(beam(ds), "RadiationType", "PHOTON"), Why.BAD_SPECIES, "PHOTON"),
    "unknown ion": (lambda ds: setattr(beam(ds), "RadiationMassNumber", 13), Why.BAD_SPECIES, "Z 6, A 13"),
    "ion without numbers": (lambda ds: delattr(beam(ds), "RadiationAtomicNumber"), Why.BAD_SPECIES, "missing"),
    "no gantry angle": (lambda ds: delattr(cp(ds), "GantryAngle"), Why.MISSING, "GantryAngle"),
    "no scan mode": (lambda ds: delattr(beam(ds), "ScanMode"), Why.MISSING, "ScanMode"),
    "no spots": (lambda ds: delattr(cp(ds), "ScanSpotMetersetWeights"), Why.MISSING, "ScanSpotMetersetWeights"),
    "range shifter count": (
        lambda ds: setattr(beam(ds), "NumberOfRangeShifters", 1),
        Why.COUNT_DISAGREES,
        "NumberOfRangeShifters",
    ),
    "no identity": (lambda ds: setattr(ds, "SOPInstanceUID", ""), Why.MISSING, "SOPInstanceUID"),
    "only setup beams": (
        lambda ds: [setattr(b, "TreatmentDeliveryType", "SETUP") for b in ds.IonBeamSequence],
        Why.NO_BEAMS,
        "no treatment beams",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plan_is_refused_for_its_reason(small, read, name):
    edit, why, words = BAD[name]
    edit(small)
    with pytest.raises(PlanRefused) as refused:
        read(small)
    messages = [str(reason) for reason in refused.value.reasons if reason.why is why]
    assert any(words in message for message in messages), refused.value.reasons
    assert all(f"[{int(why)}]" in message for message in messages)


def test_every_reason_is_told_at_once(small, read):
    faults = {"NaN weight", "control point index", "weights on both", "unit", "no identity", "paintings differ"}
    for name in sorted(faults):
        BAD[name][0](small)
    delattr(ref(small, 1), "BeamMeterset")
    with pytest.raises(PlanRefused) as refused:
        read(small)
    assert {BAD[name][1] for name in faults} | {Why.NO_METERSET} <= {reason.why for reason in refused.value.reasons}
    text = str(refused.value)
    assert "beam 1, control point 0: a spot weight" in text
    assert "beam 2: BeamMeterset is missing" in text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", Why.NOT_DICOM),
        (b"hello", Why.NOT_DICOM),
        (b"%PDF-1.7" + b"x" * 500, Why.NOT_DICOM),
        (b"\0" * 128 + b"DICM", Why.TRUNCATED),
        (b"\0" * 128 + b"DICM" + bytes(range(256)), Why.TRUNCATED),
        (b"rstfile 20030630\n", Why.MISSING),
        (b"rstfile 19990101\n", Why.NOT_RST),
    ],
)
def test_files_that_are_no_plans(read, content, why):
    with pytest.raises(PlanRefused) as refused:
        read(content)
    assert why in {reason.why for reason in refused.value.reasons}


def test_missing_files_and_directories(tmp_path):
    for path in (tmp_path / "none.dcm", tmp_path):
        with pytest.raises(PlanRefused) as refused:
            read_plan(path)
        assert [reason.why for reason in refused.value.reasons] == [Why.UNREADABLE]


@settings(max_examples=60, deadline=None)
@given(
    weight=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20),
    slip=st.sampled_from([0.0, 3e-6, -3e-6, 5e-5, -5e-5]),
    meterset=st.floats(1e-3, 1e6),
)
def test_sums_are_held_to_a_hundred_thousandth(tmp_path_factory, made, weight, slip, meterset):
    """Any weights whose sum matches are read to exactly their share; a sum that misses by more than 1e-5 is refused."""
    ds = pydicom.dcmread(io.BytesIO(made(shape="qa-grid")))
    total = float(np.sum(weight))
    final = total * (1.0 + slip)
    for point in beam(ds).IonControlPointSequence:
        point.NumberOfScanSpotPositions = len(weight)
        point.ScanSpotPositionMap = [float(i) for i in range(2 * len(weight))]
        point.ScanSpotMetersetWeights = weight if point.ControlPointIndex == 0 else [0.0] * len(weight)
    cp(ds, 1).CumulativeMetersetWeight = pydicom.valuerep.DSfloat(final, auto_format=True)
    beam(ds).FinalCumulativeMetersetWeight = pydicom.valuerep.DSfloat(final, auto_format=True)
    ref(ds).BeamMeterset = pydicom.valuerep.DSfloat(meterset, auto_format=True)
    path = tmp_path_factory.mktemp("sums") / "plan.dcm"
    ds.save_as(path)
    if total == 0.0 or abs(slip) > 1e-5:
        with pytest.raises(PlanRefused):
            read_plan(path)
        return
    (got,) = read_plan(path).beams
    np.testing.assert_allclose(got.layers[0].meterset, np.array(weight) * meterset / final, rtol=1e-9, atol=0)


# --- raster scan files ---------------------------------------------------------------------------------------------------

GOOD_RST = """rstfile 20030630
sistable 19981218
patient_id tst
machine# 0
projectile 12C
charge 6
mass 12
gantryangle 30
couchangle -90
stereotacticcoordinates
bolus 0
ripplefilter 3 mm RIFI
#submachines 2
#particles 1000 4000 10000
submachine# 91 229.76 2 3.7
#particles 1000 2000 3000
stepsize 2 2
#points 2
2 -4 1000
0 -4 2000
submachine# 94 233.42 1 3.6
#particles 3000 4000 7000
stepsize 2 2
#points 2
2 -4 3000
0 -4 4000
"""


def test_a_raster_scan_file_is_read(read):
    (beam_read,) = read(GOOD_RST.encode(), "x.rst").beams
    assert beam_read.meterset == 10000
    assert [layer.meterset.tolist() for layer in beam_read.layers] == [[1000, 2000], [3000, 4000]]
    assert [layer.tune_id for layer in beam_read.layers] == ["2", "1"]
    assert beam_read.layers[1].cumulative_weight_start == 3000
    read(GOOD_RST.replace("\n", "\r\n").encode(), "dos.rst")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("rstfile 20030630", "rstfile 20990101", Why.NOT_RST),
        ("projectile 12C", "projectile 16O", Why.BAD_SPECIES),
        ("mass 12", "mass 13", Why.BAD_SPECIES),
        ("charge 6\n", "", Why.MISSING),
        ("#submachines 2", "#submachines 3", Why.COUNT_DISAGREES),
        ("#submachines 2", "#submachines two", Why.BAD_VALUE),
        ("#points 2\n2 -4 1000", "#points 3\n2 -4 1000", Why.COUNT_DISAGREES),
        ("#points 2\n2 -4 3000", "#points 3\n2 -4 3000", Why.TRUNCATED),
        ("#points 2\n2 -4 1000", "#points 1\n2 -4 1000", Why.NOT_RST),
        ("0 -4 2000", "0 -4 nan", Why.BAD_WEIGHT),
        ("0 -4 2000", "0 -4 -2000", Why.BAD_WEIGHT),
        ("0 -4 2000", "0 -4", Why.COUNT_DISAGREES),
        ("0 -4 2000", "0 -4 many", Why.BAD_VALUE),
        ("#particles 1000 2000 3000", "#particles 1000 2000 3001", Why.CUMULATIVE_MISSES),
        ("#particles 1000 4000 10000", "#particles 1000 4000 20000", Why.CUMULATIVE_MISSES),
        ("#particles 1000 4000 10000", "#particles 1000", Why.COUNT_DISAGREES),
        ("submachine# 94 233.42 1 3.6", "submachine# 94 inf 1 3.6", Why.BAD_VALUE),
        ("submachine# 94 233.42 1 3.6", "submachine# 94 -233 1 3.6", Why.BAD_VALUE),
        ("submachine# 94 233.42 1 3.6", "submachine# 94 233.42 1", Why.COUNT_DISAGREES),
        ("0 -4 4000\n", "", Why.TRUNCATED),
        ("tst", "t\u00e9st", Why.NOT_RST),
        ("gantryangle 30", "gantryangle 30\ngantryangle 40", Why.NOT_RST),
    ],
)
def test_a_bad_raster_scan_file_is_refused(read, old, new, why):
    assert old in GOOD_RST
    with pytest.raises(PlanRefused) as refused:
        read(GOOD_RST.replace(old, new, 1).encode(), "x.rst")
    assert why in {reason.why for reason in refused.value.reasons}, refused.value.reasons


def test_a_raster_scan_file_cut_anywhere_is_refused(read):
    text = GOOD_RST.rstrip("\n").encode()
    for length in range(17, len(text) - 3):
        with pytest.raises(PlanRefused):
            read(text[:length], "x.rst")
