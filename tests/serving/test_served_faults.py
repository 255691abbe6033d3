"""What goes wrong in a served room: an emergency stop, a dose unit that latched."""

import asyncio

import pytest
from served import serving

from controller.room.states import State
from drivers.hal.clock import now_ns
from simulators.faults import parse_fault


async def begun(room, plan_bytes):
    operator = room.console()
    await operator.control()
    plan = await room.file(plan_bytes)
    name = await room.to_armed(operator, plan)
    await operator.answer()
    await room.until(lambda: len(room.said_of("pass.ended")) >= 2, 60, "two layers")
    return operator, plan, name


def test_a_room_leaves_fault_when_every_cause_is_gone_and_the_rest_is_treated(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, plan, name = await begun(room, made(diameter_mm=24.0))
            script = room.world.simulated.operator.script
            await script.press_estop()
            assert (await room.ended()).status == "partial"
            assert room.state is State.FAULT
            assert "a cause is still present" in await operator.refused("acknowledge")
            assert "not possible in fault" in await operator.refused("load_plan", plan_id=plan, fraction=1)
            await script.reset_estop()
            await asyncio.sleep(2.0)
            assert "ESTOP" in [trip.id for trip in room.room.view().interlocks.trips]
            await operator.do("reset_interlock")
            await operator.do("acknowledge")
            assert room.state is State.STANDBY
            assert await room.treat(operator, plan, remainder=True) == name
            assert room.room.treating.loaded.status == "complete", room.room.treating.loaded.reason

    virtually(main())


def test_a_latched_dose_unit_waits_for_a_physicist_who_reconciles_first(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, _, name = await begun(room, made(diameter_mm=24.0))
            physicist = room.physicist()
            await room.world.inject([parse_fault("mu2-gain:0.5@start")])
            loaded = await room.ended()
            assert loaded.status in ("partial", "fault")
            unit = room.room.ground.devices.unit
            assert unit.status.latched
            standing = (await room.room.ask("treatment", {"id": name}))["status"]
            assert standing in ("partial", "fault")
            assert "not for the role operator" in await operator.refused("reconcile", reason="mine")
            await operator.do("give_control")
            await physicist.control()
            assert "reconcile the treatment first" in await physicist.refused("reset_dose_trip")
            first = await physicist.do("reconcile")
            assert first["status"] == "locked" and first["lines"]
            signed = await physicist.do("reconcile", reason="phantom; both monitors compared by hand")
            assert signed["status"] == "recovered"
            said = await physicist.do("reset_dose_trip")
            assert any("latch cleared" in line for line in said)
            if room.state is State.FAULT:
                await physicist.do("reset_interlock")
                await physicist.do("acknowledge")
            assert room.state is State.STANDBY
            assert not unit.status.latched

    virtually(main())


@pytest.mark.parametrize("yes", [True, False])
def test_a_ring_that_a_hanging_interlock_system_stopped_turns_on_only_when_a_person_says_so(made, state, virtually, yes):
    """The interlock system hangs for 300 ms while the ring turns: nothing is tripped, and nothing moves by itself."""

    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            ring = room.world.plant.rooms["G1"].gantry
            await operator.do("load_plan", plan_id=await room.file(made(diameter_mm=24.0, angles_deg=(60.0,))), fraction=1)
            await room.asked("identify")
            await operator.answer()
            await room.until(lambda: abs(ring.speed_deg_s(now_ns())) > 0.3, 600, "the ring turns")
            room.world.world.suspend("G1-interlocks")
            await asyncio.sleep(0.3)
            room.world.world.resume("G1-interlocks")
            question = await room.asked("move_on")
            assert "shall it go on" in question.text and "G1-gantry" in question.text
            stood_deg = ring.angle_deg(now_ns())
            assert 0.0 < stood_deg < 59.0
            await asyncio.sleep(20.0)
            assert ring.angle_deg(now_ns()) == stood_deg and ring.brake_applied
            await operator.answer(yes)
            if yes:
                await room.asked("positioned")
                assert abs(ring.angle_deg(now_ns()) - 60.0) < 0.1
            else:
                assert (await room.ended()).status in ("refused", "partial", "fault")
                assert ring.angle_deg(now_ns()) == stood_deg

    virtually(main())


def test_a_drive_that_keeps_a_fault_is_told_before_anything_is_loaded_and_reset_by_hand(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(angles_deg=(30.0,)))
            await operator.do("reset_interlock")
            await operator.do("load_plan", plan_id=plan, fraction=1)
            await room.asked("identify")
            await room.world.inject([parse_fault("drive-fault@t=40")])
            await operator.answer()
            loaded = await room.ended()
            assert loaded.status == "partial" and "fault" in loaded.reason
            await asyncio.sleep(1.0)
            assert "reset_drives" in await operator.refused("load_plan", plan_id=plan, fraction=1)
            assert (await operator.do("reset_drives"))["devices"] == ["G1-gantry", "G1-couch"]
            await asyncio.sleep(1.0)
            assert not [e for e in room.said_of("motion.start") if e.t_ns > room.said_of("drives.reset")[0].t_ns], (
                "nothing moved"
            )
            assert await operator.do("load_plan", plan_id=plan, fraction=2)

    virtually(main())
