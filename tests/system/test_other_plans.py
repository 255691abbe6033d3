"""Plans as other planning systems may write them: every spot gets its meterset at its place, whatever the form of the file."""

import numpy as np
import pydicom
import pytest
from outputs import assert_record
from plans import Layer, assert_delivered, joined, layers_of, put_layers, renumbered, rescaled
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian


def test_weights_on_another_scale_foreign_source_distances_and_no_table_position(treat, dataset):
    plan = rescaled(dataset(), 1 / 3.7)
    item = plan.IonBeamSequence[0]
    item.VirtualSourceAxisDistances = [1850.0, 2220.5]
    for axis in ("Vertical", "Longitudinal", "Lateral"):
        setattr(item.IonControlPointSequence[0], f"TableTop{axis}Position", None)
    done = treat(plan)
    assert_delivered(done, plan)
    assert_record(done)


def test_layers_of_one_spot_in_ascending_order_with_the_energy_on_the_first_point_only(treat, dataset):
    plan = dataset()
    layers = [layer.take([np.argmax(layer.weight)]) for layer in layers_of(plan.IonBeamSequence[0])][::-1]
    put_layers(plan, 0, layers, omit_second_energy=True)
    assert isinstance(plan.IonBeamSequence[0].IonControlPointSequence[0].ScanSpotMetersetWeights, float)
    done = treat(plan)
    assert_delivered(done, plan)
    starts = [done.spots["t_start_ns"][done.spots["layer_index"] == i].min() for i in range(len(layers))]
    assert starts == sorted(starts, reverse=True)  # the ring steps down, whatever the plan's order


def test_mixed_energies_shuffled_spots_spots_of_no_weight_and_paintings(treat, dataset):
    plan, rng = dataset(dose_gy=12.0), np.random.default_rng(4)
    layers = [layer.take(rng.permutation(layer.weight.size)) for layer in layers_of(plan.IonBeamSequence[0])]
    order = rng.permutation(len(layers))
    layers = [layers[i] for i in order]
    for layer in layers:
        layer.paintings = 3
    first = layers[0]
    zero = Layer(
        first.energy, np.append(first.x, [40.0, -40.0]), np.append(first.y, [0.0, 9.0]), np.append(first.weight, [0.0, 0.0]), 3
    )
    done = treat(put_layers(plan, 0, [zero, *layers[1:]]))
    assert_delivered(done, plan)
    assert set(done.spots["painting"]) == {0, 1, 2}
    assert_record(done)


def test_any_beam_numbers_two_isocentres_and_an_order_of_beams_of_its_own(treat, dataset):
    plan = renumbered(dataset(shape="pancreas", diameter_mm=14.0), (7, 3))
    plan.IonBeamSequence[1].IonControlPointSequence[0].IsocenterPosition = [12.0, -30.0, 5.5]
    done = treat(plan)
    assert_delivered(done, plan)
    assert [beam["number"] for beam in done.summary["beams"]] == [7, 3]
    assert [item.ReferencedBeamNumber for item in done.record.TreatmentSessionIonBeamSequence] == [7, 3]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_any_transfer_syntax(treat, dataset, tmp_path, syntax):
    plan = dataset(diameter_mm=8.0)
    list(plan.iterall())  # decode before it is written in another order of bytes
    plan.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "foreign.dcm"
    pydicom.dcmwrite(path, plan, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert_delivered(treat(path), plan)


def test_a_set_up_beam_is_no_treatment_beam(treat, dataset):
    plan = joined(dataset(diameter_mm=8.0), dataset(diameter_mm=8.0))
    plan.IonBeamSequence[1].TreatmentDeliveryType = "SETUP"
    done = treat(plan)
    assert [beam["number"] for beam in done.summary["beams"]] == [1]
    assert done.status == "complete"
    del plan.IonBeamSequence[1]
    assert_delivered(done, plan)


def test_a_turned_couch_and_a_beam_chosen_by_number(treat, dataset):
    plan = joined(dataset(diameter_mm=8.0), dataset(diameter_mm=8.0, couch_angle_deg=20.0, angles_deg=(10.0,)))
    done = treat(plan, beams=(2,))
    point = done.record.TreatmentSessionIonBeamSequence[0].IonControlPointDeliverySequence[0]
    assert abs(float(point.GantryAngle) - 10.0) < 0.2
    assert abs(float(point.PatientSupportAngle) - 20.0) < 2.0  # with the rotation that the images asked for
    del plan.IonBeamSequence[0]
    assert_delivered(done, plan)


@pytest.mark.slow  # the way itself is found and judged in tests/room/test_positioning.py
def test_a_couch_in_the_gantrys_way_between_two_beams_waits_aside(treat, dataset):
    plan = dataset(diameter_mm=8.0, angles_deg=(170.0, 0.0), couch_angle_deg=90.0)
    for item in plan.IonBeamSequence:
        item.IonControlPointSequence[0].SnoutPosition = 500.0
    done = treat(plan)
    assert_delivered(done, plan)
