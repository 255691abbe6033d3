"""Invariants of search, warning, E-stop and beam-off elements catch bugs planted in the plant, by their names."""

from __future__ import annotations

from stage import caught, treat

from simulators.plant.access import Access
from simulators.plant.beam_off import BeamOffElements
from simulators.plant.gantry import GantryRing

BOTH_FAIL = ("rfko-stuck@beam+0.29", "chopper-read-back-lies@beam+0.29", "motor-encoder-jump@beam+0.3")


def test_r3_a_search_that_outlives_an_open_door(sphere, monkeypatch):
    monkeypatch.setattr(Access, "_void", lambda _self, _why: None)
    assert caught(treat(sphere, "door-opened@beam+0.3")) == "R3"


def test_r3_a_search_line_that_stays_closed(sphere, monkeypatch):
    honest = Access._void

    def void(self, why):
        held = self.search_ok.value
        honest(self, why)
        self.search_ok.set(held)

    monkeypatch.setattr(Access, "_void", void)
    assert caught(treat(sphere, "door-opened@beam+0.3")) == "R3"


def test_r4_an_estop_that_leaves_the_drives_their_torque(turned, monkeypatch):
    def hook(stage):
        kernel, access = stage.world.plant.kernel, stage.room.access

        def listen(event):
            if event.kind == "motion.start" and event.data["device"] == "G1-gantry":
                kernel.after(500_000_000, lambda _t: access.press_estop(access.truth.estop_buttons[0]))

        kernel.observe(listen)

    monkeypatch.setattr(GantryRing, "_safe_torque_off", lambda _self: None)
    assert caught(treat(turned, hook=hook)) == "R4"


def test_r4_an_estop_loop_that_is_not_in_chain_a(sphere):
    run = treat(sphere, "estop@beam+0.3", hook=lambda stage: stage.room.chain.elements.pop("estop"))
    assert caught(run) == "R4"


def test_r5_a_lamp_that_goes_out_when_the_room_is_secured(sphere, monkeypatch):
    honest = Access._secure

    def secure(self):
        honest(self)
        self.lamp_lit = False

    monkeypatch.setattr(Access, "_secure", secure)
    assert caught(treat(sphere)) == "R5"


def test_r5_a_lamp_that_is_lit_with_the_beam_and_not_before(sphere):
    def hook(stage):
        def listen(event):
            if event.kind == "permit" and event.data["which"] == "beam_enable" and event.data["value"]:
                stage.room.access.lamp_lit_ns = event.t_ns

        stage.world.plant.kernel.observe(listen)

    assert caught(treat(sphere, hook=hook)) == "R5"


def test_p5_a_dump_that_does_nothing(sphere, monkeypatch):
    monkeypatch.setattr(BeamOffElements, "_dumped", lambda _self, _fault: None)
    assert caught(treat(sphere, *BOTH_FAIL)) == "P5"


def test_p5_feedback_that_nobody_reads(sphere, monkeypatch):
    monkeypatch.setattr(BeamOffElements, "_judge_current", lambda _self, _asked_ns: None)
    assert caught(treat(sphere, *BOTH_FAIL)) == "P5"


def test_p5_an_escalation_that_leaves_chain_a_closed(plan_of):
    two = plan_of(shape="sphere", species="C", diameter_mm=16.0, depth_mm=100.0, dose_gy=1.0, angles_deg=(0.0, 2.0))

    def hook(stage):
        stage.room.chain.beam_off._ok = stage.room.chain.beam_off._ok.__class__(stage.world.plant.kernel, "cut wire", True)

    assert caught(treat(two, "chopper-stuck", hook=hook)) == "P5"
