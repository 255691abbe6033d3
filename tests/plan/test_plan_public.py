"""Plans written by others: every file is read as its makers describe it, or refused for the right reason."""

import numpy as np
import pydicom
import pytest

from controller.plan.deliverability import check, overridden
from controller.plan.errors import PlanRefused, Why
from controller.plan.model import plan_hash_of
from controller.plan.nominal import NominalLibrary
from controller.plan.reading import read_plan
from controller.plan.schedule import schedule

# file: per beam (number, gantry, layers, spots, meterset, smallest and largest spot), unit, approval, machine
DICOM = {
    "dcpt/mono_1layer_mu.dcm": ([(1, 0, 1, 323, 58414.5492, 180.85, 180.85)], "MU", "UNAPPROVED", "TR2"),
    "dcpt/ramp_2beams_90_270_18436spots.dcm": (
        [(1, 90, 22, 9218, 39294.15, 2.203746, 27.91908), (2, 270, 22, 9218, 39294.15, 2.203746, 27.91908)],
        "MU",
        "APPROVED",
        "TR3",
    ),
    "dcpt/sobp_1beam_12layers_mu.dcm": ([(1, 0, 12, 3468, 17571.2003, 1.59, 23.34)], "MU", "APPROVED", "TR2"),
    "dcpt/sobp_no_table_position.dcm": ([(1, 0, 13, 5929, 52188.75, 2.41677, 70.2891)], "MU", "APPROVED", "TR3"),
    "dicomfix/gantry90_8layers.dcm": ([(1, 90, 8, 784, 38433.96, 2.0, 246.5)], "MU", "APPROVED", "TR4"),
    "pymchelper/gantry_qa_4beams_grid.dcm": (
        [(n, 0, 1, 117, 2340.0, 20.0, 20.0) for n in (1, 2, 3, 4)],
        "MU",
        "APPROVED",
        "TR3",
    ),
    "topas/number_of_particles_gantry90.dcm": ([(1, 90, 12, 246, 2.48879e10, 1.52016e7, 2.79774e8)], "NP", "", "1.1"),
    "uclhp/daily_qa_49spots.dcm": ([(1, 0, 1, 49, 8486.80004, 173.2, 173.2)], "MU", "UNAPPROVED", "Gantry 1"),
}
RST = {
    "pytrip/tst003012.rst": ("C", 17, 13243, 1.97079e9, 229.76, 283.76),
    "pytrip/tst003001.rst": ("p", 17, 5491, 3.57576e10, 120.20, 147.99),
}
REFUSED = {
    "pydicom/ExplVR_BigEndNoMeta.dcm": Why.NOT_DICOM,
    "pydicom/ExplVR_LitEndNoMeta.dcm": Why.NOT_DICOM,
    "tdwii/rsp000001.dcm": Why.WRONG_SOP_CLASS,
    "tdwii/UPSCFind_TDWII_FX1.dcm": Why.WRONG_SOP_CLASS,
    "tdwii/UPSCFind_TDWII_IN_PROGRESS_FX1.dcm": Why.WRONG_SOP_CLASS,
    "tdwii/UPSCFind_TDWII_SCHEDULED_FX1.dcm": Why.WRONG_SOP_CLASS,
    "pytrip/TST003012.exec": Why.NOT_DICOM,
    "dcpt/beam_model_particles_per_mu.csv": Why.NOT_DICOM,
    "README.md": Why.NOT_DICOM,
}


def test_no_public_file_is_forgotten(shared_plans):
    files = {str(path.relative_to(shared_plans)) for path in shared_plans.rglob("*") if path.is_file()}
    assert files == {*DICOM, *RST, *REFUSED}


@pytest.mark.parametrize("name", DICOM)
def test_public_dicom_plans_have_the_metersets_their_makers_give(shared_plans, name):
    beams, unit, approval, machine = DICOM[name]
    plan = read_plan(shared_plans / name)
    assert (plan.kind, plan.approval) == ("dicom", approval)
    assert [
        (b.number, b.gantry_angle_deg, len(b.layers), b.spots, b.meterset_unit, b.machine_name, b.control_points)
        for b in plan.beams
    ] == [(n, angle, layers, spots, unit, machine, 2 * layers) for n, angle, layers, spots, *_ in beams]
    for beam, (*_, meterset, smallest, largest) in zip(plan.beams, beams, strict=True):
        spots = np.concatenate([layer.meterset for layer in beam.layers])
        assert beam.meterset == pytest.approx(meterset, rel=1e-6)
        assert spots.sum() == pytest.approx(meterset, rel=1e-6)
        assert spots.min() == pytest.approx(smallest, rel=2e-6)
        assert spots.max() == pytest.approx(largest, rel=2e-6)


@pytest.mark.parametrize("name", DICOM)
def test_spots_are_the_ones_pydicom_reads(shared_plans, name):
    plan = read_plan(shared_plans / name)
    theirs = pydicom.dcmread(shared_plans / name)
    assert (plan.uid, plan.label) == (theirs.SOPInstanceUID, theirs.RTPlanLabel)
    for beam, item in zip(plan.beams, theirs.IonBeamSequence, strict=True):
        reference = next(
            r for r in theirs.FractionGroupSequence[0].ReferencedBeamSequence if r.ReferencedBeamNumber == item.BeamNumber
        )
        scale = float(reference.BeamMeterset) / float(item.FinalCumulativeMetersetWeight)
        energy = None
        for index, point in enumerate(item.IonControlPointSequence):
            energy = float(point.get("NominalBeamEnergy", energy))
            if index % 2:
                continue
            layer = beam.layers[index // 2]
            positions = np.reshape(point.ScanSpotPositionMap, (-1, 2))
            weights = np.atleast_1d(np.array(point.ScanSpotMetersetWeights, dtype=float))
            assert layer.energy_mev_u == energy
            np.testing.assert_array_equal(layer.x_mm, positions[:, 0])
            np.testing.assert_array_equal(layer.y_mm, positions[:, 1])
            np.testing.assert_allclose(layer.meterset, weights * scale, rtol=1e-15)


@pytest.mark.parametrize("name", RST)
def test_raster_scan_files_count_particles(shared_plans, name):
    symbol, layers, points, total, first, last = RST[name]
    plan = read_plan(shared_plans / name)
    (beam,) = plan.beams
    assert (plan.kind, beam.ion.symbol, beam.meterset_unit) == ("rst", symbol, "NP")
    assert (len(beam.layers), beam.spots) == (layers, points)
    assert beam.meterset == pytest.approx(total, rel=1e-5)
    assert (beam.layers[0].energy_mev_u, beam.layers[-1].energy_mev_u) == (first, last)
    assert (beam.gantry_angle_deg, beam.couch.angle_deg) == (0.0, -90.0)
    assert plan.uid == read_plan(shared_plans / name).uid
    assert plan.uid.startswith("2.25.")


def test_the_first_points_of_the_carbon_file_are_where_they_stand(shared_plans):
    (beam,) = read_plan(shared_plans / "pytrip/tst003012.rst").beams
    layer = beam.layers[0]
    assert [(layer.x_mm[i], layer.y_mm[i], layer.meterset[i]) for i in (0, 1)] == [(26, -26, 55715.1), (24, -26, 55715.1)]
    assert layer.spot_size_fwhm_mm == (3.7, 3.7)
    assert layer.tune_id == "2"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plan_is_refused_by_its_reason(shared_plans, name):
    with pytest.raises(PlanRefused) as refused:
        read_plan(shared_plans / name)
    assert [reason.why for reason in refused.value.reasons] == [REFUSED[name]]


@pytest.mark.parametrize("name", [*DICOM, *RST])
def test_public_plans_are_delivered_by_the_research_room_with_overrides_on_record(shared_plans, research, name):
    plan, room, library = read_plan(shared_plans / name), research.rooms["R1"], NominalLibrary(research.meterset)
    refused = {reason.why for reason in check(plan, research, room, library)}
    assert Why.MACHINE in refused
    overrides = {"machine", "approval"}
    assert check(plan, research, room, library, overrides) == []
    lifted = overridden(plan, research, room, library, overrides)
    assert {reason.why for reason in lifted} == refused
    assert (Why.APPROVAL in refused) == (plan.approval != "APPROVED")
    for beam in plan.beams:
        planned = schedule(beam, research, room, library)
        per_unit = {"MU": None, "NP": 1.0}[beam.meterset_unit]
        ions = (
            per_unit * beam.meterset
            if per_unit
            else sum(la.meterset_total * library.ions_per_mu(beam.ion, la.energy_mev_u) for la in beam.layers)
        )
        assert planned.ions == pytest.approx(ions, rel=1e-3)
        spots = {(p.layer_index, int(s)) for p in planned.passes for s in p.spot_index}
        assert len(spots) == beam.spots


def test_the_carbon_raster_takes_about_as_long_as_a_clinical_field(shared_plans, research):
    """A median spot of 9e4 ions allows some 5e6 to 7e7 ions/s: minutes, not seconds (clinical figure 132 s)."""
    (beam,) = read_plan(shared_plans / "pytrip/tst003012.rst").beams
    planned = schedule(beam, research, research.rooms["R1"], NominalLibrary(research.meterset))
    assert 100.0 < planned.duration_s < 200.0


@pytest.mark.parametrize("name", [*DICOM, *RST])
def test_public_plans_are_refused_by_the_clinical_rooms_even_with_overrides(shared_plans, asan, library, name):
    plan = read_plan(shared_plans / name)
    reasons = {r.why for r in check(plan, asan, asan.rooms["G1"], library, {"machine", "approval"})}
    assert reasons & {Why.SPECIES, Why.ENERGY}


def test_identity_of_a_plan_is_the_hash_of_its_bytes(shared_plans):
    plan = read_plan(shared_plans / "uclhp/daily_qa_49spots.dcm")
    assert plan.plan_hash == plan_hash_of(plan.sha256)
    assert 0 < plan.plan_hash < 2**31
    assert plan_hash_of("00000000" + "ab" * 28) == 1


def test_empty_table_positions_are_left_to_the_room(shared_plans):
    (beam,) = read_plan(shared_plans / "dcpt/sobp_no_table_position.dcm").beams
    assert beam.couch.given() == {"angle_deg": 0.0, "pitch_deg": 0.0, "roll_deg": 0.0}
    assert beam.tolerance is None


def test_range_shifter_and_tolerances_are_kept_for_the_record(shared_plans):
    (beam,) = read_plan(shared_plans / "uclhp/daily_qa_49spots.dcm").beams
    (shifter,) = beam.range_shifters
    assert (shifter.id, shifter.is_in, shifter.wet_mm) == ("RS=2cm", True, 23.0)
    assert (beam.tolerance.label, beam.tolerance.gantry_deg, beam.setup.position) == ("PBT_QA", 1.0, "HFS")
