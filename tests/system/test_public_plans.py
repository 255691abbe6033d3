"""Plans written by others, treated from end to end on `research`, or refused for what they are."""

import pytest
from outputs import assert_as_prescribed, assert_record

from controller.admission import TreatOptions
from controller.intake import Refused
from controller.treatment import run_treatment

OVERRIDES = {"machine": "a plan of another centre, in simulation", "approval": "a phantom"}
# file: overrides that are really needed, kind of record reference
TREATED = {
    "dcpt/mono_1layer_mu.dcm": {"machine", "approval"},
    "dcpt/sobp_1beam_12layers_mu.dcm": {"machine"},
    "dcpt/sobp_no_table_position.dcm": {"machine"},
    "dicomfix/gantry90_8layers.dcm": {"machine"},
    "pymchelper/gantry_qa_4beams_grid.dcm": {"machine"},
    "topas/number_of_particles_gantry90.dcm": {"machine", "approval"},
    "uclhp/daily_qa_49spots.dcm": {"machine", "approval"},
    "dcpt/ramp_2beams_90_270_18436spots.dcm": {"machine"},  # here its second beam, both in the slow test
    "pytrip/tst003012.rst": {"machine", "approval"},
    "pytrip/tst003001.rst": {"machine", "approval"},
}
REFUSED = {
    "pydicom/ExplVR_BigEndNoMeta.dcm": "[6002]",
    "pydicom/ExplVR_LitEndNoMeta.dcm": "[6002]",
    "tdwii/rsp000001.dcm": "[6004]",
    "tdwii/UPSCFind_TDWII_FX1.dcm": "[6004]",
    "tdwii/UPSCFind_TDWII_IN_PROGRESS_FX1.dcm": "[6004]",
    "tdwii/UPSCFind_TDWII_SCHEDULED_FX1.dcm": "[6004]",
    "pytrip/TST003012.exec": "[6002]",
    "dcpt/beam_model_particles_per_mu.csv": "[6002]",
    "README.md": "[6002]",
}


def test_every_public_file_is_treated_or_refused_here(shared_plans):
    files = {str(path.relative_to(shared_plans)) for path in shared_plans.rglob("*") if path.is_file()}
    assert files == {*TREATED, *REFUSED}


# Those of many layers are left to the slow tests: what is read of them is held against the files in tests/plan.
LONG = ("18436spots", "sobp_1beam", "gantry90_8layers", "number_of_particles", "tst003012")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if any(long in n for long in LONG) else n for n in TREATED]
)
def test_a_public_plan_is_delivered_as_it_prescribes_and_recorded(shared_plans, treat, name):
    beams = (2,) if "2beams" in name else ()
    done = treat(shared_plans / name, facility="research", overrides=OVERRIDES, beams=beams)
    assert_as_prescribed(done)
    assert_record(done)
    summary, record = done.summary, done.record
    assert summary["research"] and summary["simulated"]
    assert set(summary["overrides"]) == TREATED[name]
    unit = "NP" if name.endswith(".rst") or "particles" in name else "MU"
    assert record.PrimaryDosimeterUnit == unit == summary["beams"][0]["unit"]
    for item in record.TreatmentSessionIonBeamSequence:
        told = " ".join(o.OverrideReason for o in item.IonControlPointDeliverySequence[0].OverrideSequence)
        assert all(f"{override}: {OVERRIDES[override]}" in told for override in TREATED[name])
        assert item.TreatmentVerificationStatus == "VERIFIED_OVR"
    references = [r.ReferencedSOPInstanceUID for r in record.ReferencedRTPlanSequence]
    assert references == ([] if name.endswith(".rst") else [summary["plan"]["uid"]])


@pytest.mark.slow
def test_both_beams_of_the_largest_public_plan_are_delivered(shared_plans, treat):
    done = treat(shared_plans / "dcpt/ramp_2beams_90_270_18436spots.dcm", facility="research", overrides=OVERRIDES)
    assert_as_prescribed(done)
    assert_record(done)
    assert [round(beam["gantry_angle_deg"]) % 360 for beam in done.summary["beams"]] == [90, 270]


@pytest.mark.parametrize("name", REFUSED)
def test_a_public_file_that_is_no_plan_is_refused_for_that(shared_plans, tmp_path, name):
    with pytest.raises(Refused) as refused:
        run_treatment(TreatOptions(plan=shared_plans / name, facility="research", output=tmp_path / "out"))
    (reason,) = refused.value.reasons
    assert reason.startswith(REFUSED[name])
    assert list(tmp_path.iterdir()) == []


def test_a_public_plan_without_overrides_is_refused_and_told_which_ones_exist(shared_plans, tmp_path):
    plan = shared_plans / "uclhp/daily_qa_49spots.dcm"
    with pytest.raises(Refused) as refused:
        run_treatment(TreatOptions(plan=plan, facility="research", output=tmp_path / "out"))
    told = "\n".join(refused.value.reasons)
    assert "UNAPPROVED" in told and "--override approval=REASON" in told
    assert "Gantry 1" in told and "--override machine=REASON" in told
    assert list(tmp_path.iterdir()) == []
