"""What real plans look like and must be read: encodings, scalars, omitted values, odd numbers, orders and notes."""

import io
import struct
import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from controller.plan.errors import PlanRefused, Why
from controller.plan.raw import BINARY_VR, Tag
from controller.plan.reading import read_plan

SYNTAXES = {
    "implicit": pydicom.uid.ImplicitVRLittleEndian,
    "explicit": pydicom.uid.ExplicitVRLittleEndian,
    "big": pydicom.uid.ExplicitVRBigEndian,
    "deflated": pydicom.uid.DeflatedExplicitVRLittleEndian,
}


def encoded(dataset, syntax, *, undefined=False):
    """The same plan in another transfer syntax, sequences of undefined length if asked."""
    copy = pydicom.dcmread(io.BytesIO(_bytes(dataset)))
    if undefined:
        _undefine(copy)
    copy.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    buffer = io.BytesIO()
    little, implicit = syntax != "big", syntax == "implicit"
    pydicom.dcmwrite(buffer, copy, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return buffer.getvalue()


def _bytes(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _undefine(dataset):
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _undefine(item)


def same(one, two):
    assert (one.uid, one.label, one.patient, one.study, one.fractions_planned) == (
        two.uid,
        two.label,
        two.patient,
        two.study,
        two.fractions_planned,
    )
    for a, b in zip(one.beams, two.beams, strict=True):
        assert (a.number, a.couch, a.isocentre_mm, a.snout_mm, a.tolerance, a.charge_state) == (
            b.number,
            b.couch,
            b.isocentre_mm,
            b.snout_mm,
            b.tolerance,
            b.charge_state,
        )
        for left, right in zip(a.layers, b.layers, strict=True):
            np.testing.assert_array_equal(left.meterset, right.meterset)
            np.testing.assert_array_equal(left.x_mm, right.x_mm)
            np.testing.assert_array_equal(left.y_mm, right.y_mm)


def test_every_tag_is_read_with_the_representation_the_standard_gives_it():
    for tag in Tag:
        assert pydicom.datadict.keyword_for_tag(int(tag)) == tag.name
        representation = pydicom.datadict.dictionary_VR(int(tag))
        assert BINARY_VR.get(tag, "") == (representation if representation in ("FL", "FD", "US", "SS", "UL", "SL") else "")


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_plan_is_the_same_in_every_encoding(small, read, syntax, undefined):
    same(read(small), read(encoded(small, syntax, undefined=undefined), "other.dcm"))


def test_the_standards_own_example(small, read):
    """PS3.3 C.8.8.25.7: two layers of two spots, weights 10, 20 and 25, 15, cumulative 0, 30, 30, 70."""
    beam = small.IonBeamSequence[0]
    del small.IonBeamSequence[1]
    del small.FractionGroupSequence[0].ReferencedBeamSequence[1]
    small.FractionGroupSequence[0].NumberOfBeams = 1
    small.FractionGroupSequence[0].ReferencedBeamSequence[0].BeamMeterset = "140"
    template = beam.IonControlPointSequence[0]
    points = []
    for index, (energy, cumulative, positions, weights) in enumerate(
        [
            (200, 0, [-40, -35, -40, -30], [10, 20]),
            (200, 30, [-40, -35, -40, -30], [0, 0]),
            (180, 30, [-55, -40, -55, -35], [25, 15]),
            (180, 70, [-55, -40, -55, -35], [0, 0]),
        ]
    ):
        point = Dataset()
        if index == 0:
            point.update(template)
        point.ControlPointIndex = index
        point.NominalBeamEnergy = energy
        point.CumulativeMetersetWeight = cumulative
        point.NumberOfScanSpotPositions = 2
        point.ScanSpotPositionMap = positions
        point.ScanSpotMetersetWeights = weights
        points.append(point)
    beam.IonControlPointSequence = Sequence(points)
    beam.NumberOfControlPoints = 4
    beam.FinalCumulativeMetersetWeight = 70
    (got,) = read(small).beams
    assert [layer.energy_mev_u for layer in got.layers] == [200, 180]
    assert [layer.meterset.tolist() for layer in got.layers] == [[20, 40], [50, 30]]
    assert got.layers[1].x_mm.tolist() == [-55, -55]
    assert got.layers[1].y_mm.tolist() == [-40, -35]
    assert [(la.cumulative_weight_start, la.cumulative_weight_end) for la in got.layers] == [(0, 30), (30, 70)]
    assert got.layers[1].control_point_index == 2


def test_a_layer_of_one_spot(small, read):
    for point in small.IonBeamSequence[0].IonControlPointSequence[:2]:
        total = float(np.sum(point.ScanSpotMetersetWeights))
        point.NumberOfScanSpotPositions = 1
        point.ScanSpotPositionMap = [1.5, -2.5]
        point.ScanSpotMetersetWeights = total
    layer = read(small).beams[0].layers[0]
    assert (layer.spots, layer.x_mm.tolist(), layer.y_mm.tolist()) == (1, [1.5], [-2.5])


def test_energy_is_inherited_where_it_is_omitted(small, read):
    points = small.IonBeamSequence[0].IonControlPointSequence
    expected = [layer.energy_mev_u for layer in read(small).beams[0].layers]
    for point in points[1::2]:
        del point.NominalBeamEnergy
    points[2].NominalBeamEnergy = points[0].NominalBeamEnergy
    del points[2].NominalBeamEnergy
    expected[1] = expected[0]
    assert [layer.energy_mev_u for layer in read(small).beams[0].layers] == expected


def test_energies_may_ascend(small, read):
    beam = small.IonBeamSequence[0]
    energies = [float(p.NominalBeamEnergy) for p in beam.IonControlPointSequence][::-1]
    for point, energy in zip(beam.IonControlPointSequence, energies, strict=True):
        point.NominalBeamEnergy = energy
    got = [layer.energy_mev_u for layer in read(small).beams[0].layers]
    assert got == sorted(got)


def test_any_beam_numbers(small, read):
    for number, beam, reference in zip(
        (77, -3), small.IonBeamSequence, small.FractionGroupSequence[0].ReferencedBeamSequence, strict=True
    ):
        beam.BeamNumber = number
        reference.ReferencedBeamNumber = number
    plan = read(small)
    assert [beam.number for beam in plan.beams] == [77, -3]
    assert plan.beam(77).number == 77
    with pytest.raises(KeyError):
        plan.beam(1)
    assert [beam.number for beam in plan.selected([-3])] == [-3]


def test_a_second_control_point_without_its_map_repeats_the_first(small, read):
    expected = read(small)
    for point in small.IonBeamSequence[0].IonControlPointSequence[1::2]:
        del point.ScanSpotPositionMap, point.ScanSpotMetersetWeights, point.NumberOfScanSpotPositions
    same(expected, read(small))


def test_negative_zero_on_the_second_control_point_is_zero(small, read):
    point = small.IonBeamSequence[0].IonControlPointSequence[1]
    point.ScanSpotMetersetWeights = [-0.0] * len(point.ScanSpotMetersetWeights)
    assert len(read(small).beams) == 2


def test_setup_beams_and_empty_beams_are_left_out_with_a_note(small, read):
    small.IonBeamSequence[0].TreatmentDeliveryType = "SETUP"
    del small.FractionGroupSequence[0].ReferencedBeamSequence[0].BeamMeterset
    plan = read(small)
    assert [beam.number for beam in plan.beams] == [2]
    assert "beam 1" in plan.notes[0]
    assert "setup" in plan.notes[0]
    small.FractionGroupSequence[0].NumberOfBeams = 1  # some writers count treatment beams only
    assert len(read(small).beams) == 1


def test_a_beam_of_zero_meterset_is_left_out_with_a_note(small, read):
    small.FractionGroupSequence[0].ReferencedBeamSequence[1].BeamMeterset = "0"
    plan = read(small)
    assert [beam.number for beam in plan.beams] == [1]
    assert plan.notes == ("beam 2 has a meterset of 0 and is not treated",)


def test_spots_of_zero_weight_keep_their_place(small, read):
    point = small.IonBeamSequence[0].IonControlPointSequence[0]
    weights = np.array(point.ScanSpotMetersetWeights)
    weights[1] += weights[0]
    weights[0] = 0.0
    point.ScanSpotMetersetWeights = weights.tolist()
    layer = read(small).beams[0].layers[0]
    assert layer.meterset[0] == 0.0
    assert layer.spots == weights.size


def test_text_in_other_character_sets_and_broken_text(small, read):
    small.SpecificCharacterSet = "ISO_IR 144"
    small.PatientName = "Иванов^Пётр"
    assert read(small).patient.name == "Иванов^Пётр"
    data = _bytes(small).replace(b"ISO_IR 144", b"ISO_IR 192")
    assert read(data).patient.name != "Иванов^Пётр"  # undecodable, replaced, not raised
    assert read(_bytes(small).replace(b"ISO_IR 144", b"GARBAGE123")).uid == small.SOPInstanceUID


def test_padding_after_the_last_element(small, read):
    assert read(_bytes(small) + b"\0" * 5).uid == small.SOPInstanceUID
    assert read(encoded(small, "explicit") + b"\0" * 64).uid == small.SOPInstanceUID


def test_sequences_sent_as_unknown_are_still_sequences(small, read):
    """A relay that does not know RT Ion Plans turns them into UN, implicit inside (PS3.5 section 6.2.2)."""
    tag = struct.pack("<HH", 0x300A, 0x03A2)
    implicit, explicit = _bytes(small), encoded(small, "explicit")
    at = implicit.index(tag)
    (length,) = struct.unpack_from("<L", implicit, at + 4)
    beams = implicit[at + 8 : at + 8 + length]
    start = explicit.index(tag + b"SQ")
    (old,) = struct.unpack_from("<L", explicit, start + 8)
    unknown = explicit[:start] + tag + b"UN\0\0" + struct.pack("<L", len(beams)) + beams + explicit[start + 12 + old :]
    same(read(implicit), read(unknown, "un.dcm"))


def test_cutting_the_file_anywhere_is_noticed_or_harmless(small, read):
    """What is left of a plan is refused, unless only elements after the beams are gone: then at most its approval is."""
    data = _bytes(small)
    whole = read(small)
    beams_end = data.index(struct.pack("<HH", 0x300E, 0x0002))
    rng = np.random.default_rng(1)
    for length in sorted({*range(0, 400, 7), *rng.integers(400, len(data), 150).tolist(), *range(len(data) - 40, len(data))}):
        try:
            plan = read(data[:length])
        except PlanRefused as refused:
            assert refused.reasons
        else:
            assert length >= beams_end
            assert plan.approval in ("", "APPROVED")
            same(plan, whole)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipping_bytes_never_escapes_as_something_else(tmp_path_factory, made, data):
    plan = bytearray(made(shape="qa-grid"))
    for _ in range(data.draw(st.integers(1, 6))):
        plan[data.draw(st.integers(132, len(plan) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flipped") / "plan.dcm"
    path.write_bytes(bytes(plan))
    try:
        got = read_plan(path)
    except PlanRefused as refused:
        assert all(reason.what for reason in refused.reasons)
        return
    for beam in got.beams:
        for layer in beam.layers:
            assert np.isfinite(layer.meterset).all()
            assert (layer.meterset >= 0.0).all()
            assert np.isfinite(layer.x_mm).all()
        if beam.scan_mode == "MODULATED":
            assert sum(la.meterset_total for la in beam.layers) == pytest.approx(beam.meterset, rel=2e-5)


def test_a_deflated_bomb_is_refused(small, read, monkeypatch):
    monkeypatch.setattr("controller.plan.dicom.FILE_BYTES_MAX", 8 << 20)
    plain = encoded(small, "deflated")
    at = 144 + struct.unpack_from("<L", plain, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = b"\0" * (1 << 20)
    bomb = b"".join(packer.compress(block) for _ in range(20)) + packer.flush()
    with pytest.raises(PlanRefused) as refused:
        read(plain[:at] + bomb)
    assert [(r.why, "too large" in r.what) for r in refused.value.reasons] == [(Why.TRUNCATED, True)]


def dose(dataset, gray):
    dataset.DoseReferenceSequence[0].TargetPrescriptionDose = str(gray)
    return dataset


@pytest.mark.parametrize(("gray", "fractions", "plausible"), [(60, 3, True), (26, 1, False), (130, 5, False), (0, 1, False)])
def test_a_prescription_that_nobody_means_is_told_and_not_refused(read, small, gray, fractions, plausible):
    small.FractionGroupSequence[0].NumberOfFractionsPlanned = fractions
    notes = [note for note in read(dose(small, gray)).notes if "not plausible" in note]
    assert bool(notes) is not plausible
    if notes:
        assert "dose reference 1" in notes[0] and f"is {gray / fractions:g} Gy a fraction" in notes[0]


def test_a_dose_of_a_beam_beyond_plausibility_is_told_and_so_is_a_beam_of_nothing(read, small):
    first, second = small.FractionGroupSequence[0].ReferencedBeamSequence
    first.BeamDose, second.BeamMeterset = "2000", "0"
    notes = " ".join(read(small).notes)
    assert "beam 1: BeamDose is 2000 Gy a fraction" in notes and "ask the planner" in notes
    assert "beam 2 has a meterset of 0 and is not treated" in notes
