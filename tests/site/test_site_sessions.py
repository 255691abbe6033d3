"""Sessions of a plant that outlives them: each judged by its own prescription, none by what another left."""

import numpy as np
import pytest

from simulators.invariants import CATALOGUE, InvariantMonitor, Prescription
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel

PLAN, OTHER = 11, 22


class Watched:
    def __init__(self):
        self.plant = FacilityPlant.shipped(Kernel(1), "asan")
        self.found = []
        self.monitor = InvariantMonitor(self.plant, self.found.append, CATALOGUE)

    def grant(self, room, plan_hash, grant_id):
        """A grant as a delivery unit tells it; without rows, so that the plan's identity alone is judged."""
        nothing = np.zeros(0, dtype=np.int64)
        self.plant.kernel.emit(
            f"{room}-unit",
            "grant.accepted",
            room=room,
            boot_id=1,
            grant_id=grant_id,
            plan_hash=plan_hash,
            beam=1,
            layer=0,
            kev_u=300_000,
            species=6012,
            quantum_counts=10.0,
            spot_index=nothing,
            counts1_max=nothing,
            planned_x_mm=np.zeros(0),
            planned_y_mm=np.zeros(0),
        )

    def names(self):
        return [f"{violation.name} {violation.room}" for violation in self.found]


def session(room, plan_hash):
    from simulators.invariants import PrescribedLayer

    none = np.zeros(0)
    layer = PrescribedLayer(6012, 300.0, none, none, none)
    return Prescription(plan_hash=plan_hash, room=room, gantry_angle_deg={1: 0.0}, layers={(1, 0): layer})


def test_without_a_session_nobody_asks_for_a_plan():
    watched = Watched()
    watched.grant("G1", PLAN, 1)
    assert watched.names() == []


def test_a_session_is_judged_by_its_own_prescription_and_forgets_the_one_before():
    watched = Watched()
    watched.monitor.begin(session("G1", PLAN))
    watched.grant("G1", PLAN, 1)
    assert watched.names() == []
    watched.grant("G1", OTHER, 2)
    assert watched.names() == ["D1 G1"]
    watched.grant("G1", OTHER, 3)
    assert watched.names() == ["D1 G1"], "the first one ends a session"
    watched.monitor.begin(session("G1", OTHER))
    watched.grant("G1", OTHER, 4)
    assert watched.names() == ["D1 G1"]
    watched.grant("G1", PLAN, 5)
    assert watched.names() == ["D1 G1", "D1 G1"], "and the next is judged again"


def test_two_rooms_have_two_sessions():
    watched = Watched()
    watched.monitor.begin(session("G1", PLAN))
    watched.monitor.begin(session("G2", OTHER))
    watched.grant("G1", PLAN, 1)
    watched.grant("G2", OTHER, 1)
    assert watched.names() == []
    watched.grant("G2", PLAN, 2)
    assert watched.names() == ["D1 G2"]


def test_a_grant_in_a_room_without_a_session_is_no_secret():
    watched = Watched()
    watched.monitor.begin(session("G1", PLAN))
    watched.grant("F1", PLAN, 1)
    assert watched.names() == ["D1 F1"]


def test_a_grant_taken_twice_is_seen_across_sessions():
    watched = Watched()
    watched.monitor.begin(session("G1", PLAN))
    watched.grant("G1", PLAN, 1)
    watched.monitor.begin(session("G1", PLAN))
    watched.grant("G1", PLAN, 1)
    assert watched.names() == ["B12 G1"]


def test_a_session_does_not_begin_in_beam_or_nowhere():
    watched = Watched()
    with pytest.raises(ValueError, match="no room 'G9'"):
        watched.monitor.begin(session("G9", PLAN))
    watched.monitor._truth.rooms["G1"].beam_on = True
    with pytest.raises(ValueError, match="beam is on in G1"):
        watched.monitor.begin(session("G1", PLAN))
