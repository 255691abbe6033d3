"""Positioning: targets are those of the plan, nothing moves before every step is free, and arriving elsewhere is noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from room_fakes import FakeCouch, FakeImager, FakeRing, FakeSnout, beam, belief

from controller.plan.model import CouchTargets, RangeShifterUse, ToleranceTable
from controller.room import collision
from controller.room.collision import ASSUMED, GAP_MIN_MM, check_gantry_path, gap_mm, swept_gap_mm, turn
from controller.room.imaging import ATTEMPTS_MAX, CorrectionLimits, align
from controller.room.positioning import Positioner, Tolerances, blocked_between_beams, targets_for
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.errors import CommandRejected, DataError, DeviceError
from drivers.hal.frames import fixed_to_table_top, gantry_to_fixed, support_to_fixed, table_top_to_support
from simulators.clock import run

ZERO = dict.fromkeys(COUCH_AXES, 0.0)
G1, F1 = belief(), belief("fixed")


class Parts:
    """Gantry, couch and snout with one log."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.ring = FakeRing("gantry", self.log)
        self.couch = FakeCouch("couch", self.log)
        self.snout = FakeSnout("snout", self.log)
        self.imager = FakeImager("imager", self.log, couch=self.couch)
        self.positioner = Positioner(G1, self.ring, self.couch, self.snout)

    def motions(self) -> list[str]:
        return [call for call in self.log if "move_to" in call or "set_up" in call]


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan_deg", "target_deg"), [(0.0, 0.0), (90.0, 90.0), (270.0, -90.0), (359.9, -0.1), (180.0, 180.0)])
def test_gantry_angles_come_within_half_a_turn(plan_deg: float, target_deg: float) -> None:
    assert targets_for(beam(gantry_deg=plan_deg), G1).gantry_deg == pytest.approx(target_deg)


def test_couch_angles_are_brought_within_half_a_turn_and_missing_axes_go_to_set_up() -> None:
    targets = targets_for(beam(couch=CouchTargets(angle_deg=350.0, vertical_mm=-120.0)), G1)
    assert targets.couch["angle_deg"] == -10.0
    assert targets.couch["vertical_mm"] == -120.0
    assert targets.couch["lateral_mm"] == 0.0
    assert "lateral_mm" in targets.notes[0]
    assert "vertical_mm" not in targets.notes[0]


def test_a_fixed_room_takes_the_port_within_tolerance_and_no_other() -> None:
    assert targets_for(beam(gantry_deg=90.05), F1).port_deg == 90.0
    assert targets_for(beam(gantry_deg=360.0), F1).port_deg == 0.0
    with pytest.raises(CommandRejected, match=r"gantry angle 45 deg is not a port of F1 \(0, 90 deg\)"):
        targets_for(beam(gantry_deg=45.0), F1)


def test_every_reason_is_told_at_once() -> None:
    bad = beam(
        couch=CouchTargets(lateral_mm=300.0, roll_deg=4.0),
        snout_mm=20.0,
        shifters=(RangeShifterUse(1, "RS99", "BINARY", "IN"),),
    )
    with pytest.raises(CommandRejected) as refused:
        targets_for(bad, G1)
    for words in ("lateral 300.0 mm", "roll 4.0 deg", "snout 20 mm is outside 50 to 500 mm", "RS99 is not installed"):
        assert words in str(refused.value)


def test_range_shifters_that_are_out_stay_out() -> None:
    uses = (RangeShifterUse(1, "RS30", "BINARY", "OUT"), RangeShifterUse(2, "RS60", "BINARY", "IN"))
    assert targets_for(beam(shifters=uses), G1).range_shifters == ("RS60",)


def test_the_narrower_tolerance_holds_and_a_zero_is_silence() -> None:
    table = ToleranceTable(1, "T", gantry_deg=0.1, couch_vertical_mm=20.0, couch_angle_deg=0.0, snout_mm=5.0)
    tolerances = Tolerances.of(table)
    assert tolerances.gantry_deg == 0.1
    assert tolerances.couch["vertical_mm"] == 1.0
    assert tolerances.couch["angle_deg"] == 1.0
    assert tolerances.snout_mm == 1.0


# --- motions ----------------------------------------------------------------------------------------------------------


def test_the_snout_is_retracted_first_and_extended_last() -> None:
    parts = Parts()
    targets = targets_for(beam(gantry_deg=90.0, couch=CouchTargets(vertical_mm=-100.0), snout_mm=350.0), G1)
    placement = run(parts.positioner.drive_to(targets))
    assert parts.motions() == ["snout.set_up 500.0", "couch.move_to", "gantry.move_to 90", "snout.set_up 350.0"]
    assert placement.ring.angle.value == 90.0
    assert placement.couch_values()["vertical_mm"] == -100.0


def test_what_stands_in_place_is_not_moved_again() -> None:
    parts = Parts()
    parts.ring.angle_deg = 30.0
    run(parts.positioner.drive_to(targets_for(beam(gantry_deg=30.0, snout_mm=350.0), G1)))
    assert parts.motions() == ["snout.set_up 350.0"]


def test_a_couch_in_the_way_of_the_gantry_goes_after_it() -> None:
    parts = Parts()
    # At couch 90 the panel lies across: the gantry can only pass before the couch turns.
    parts.ring.angle_deg = 90.0
    run(parts.positioner.drive_to(targets_for(beam(gantry_deg=0.0, couch=CouchTargets(angle_deg=90.0), snout_mm=500.0), G1)))
    assert parts.motions()[1:3] == ["gantry.move_to 0", "couch.move_to"]


def test_a_couch_that_must_not_be_there_while_the_gantry_passes_waits_aside() -> None:
    parts = Parts()
    parts.ring.angle_deg = 170.0
    parts.couch.axes["angle_deg"] = 90.0
    stood: list[float] = []
    moves = parts.ring.move_to

    async def watched(angle_deg: float) -> Any:
        stood.append(parts.couch.axes["angle_deg"])
        return await moves(angle_deg)

    parts.ring.move_to = watched  # type: ignore[method-assign]
    targets = targets_for(beam(gantry_deg=0.0, couch=CouchTargets(angle_deg=90.0), snout_mm=500.0), G1)
    placement = run(parts.positioner.drive_to(targets))
    assert parts.motions()[1:4] == ["couch.move_to", "gantry.move_to 0", "couch.move_to"]
    assert stood == [0.0]  # the panel lay along the gantry's axis while the gantry passed
    assert placement.couch_values()["angle_deg"] == 90.0


# Past a gantry at 60 deg, from one side to the other and from above its snout to below.
NO_WAY = (
    {"lateral_mm": 250.0, "vertical_mm": 200.0, "angle_deg": -90.0, "longitudinal_mm": 0.0},
    {"lateral_mm": 0.0, "vertical_mm": -200.0, "angle_deg": 60.0, "longitudinal_mm": 0.0},
)


def test_where_there_is_no_free_way_nothing_starts() -> None:
    parts = Parts()
    parts.ring.angle_deg = 60.0
    parts.couch.axes |= NO_WAY[0]
    targets = targets_for(beam(gantry_deg=60.0, couch=CouchTargets(**NO_WAY[1]), snout_mm=500.0), G1)
    with pytest.raises(CommandRejected, match="at least 50 mm"):
        run(parts.positioner.drive_to(targets))
    assert parts.motions() == []


def test_a_blocked_way_between_beams_is_known_beforehand_with_beams_angles_gap_and_limit() -> None:
    first = targets_for(beam(gantry_deg=60.0, couch=CouchTargets(**NO_WAY[0]), snout_mm=500.0), G1)
    second = targets_for(beam(gantry_deg=60.0, couch=CouchTargets(**NO_WAY[1]), snout_mm=500.0), G1)
    (reason,) = blocked_between_beams([(4, first), (7, second)], G1)
    for words in (
        "beam 7 after beam 4",
        "gantry 60 deg, couch angle -90 deg",
        "gantry 60 deg, couch angle 60 deg",
        "at least 50 mm",
        "[4301]",
    ):
        assert words in reason
    assert blocked_between_beams([(4, first)], G1) == []
    assert blocked_between_beams([(4, first), (5, first)], G1) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gantry", "gantry 30.300 deg"),
        ("couch", "vertical 1.500 mm"),
        ("snout", "snout 302.000 mm"),
        ("shifter", "range shifters RS30, wanted none"),
        ("brake", "gantry is not at rest"),
        ("nan", "reads nan"),
    ],
)
def test_what_did_not_arrive_is_named_with_numbers(fault: str, words: str) -> None:
    parts = Parts()
    targets = targets_for(beam(), G1)

    async def body() -> None:
        await parts.positioner.drive_to(targets)
        match fault:
            case "gantry":
                parts.ring.angle_deg = 30.3
            case "couch":
                parts.couch.axes["vertical_mm"] = 1.5
            case "snout":
                parts.snout.snout_mm = 302.0
            case "shifter":
                parts.snout.shifters = ("RS30",)
            case "brake":
                parts.ring.brake = False
            case "nan":
                parts.couch.axes["roll_deg"] = float("nan")
        await parts.positioner.verify(targets)

    with pytest.raises(DeviceError, match=words):
        run(body())


def test_stopping_tries_both_even_when_one_fails() -> None:
    parts = Parts()
    parts.ring.faults["stop"] = DeviceError("no answer")
    with pytest.raises(DeviceError):
        run(parts.positioner.stop())
    assert parts.couch.stops == 1


# --- collision --------------------------------------------------------------------------------------------------------

couches = st.fixed_dictionaries(
    {
        "lateral_mm": st.floats(-200, 200),
        "longitudinal_mm": st.floats(-800, 800),
        "vertical_mm": st.floats(-400, 200),
        "angle_deg": st.floats(-100, 100),
        "pitch_deg": st.floats(-3, 3),
        "roll_deg": st.floats(-3, 3),
    }
)


def finely_sampled_gap_mm(gantry_deg: float, snout_mm: float, couch: dict[str, float]) -> float:
    """The gap from a much finer sampling, without allowance: at least the true gap."""
    t = np.array([couch["lateral_mm"], couch["longitudinal_mm"], couch["vertical_mm"]])
    surface = np.concatenate([box.surface(12.0) for box in ASSUMED.nozzle(snout_mm)])
    on_table = fixed_to_table_top(
        gantry_to_fixed(surface, gantry_deg), t, couch["angle_deg"], couch["pitch_deg"], couch["roll_deg"]
    )
    return min(float(box.distance(on_table).min()) for box in ASSUMED.couch())


@settings(max_examples=25, deadline=None, database=None)
@given(couch=couches, gantry_deg=st.floats(-180, 180), snout_mm=st.floats(50, 500))
def test_the_gap_is_never_overestimated(couch: dict[str, float], gantry_deg: float, snout_mm: float) -> None:
    fine = finely_sampled_gap_mm(gantry_deg, snout_mm, couch)
    assert gap_mm(gantry_deg, snout_mm, couch) <= fine
    assert swept_gap_mm(snout_mm, couch) <= fine


def test_a_corner_between_two_samples_is_not_overlooked() -> None:
    """A corner of the panel pokes toward the middle of the snout's face, half a cell from every sample."""
    couch = {**ZERO, "lateral_mm": 130.0, "longitudinal_mm": -140.0, "vertical_mm": -20.0, "roll_deg": 3.0, "pitch_deg": 3.0}
    for gantry_deg in np.linspace(-30.0, 30.0, 13):
        assert gap_mm(float(gantry_deg), 60.0, couch) <= finely_sampled_gap_mm(float(gantry_deg), 60.0, couch)


@settings(max_examples=60, deadline=None, database=None)
@given(couch=couches, x=st.floats(-500, 500), y=st.floats(-500, 500), z=st.floats(-500, 500))
def test_fixed_and_table_top_frames_are_inverse(couch: dict[str, float], x: float, y: float, z: float) -> None:
    t = np.array([couch["lateral_mm"], couch["longitudinal_mm"], couch["vertical_mm"]])
    angles = couch["angle_deg"], couch["pitch_deg"], couch["roll_deg"]
    point = np.array([x, y, z])
    fixed = support_to_fixed(table_top_to_support(point, t, angles[1], angles[2]), angles[0])
    assert fixed_to_table_top(fixed, t, *angles) == pytest.approx(point, abs=1e-9)


def test_the_gap_is_that_of_a_case_done_by_hand() -> None:
    # Gantry 0, snout face 300 mm above the isocentre, table surface at -100 mm: 400 mm, less the allowance of the sampling.
    couch = {**ZERO, "vertical_mm": -100.0}
    gap = gap_mm(0.0, 300.0, couch)
    assert 400.0 - 20.0 < gap <= 400.0
    # Gantry 90: the snout's corner at x = 300, y = -160; the panel's at x = 265, y = -300: hypot(35, 140) = 144.3 mm.
    assert 144.3 - 20.0 < gap_mm(90.0, 300.0, ZERO) <= 144.4
    # From below the panel is 60 mm thick.
    assert gap_mm(180.0, 100.0, ZERO) < 40.0


def test_a_gantry_path_sees_what_lies_between_its_ends() -> None:
    couch = {**ZERO, "angle_deg": 90.0}
    for end in (0.0, 179.0):
        collision.check_place(end, 400.0, couch)
    with pytest.raises(CommandRejected, match="on the way of the gantry"):
        check_gantry_path(0.0, 179.0, 400.0, couch)
    assert check_gantry_path(0.0, -90.0, 400.0, couch) >= GAP_MIN_MM


@settings(max_examples=100, deadline=None, database=None)
@given(start=st.floats(-180, 180), to=st.floats(-360, 360))
def test_the_ring_never_crosses_half_a_turn(start: float, to: float) -> None:
    target = turn(start, to)
    assert -180.0 <= target <= 180.0
    assert np.cos(np.radians(target)) == pytest.approx(np.cos(np.radians(to)), abs=1e-9)
    assert np.sin(np.radians(target)) == pytest.approx(np.sin(np.radians(to)), abs=1e-9)


def test_half_a_turn_is_reached_from_the_nearer_side() -> None:
    assert turn(10.0, 180.0) == 180.0
    assert turn(-10.0, 180.0) == -180.0
    assert turn(-10.0, -180.0) == -180.0
    assert turn(170.0, 190.0) == -170.0


# --- imaging ----------------------------------------------------------------------------------------------------------

LIMITS = CorrectionLimits()


def aligned(offset: dict[str, float], prepare: Any = None) -> tuple[Parts, Any]:
    parts = Parts()
    parts.imager.offset |= offset

    async def body() -> Any:
        targets = targets_for(beam(), G1)
        await parts.positioner.drive_to(targets)
        if prepare is not None:
            prepare(parts)
        return await align(parts.imager, parts.positioner, targets, LIMITS)

    return parts, run(body())


def test_a_patient_in_place_is_not_moved() -> None:
    parts, verified = aligned({"lateral_mm": 0.9, "roll_deg": -0.9})
    assert verified.images == 1
    assert parts.couch.axes["lateral_mm"] == 0.0
    assert verified.residual["lateral_mm"] == 0.9


def test_a_displaced_patient_is_brought_to_the_planned_place_and_imaged_again() -> None:
    parts, verified = aligned({"vertical_mm": -12.0, "angle_deg": 2.5})
    assert verified.images == 2
    assert parts.couch.axes["vertical_mm"] == -12.0
    assert parts.couch.axes["angle_deg"] == 2.5
    assert verified.targets.couch["vertical_mm"] == -12.0
    assert verified.targets.planned_couch["vertical_mm"] == 0.0
    assert max(abs(v) for v in verified.residual.values()) < 1e-9


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        ({"lateral_mm": 20.1}, "lateral"),
        ({"pitch_deg": -3.1}, r"pitch -3.10 deg \(limit 3 deg\)"),
        ({"angle_deg": 3.5}, "angle"),
    ],
)
def test_a_correction_beyond_its_limit_is_refused(offset: dict[str, float], words: str) -> None:
    with pytest.raises(CommandRejected, match=words):
        aligned(offset)


def test_corrections_that_add_up_beyond_the_limit_are_refused() -> None:
    def drifts(parts: Parts) -> None:
        async def drifting() -> dict[str, float]:
            return {**ZERO, "lateral_mm": 8.0}

        parts.imager.registered_correction = drifting  # type: ignore[method-assign]

    with pytest.raises(CommandRejected, match="sum of corrections too large"):
        aligned({}, drifts)


def test_a_position_that_does_not_converge_is_not_accepted() -> None:
    images = 0

    def wobbles(parts: Parts) -> None:
        async def wobbling() -> dict[str, float]:
            nonlocal images
            images += 1
            return {**ZERO, "lateral_mm": 5.0 if images % 2 else -5.0}

        parts.imager.registered_correction = wobbling  # type: ignore[method-assign]

    with pytest.raises(DeviceError, match="still off by lateral"):
        aligned({}, wobbles)
    assert images == ATTEMPTS_MAX


@pytest.mark.parametrize("bad", [{}, {**ZERO, "roll_deg": float("nan")}, {**ZERO, "lateral_mm": float("inf")}])
def test_a_registration_without_numbers_is_not_applied(bad: dict[str, float]) -> None:
    def broken(parts: Parts) -> None:
        async def registration() -> dict[str, float]:
            return bad

        parts.imager.registered_correction = registration  # type: ignore[method-assign]

    with pytest.raises(DataError, match="gives no number"):
        aligned({}, broken)


def test_a_correction_out_of_the_couchs_reach_is_refused_before_it_moves() -> None:
    parts = Parts()
    parts.imager.offset["lateral_mm"] = 15.0

    async def body() -> None:
        targets = targets_for(beam(couch=CouchTargets(lateral_mm=245.0)), G1)
        await parts.positioner.drive_to(targets)
        await align(parts.imager, parts.positioner, targets, LIMITS)

    with pytest.raises(CommandRejected, match=r"lateral 260.0 mm is outside -250 to 250 mm"):
        run(body())
    assert parts.couch.axes["lateral_mm"] == 245.0
