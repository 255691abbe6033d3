"""Elements that do not take the beam away, in whole treatments: the chain finds the next without any program, and says so."""

from __future__ import annotations

import pytest
from stage import Stage, at_beam, treat

from simulators.plant.beam_off import Element, Level

ESTOP = "estop@beam+0.3"


def levels(run: Stage) -> list[int]:
    """Levels that the chain reached, in order."""
    return [event.data["level"] for event in run.happened("beam_off.escalated")]


def off_after_us(run: Stage) -> float:
    """Beam after the last fault that struck."""
    return run.beam_off_after_ns(run.said("fault.planted")[-1].t_ns) / 1000


def test_a_sound_room_never_needs_another_element(sphere):
    run = treat(sphere)
    assert run.status == "complete" and levels(run) == []
    assert run.room.chain.beam_off.residual_counts == 0 and run.room.chain.beam_off_ok.value


def test_a_chopper_that_did_not_fire_is_told_at_the_end_of_the_request_and_keeps_the_room_from_the_next_beam(plan_of):
    """The first beam is delivered: RF-KO ends its spots. When its request ends the chopper has to answer."""
    two = plan_of(shape="sphere", species="C", diameter_mm=16.0, depth_mm=100.0, dose_gy=1.0, angles_deg=(0.0, 2.0))
    run = treat(two, "chopper-stuck")
    assert run.violation is None, str(run.result.violation)
    first, second = run.result.summary["beams"]
    assert first["meterset_delivered_primary"] == pytest.approx(first["meterset_planned"], rel=0.005)
    assert run.status == "partial" and second["meterset_delivered_primary"] == 0
    assert levels(run) == [Level.DUMP] and run.interlocks[0] == "BEAM_OFF_ESCALATED"
    assert not run.room.chain.beam_off_ok.value and not run.room.chain.permit_a.value
    run.check_safe()


@pytest.mark.parametrize(
    ("faults", "reached"),
    [
        ((), []),
        (("rfko-stuck@beam+0.29",), [Level.CHOPPER]),
        (("chopper-stuck@beam+0.29",), [Level.DUMP]),
        (("rfko-stuck@beam+0.29", "chopper-stuck@beam+0.29"), [Level.CHOPPER, Level.DUMP]),
        (("rfko-stuck@beam+0.29", "chopper-read-back-lies@beam+0.29"), [Level.CHOPPER]),
        (("stopper-stuck@beam+0.29",), [Level.SOURCE]),
    ],
    ids=lambda value: "+".join(value) or "sound" if isinstance(value, tuple) else None,
)
def test_an_estop_ends_the_beam_whatever_fails(sphere, faults, reached):
    """The ring is dumped in any case: it is a person who pressed."""
    run = treat(sphere, *faults, ESTOP)
    assert run.violation is None, str(run.result.violation)
    assert run.status == "partial"
    assert off_after_us(run) <= 500
    kernel = run.world.plant.kernel
    kernel.advance_to(kernel.now_ns + 1_000_000_000)  # no program runs any more; the stopper has its second
    assert levels(run) == reached
    run.check_safe()
    run.check_record()
    elements = run.room.chain.beam_off
    assert Element.STOPPER in elements.asked
    assert elements.stopper.inside == (Level.SOURCE not in reached)
    assert run.room.chain.beam_off_ok.value == (not reached or reached[-1] < Level.DUMP)
    if reached and Level.SOURCE not in reached:
        assert "BEAM_OFF_ESCALATED" in [event.data["id"] for event in run.said("interlock.trip")]


def test_every_process_dead_and_an_estop_still_ends_beam_and_torque(sphere):
    """Interlock node and controller gone at the same instant as far as the plant can tell: nothing arrives any more."""
    done = {}

    def everything_dies(stage: Stage) -> None:
        world, room = stage.world, stage.room
        for name in list(world.world.nodes):
            world.world.kill(name)
        for line in (world.simulated.safety, world.simulated.motion):
            line.cut()
        for node in world.simulated.safety_nodes.values():
            node.silent = True
        done["t_ns"] = room.kernel.now_ns
        room.access.press_estop(room.access.truth.estop_buttons[0])
        room.kernel.after(10_000_000, lambda _t: done.update(safe=safe(stage)))

    def safe(stage: Stage) -> bool:
        room = stage.room
        return not (
            room.unit.delivering or room.chain.permit_a.value or room.gantry.drive_enabled or room.couch.drive_enabled
        ) and not (room.gantry.sto.value or room.couch.sto.value)

    run = treat(
        sphere,
        hook=lambda stage: at_beam(stage, lambda: everything_dies(stage), 0.3),
        on_fraction=lambda stage: None,
    )
    assert run.violation is None, str(run.result.violation)
    assert done["safe"] and run.beam_off_after_ns(done["t_ns"]) <= 300_000
    assert run.room.chain.permit_b.value is False and run.room.chain.permit_r.value is False


def test_beam_that_neither_rf_ko_nor_chopper_ends_is_dumped_after_the_measured_current_although_both_say_they_acted(sphere):
    """No person: an encoder jumps, chain A opens, nothing happens; 1 ms later the chain dumps the ring by what is measured."""
    run = treat(sphere, "rfko-stuck@beam+0.29", "chopper-read-back-lies@beam+0.29", "motor-encoder-jump@beam+0.3")
    assert run.violation in (None, "V2", "B3"), str(run.result.violation)  # more than the journal's bound of an open grant
    assert levels(run) == [Level.CHOPPER, Level.DUMP]
    struck_ns = run.said("fault.planted")[-1].t_ns
    fell_ns = next(e.t_ns for e in run.happened("permit") if e.data["which"] == "beam_enable" and e.t_ns >= struck_ns)
    assert 1_000_000 < run.beam_off_after_ns(fell_ns) <= 1_500_000
    assert run.room.chain.beam_off.residual_counts > 0
    assert not run.room.chain.beam_off_ok.value
