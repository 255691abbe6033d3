"""What must be true of the scripted operator: it acts as a person does, in a person's time, on the plant's buttons."""

import asyncio

import pytest

from simulators.clock import run
from simulators.faults_motion import MOTION_FAULTS, plant_motion_fault
from simulators.people import OperatorFailed, ScriptedOperator
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.room import RoomPlant
from simulators.world import World

ROOMS = MotionTruth.load("asan").rooms


def with_operator(script, name="G1", **kwargs):
    """Run `script(operator, room, world)` in virtual time."""

    async def main():
        world = World(Kernel(1))
        room = RoomPlant(world.kernel, ROOMS[name])
        world.start()
        try:
            return await script(ScriptedOperator(room, world.sync, **kwargs), room, world)
        finally:
            world.stop()

    return run(main())


def test_a_room_is_secured_in_a_person_s_time():
    async def script(operator, room, world):
        await operator.secure_room()
        return room.chain.search_ok.value, room.chain.door_ok.value, room.access.people_inside, world.now_ns / 1e9

    search, door, inside, seconds = with_operator(script)
    assert search and door and inside == ()
    assert 40.0 < seconds < 70.0


def test_coming_back_makes_the_room_free_and_it_can_be_secured_again():
    async def script(operator, room, world):
        await operator.secure_room()
        await operator.secure_room()  # nothing to do
        await operator.enter_room()
        free = not room.access.search_ok.value
        await operator.secure_room()
        return free, operator.secured

    assert with_operator(script) == (True, True)


def test_whoever_is_found_in_a_search_is_sent_out():
    async def script(operator, room, world):
        room.access.enter("visitor")
        await operator.secure_room()
        return room.access.people_inside, operator.secured

    assert with_operator(script) == ((), True)


def test_a_person_left_behind_is_in_the_truth():
    async def script(operator, room, world):
        async def forget(_operator):
            room.access._people["visitor"] = None  # hid before the search began
            operator.overlooks.add("visitor")

        operator.hook("before search", forget)
        await operator.secure_room()
        return room.access.people_inside, room.access.search_ok.value

    assert with_operator(script) == (("visitor",), True)


def test_a_room_that_cannot_be_secured_is_reported():
    async def script(operator, room, world):
        async def visit(_operator):
            room.access.enter("visitor")

        operator.hook("searched", visit)
        await operator.secure_room()

    with pytest.raises(OperatorFailed, match="visitor"):
        with_operator(script)


def test_patients_estops_keys_and_prompts():
    async def script(operator, room, world):
        await operator.lay_patient((1.0, 2.0, 3.0, 0.0, 0.0, 0.0))
        assert room.patient.on_couch and operator.inside
        await operator.press_estop()
        assert not room.chain.estop_ok.value
        await operator.reset_estop()
        assert room.chain.estop_ok.value
        await operator.turn_key(True)
        assert room.access.service_key
        await operator.fetch_patient()
        assert not room.patient.on_couch
        return await operator.answer("beam on"), await operator.answer("resume")

    assert with_operator(script, answers={"resume": False}) == (True, False)


def test_every_motion_fault_can_be_planted_by_name():
    for name, fault in MOTION_FAULTS.items():
        room = RoomPlant(Kernel(1), ROOMS["G1"])
        plant_motion_fault(room, name)
        assert fault.title and fault.name == name
    with pytest.raises(ValueError, match="no ring"):
        plant_motion_fault(RoomPlant(Kernel(1), ROOMS["F1"]), "brake-slow")
    with pytest.raises(KeyError):
        plant_motion_fault(RoomPlant(Kernel(1), ROOMS["G1"]), "gremlin")


def test_a_planted_fault_is_in_the_plant_and_not_in_what_it_says():
    async def script(operator, room, world):
        plant_motion_fault(room, "range-shifter-switch-lies")
        room.nozzle.set_mask(1)
        plant_motion_fault(room, "safety-encoder-jump", 500.0)
        await asyncio.sleep(3.0)
        world.sync()
        now = world.now_ns
        return room.nozzle.mask, room.nozzle.wet_mm, room.gantry.load_encoder2_mdeg(now) - room.gantry.load_encoder_mdeg(now)

    mask, wet_mm, difference = with_operator(script)
    assert (mask, wet_mm) == (1, 0.0)
    assert difference == pytest.approx(500, abs=60)
