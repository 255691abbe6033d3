"""Each invariant of beam and dose catches, by its name, bugs planted in plant, interlocks or controller of a treatment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stage import at_beam, caught, treat

from controller.delivery import layers
from simulators.plant import timeline, unit_checks, unit_run
from simulators.plant.chambers import StripMonitor
from simulators.plant.delivery_unit import DeliveryUnitPlant
from simulators.plant.grants import Refusal
from simulators.plant.kernel import Line
from simulators.plant.safety_chain import SafetyChain
from simulators.plant.scanner import Scanner
from simulators.plant.second_dose_unit import SecondDoseUnitPlant
from simulators.plant.synchrotron import Synchrotron
from simulators.plant.unit_memory import UnitMemory
from simulators.plant.unit_terms import Reason


def deaf(*elements):
    """A chain that does not hear some of its elements."""
    hear = SafetyChain._element_changed

    def element_changed(self, t_ns, name, value):
        if name not in elements:
            hear(self, t_ns, name, value)

    return element_changed


# --- B1: beam despite trip ----------------------------------------------------------------------------------------------


def test_b1_a_unit_that_ignores_the_permit(sphere, monkeypatch):
    judged = DeliveryUnitPlant._reason_to_end
    monkeypatch.setattr(
        DeliveryUnitPlant, "_reason_to_end", lambda self, g: Reason.NONE if (r := judged(self, g)) is Reason.PERMIT else r
    )
    assert caught(treat(sphere, "gantry-creeps@beam+0.05")) == "B1"


def test_b1_a_beam_enable_wired_past_the_interlock_system(sphere, monkeypatch):
    def changed(self, which, value):
        self._tell(which, value)
        self.beam_enable.set(self.permit_a.value and self.permit_r.value)

    monkeypatch.setattr(SafetyChain, "_contribution_changed", changed)
    run = treat(sphere, hook=lambda s: at_beam(s, lambda: s.world.world.kill("G1-interlocks"), 0.3))
    assert caught(run) == "B1"


def test_b1_a_beam_enable_wired_past_the_request(sphere, monkeypatch):
    def changed(self, which, value):
        self._tell(which, value)
        self.beam_enable.set(self.permit_a.value and self.permit_b.value)

    monkeypatch.setattr(SafetyChain, "_contribution_changed", changed)
    run = treat(sphere, hook=lambda s: at_beam(s, s.world.simulated.safety.cut, 0.05))
    assert caught(run) == "B1"


def test_b1_a_cut_off_that_takes_fifty_milliseconds(sphere, monkeypatch):
    monkeypatch.setattr(Synchrotron, "cutoff_ns", lambda _self: 50_000_000)
    assert caught(treat(sphere, "quench@beam+0.05")) == "B1"


# --- B2: open interlock -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "fault"), [("estop", "estop"), ("standstill", "gantry-creeps"), ("dose2", "mu2-gain:0.94")]
)
def test_b2_a_chain_that_does_not_hear_an_element(sphere, monkeypatch, element, fault):
    monkeypatch.setattr(SafetyChain, "_element_changed", deaf(element))
    if element == "dose2":  # opened by hand: the first unit is told by a wire of its own, which is cut here too
        monkeypatch.setattr(
            DeliveryUnitPlant,
            "_reason_to_end",
            lambda self, g, judged=DeliveryUnitPlant._reason_to_end: (
                Reason.NONE if (r := judged(self, g)) is Reason.SECOND_UNIT else r
            ),
        )
        run = treat(sphere, hook=lambda s: at_beam(s, lambda: s.room.chain.dose2_ok.set(False), 0.05))
    else:
        run = treat(sphere, f"{fault}@beam+0.05")
    assert caught(run) == "B2"


def test_b2_a_welded_relay_of_chain_a(sphere, monkeypatch):
    honest = Line.set
    monkeypatch.setattr(Line, "set", lambda self, value: honest(self, value or self.name == "G1.permit_a"))
    assert caught(treat(sphere, "gantry-creeps@beam+0.05")) == "B2"


# --- B3: spot overdose --------------------------------------------------------------------------------------------------


def test_b3_a_unit_that_takes_from_one_spot_and_gives_to_another(sphere, monkeypatch):
    honest = timeline.compute

    def compute(rows, *rest):
        goal = rows.counts1_goal.copy()
        goal[3] += (goal[4] - goal[3]) // 20
        return honest(replace(rows, counts1_goal=goal), *rest)

    monkeypatch.setattr(timeline, "compute", compute)
    monkeypatch.setattr(unit_checks, "_dose", lambda _stretch, _expected: [])
    assert caught(treat(sphere)) == "B3"


def test_a_unit_that_gives_a_tenth_more_is_stopped_by_the_second_one(sphere, monkeypatch):
    """Defence in depth: the second unit's own ceiling for a spot ends it before the bound of B3."""
    honest = timeline.compute

    def compute(rows, *rest):
        return honest(replace(rows, counts1_goal=np.round(rows.counts1_goal * 1.1).astype(np.int64)), *rest)

    monkeypatch.setattr(timeline, "compute", compute)
    monkeypatch.setattr(unit_checks, "_dose", lambda _stretch, _expected: [])
    run = treat(sphere)
    run.check_trouble()
    assert "dose_2.tripped" in run.interlocks


def test_b3_a_delivery_that_grants_every_pass_twice(sphere, monkeypatch):
    honest = layers.BeamDelivery.run

    async def run(self, passes, received=None):
        return await honest(self, [p for scheduled in passes for p in (scheduled, scheduled)], received)

    monkeypatch.setattr(layers.BeamDelivery, "run", run)
    assert caught(treat(sphere)) == "B3"


def test_b3_a_resume_that_forgets_what_was_given(sphere, monkeypatch):
    monkeypatch.setattr(layers, "still_owed", lambda scheduled, _received: scheduled.counts1.copy())
    run = treat(sphere, hook=lambda s: at_beam(s, lambda: s.session.pause("a moment"), 0.3))
    assert caught(run) == "B3"


def test_b3_a_stuck_extraction_that_nobody_notices(grid, monkeypatch):
    monkeypatch.setattr(unit_checks, "_dose", lambda _stretch, _expected: [])
    assert caught(treat(grid, "rfko-stuck")) == "B3"


# --- B4: one monitor lies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["mu1-gain:0.7", "mu2-gain:0.7"])
def test_b4_a_unit_that_does_not_compare_its_monitors(sphere, monkeypatch, fault):
    monkeypatch.setattr(unit_checks, "_monitors", lambda *_: [])
    monkeypatch.setattr(unit_checks, "_dose", lambda *_: [])
    assert caught(treat(sphere, f"{fault}@beam+0.01")) == "B4"


def test_b4_a_comparison_with_a_limit_of_half(sphere, monkeypatch):
    monkeypatch.setattr(unit_checks, "DISAGREE_REL", 0.5)
    monkeypatch.setattr(unit_checks, "DISAGREE_COUNTS", 1e6)
    monkeypatch.setattr(unit_checks, "_dose", lambda *_: [])
    assert caught(treat(sphere, "mu2-gain:0.8@beam+0.01")) == "B4"


# --- B5: overdose over all attempts -------------------------------------------------------------------------------------


def test_b5_a_delivery_that_adds_a_hundredth_to_every_pass(sphere, monkeypatch):
    honest = layers.BeamDelivery.run

    async def run(self, passes, received=None):
        def hundredth(p):
            return replace(p, counts1=p.counts1 // 100, intensity_per_s=2_000_000, quantum_counts=20)

        return await honest(self, [part for p in passes for part in (p, hundredth(p))], received)

    monkeypatch.setattr(layers.BeamDelivery, "run", run)
    assert caught(treat(sphere)) == "B5"


def test_b5_a_session_that_does_not_know_of_an_earlier_one(sphere, monkeypatch):
    import controller.assembly

    honest = controller.assembly.SimulatedWorld.watch

    def watch(self, prescription=None, record=None):
        total = prescription.planned_counts1(1)
        return honest(self, replace(prescription, received_before={1: 0.5 * total}), record)

    monkeypatch.setattr(controller.assembly.SimulatedWorld, "watch", watch)
    assert caught(treat(sphere)) == "B5"


# --- B6: dose between spots ---------------------------------------------------------------------------------------------


def test_b6_a_unit_that_counts_stray_charge_and_does_not_latch(sphere, monkeypatch):
    monkeypatch.setattr("simulators.plant.delivery_unit.STRAY_COUNTS_MAX", 10**6)
    assert caught(treat(sphere, "stray-counts:100@t=20")) == "B6"


def test_b6_a_unit_that_ends_the_grant_and_does_not_latch(sphere, monkeypatch):
    monkeypatch.setattr("simulators.plant.delivery_unit.NOT_LATCHING", frozenset(Reason))
    assert caught(treat(sphere, "stray-counts:100@beam+0.05")) == "B6"


# --- B7: wrong place ----------------------------------------------------------------------------------------------------


def test_b7_a_unit_that_does_not_look_at_places(sphere, monkeypatch):
    monkeypatch.setattr(unit_checks, "_position", lambda *_: [])
    assert caught(treat(sphere, "scanner-mirrored")) == "B7"


def test_b7_a_beam_that_is_chopped_into_pieces_shorter_than_its_time(sphere, monkeypatch):
    """Each piece alone is short enough; together they are not."""
    monkeypatch.setattr(unit_checks, "_position", lambda *_: [])
    pieces = []

    def chop(stage):
        kernel, gate = stage.world.plant.kernel, stage.room.unit.gate

        def listen(event):
            if event.kind == "beam.on":
                kernel.after(1_000_000, lambda _t: gate.set(False))
                kernel.after(9_000_000, lambda _t: gate.set(True))
            elif event.kind == "delivery.segment" and event.data["t_end_ns"].size:
                pieces.append(int(event.data["t_end_ns"][-1] - event.data["t_start_ns"][0]))

        kernel.observe(listen)

    run = treat(sphere, "scanner-mirrored", hook=chop)
    assert caught(run) == "B7"
    assert len(pieces) > 1 and max(pieces) < 1_900_000


def test_b7_strips_that_show_what_was_planned(sphere, monkeypatch):
    monkeypatch.setattr(unit_checks, "position_error_mm", lambda stretch, _expected: np.zeros(stretch.size))
    assert caught(treat(sphere, "calibration-row:0.003")) == "B7"


def test_b7_a_sag_that_the_strips_cannot_see(sphere, monkeypatch):
    monkeypatch.setattr(Scanner, "sag_mm", lambda _self, _angle_deg: (3.0, 0.0))
    assert caught(treat(sphere)) == "B7"


def test_b7_strips_whose_planes_are_dead(sphere, monkeypatch):
    monkeypatch.setattr(StripMonitor, "read_mm", lambda _self, x, y, _duration, _noise: (x * 0.0, y * 0.0))
    monkeypatch.setattr(unit_checks, "PAUSE_MM", 50.0)
    monkeypatch.setattr(unit_checks, "TERMINATE_MM", 50.0)
    assert caught(treat(sphere, "scanner-swapped")) == "B7"


# --- B8: wrong energy or species ----------------------------------------------------------------------------------------


def test_b8_an_energy_measurement_that_repeats_the_set_point(sphere, monkeypatch):
    monkeypatch.setattr(Synchrotron, "measured_kev_u", property(lambda self: self._asked_kev_u if self.settled else 0))
    assert caught(treat(sphere, "wrong-energy:1")) == "B8"


def test_b8_a_source_whose_readings_lie(sphere):
    def lie(stage):
        faults = stage.world.plant.synchrotron.faults
        faults.wrong_species_token, faults.species_reading_lies = 8016, True

    assert caught(treat(sphere, hook=lie)) == "B8"


# --- B10: dead monitor --------------------------------------------------------------------------------------------------


def test_b10_a_voltage_that_nobody_supervises(sphere, monkeypatch):
    monkeypatch.setattr(DeliveryUnitPlant, "_monitor_changed", lambda _self: None)
    assert caught(treat(sphere, "hv-sag@beam+0.05")) == "B10"


def test_b10_frozen_counts_that_are_found_too_late(sphere, monkeypatch):
    monkeypatch.setattr(unit_checks, "DEAD_NS", 1_000_000_000)
    assert caught(treat(sphere, "mu1-dead@beam+0.05")) == "B10"


def test_b10_a_second_unit_that_nobody_supervises(sphere, monkeypatch):
    monkeypatch.setattr(SecondDoseUnitPlant, "_supervise", lambda _self: None)
    monkeypatch.setattr(DeliveryUnitPlant, "_judge_dead", lambda _self, _t_ns: None)
    monkeypatch.setattr(unit_checks, "_monitors", lambda *_: [])
    assert caught(treat(sphere, "mu2-dead@beam+0.05")) == "B10"


# --- B12: orphan dose ---------------------------------------------------------------------------------------------------


def test_b12_a_memory_that_forgets_counts(sphere, monkeypatch):
    honest = UnitMemory.add
    monkeypatch.setattr(UnitMemory, "add", lambda self, counts1, counts2: honest(self, counts1 - (counts1 > 1000), counts2))
    assert caught(treat(sphere)) == "B12"


def test_b12_counts_booked_on_another_grant(sphere, monkeypatch):
    honest = unit_run.segment_data
    monkeypatch.setattr("simulators.plant.delivery_unit.segment_data", lambda *args: honest(*args) | {"grant_id": 1})
    assert caught(treat(sphere)) == "B12"


def test_b12_a_grant_that_is_replayed(sphere, monkeypatch):
    honest, first = DeliveryUnitPlant.submit, []

    def submit(self, words):
        first.append(words)
        honest(self, first[0])

    monkeypatch.setattr(DeliveryUnitPlant, "submit", submit)
    monkeypatch.setattr("simulators.plant.delivery_unit.judge", lambda *_args, **_kwargs: Refusal.NONE)
    assert caught(treat(sphere)) == "B12"


def test_the_judge_of_grants_refuses_what_the_last_bug_let_through(sphere, monkeypatch):
    """The counter-proof: with the unit's own judge, the replayed grant is refused and nothing of it is delivered."""
    honest, first = DeliveryUnitPlant.submit, []

    def submit(self, words):
        first.append(words)
        honest(self, first[0])

    monkeypatch.setattr(DeliveryUnitPlant, "submit", submit)
    run = treat(sphere)
    assert run.violation is None and run.status == "partial"
    assert len(run.happened("grant.refused")) >= 1
