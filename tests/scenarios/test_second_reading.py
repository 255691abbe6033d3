"""A controller that misunderstood the plan gets no beam for it: the interlock system read it as well."""

from __future__ import annotations

import dataclasses

import pytest
from stage import treat

from controller.plan.counting import Conversion
from drivers.devices.room_access import RoomAccessIO
from drivers.hal.clock import now_ns
from simulators.plant.unit_granted import GrantedTotals

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


def test_a_controller_that_reads_every_weight_a_tenth_too_high_is_stopped_by_the_other_reader_alone(sphere, monkeypatch):
    honest = Conversion.of.__func__

    def generous(cls, *args, **kwargs):
        found = honest(cls, *args, **kwargs)
        return dataclasses.replace(found, counts1_per_unit=found.counts1_per_unit * 1.1)

    monkeypatch.setattr(Conversion, "of", classmethod(generous))
    run = treat(sphere)
    run.check_trouble()
    assert set(run.interlocks) & CEILINGS
    assert run.interlocks[0] in CEILINGS
    planned = sum(float(layer.counts1.sum()) for layer in run.prescription.layers.values())
    assert run.given_counts1() < 0.5 * planned


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
