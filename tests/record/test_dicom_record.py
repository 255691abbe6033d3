"""The treatment record says what was delivered, to one count, and foreign judges find no fault in it."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pydicom
import pytest
from record_example import COUNTS2_PER_MU, COUNTS_PER_MU, STARTED, S, make_beam, make_fraction
from witness import dciodvfy_errors, missing_attributes

from controller.plan.reading import read_plan
from controller.record.dicom_record import build_records, write_records
from controller.record.dicom_values import make_uid, time_or_empty, uid_or
from controller.record.outcome import Interlock, Status, Termination
from controller.record.report import write_report
from controller.record.spots import build_spots

COUNT = 1.0 / COUNTS_PER_MU


def written(fraction, directory):
    paths = write_records(fraction, build_spots(fraction.beams), directory)
    return [pydicom.dcmread(p) for p in paths], paths


def points_of(item):
    return item.IonControlPointDeliverySequence


@pytest.mark.parametrize(
    "fraction",
    [
        make_fraction(),
        make_fraction((make_beam(2, 2, 1),)),
        make_fraction((make_beam(1, 2, 30, paintings=3),), stop_after=70, overrides=True),
        make_fraction((make_beam(1, 1, 9000),), simulated=False),
        make_fraction((make_beam(1, 2, 20),), stop_after=0),
    ],
    ids=["two beams", "one-spot layers", "partial with override", "too long for an explicit VR", "no dose"],
)
def test_foreign_judges_find_no_fault(fraction, tmp_path):
    (dataset,), (path,) = written(fraction, tmp_path)
    assert missing_attributes(dataset, modules=("rt-ion-beams-session-record",)) == []
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize(
    "name",
    [
        "dcpt/sobp_1beam_12layers_mu.dcm",
        "dcpt/mono_1layer_mu.dcm",
        "dcpt/ramp_2beams_90_270_18436spots.dcm",
        "dcpt/sobp_no_table_position.dcm",
        "dicomfix/gantry90_8layers.dcm",
        "pymchelper/gantry_qa_4beams_grid.dcm",
        "topas/number_of_particles_gantry90.dcm",
        "uclhp/daily_qa_49spots.dcm",
        "pytrip/tst003012.rst",
        "pytrip/tst003001.rst",
    ],
)
def test_records_of_real_plans_are_faultless_and_sum_to_the_counters(name, shared_plans, tmp_path):
    plan = read_plan(shared_plans / name)
    counts_per = 1000.0 if plan.beams[0].meterset_unit == "MU" else 0.01
    fraction = replace(make_fraction(plan.beams, counts_per=counts_per), plan=plan)
    table = build_spots(fraction.beams)
    (dataset,), (path,) = written(fraction, tmp_path)
    assert missing_attributes(dataset, modules=("rt-ion-beams-session-record",)) == []
    assert dciodvfy_errors(path) == []
    for item, outcome in zip(dataset.TreatmentSessionIonBeamSequence, fraction.beams, strict=True):
        counts = int(outcome.pieces["counts1"].sum())
        assert float(item.DeliveredPrimaryMeterset) * counts_per == pytest.approx(counts, abs=1)
        indices = [p.ReferencedControlPointIndex for p in points_of(item)]
        assert indices == sorted(set(indices))
        assert indices[-1] == outcome.beam.control_points - 1
    write_report(fraction, table, tmp_path / "report.html")
    assert "nan" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_witness_sees_a_broken_copy(tmp_path):
    (dataset,), _ = written(make_fraction(), tmp_path)
    item = dataset.TreatmentSessionIonBeamSequence[1]
    del points_of(item)[2].DeliveredMeterset
    item.BeamName = ""
    del dataset.PatientID
    faults = missing_attributes(dataset)
    assert any("[1].IonControlPointDeliverySequence[2].DeliveredMeterset is missing (type 1)" in f for f in faults)
    assert any("TreatmentSessionIonBeamSequence[1].BeamName is empty (type 1)" in f for f in faults)
    assert any("patient: PatientID is missing (type 2)" in f for f in faults)
    assert len(faults) == 3


def test_dciodvfy_sees_a_broken_copy(tmp_path):
    (dataset,), _ = written(make_fraction(), tmp_path)
    del dataset.TreatmentSessionIonBeamSequence[0].TreatmentTerminationStatus
    dataset.save_as(tmp_path / "broken.dcm")
    assert dciodvfy_errors(tmp_path / "broken.dcm")


@pytest.mark.parametrize("stop_after", [None, 0, 1, 37, 100])
def test_the_record_equals_the_counters_to_one_count(stop_after, tmp_path):
    fraction = make_fraction((make_beam(1, 3, 40, paintings=2),), stop_after=stop_after)
    outcome = fraction.beams[0]
    (dataset,), _ = written(fraction, tmp_path)
    item = dataset.TreatmentSessionIonBeamSequence[0]
    counts1, counts2 = int(outcome.pieces["counts1"].sum()), int(outcome.pieces["counts2"].sum())
    assert float(item.DeliveredPrimaryMeterset) * COUNTS_PER_MU == pytest.approx(counts1, abs=1)
    assert float(item.DeliveredSecondaryMeterset) * COUNTS2_PER_MU == pytest.approx(counts2, abs=1)
    assert float(item.SpecifiedPrimaryMeterset) == pytest.approx(outcome.beam.meterset)
    last = points_of(item)[-1]
    assert float(last.DeliveredMeterset) * COUNTS_PER_MU == pytest.approx(counts1, abs=1)
    spots = sum(np.sum(p.ScanSpotMetersetsDelivered, dtype=np.float64) for p in points_of(item))
    assert spots * COUNTS_PER_MU == pytest.approx(counts1, abs=1)
    secondary = sum(np.frombuffer(p[0x3009, 0x1003].value, "<f4").sum() for p in points_of(item) if (0x3009, 0x1003) in p)
    assert secondary * COUNTS2_PER_MU == pytest.approx(counts2, abs=1)


def test_every_delivered_piece_is_in_its_layer_with_place_time_and_prescribed_index(tmp_path):
    fraction = make_fraction((make_beam(1, 2, 20, paintings=2),))
    table = build_spots(fraction.beams)
    (dataset,), _ = written(fraction, tmp_path)
    points = points_of(dataset.TreatmentSessionIonBeamSequence[0])
    assert [p.ReferencedControlPointIndex for p in points] == [0, 1, 2, 3]
    for layer, (first, second) in enumerate(zip(points[::2], points[1::2], strict=True)):
        rows = table["layer_index"] == layer
        assert first.NumberOfScanSpotPositions == rows.sum()
        np.testing.assert_allclose(first.ScanSpotPositionMap[::2], table["x_mm"][rows], atol=1e-4)
        np.testing.assert_allclose(first.ScanSpotPositionMap[1::2], table["y_mm"][rows], atol=1e-4)
        np.testing.assert_array_equal([int(i) for i in first.ScanSpotPrescribedIndices], table["spot_index"][rows])
        offset = (table["t_start_ns"][rows] - table["t_start_ns"][rows][0]) / 1000
        np.testing.assert_allclose(first.ScanSpotTimeOffset, offset, rtol=1e-6)
        np.testing.assert_allclose(first.ScanSpotSizesDelivered[::2], table["sigma_x_mm"][rows] * 2.35482, rtol=1e-5)
        assert first.ScanSpotReordered == "YES", "re-painted spots count as reordered"
        assert sum(second.ScanSpotMetersetsDelivered) == 0
        assert float(second.SpecifiedMeterset) - float(first.SpecifiedMeterset) == pytest.approx(
            fraction.beams[0].beam.layers[layer].meterset_total
        )


def test_times_are_loop_time_since_the_start_as_a_date():
    fraction = make_fraction((make_beam(1, 1, 9),))
    fraction = replace(fraction, t_origin_ns=-5 * S)
    dataset = build_records(fraction, build_spots(fraction.beams))[0]
    first = points_of(dataset.TreatmentSessionIonBeamSequence[0])[0]
    t_ns = int(fraction.beams[0].pieces["t_start_ns"].min()) + 5 * S
    expected = STARTED + timedelta(microseconds=t_ns // 1000)
    assert first.TreatmentControlPointDate + first.TreatmentControlPointTime == expected.strftime("%Y%m%d%H%M%S.%f")
    assert dataset.TimezoneOffsetFromUTC == "+0000"


def test_a_layer_delivered_as_prescribed_is_not_called_reordered():
    fraction = make_fraction((make_beam(1, 1, 9),), cut_every=99)
    dataset = build_records(fraction, build_spots(fraction.beams))[0]
    point = points_of(dataset.TreatmentSessionIonBeamSequence[0])[0]
    assert point.ScanSpotReordered == "NO"
    assert "ScanSpotPrescribedIndices" not in point


def test_a_partial_beam_says_why_and_lists_only_what_was_begun(tmp_path):
    fraction = make_fraction((make_beam(1, 3, 20),), stop_after=25, overrides=True)
    (dataset,), _ = written(fraction, tmp_path)
    item = dataset.TreatmentSessionIonBeamSequence[0]
    assert item.TreatmentTerminationStatus == "MACHINE"
    assert item.TreatmentTerminationDescription == "position interlock"
    assert item.NumberOfControlPoints == len(points_of(item)) == 4
    assert points_of(item)[2].NumberOfScanSpotPositions < 20
    trip = item.InterlockSequence[0]
    assert trip.InterlockDescription.startswith("position (first out)")
    assert trip.InterlockCodeSequence[0].CodeValue == "position"
    override = points_of(item)[0].OverrideSequence[0]
    assert override.OperatorsName == "A. Physicist"
    assert override.OverrideParameterPointer == 0x300A00B2
    assert item.TreatmentVerificationStatus == "VERIFIED_OVR"


def test_set_up_is_what_was_measured(tmp_path):
    (dataset,), _ = written(make_fraction((make_beam(1, angle=-90.0),)), tmp_path)
    point = points_of(dataset.TreatmentSessionIonBeamSequence[0])[0]
    assert float(point.GantryAngle) == pytest.approx(270.02)
    assert float(point.TableTopVerticalPosition) == pytest.approx(-30.02)
    assert point.SnoutPosition == pytest.approx(200.1)
    assert point.RangeShifterSettingsSequence[0].RangeShifterSetting == "IN"
    assert "GantryAngle" not in points_of(dataset.TreatmentSessionIonBeamSequence[0])[2]


@pytest.mark.parametrize("simulated", [True, False])
def test_whoever_reads_the_record_sees_whether_it_was_simulated(simulated, tmp_path):
    (dataset,), _ = written(make_fraction(simulated=simulated), tmp_path)
    machine = dataset.TreatmentMachineSequence[0]
    for value in (dataset.Manufacturer, dataset.StationName, dataset.SeriesDescription, machine.ManufacturerModelName):
        assert ("SIMULATED" in value) is simulated
    assert machine.TreatmentMachineName == "G1"


def test_the_record_refers_to_its_plan_and_keeps_patient_and_study(tmp_path):
    fraction = make_fraction()
    (dataset,), _ = written(fraction, tmp_path)
    assert dataset.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == fraction.plan.uid
    assert dataset.PatientID == "P1"
    assert dataset.StudyInstanceUID == "1.2.3.4"
    assert dataset.NumberOfFractionsPlanned == 12
    raster = replace(fraction, plan=replace(fraction.plan, kind="rst"))
    (other,), _ = written(raster, tmp_path)
    assert len(other.ReferencedRTPlanSequence) == 0


def test_beams_in_different_units_go_to_different_records(tmp_path):
    fraction = make_fraction()
    first, second = fraction.beams
    fraction = replace(fraction, beams=(first, replace(second, beam=replace(second.beam, meterset_unit="NP"))))
    datasets, paths = written(fraction, tmp_path)
    assert [p.name for p in paths] == ["record.dcm", "record-2.dcm"]
    assert [d.PrimaryDosimeterUnit for d in datasets] == ["MU", "NP"]
    assert len({d.SOPInstanceUID for d in datasets}) == 2


def test_what_was_refused_leaves_no_record(tmp_path):
    fraction = make_fraction()
    fraction = replace(fraction, beams=tuple(replace(b, passes=(), status=Status.REFUSED) for b in fraction.beams))
    assert written(fraction, tmp_path) == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_a_beam_that_was_begun_and_got_nothing_is_recorded_with_zero(tmp_path):
    fraction = make_fraction((make_beam(1),))
    beam = replace(fraction.beams[0], passes=(), status=Status.PARTIAL, termination=Termination.MACHINE, reason="no beam")
    (dataset,), (path,) = written(replace(fraction, beams=(beam,), status=Status.PARTIAL), tmp_path)
    item = dataset.TreatmentSessionIonBeamSequence[0]
    assert (item.TreatmentTerminationStatus, item.NumberOfControlPoints, item.DeliveredPrimaryMeterset) == ("MACHINE", 2, 0.0)
    assert [p.DeliveredMeterset for p in item.IonControlPointDeliverySequence] == [0.0, 0.0]
    assert missing_attributes(dataset) == []
    assert dciodvfy_errors(path) == []


def test_equal_runs_give_equal_files_and_other_runs_other_instances(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written(make_fraction(), tmp_path / name)
    assert (tmp_path / "a/record.dcm").read_bytes() == (tmp_path / "b/record.dcm").read_bytes()
    again = replace(make_fraction(), run_id=6)
    (dataset,), _ = written(again, tmp_path / "b")
    assert dataset.SOPInstanceUID != pydicom.dcmread(tmp_path / "a/record.dcm").SOPInstanceUID


def test_a_continuation_and_an_operator_stop_are_named(tmp_path):
    fraction = make_fraction((make_beam(1),))
    beam = replace(fraction.beams[0], continuation=True, termination=Termination.OPERATOR, status=Status.PARTIAL, reason="stop")
    late = Interlock(beam.t_end_ns + S, "door", "after the beam")
    (dataset,), _ = written(replace(fraction, beams=(beam,), interlocks=(late,)), tmp_path)
    item = dataset.TreatmentSessionIonBeamSequence[0]
    assert item.TreatmentDeliveryType == "CONTINUATION"
    assert item.TreatmentTerminationStatus == "OPERATOR"
    assert "InterlockSequence" not in item


def test_what_other_plans_write_wrongly_does_not_reach_the_record():
    assert uid_or("1.2.03", "x") == make_uid("x")
    assert uid_or("1.2.3", "x") == "1.2.3"
    assert time_or_empty("25:00") == ""
    assert time_or_empty("101500.123") == "101500.123"
