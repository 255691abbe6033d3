"""A controller that misunderstood the plan gets no beam for it: the interlock system read it as well."""

from __future__ import annotations

import dataclasses

import pytest
from stage import treat

from controller import fraction
from controller.fraction import RoomTuner
from controller.plan.counting import Conversion
from drivers.devices.room_access import RoomAccessIO
from drivers.hal.clock import now_ns
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.plant.unit_granted import GrantedTotals
from simulators.servers.room_nodes import safety_nodes

LOADED = {"PLAN_CEILING2_FIELD", "PLAN_CEILING2_SPOT"}
CEILINGS = {"PLAN_FIELD", "PLAN_LAYER", "PLAN_SPOT"}


def test_a_clean_treatment_was_held_against_the_plan_to_its_end(sphere, monkeypatch):
    seen = []
    accept = GrantedTotals.accept

    def watching(self, grant):
        accept(self, grant)
        seen.append(self.shown())

    monkeypatch.setattr(GrantedTotals, "accept", watching)
    run = treat(sphere)
    assert run.status == "complete"
    told = [event.data for event in run.said("interlock.plan")]
    assert [len(data["refused"]) for data in told] == [0]
    planned = sum(float(counts.sum()) for counts in (layer.counts1 for layer in run.prescription.layers.values()))
    assert seen[-1].field1 == pytest.approx(planned, rel=0.02)
    assert {granted.plan_hash for granted in seen} == {run.prescription.plan_hash}
    assert all(granted.layer1 <= granted.field1 for granted in seen)


def generous(monkeypatch, factor):
    """The controller reads every weight this much too high."""
    honest = Conversion.of.__func__

    def of(cls, *args, **kwargs):
        found = honest(cls, *args, **kwargs)
        return dataclasses.replace(found, counts1_per_unit=found.counts1_per_unit * factor)

    monkeypatch.setattr(Conversion, "of", classmethod(of))


def loading(monkeypatch, **factors):
    """What the controller loads into the second dose unit is so many times what it computed."""
    tune = RoomTuner.tune

    async def other(self, *args):
        tuned = await tune(self, *args)
        changed = {name: round(getattr(tuned, name) * factor) for name, factor in factors.items()}
        return dataclasses.replace(tuned, **changed)

    monkeypatch.setattr(RoomTuner, "tune", other)


def test_a_controller_that_reads_every_weight_a_tenth_too_high_is_stopped_before_any_beam(sphere, monkeypatch):
    generous(monkeypatch, 1.1)
    run = treat(sphere)
    run.check_trouble()
    assert run.interlocks[0] in LOADED, "what it loads into the second dose unit is too much already"
    assert run.given_counts1() == 0


def test_a_controller_that_is_generous_in_its_grants_alone_is_stopped_by_the_other_reader_alone(sphere, monkeypatch):
    generous(monkeypatch, 1.04)
    loading(monkeypatch, field_counts2_max=1 / 1.04, spot_counts2_max=1 / 1.04)
    run = treat(sphere)
    run.check_trouble()
    assert run.interlocks[0] in CEILINGS
    planned = sum(float(layer.counts1.sum()) for layer in run.prescription.layers.values())
    assert run.given_counts1() < 0.5 * planned


@pytest.mark.parametrize(
    ("field", "row"), [("field_counts2_max", "PLAN_CEILING2_FIELD"), ("spot_counts2_max", "PLAN_CEILING2_SPOT")]
)
def test_a_controller_that_loads_tenfold_ceilings_gets_no_beam(sphere, monkeypatch, field, row):
    loading(monkeypatch, **{field: 10})
    run = treat(sphere)
    run.check_trouble()
    assert run.interlocks[0] == row
    assert run.given_counts1() == 0
    told = next(event.data for event in run.said("interlock.trip") if event.data["id"] == row)
    loaded, allowed = told["shown"][1:]
    assert 3 * allowed < loaded


def test_a_wrong_ratio_of_the_monitors_gets_no_beam(sphere, monkeypatch):
    monkeypatch.setattr(fraction, "_ratio", lambda prepared: 1.5)
    run = treat(sphere)
    assert set(run.interlocks) & LOADED
    assert run.given_counts1() == 0


def test_a_preset_for_another_beam_is_not_armed(sphere, monkeypatch):
    preset = RoomAccessIO.preset

    async def other(self, room_token, angle_deg, species_token, armed, plan_hash=0, beam_number=0):
        await preset(self, room_token, angle_deg, species_token, armed, plan_hash, beam_number + armed)

    monkeypatch.setattr(RoomAccessIO, "preset", other)
    run = treat(sphere)
    run.check_trouble()
    assert "PLAN_KNOWN" in run.interlocks
    assert run.given_counts1() == 0


def test_an_angle_that_only_the_controller_read_is_not_armed(sphere, monkeypatch):
    preset = RoomAccessIO.preset

    async def other(self, room_token, angle_deg, *rest):
        await preset(self, room_token, angle_deg + 0.15, *rest)  # within what the ring's own row allows

    monkeypatch.setattr(RoomAccessIO, "preset", other)
    run = treat(sphere)
    assert "PLAN_ANGLE" in run.interlocks
    assert run.given_counts1() == 0


def test_another_file_in_the_hands_of_the_interlock_system_gives_no_beam(sphere, turned):
    def exchange(stage):
        assert stage.world.simulated.interlock.give_plan(now_ns(), turned.read_bytes())

    run = treat(sphere, hook=exchange)
    run.check_trouble()
    assert "PLAN_KNOWN" in run.interlocks
    assert run.given_counts1() == 0


def test_the_safety_node_shows_what_the_second_dose_unit_has_loaded_and_when_it_has_nothing():
    kernel = Kernel(3)
    room = FacilityPlant.shipped(kernel, "asan").rooms["G1"]
    node, unit2 = safety_nodes(room)[1], room.unit2

    def shown():
        state, *words = node.read(8, 73)[68:]
        return state, words[0] << 16 | words[1], words[2] << 16 | words[3]

    nothing = 0x7FFF_FFFF
    assert shown() == (0, nothing, nothing)
    unit2.start_field(unit2.boot_id, 70_000_000, 65_537)
    assert shown() == (1, 70_000_000, 65_537)
    unit2.start_field(unit2.boot_id, 1 << 40, 5)
    assert shown() == (1, nothing, 5), "what does not fit is above everything"
    unit2.power_cycle()
    assert shown() == (0, nothing, nothing)
    kernel.advance_to(kernel.now_ns + 1_000_000_000)
    assert shown() == (0, nothing, nothing), "it came back without ceilings"
