"""The staff of a simulator process does for a distant controller what a person does; prescriptions travel exactly."""

import asyncio

import numpy as np
import pytest

from simulators.invariants import PrescribedLayer, Prescription
from simulators.people import Pace, ScriptedOperator
from simulators.plant.access import SearchState
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.prescription_json import prescription_from_json, prescription_to_json
from simulators.staff import RESET_ROLES, Staff, pace_of
from simulators.world import World


def staff_of(answers=None, pace="real"):
    plant = FacilityPlant.shipped(Kernel(3), "asan")
    world = World(plant.kernel)
    plant.rooms["G1"].chain.motion_permit.set(True)  # an interlock system that gives motion; its panel shows nothing to reset
    pressed = []
    script = ScriptedOperator(plant.rooms["G1"], world.sync, pace=pace_of(pace), answers=answers)
    return plant.rooms["G1"], world, Staff(script, lambda role, down: pressed.append((role, down))), pressed


@pytest.mark.parametrize(("pace", "most_s"), [("real", 250.0), ("quick", 20.0)])
def test_a_room_is_closed_and_reset_after_the_position_was_accepted(run_virtual, pace, most_s):
    room, world, staff, pressed = staff_of(pace=pace)

    async def main():
        world.start()
        loop = asyncio.get_running_loop()
        assert await staff.confirm("identify") == (True, "")
        assert room.patient.on_couch
        assert room.access.people_inside == ("operator",)
        assert await staff.confirm("positioned") == (True, "")
        for _ in range(3000):
            if pressed:
                break
            await asyncio.sleep(0.1)
        secured_s = loop.time()
        await asyncio.sleep(1.0)
        assert room.access.state is SearchState.SECURED
        assert pressed == [(role, down) for down in (True, False) for role in RESET_ROLES]
        room.access.open_door()  # the search is lost: it is done again
        await asyncio.sleep(100.0)
        assert room.access.state is SearchState.SECURED
        assert await staff.confirm("beam_on") == (True, "")
        room.access.open_door()
        await asyncio.sleep(200.0)
        assert room.access.state is SearchState.FREE, "from beam on nobody closes the room again by himself"
        await staff.stop()
        world.stop()
        return secured_s

    assert run_virtual(main()) < most_s


def test_a_session_that_was_lost_leaves_no_operator_behind_who_closes_the_room_on_the_next(run_virtual):
    room, world, staff, _ = staff_of(pace="quick")

    async def main():
        world.start()
        await staff.confirm("positioned")
        await asyncio.sleep(30.0)
        assert room.access.state is SearchState.SECURED
        room.access.open_door()  # the controller died; the next one begins
        assert await staff.confirm("identify") == (True, "")
        await asyncio.sleep(60.0)
        assert room.access.state is SearchState.FREE
        assert room.access.people_inside == ("operator",)
        await staff.confirm("positioned")
        await staff.confirm("positioned")
        assert len(staff._deeds) == 2, "one person, who closes the room and minds the panel"
        await staff.stop()
        world.stop()

    run_virtual(main())


def test_an_operator_who_says_no_leaves_the_room_open(run_virtual):
    room, world, staff, pressed = staff_of({"positioned": False})

    async def main():
        world.start()
        answer, why = await staff.confirm("positioned")
        await asyncio.sleep(200.0)
        world.stop()
        return answer, why

    answer, why = run_virtual(main())
    assert not answer
    assert "no" in why
    assert not pressed
    assert room.access.state is SearchState.FREE


def test_nobody_walks_through_a_closed_door(run_virtual):
    room, world, staff, _ = staff_of()

    async def main():
        world.start()
        entering = asyncio.create_task(staff.confirm("identify"))
        await asyncio.sleep(Pace().door_s + 1.0)
        room.access.close_door()
        answer, why = await entering
        world.stop()
        return answer, why

    answer, why = run_virtual(main())
    assert not answer
    assert "door is closed" in why


def test_a_pace_is_real_or_quick():
    assert pace_of("quick").patient_s == Pace().patient_s / 20.0
    with pytest.raises(ValueError, match="real or quick"):
        pace_of("fast")


def prescription():
    rng = np.random.default_rng(5)

    def layer(n):
        return PrescribedLayer(6012, 312.5, rng.normal(size=n), rng.normal(size=n), rng.uniform(1, 1e6, n))

    return Prescription(
        plan_hash=0x7FFFFFFF,
        room="G1",
        gantry_angle_deg={1: 30.0, 2: -90.1},
        layers={(1, 0): layer(3), (1, 1): layer(0), (2, 0): layer(400)},
        received_before={1: 0.1 + 0.2},
        spots_before={(1, 0): rng.uniform(size=3)},
    )


def test_a_prescription_comes_back_bit_by_bit():
    sent = prescription()
    back = prescription_from_json(prescription_to_json(sent))
    assert (back.plan_hash, back.room, back.gantry_angle_deg) == (sent.plan_hash, sent.room, sent.gantry_angle_deg)
    assert back.received_before == sent.received_before
    assert list(back.layers) == list(sent.layers)
    for key, layer in sent.layers.items():
        other = back.layers[key]
        assert (other.species_token, other.energy_mev_u) == (layer.species_token, layer.energy_mev_u)
        for name in ("x_mm", "y_mm", "counts1"):
            np.testing.assert_array_equal(getattr(other, name), getattr(layer, name))
    np.testing.assert_array_equal(back.spots_before[1, 0], sent.spots_before[1, 0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.pop("layers"),
        lambda p: p.update(layers=[{}]),
        lambda p: p["layers"][0].update(x_mm="!!"),
        lambda p: p["layers"][0].update(x_mm="AAAA"),
        lambda p: p["layers"][0].update(x_mm=[1.0]),
        lambda p: p["layers"][0].update(counts1=p["layers"][2]["counts1"]),
        lambda p: p.update(gantry_angle_deg=[]),
        lambda p: p.update(plan_hash=None),
    ],
)
def test_what_is_no_prescription_is_refused_with_words(spoil):
    raw = prescription_to_json(prescription())
    spoil(raw)
    with pytest.raises(ValueError, match=r"prescription|spots|float64"):
        prescription_from_json(raw)


def test_a_secured_room_whose_permit_is_gone_is_reset_also_after_beam_was_asked_for(run_virtual):
    room, world, staff, pressed = staff_of(pace="quick")

    async def main():
        world.start()
        await staff.confirm("identify")
        await staff.confirm("positioned")
        await asyncio.sleep(30.0)
        assert room.access.state is SearchState.SECURED
        await staff.confirm("beam_on")
        pressed.clear()
        assert not room.chain.permit_b.value, "no interlock system pulses here"
        await asyncio.sleep(25.0)
        assert {role for role, down in pressed if down} == set(RESET_ROLES)
        room.access.open_door()
        pressed.clear()
        await asyncio.sleep(50.0)
        assert not pressed, "a room that is not secured is searched before anything is reset"
        await staff.stop()
        world.stop()

    run_virtual(main())


@pytest.mark.parametrize("withheld", [True, False])
def test_who_finds_motion_withheld_tries_the_operators_reset_before_the_patient_is_moved(run_virtual, withheld):
    room, world, staff, pressed = staff_of(pace="quick")
    room.chain.motion_permit.set(not withheld)

    async def main():
        world.start()
        assert await staff.confirm("identify") == (True, "")
        await staff.stop()
        world.stop()

    run_virtual(main())
    assert pressed == ([("operator", True), ("operator", False)] if withheld else [])
