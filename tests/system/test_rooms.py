"""Every room of the clinical-like facility treats every ion it offers; the outputs say where, with what, and how much."""

import numpy as np
import pytest
from outputs import assert_as_prescribed, assert_record
from plans import assert_delivered, joined

IONS = {"C": (12, 6), "He": (4, 2), "O": (16, 8), "Ne": (20, 10)}
DEPTH_MM = {"C": 80.0, "He": 80.0, "O": 60.0, "Ne": 50.0}


@pytest.mark.parametrize(("room", "angles_deg"), [("G1", (35.0,)), ("G2", (-60.0,)), ("F1", (0.0, 90.0))])
def test_a_room_treats_every_ion_at_every_port(treat, dataset, room, angles_deg):
    beams = [(angle, ion) for angle in angles_deg for ion in IONS]
    plan = joined(
        *(dataset(room=room, species=ion, angles_deg=(angle,), diameter_mm=8.0, depth_mm=DEPTH_MM[ion]) for angle, ion in beams)
    )
    done = treat(plan)
    assert_as_prescribed(done)
    assert_delivered(done, plan)
    assert_record(done)
    assert (done.summary["facility"], done.summary["room"]) == ("asan", room)
    assert done.summary["plan"]["species"] == "C+He+O+Ne"
    (machine,) = done.record.TreatmentMachineSequence
    assert machine.TreatmentMachineName == room and "SIMULATED" in machine.ManufacturerModelName
    items = done.record.TreatmentSessionIonBeamSequence
    assert [(i.RadiationMassNumber, i.RadiationAtomicNumber) for i in items] == [IONS[ion] for _, ion in beams]
    for item, told, (angle, _) in zip(items, done.summary["beams"], beams, strict=True):
        measured = float(item.IonControlPointDeliverySequence[0].GantryAngle)
        assert abs((measured - angle + 180.0) % 360.0 - 180.0) < 0.1
        assert abs((told["gantry_angle_deg"] - angle + 180.0) % 360.0 - 180.0) < 0.1
    assert np.all(np.diff(done.spots["t_start_ns"]) >= 0)
    assert done.summary["interlocks"] == []


@pytest.mark.parametrize(("facility", "species"), [("research", "p"), ("qst", "C")])
def test_the_other_facilities_treat_too(treat, made, facility, species):
    from drivers.hal.facility import load_facility

    room = next(iter(load_facility(facility).rooms))
    done = treat(made(facility=facility, room=room, species=species, diameter_mm=10.0), facility=facility)
    assert_as_prescribed(done)
    assert_record(done)
    assert done.summary["plan"]["species"] == species
