"""Two readers of a plan that share nothing come to the same ceilings, or the second one refuses."""

import io
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from controller.plan.errors import PlanRefused
from controller.plan.make import PlanSpec, make_plan
from controller.plan.reading import read_plan
from drivers.hal.facility import load_facility
from interlocks.plan_ceilings import PlanNotUnderstood, read

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "examples" / "carbon_sphere.dcm").read_bytes()
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)


def first_reader(data, directory, suffix):
    """What the controller reads, in the shape of the other reader."""
    path = directory / f"plan{suffix}"
    path.write_bytes(data)
    plan = read_plan(path)
    beams = [
        (
            beam.number,
            beam.meterset_unit,
            beam.ion.token,
            beam.gantry_angle_deg,
            float(beam.meterset),
            [(la.energy_mev_u, float(la.meterset.sum()), float(la.meterset.max()) / la.paintings) for la in beam.layers],
        )
        for beam in plan.beams
    ]
    return plan.plan_hash, plan.sha256, beams


def agree(data, directory, suffix=".dcm"):
    """Both readers take it, and to the same ceilings within 1e-6."""
    plan_hash, sha256, beams = first_reader(data, directory, suffix)
    mine = read(data)
    assert (mine.hash, mine.sha256) == (plan_hash, sha256)
    assert len(mine.beams) == len(beams)
    for a, b in zip(mine.beams, beams, strict=True):
        assert (a.number, a.unit, a.species, a.gantry_deg) == b[:4]
        assert a.total == pytest.approx(b[4], rel=1e-6)
        assert len(a.layers) == len(b[5])
        for layer, other in zip(a.layers, b[5], strict=True):
            assert tuple(layer) == pytest.approx(other, rel=1e-6)
        assert a.spot == pytest.approx(max(spot for _, _, spot in b[5]), rel=1e-6)
    return mine


def encoded(data, syntax, undefined=False):
    """The same plan written by pydicom in another transfer syntax."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    if undefined:
        undefine(dataset)
    dataset.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    pydicom.dcmwrite(
        out,
        dataset,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return out.getvalue()


def undefine(dataset):
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                undefine(item)


# --- plans of our own maker ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(("sphere", "box", "qa-grid", "pancreas")),
    st.sampled_from(("C", "He", "O", "Ne")),
    st.floats(20.0, 35.0),
    st.sampled_from((1, 2, 3)),
    st.floats(0.3, 3.0),
    st.sampled_from(((30.0,), (0.0, 90.0), (-90.0, 45.0, 180.0))),
    st.sampled_from(SYNTAXES),
    st.booleans(),
)
def test_made_plans_are_read_alike(tmp_path_factory, shape, species, diameter, paintings, scale, angles, syntax, undefined):
    asan = load_facility("asan")
    depth = 100.0
    spec = PlanSpec(
        shape=shape,
        species=species,
        diameter_mm=diameter,
        depth_mm=depth,
        dose_gy=4.0,
        paintings=paintings,
        scale=scale,
        angles_deg=angles,
        spot_mu=40.0,
    )
    data = encoded(make_plan(spec, asan), syntax, undefined)
    agree(data, tmp_path_factory.mktemp("made"))


# --- plans that pydicom writes out of random numbers ----------------------------------------------------------------------


def decimal(value):
    return f"{value:.10g}"[:16]


@st.composite
def random_plans(draw):
    """A dataset with what a plan needs and nothing else: few or single spots, inherited energies, several units and beams."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    root = Dataset()
    root.SOPClassUID, root.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.8", "1.2.3.4"
    root.PatientID = "P"
    group, references, beams = Dataset(), [], []
    group.FractionGroupNumber, group.NumberOfFractionsPlanned = 1, 1
    for number in range(1, draw(st.integers(1, 3)) + 1):
        beam = Dataset()
        beam.BeamNumber, beam.PrimaryDosimeterUnit, beam.ScanMode = number, draw(st.sampled_from(("MU", "NP"))), "MODULATED"
        beam.BeamType, beam.TreatmentDeliveryType = "STATIC", "TREATMENT"
        if draw(st.booleans()):
            beam.RadiationType = "PROTON"
        else:
            beam.RadiationType = "ION"
            beam.RadiationMassNumber, beam.RadiationAtomicNumber = draw(st.sampled_from(((12, 6), (4, 2), (16, 8))))
        cumulative, points = 0.0, []
        for layer in range(draw(st.integers(1, 4))):
            spots = draw(st.sampled_from((1, 1, 2, 7)))
            weights = np.array([rng.uniform(0.01, 3.0) for _ in range(spots)], dtype=np.float32)
            for half in (0, 1):
                point = Dataset()
                point.ControlPointIndex = 2 * layer + half
                if half == 0 and (layer == 0 or draw(st.booleans())):
                    point.NominalBeamEnergy = decimal(rng.uniform(70.0, 400.0))
                if layer == half == 0:
                    point.GantryAngle = decimal(rng.uniform(-180.0, 360.0))
                point.CumulativeMetersetWeight = decimal(cumulative)
                cumulative += float(weights.sum(dtype=np.float64)) if half == 0 else 0.0
                point.NumberOfScanSpotPositions = spots
                point.ScanSpotPositionMap = [float(k) for k in range(2 * spots)]
                values = [float(w) for w in weights] if half == 0 else [0.0] * spots
                if half == 0 or draw(st.booleans()):
                    point.ScanSpotMetersetWeights = values if spots > 1 else values[0]
                if half == 0 and draw(st.booleans()):
                    point.NumberOfPaintings = rng.randint(1, 4)
                points.append(point)
        beam.NumberOfControlPoints = len(points)
        beam.FinalCumulativeMetersetWeight = decimal(cumulative)
        beam.IonControlPointSequence = Sequence(points)
        beams.append(beam)
        reference = Dataset()
        reference.ReferencedBeamNumber, reference.BeamMeterset = number, decimal(cumulative * rng.uniform(0.2, 50.0))
        references.append(reference)
    group.NumberOfBeams = len(beams)
    group.ReferencedBeamSequence = Sequence(references)
    root.FractionGroupSequence, root.IonBeamSequence = Sequence([group]), Sequence(beams)
    return root


@settings(deadline=None, max_examples=60)
@given(random_plans(), st.sampled_from(SYNTAXES), st.booleans())
def test_plans_of_random_numbers_are_read_alike(tmp_path_factory, dataset, syntax, undefined):
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    agree(encoded(out.getvalue(), syntax, undefined), tmp_path_factory.mktemp("random"))


# --- raster scan files ----------------------------------------------------------------------------------------------------

LAYERS = st.lists(
    st.tuples(st.floats(80.0, 430.0), st.lists(st.floats(1.0, 1e7).map(lambda x: float(f"{x:.6g}")), min_size=1, max_size=5)),
    min_size=1,
    max_size=4,
)


def raster(layers, angle, projectile=("12C", 6, 12)):
    everything = [n for _, spots in layers for n in spots]
    lines = ["rstfile 20030630", "sistable x.sis", "patient_id T", "machine# 0", f"projectile {projectile[0]}"]
    lines += [f"charge {projectile[1]}", f"mass {projectile[2]}", f"gantryangle {angle:g}", "couchangle 0"]
    lines += ["bolus 0", "ripplefilter 3", f"#submachines {len(layers)}"]
    lines += [f"#particles {min(everything):.6g} {max(everything):.6g} {math.fsum(everything):.6g}"]
    for index, (energy, spots) in enumerate(layers):
        lines += [f"submachine# {index} {energy:.3f} 2 3.7", f"#particles {min(spots):.6g} {max(spots):.6g} {sum(spots):.6g}"]
        lines += ["stepsize 2 2", f"#points {len(spots)}", *(f"{2 * k} -2 {n:.6g}" for k, n in enumerate(spots))]
    return ("\n".join(lines) + "\n").encode()


@settings(deadline=None, max_examples=60)
@given(LAYERS, st.sampled_from((0.0, 90.0, -45.5)), st.sampled_from((("12C", 6, 12), ("4He", 2, 4), ("1H", 1, 1))))
def test_raster_scan_files_are_read_alike(tmp_path_factory, layers, angle, projectile):
    mine = agree(raster(layers, angle, projectile), tmp_path_factory.mktemp("raster"), ".rst")
    assert mine.beams[0].unit == "NP"


# --- damage ---------------------------------------------------------------------------------------------------------------


def refused_or_the_same(data, directory, suffix=".dcm"):
    """Whatever was done to a file: the second reader refuses it, or means what the first one means."""
    try:
        mine = read(data)
    except PlanNotUnderstood as refused:
        assert refused.reasons
        return False
    try:
        first_reader(data, directory, suffix)
    except PlanRefused:
        assert mine.beams  # the first is stricter about what is none of a ceiling's business
        return False
    agree(data, directory, suffix)
    return True


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from((ExplicitVRLittleEndian, ImplicitVRLittleEndian)))
def test_a_damaged_plan_is_refused_or_read_alike(tmp_path_factory, data, syntax):
    bad = bytearray(encoded(EXAMPLE, syntax))
    kind = data.draw(st.sampled_from(("flip", "cut", "drop", "double")))
    at = data.draw(st.integers(132, len(bad) - 1))
    size = data.draw(st.integers(1, 40))
    if kind == "flip":
        bad[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del bad[at:]
    elif kind == "drop":
        del bad[at : at + size]
    else:
        bad[at:at] = bad[at : at + size]
    refused_or_the_same(bytes(bad), tmp_path_factory.mktemp("bad"))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_raster_scan_file_is_refused_or_read_alike(tmp_path_factory, data):
    bad = bytearray(raster([(200.0, [1e5, 2e5]), (150.0, [3e4])], 30.0))
    at = data.draw(st.integers(0, len(bad) - 1))
    if data.draw(st.booleans()):
        bad[at] = data.draw(st.integers(32, 126))
    else:
        del bad[at : at + data.draw(st.integers(1, 60))]
    refused_or_the_same(bytes(bad), tmp_path_factory.mktemp("badrst"), ".rst")


@settings(deadline=None)
@given(st.binary(max_size=300))
@example(b"rstfile 20030630\n")
@example(b"\0" * 128 + b"DICM")
def test_noise_is_refused(data):
    with pytest.raises(PlanNotUnderstood):
        read(data)
    with pytest.raises(PlanNotUnderstood):
        read(b"\0" * 128 + b"DICM" + data)


def edited(change):
    dataset = pydicom.dcmread(io.BytesIO(EXAMPLE))
    change(dataset, dataset.IonBeamSequence[0], dataset.IonBeamSequence[0].IonControlPointSequence)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def reference(dataset):
    return dataset.FractionGroupSequence[0].ReferencedBeamSequence[0]


def weights(point):
    return list(point.ScanSpotMetersetWeights)


def leap(beam, points):
    """From the second layer on everything lies higher: each layer adds up, and so does the end."""
    step = float(beam.FinalCumulativeMetersetWeight) / 100.0
    for point in points[2:]:
        point.CumulativeMetersetWeight = f"{float(point.CumulativeMetersetWeight) + step:.10g}"
    beam.FinalCumulativeMetersetWeight = f"{float(beam.FinalCumulativeMetersetWeight) + step:.10g}"


WRONG = {
    "no meterset": (lambda d, b, p: delattr(reference(d), "BeamMeterset"), "BeamMeterset"),
    "no final weight": (lambda d, b, p: delattr(b, "FinalCumulativeMetersetWeight"), "FinalCumulativeMetersetWeight"),
    "another unit": (lambda d, b, p: setattr(b, "PrimaryDosimeterUnit", "COULOMB"), "unit"),
    "a moving gantry": (lambda d, b, p: setattr(p[5], "GantryAngle", "31"), "gantry angle changes"),
    "a missing half": (lambda d, b, p: p.pop(), "control points"),
    "weights on both halves": (
        lambda d, b, p: setattr(p[1], "ScanSpotMetersetWeights", p[0].ScanSpotMetersetWeights),
        "second of the pair",
    ),
    "a heavier spot": (
        lambda d, b, p: setattr(p[0], "ScanSpotMetersetWeights", [9 * weights(p[0])[0], *weights(p[0])[1:]]),
        "sum up",
    ),
    "a spot too few": (lambda d, b, p: setattr(p[0], "ScanSpotMetersetWeights", p[0].ScanSpotMetersetWeights[1:]), "spots"),
    "photons": (lambda d, b, p: setattr(b, "RadiationType", "PHOTON"), "species"),
    "two fraction groups": (lambda d, b, p: d.FractionGroupSequence.append(d.FractionGroupSequence[0]), "fraction groups"),
    "weights that leap between layers": (lambda d, b, p: leap(b, p), "cumulative weight"),
    "a plan for photons": (lambda d, b, p: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.5"), "not an RT Ion Plan"),
    "an endless meterset": (lambda d, b, p: setattr(reference(d), "BeamMeterset", "1e999"), "BeamMeterset is no number"),
    "a place without a weight": (
        lambda d, b, p: setattr(p[0], "NumberOfScanSpotPositions", len(weights(p[0])) + 1),
        "spots, weights of",
    ),
    "half of what it promises": (
        lambda d, b, p: setattr(b, "FinalCumulativeMetersetWeight", f"{2.0 * float(b.FinalCumulativeMetersetWeight):.10g}"),
        "weights reach",
    ),
    "two beams of one number": (lambda d, b, p: d.IonBeamSequence.append(b), "told apart"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_is_said(name):
    change, reason = WRONG[name]
    with pytest.raises(PlanNotUnderstood, match=reason):
        read(edited(change))


def test_an_element_that_occurs_twice_is_refused():
    twice = b"\xfe\x7f\x10\x00LO\x02\x00AB"
    plan = encoded(EXAMPLE, ExplicitVRLittleEndian)
    assert read(plan + twice).beams == read(EXAMPLE).beams
    with pytest.raises(PlanNotUnderstood, match="twice"):
        read(plan + 2 * twice)


def test_set_up_beams_are_not_treated_and_need_no_meterset():
    def change(dataset, beam, points):
        setup = pydicom.dcmread(io.BytesIO(EXAMPLE)).IonBeamSequence[0]
        setup.BeamNumber, setup.TreatmentDeliveryType = 99, "SETUP"
        dataset.IonBeamSequence.append(setup)

    assert read(edited(change)).beams == read(edited(lambda *_: None)).beams


def test_every_reason_is_given():
    def change(dataset, beam, points):
        beam.PrimaryDosimeterUnit = "COULOMB"
        del beam.FinalCumulativeMetersetWeight
        beam.ScanMode = "UNIFORM"

    with pytest.raises(PlanNotUnderstood) as caught:
        read(edited(change))
    assert len(caught.value.reasons) >= 3


def test_public_plans_are_read_alike(tmp_path):
    shared = ROOT / ".." / "shared" / "plans"
    if not shared.is_dir():
        pytest.skip("the public plans (../shared/plans) are not here")
    read_by_both = 0
    for path in sorted(p for p in shared.rglob("*") if p.suffix in (".dcm", ".rst")):
        try:
            read_plan(path)
        except PlanRefused:
            with pytest.raises(PlanNotUnderstood):
                read(path.read_bytes())
            continue
        agree(path.read_bytes(), tmp_path, path.suffix)
        read_by_both += 1
    assert read_by_both >= 8


def test_the_second_reader_needs_nothing_that_the_first_one_uses():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pydicom', 'numpy', 'controller', 'drivers', 'simulators'):\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from interlocks.plan_ceilings import read\n"
        "plan = read(open(sys.argv[2], 'rb').read())\n"
        "print(plan.hash, plan.beams[0].total, len(plan.beams[0].layers))"
    )
    command = [sys.executable, "-S", "-I", "-c", program, str(ROOT), str(ROOT / "examples" / "carbon_sphere.dcm")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    mine = read(EXAMPLE)
    assert run.stdout.split() == [str(mine.hash), str(mine.beams[0].total), str(len(mine.beams[0].layers))]
