"""Invariants of motion, room, plan, sequence, communication and record catch bugs planted in a treatment, by their names."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from stage import at_beam, caught, treat

from controller.delivery import layers
from controller.record import memory_store
from controller.room.activities import Activities
from simulators.invariants import CATALOGUE
from simulators.physics.motion import rest
from simulators.plant import ring_watch
from simulators.plant.access import Access
from simulators.plant.couch import Couch
from simulators.plant.delivery_unit import DeliveryUnitPlant
from simulators.plant.gantry import GantryRing
from simulators.plant.grants import Refusal
from simulators.plant.kernel import Line
from simulators.plant.safety_chain import PulseRelay
from simulators.plant.switchyard import Switchyard
from simulators.servers.room_nodes import SafetyNode

NAMES = {
    "B1",
    "B2",
    "B3",
    "B4",
    "B5",
    "B6",
    "B7",
    "B8",
    "B10",
    "B12",
    "M1",
    "M3",
    "M4",
    "R1",
    "R2",
    "R3",
    "R4",
    "R5",
    "P5",
    "D1",
    "S3",
    "C1",
    "V1",
    "V2",
}


def test_the_catalogue_has_every_name_and_says_what_must_be_true():
    assert set(CATALOGUE) == NAMES
    for rule in CATALOGUE.values():
        assert rule.check.__doc__ and rule.hazard and rule.kinds


# --- M1: the gantry (or the couch) falls ----------------------------------------------------------------------------------


def test_m1_firmware_that_takes_the_torque_away_before_the_brakes_hold(turned, monkeypatch):
    monkeypatch.setattr(GantryRing, "_set_brakes", lambda self: (self.brakes.set(), self._finish()))
    assert caught(treat(turned, "brake-fails-to-set")) == "M1"


def test_m1_brakes_that_open_by_themselves(sphere):
    def open_later(stage):
        stage.world.plant.kernel.at(20_000_000_000, lambda _t: stage.room.gantry.brakes.release())

    assert caught(treat(sphere, hook=open_later)) == "M1"


def test_m1_a_couch_that_forgets_its_brake(sphere, monkeypatch):
    monkeypatch.setattr(Couch, "_set_brake", lambda self: (self._rest(), self._finish()))
    assert caught(treat(sphere)) == "M1"


# --- M3: beam while moving, or at another angle ---------------------------------------------------------------------------


def test_m3_a_standstill_that_does_not_see_creeping(sphere, monkeypatch):
    monkeypatch.setattr(ring_watch.StandstillWatch, "creeping", lambda _self, _speed: None)
    assert caught(treat(sphere, "gantry-creeps:0.03@beam+0.05")) == "M3"


def test_m3_a_ring_that_stands_elsewhere_and_encoders_that_hide_it(sphere):
    def shift(stage):
        ring = stage.room.gantry

        def slip(_t_ns):
            ring.body.follow(rest(0.5), 1)
            for encoder in (ring.encoders.load, ring.encoders.load2, *ring.encoders.motors):
                encoder.jump(-500.0)

        stage.world.plant.kernel.at(35_000_000_000, slip)

    assert caught(treat(sphere, hook=shift)) == "M3"


# --- M4: an encoder lies --------------------------------------------------------------------------------------------------


def test_m4_a_comparison_that_was_removed_while_the_ring_turns(turned, monkeypatch):
    monkeypatch.setattr(ring_watch.RingEncoders, "look_ahead", lambda _self: None)
    assert caught(treat(turned, "load-encoder-frozen")) == "M4"


def test_m4_a_comparison_that_was_removed_in_beam(sphere, monkeypatch):
    monkeypatch.setattr(ring_watch.RingEncoders, "look_ahead", lambda _self: None)
    assert caught(treat(sphere, "load-encoder-jump:2000@beam+0.25")) == "M4"


def test_m4_a_difference_that_does_not_cost_the_standstill(sphere, monkeypatch):
    monkeypatch.setattr(ring_watch.StandstillWatch, "doubt", lambda _self, _doubted: None)
    assert caught(treat(sphere, "load-encoder-jump@beam+0.25")) == "M4"


# --- R1: a person in the beam ---------------------------------------------------------------------------------------------


def test_r1_a_search_that_overlooks_somebody(sphere):
    run = treat(sphere, "door-opened", hook=lambda s: s.world.simulated.operator.script.overlooks.add("visitor"))
    assert caught(run) == "R1"


def test_r1_a_door_whose_contacts_are_both_welded_and_void_nothing(sphere, monkeypatch):
    def open_door(self):
        self.door_closed = False
        self.kernel.emit(self.device, "door", room=self.room, closed=False)

    monkeypatch.setattr(Access, "open_door", open_door)
    monkeypatch.setattr(Access, "_void", lambda _self, _why: None)

    def act(stage):
        at_beam(stage, stage.room.access.open_door, 0.25)

    assert caught(treat(sphere, hook=act)) == "R1"


# --- R2: the wrong room ---------------------------------------------------------------------------------------------------


def test_r2_a_token_that_two_rooms_hold(sphere):
    def second_token(stage):
        stage.world.plant.rooms["G2"].chain.room_token = 7

    assert caught(treat(sphere, hook=second_token)) == "R2"


def test_r2_a_switchyard_that_shows_one_path_and_opens_another(sphere, monkeypatch):
    def astray(stage):
        stage.world.plant.switchyard.route = "G2"

    monkeypatch.setattr(Switchyard, "readback", property(lambda _self: "G1"))
    monkeypatch.setattr(Switchyard, "select", lambda _self, _route: None)
    monkeypatch.setattr(DeliveryUnitPlant, "_route_ours", property(lambda _self: True))
    assert caught(treat(sphere, hook=astray)) == "R2"


# --- D1: the plan was altered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alter",
    [
        lambda grant: {"plan_hash": grant.plan_hash ^ 1},
        lambda grant: {"counts1_max": grant.counts1_max + 20},
        lambda grant: {"x_um": grant.x_um + 1000},
        lambda grant: {"spot_index": grant.spot_index[::-1].copy()},
        lambda grant: {"layer_index": grant.layer_index + 77},
    ],
    ids=["hash", "counts", "place", "order", "layer"],
)
def test_d1_a_grant_that_differs_from_the_plan(sphere, monkeypatch, alter):
    honest = layers.build_grant

    def build(*args, **kwargs):
        grant, rows = honest(*args, **kwargs)
        return replace(grant, **alter(grant)), rows

    monkeypatch.setattr(layers, "build_grant", build)
    assert caught(treat(sphere)) == "D1"


def test_d1_a_grant_of_another_energy_that_the_unit_takes(sphere, monkeypatch):
    honest = layers.build_grant

    def build(*args, **kwargs):
        grant, rows = honest(*args, **kwargs)
        return replace(grant, energy_kev_u=grant.energy_kev_u - 4000), rows

    monkeypatch.setattr(layers, "build_grant", build)
    monkeypatch.setattr("simulators.plant.delivery_unit.judge", lambda *_args, **_kwargs: Refusal.NONE)
    assert caught(treat(sphere)) == "D1"


# --- S3: something was edited after arming --------------------------------------------------------------------------------


def test_s3_a_session_that_edits_the_preset_after_arming(sphere, monkeypatch):
    honest = Activities._await_beam_on

    async def edits(self):
        step = await honest(self)
        await self._devices.access.preset(self._proofs.lease.token, 0.05, 6012, True)
        return step

    monkeypatch.setattr(Activities, "_await_beam_on", edits)
    assert caught(treat(sphere)) == "S3"


def test_s3_a_room_that_is_never_armed(sphere, monkeypatch):
    honest = SafetyNode.accept

    def accept(self, register, end):
        honest(self, register, end)
        self._room.chain.armed = False

    monkeypatch.setattr(SafetyNode, "accept", accept)
    assert caught(treat(sphere)) == "S3"


# --- C1: stale counts as good ---------------------------------------------------------------------------------------------


def test_c1_a_relay_that_does_not_fall_without_a_pulse(sphere, monkeypatch):
    monkeypatch.setattr(PulseRelay, "_fall", lambda _self, _t_ns: None)
    run = treat(sphere, hook=lambda s: at_beam(s, lambda: s.world.world.suspend("G1-interlocks"), 0.25))
    assert caught(run) == "C1"


def test_c1_a_relay_that_holds_for_ten_seconds(sphere):
    def slow(stage):
        stage.room.chain._relay_r._hold_ns = 10_000_000_000
        at_beam(stage, stage.world.simulated.safety.cut, 0.25)

    assert caught(treat(sphere, hook=slow)) == "C1"


# --- V1: beam before its record is durable --------------------------------------------------------------------------------


def test_v1_a_delivery_that_journals_after_sending(sphere, monkeypatch):
    honest = layers.write_grant

    def later(journal, grant, **kwargs):
        asyncio.get_running_loop().call_later(0.01, lambda: honest(journal, grant, **kwargs))

    monkeypatch.setattr(layers, "write_grant", later)
    assert caught(treat(sphere)) == "V1"


def test_v1_a_journal_that_is_written_and_not_synced(sphere, monkeypatch):
    monkeypatch.setattr(memory_store._MemoryFile, "sync", lambda _self: None)
    assert caught(treat(sphere)) == "V1"


# --- V2: dose that nobody accounts for ------------------------------------------------------------------------------------


def test_v2_a_record_that_claims_more_than_was_given(sphere, monkeypatch):
    honest = layers.write_done

    def more(journal, grant_id, reason, pieces):
        pieces = pieces.copy()
        pieces["counts1"][0] += 1
        honest(journal, grant_id, reason, pieces)

    monkeypatch.setattr(layers, "write_done", more)
    assert caught(treat(sphere)) == "V2"


def test_v2_a_record_that_loses_a_piece(sphere, monkeypatch):
    honest = layers.write_done
    monkeypatch.setattr(layers, "write_done", lambda j, grant_id, reason, pieces: honest(j, grant_id, reason, pieces[:-1]))
    assert caught(treat(sphere)) == "V2"


def test_v2_a_journal_that_holds_a_smaller_grant_than_was_sent(sphere, monkeypatch):
    honest = layers.write_grant

    def smaller(journal, grant, **kwargs):
        honest(journal, replace(grant, counts1_max=(grant.counts1_max * 0.9).astype(np.int32)), **kwargs)

    monkeypatch.setattr(layers, "write_grant", smaller)
    assert caught(treat(sphere)) == "V2"


def test_the_line_that_no_bug_touched_still_works(sphere):
    """The proof that the harness itself violates nothing."""
    run = treat(sphere)
    assert caught(run) is None and run.status == "complete"
    assert isinstance(run.room.chain.permit_a, Line)
