"""Bad plans, from the command to the refusal: before motion or beam, every reason with place, value and limit, no file."""

import io
import re

import numpy as np
import pydicom
import pytest
from plans import layers_of, put_layers

from controller.admission import TreatOptions
from controller.intake import Refused
from controller.treatment import run_treatment


def refused(tmp_path, plan, **options):
    """The reasons for which a plan is refused; nothing may be left behind."""
    path = tmp_path / "plan.dcm"
    if isinstance(plan, bytes):
        path.write_bytes(plan)
    elif plan is not None:
        plan.save_as(path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(Refused) as caught:
        run_treatment(TreatOptions(plan=path, output=tmp_path / "out", **options))
    assert set(tmp_path.rglob("*")) == before
    return caught.value.reasons


def beam(ds, index=0):
    return ds.IonBeamSequence[index]


def point(ds, index=0):
    return beam(ds).IonControlPointSequence[index]


def weight(row, value):
    def edit(ds):
        weights = list(point(ds).ScanSpotMetersetWeights)
        weights[row] = value
        point(ds).ScanSpotMetersetWeights = weights

    return edit


def spots(change):
    """Change the layers of the first beam, and keep the plan whole."""

    def edit(ds):
        layers = layers_of(beam(ds))
        change(layers)
        put_layers(ds, 0, layers)

    return edit


def move(layers):
    layers[2].x[4] = 104.0


def shrink(layers):
    layers[1].weight[3] = 0.2


def total_energy(layers):
    for layer in layers:
        layer.energy *= 12.0


def misses(ds):
    final = float(beam(ds).FinalCumulativeMetersetWeight)
    weight(0, float(point(ds).ScanSpotMetersetWeights[0]) + 3e-5 * final)(ds)


def set_on(find, keyword, value):
    return lambda ds: setattr(find(ds), keyword, value)


def ion(mass, number):
    def edit(ds):
        beam(ds).RadiationMassNumber, beam(ds).RadiationAtomicNumber, beam(ds).RadiationChargeState = mass, number, number

    return edit


def top(ds):
    return ds


def reference(ds):
    return ds.FractionGroupSequence[0].ReferencedBeamSequence[0]


def fixation(ds):
    point(ds).FixationLightPolarAngle = 12.0
    beam(ds).FixationEye = "L"


# what: (edit, what its one reason must say)
BAD = {
    "wrong SOP class": (set_on(top, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.5"), r"\[6004\].*RT Ion Plan"),
    "no beams": (lambda ds: delattr(ds, "IonBeamSequence"), r"\[6101\].*no beams"),
    "NaN weight": (weight(2, float("nan")), r"beam 1, control point 0: .*nan at spot 2"),
    "negative weight": (weight(2, -1.0), r"beam 1, control point 0: .*-1 at spot 2"),
    "huge weight": (weight(1, 3e30), r"beam 1, control point 0: .*3e\+30 at spot 1"),
    "cumulative falls": (
        lambda ds: setattr(point(ds, 3), "CumulativeMetersetWeight", "0"),
        r"\[6107\] beam 1, control point 3",
    ),
    "sum misses by 3e-5": (misses, r"\[6108\] beam 1, control point .*1e-5"),
    "weights on both": (
        lambda ds: setattr(point(ds, 1), "ScanSpotMetersetWeights", point(ds, 0).ScanSpotMetersetWeights),
        r"\[6109\] beam 1, control point 1",
    ),
    "counts disagree": (set_on(beam, "NumberOfControlPoints", 3), r"\[6103\] beam 1: .*NumberOfControlPoints"),
    "no BeamMeterset": (lambda ds: delattr(reference(ds), "BeamMeterset"), r"\[6111\] beam 1: BeamMeterset is missing"),
    "energy not on the list": (
        spots(lambda layers: setattr(layers[0], "energy", 431.0)),
        r"\[6204\] beam 1, control point 0: .*431 MeV/u .*56 to 430 MeV/u in steps of 0.5 for C.*nearest 430",
    ),
    "energy in all": (spots(total_energy), r"beam 1, control point \d+: .*per nucleon.*would be [\d.]+ MeV/u for C-12"),
    "protons": (
        set_on(beam, "RadiationType", "PROTON"),
        r"\[6203\] beam 1: the machine does not offer this species: p \(limit C, He, O, Ne\)",
    ),
    "species that nobody has": (ion(40, 18), r"Z 18, A 40"),
    "outside the field": (spots(move), r"\[6205\] beam 1, control point 4, spot 4: .*\(104, .*\) mm .*\+-100 x \+-100 mm"),
    "below the minimum": (spots(shrink), r"\[6206\] beam 1, control point 2, spot 3: .*0.2.* MU .*limit 0.5 MU"),
    "couch too far": (
        set_on(point, "TableTopLongitudinalPosition", "5000"),
        r"\[6210\] beam 1: the couch cannot reach its longitudinal position: 5000 mm \(limit .* mm\)",
    ),
    "couch turned too far": (set_on(point, "PatientSupportAngle", "150"), r"\[6210\] beam 1: the couch .* angle .*150 deg"),
    "unapproved": (set_on(top, "ApprovalStatus", "UNAPPROVED"), r"\[6202\] the plan is not approved: UNAPPROVED .*APPROVED"),
    "another machine": (
        set_on(beam, "TreatmentMachineName", "G2"),
        r"\[6201\] beam 1: the plan was made for another machine: G2 \(limit .*\); treat it in room G2",
    ),
    "dynamic": (set_on(beam, "BeamType", "DYNAMIC"), r"\[6213\] beam 1: the beam type is not supported: DYNAMIC"),
    "chair": (set_on(beam, "PatientSupportType", "CHAIR"), r"\[6214\] beam 1: the patient support is not supported: CHAIR"),
    "empty PatientID": (set_on(top, "PatientID", ""), r"\[6104\] PatientID is missing or empty"),
    "no PatientID": (lambda ds: delattr(ds, "PatientID"), r"\[6104\] PatientID is missing or empty"),
    "blank PatientID": (set_on(top, "PatientID", "   "), r"\[6104\] PatientID is missing or empty"),
    "gantry beyond a turn": (
        set_on(point, "GantryAngle", "390"),
        r"\[6105\] beam 1, control point 0: GantryAngle .*: 390 deg \(limit 0 to 360 deg, or",
    ),
    "meterset below zero": (set_on(reference, "BeamMeterset", "-5"), r"\[6111\] beam 1: BeamMeterset is not plausible: -5 MU"),
    "meterset of zero": (set_on(reference, "BeamMeterset", "0"), r"\[6101\] the plan has no treatment beams"),
    "eye": (fixation, r"\[6215\] beam 1: eye fixation is not supported"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plan_is_refused_for_what_is_wrong_with_it(tmp_path, dataset, name):
    edit, words = BAD[name]
    plan = dataset()
    edit(plan)
    reasons = refused(tmp_path, plan, room="G1")
    assert any(re.search(words, reason) for reason in reasons), reasons
    assert all("Traceback" not in reason for reason in reasons)


def test_duplicate_beam_numbers_are_refused(tmp_path, dataset):
    plan = dataset(shape="pancreas", diameter_mm=14.0)
    plan.IonBeamSequence[1].BeamNumber = 1
    assert any("[6102] beam 1" in reason for reason in refused(tmp_path, plan))


def test_an_angle_that_a_fixed_room_does_not_have_is_refused_with_the_ports_it_has(tmp_path, dataset):
    plan = dataset(room="F1", angles_deg=(90.0,))
    plan.IonBeamSequence[0].IonControlPointSequence[0].GantryAngle = "45"
    (reason,) = refused(tmp_path, plan)
    assert re.search(r"\[6209\] beam 1: room F1 cannot reach the gantry angle: 45 deg \(limit ports 0, 90 deg\)", reason)


def test_a_layer_whose_smallest_spot_cannot_be_cut_off_is_refused_with_the_numbers(tmp_path, made, dataset):
    plan = pydicom.dcmread(io.BytesIO(made(facility="research", room="R1", dose_gy=20.0)))
    spots(lambda layers: [setattr(la, "weight", la.weight * 1e-3) for la in layers])(plan)
    reasons = refused(tmp_path, plan, facility="research")
    assert any(re.search(r"\[620[67]\] beam 1, control point \d+, spot \d+: .*limit", reason) for reason in reasons), reasons


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "[6002]"),
        (b"no plan at all", "[6002]"),
        (b"\x00" * 128 + b"DICM" + b"\xff" * 40, "["),
        (None, "[6001] there is no such plan file"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, content, words):
    (reason,) = refused(tmp_path, content)
    assert reason.startswith(words)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_plan_is_refused(tmp_path, made, share):
    content = made()
    reasons = refused(tmp_path, content[: int(len(content) * share)])
    assert any(reason.startswith(("[6003]", "[61")) for reason in reasons), reasons


def test_a_directory_is_no_plan(tmp_path):
    with pytest.raises(Refused, match="is a directory"):
        run_treatment(TreatOptions(plan=tmp_path, output=tmp_path / "out"))


def test_every_reason_of_plan_and_machine_is_told_at_once(tmp_path, dataset):
    plan = dataset()
    plan.ApprovalStatus = "REJECTED"
    spots(lambda layers: (move(layers), shrink(layers), setattr(layers[0], "energy", 500.25)))(plan)
    for edit in ("chair", "eye", "dynamic", "couch turned too far", "another machine"):
        BAD[edit][0](plan)
    reasons = refused(tmp_path, plan, room="G1", fraction=99)
    kinds = {reason[1:5] for reason in reasons if reason.startswith("[")}
    assert kinds == {"6201", "6202", "6204", "6205", "6206", "6207", "6210", "6213", "6214", "6215"}, reasons
    assert any(reason.startswith("--fraction 99") for reason in reasons)


def test_every_fault_of_the_file_is_told_at_once(tmp_path, dataset):
    plan = dataset()
    weight(0, float("nan"))(plan)
    beam(plan).PrimaryDosimeterUnit = "MINUTE"
    point(plan, 2).ControlPointIndex = 9
    point(plan, 5).CumulativeMetersetWeight = "0"
    reasons = refused(tmp_path, plan)
    assert {"6103", "6106", "6107", "6112"} <= {reason[1:5] for reason in reasons}


def test_species_and_energy_that_no_room_offers_are_told_though_no_room_is_named(tmp_path, dataset):
    plan = dataset()
    beam(plan).TreatmentMachineName = "elsewhere"
    spots(lambda layers: setattr(layers[0], "energy", 500.25))(plan)
    reasons = refused(tmp_path, plan)
    assert "name one with --room: G1, G2, F1" in reasons[0]
    assert [reason[1:5] for reason in reasons[1:]] == ["6204"]


def test_nozzle_and_couch_that_would_touch_are_refused_before_anything_moves(tmp_path, dataset):
    plan = dataset(angles_deg=(90.0,))
    point(plan).SnoutPosition = 100.0
    (reason,) = refused(tmp_path, plan)
    assert re.search(r"beam 1: .*nozzle and couch would come within .* mm .*at least 50 mm", reason)


def placed(ds, index, angle_deg, **axes):
    """Beam `index` at a gantry angle, the snout retracted, the couch displaced."""
    first = beam(ds, index).IonControlPointSequence[0]
    first.GantryAngle, first.SnoutPosition = str(angle_deg), 500.0
    for keyword, value in axes.items():
        setattr(first, keyword, str(value))


def test_a_plan_whose_beams_leave_no_free_way_from_one_to_the_next_is_refused_before_the_first(tmp_path, dataset):
    plan = dataset(shape="pancreas", diameter_mm=14.0)
    above = {"TableTopLateralPosition": 250, "TableTopVerticalPosition": 200, "PatientSupportAngle": 270}
    below = {"TableTopLateralPosition": 0, "TableTopVerticalPosition": -200, "PatientSupportAngle": 60}
    placed(plan, 0, 60, TableTopLongitudinalPosition=0, **above)
    placed(plan, 1, 60, TableTopLongitudinalPosition=350, **below)
    (reason,) = refused(tmp_path, plan)
    assert re.search(r"beam 2 after beam 1: no free way .* within .* mm .*at least 50 mm", reason), reason
    assert "couch angle -90 deg" in reason
    assert "driven clear by hand" in reason


def test_weights_of_nothing_at_all_are_refused(tmp_path, dataset):
    plan = dataset()
    for item in beam(plan).IonControlPointSequence:
        item.ScanSpotMetersetWeights = np.zeros(int(item.NumberOfScanSpotPositions)).tolist()
        item.CumulativeMetersetWeight = "0"
    assert refused(tmp_path, plan)
