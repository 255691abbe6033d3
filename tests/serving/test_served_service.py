"""Service mode, jogging while a button is held, bypasses by two persons, plans that are received."""

import asyncio
import io

import pydicom
import pytest
from served import serving

from controller.bodies import bypass_line
from controller.roles import Role
from controller.room.collision import GAP_MIN_MM, gap_mm
from controller.room.states import State
from controller.serving import servicing
from controller.serving.jog_reach import FARTHEST_DEG, jog_target
from drivers.hal.clock import now_ns
from interlocks.daemon import obey


async def in_service(room, mode="physics"):
    service = room.service()
    value = await service.do("enter_service", mode=mode)
    service.token = value["token"]
    service.beat()
    return service


def test_service_is_entered_and_left_with_the_key_and_nothing_is_treated_meanwhile(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, service = room.console(), room.service()
            await operator.control()
            plan = await room.file(made())
            assert "commands this room" in await service.refused("enter_service", mode="physics")
            await operator.do("give_control")
            assert "QA is a physicist's" in await service.refused("enter_service", mode="qa")
            service = await in_service(room)
            assert room.state is State.PHYSICS and room.world.plant.rooms["G1"].access.service_key
            view = room.room.view()
            assert view.mode == "service" and "SERVICE" in view.banners and view.control.actor == "Sven"
            assert "not for the role operator" in await operator.refused("load_plan", plan_id=plan, fraction=1)
            await service.do("leave_service")
            await service.do("give_control")
            assert room.state is State.STANDBY and not room.world.plant.rooms["G1"].access.service_key
            await operator.control()
            room.world.plant.rooms["G1"].access.turn_key(service=True)
            await asyncio.sleep(1.0)
            assert "mode key" in await operator.refused("load_plan", plan_id=plan, fraction=1)
            room.world.plant.rooms["G1"].access.turn_key(service=False)
            await asyncio.sleep(1.0)
            assert (await operator.do("load_plan", plan_id=plan, fraction=1))["treatment"]

    virtually(main())


def test_a_key_that_is_turned_back_by_hand_ends_service(state, virtually):
    async def main():
        async with serving(state) as room:
            await in_service(room, "beam_tuning")
            room.world.plant.rooms["G1"].access.turn_key(service=False)
            await room.in_state(State.STANDBY, 5.0)

    virtually(main())


def test_an_axis_is_jogged_while_the_button_is_held_and_stops_when_it_is_not(state, virtually):
    async def main():
        async with serving(state) as room:
            service = await in_service(room)
            gantry, loop = room.room.ground.devices.gantry, asyncio.get_running_loop()

            async def hold(seconds, **what):
                until = loop.time() + seconds
                while loop.time() < until:
                    await service.do("jog", **what)
                    await asyncio.sleep(0.1)

            begin = room.room.view().gantry.angle_deg
            await hold(4.0, axis="gantry", direction=1)
            assert room.room.servicing.jogging == "gantry"
            moving = room.room.view().gantry
            assert moving.moving and moving.angle_deg > begin
            released = loop.time()
            await room.until(lambda: room.said_of("motion.stop"), 5.0, "the stop")
            assert loop.time() - released < 0.35, "200 ms without a fresh enable, and a look"
            await room.until(lambda: not room.room.servicing.jogging, 10.0)
            ring = await gantry.read_state()
            assert ring.standstill and ring.brake_applied and not ring.enabled
            assert room.room.view().gantry.target_deg is None, "it wants to be nowhere else"
            assert "being jogged" not in await service.refused("jog", axis="gantry", direction=2)
            await service.do("jog", axis="gantry", direction=1)
            await asyncio.sleep(0.05)
            assert "let it stop first" in await service.refused("jog", axis="gantry", direction=-1)
            await room.until(lambda: not room.room.servicing.jogging, 10.0)
            before = room.room.view().couch[2].value
            await hold(1.0, axis="vertical_mm", direction=-1)
            await room.console("wall", "Otto", Role.OBSERVER).do("stop")
            await room.until(lambda: not room.room.servicing.jogging, 10.0)
            await asyncio.sleep(1.0)
            after = room.room.view().couch[2].value
            assert after < before and room.room.view().couch[2].target is None
            assert not [alarm for alarm in room.room.view().alarms if "motion failed" in alarm.text], "people stopped it"
            said = [e for e in room.room.audit.query(limit=1000, name="jog") if e["kind"] == "command"]
            assert len(said) > 30, "every repetition is told"
            return after

    virtually(main())


@pytest.mark.parametrize("axis", ["gantry", "vertical_mm"])
def test_a_button_that_is_let_go_of_while_the_clear_way_is_sought_moves_nothing_ever(state, virtually, monkeypatch, axis):
    """On a busy computer the search takes long: what it finds then is nobody's wish any more."""

    async def slowly(ground, axis, direction):
        found = await jog_target(ground, axis, direction)
        await asyncio.sleep(10.0)
        return found

    monkeypatch.setattr(servicing, "jog_target", slowly)

    async def main():
        async with serving(state) as room:
            service, devices = await in_service(room), room.room.ground.devices

            async def place():
                couch = await devices.couch.read_axes()
                return (await devices.gantry.read_state()).angle.value, *(reading.value for reading in couch.values())

            before = await place()
            for _ in range(20):
                await service.do("jog", axis=axis, direction=-1)
                await asyncio.sleep(0.1)
            await room.until(lambda: not room.room.servicing.jogging, 1.0, "the jog is over")
            assert "nothing moved" in str(room.said_of("jog.ended")[-1].data["reason"])
            await asyncio.sleep(60.0)
            assert not room.said_of("motion.start")
            assert await place() == pytest.approx(before, abs=0.01)
            for _ in range(130):  # who holds it long enough moves, and stops by letting go
                await service.do("jog", axis=axis, direction=-1)
                await asyncio.sleep(0.1)
            assert room.said_of("motion.start")
            await room.until(lambda: not room.room.servicing.jogging, 5.0, "the stop")
            there = await place()
            await asyncio.sleep(30.0)
            assert await place() == pytest.approx(there, abs=0.05)

    virtually(main())


def test_a_new_press_revives_no_jog_that_was_stopped_or_let_go_of(state, virtually, monkeypatch):
    """While the stop of the first press is waited for its search ends, and the button is down again."""

    async def slowly(ground, axis, direction):
        found = await jog_target(ground, axis, direction)
        await asyncio.sleep(10.0)
        return found

    monkeypatch.setattr(servicing, "jog_target", slowly)

    async def main():
        async with serving(state) as room:
            service, gantry = await in_service(room), room.room.ground.devices.gantry

            async def slow_stop(stop=gantry.stop):
                await stop()
                await asyncio.sleep(14.0)

            async def hold():  # heard of again before anybody has looked
                for _ in range(1200):
                    await service.send("jog", axis="gantry", direction=1)
                    await asyncio.sleep(0.01)

            held = asyncio.create_task(hold())
            await asyncio.sleep(0.5)
            await room.console("wall", "Otto", Role.OBSERVER).do("stop")
            await held
            assert not room.said_of("motion.start"), "a stop ends what is still sought"
            await asyncio.sleep(5.0)

            monkeypatch.setattr(gantry, "stop", slow_stop)
            await service.do("jog", axis="gantry", direction=1)
            await asyncio.sleep(0.5)
            for _ in range(120):
                await service.send("jog", axis="gantry", direction=1)
                await asyncio.sleep(0.1)
            await asyncio.sleep(30.0)
            assert not room.said_of("motion.start"), "nobody would have stopped it"

    virtually(main())


@pytest.mark.parametrize("again_s", [0.0, 0.1])
def test_a_stop_ends_a_jog_that_is_still_sought_although_the_button_stays_down(state, virtually, monkeypatch, again_s):
    """Pressed again before anybody else runs, or once the jog has ended: neither goes on nor begins anew."""

    async def slowly(ground, axis, direction):
        await asyncio.sleep(3.0)
        return await jog_target(ground, axis, direction)

    monkeypatch.setattr(servicing, "jog_target", slowly)

    async def main():
        async with serving(state) as room:
            service, wall = await in_service(room), room.console("wall", "Otto", Role.OBSERVER)

            async def hold(seconds):
                for _ in range(round(seconds * 10)):
                    await service.send("jog", axis="gantry", direction=1)
                    await asyncio.sleep(0.1)

            await hold(0.5)
            assert room.room.servicing.jogging == "gantry"
            await wall.do("stop")
            if again_s:
                await asyncio.sleep(again_s)
            await hold(5.0)
            assert not room.said_of("motion.start") and not room.room.servicing.jogging
            await asyncio.sleep(0.3)  # let go of, and pressed again: a new jog, which is sought and begun
            await hold(5.0)
            assert len(room.said_of("motion.start")) == 1

    virtually(main())


def test_a_way_that_is_found_just_after_the_button_was_let_go_of_is_not_gone(state, virtually, monkeypatch):
    """Between the end of the press and the next look at it."""

    async def main():
        async with serving(state) as room:
            service, loop = await in_service(room), asyncio.get_running_loop()

            async def found_late(ground, axis, direction):
                await asyncio.sleep(pressed_s + servicing.ENABLE_NS / 1e9 + servicing.JOG_LOOK_S / 2 - loop.time())
                return 10.0

            monkeypatch.setattr(servicing, "jog_target", found_late)
            pressed_s = loop.time()
            await service.do("jog", axis="gantry", direction=1)
            await room.until(lambda: not room.room.servicing.jogging, 5.0, "the jog is over")
            assert not room.said_of("motion.start")
            assert "was let go of before the clear way was found" in str(room.said_of("jog.ended")[-1].data["reason"])

    virtually(main())


def test_a_press_goes_a_bounded_way(state, virtually):
    async def main():
        async with serving(state) as room:
            await in_service(room)
            ground = room.room.ground
            angle_deg = (await ground.devices.gantry.read_state()).angle.value
            for direction in (1, -1):
                assert (
                    0.0 < (await jog_target(ground, "gantry", direction) - angle_deg) * direction <= FARTHEST_DEG + 0.1
                )  # the encoder wavers

    virtually(main())


def test_a_jogged_couch_goes_away_from_the_nozzle_and_comes_back_no_nearer_than_it_may(state, virtually):
    async def main():
        async with serving(state) as room:
            service = await in_service(room)
            devices, snout_mm = room.room.ground.devices, room.room.ground.belief.nozzle.snout_mm.minimum
            await devices.snout.set_up(snout_mm, ())

            async def couch():
                return {axis: reading.value for axis, reading in (await devices.couch.read_axes()).items()}

            async def jog(direction, seconds):
                for _ in range(round(seconds * 10)):
                    await service.send("jog", axis="vertical_mm", direction=direction)
                    await asyncio.sleep(0.1)
                await room.until(lambda: not room.room.servicing.jogging, 30.0, "the couch stands")

            began = await couch()
            assert gap_mm(0.0, snout_mm, began) < GAP_MIN_MM, "where it stands it is too near already"
            await jog(1, 0.5)
            assert "brings them no farther" in str(room.said_of("jog.ended")[-1].data["reason"])
            for _ in range(4):
                await jog(-1, 2.0)
                await asyncio.sleep(0.3)
            away = await couch()
            assert gap_mm(0.0, snout_mm, away) > GAP_MIN_MM + 10.0
            await jog(1, 5.0)
            back = await couch()
            assert GAP_MIN_MM <= gap_mm(0.0, snout_mm, back) < GAP_MIN_MM + 5.0
            assert away["vertical_mm"] < back["vertical_mm"] < began["vertical_mm"]
            await asyncio.sleep(0.3)
            await jog(1, 0.5)
            assert "come within" in str(room.said_of("jog.ended")[-1].data["reason"])

    virtually(main())


def test_a_bypass_takes_two_persons_service_mode_and_runs_out(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, physicist = room.console(), room.physicist()
            await operator.control()
            assert "not for the role service" in await room.service().refused(
                "request_bypass", interlock="VACUUM", reason="pump", duration_s=600
            )
            await operator.do("give_control")
            service = await in_service(room)
            ask = {"interlock": "VACUUM", "reason": "the pump is exchanged", "duration_s": 600}
            assert "never bypassed" in await service.refused("request_bypass", **{**ask, "interlock": "DOOR"})
            assert "no interlock" in await service.refused("request_bypass", **{**ask, "interlock": "NOTHING"})
            assert "reason" in await service.refused("request_bypass", **{**ask, "reason": " "})
            for wrong in (0, -1, 1e9, True, "600", None):
                assert "duration_s" in await service.refused("request_bypass", **{**ask, "duration_s": wrong})
            assert "cannot be recorded" in await service.refused("request_bypass", **{**ask, "duration_s": float("nan")})
            await asyncio.sleep(0.2)  # the interlock system has seen the key
            await service.do("request_bypass", **ask)
            node = room.world.simulated.interlock
            assert not node.engine.bypasses, "asked for is not given"
            assert "not for the role service" in await service.refused("approve_bypass", interlock="VACUUM")
            same = room.console("console-4", "sven ", Role.PHYSICIST)
            assert "cannot approve" in await same.refused("approve_bypass", interlock="VACUUM")
            await physicist.do("approve_bypass", interlock="VACUUM")
            assert set(node.engine.bypasses) == {"VACUUM"}
            view = room.room.view()
            assert "BYPASS" in view.banners
            assert view.interlocks.bypasses[0].remaining_s > 590 and view.interlocks.bypasses[0].approver == "Petra"
            assert "end the bypasses first" in await service.refused("leave_service")
            await asyncio.sleep(601.0)
            assert not node.engine.bypasses and "BYPASS" not in room.room.view().banners
            await service.do("request_bypass", **ask)
            await physicist.do("approve_bypass", interlock="VACUUM")
            room.world.plant.rooms["G1"].access.turn_key(service=False)
            await room.in_state(State.STANDBY, 5.0)
            await asyncio.sleep(1.0)
            assert not room.room.ground.devices.interlock.status.relay_closed, "a bypass outside service withholds"
            await service.fall_silent()
            await asyncio.sleep(1.1)
            await operator.control()
            plan = await room.file(made())
            assert "bypassed: VACUUM" in await operator.refused("load_plan", plan_id=plan, fraction=1)
            await physicist.do("end_bypass", interlock="VACUUM")
            assert not node.engine.bypasses
            await operator.do("load_plan", plan_id=plan, fraction=1)

    virtually(main())


def test_what_is_received_is_filed_whole_or_refused_with_every_reason(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, incoming = room.console(), room.room.plans.incoming
            outside = state / "outside.dcm"
            outside.write_bytes(made())
            (incoming / "link").symlink_to(outside)
            (incoming / "junk").write_bytes(b"\x00" * 5000)
            for name in ("../outside.dcm", "/etc/passwd", "link", "", None, 7, "missing", ".hidden", "a/b"):
                assert await operator.refused("import_plan", file=name, name="plan.dcm")
            assert "not" in await operator.refused("import_plan", file="junk", name="plan.dcm")
            assert not (incoming / "junk").exists(), "what was refused is gone"
            (incoming / "good").write_bytes(made())
            view = await operator.do("import_plan", file="good", name="../../x y.dcm")
            assert view["file"] == "x-y.dcm" and view["approved_by"] == "" and view["sha256"].startswith(view["id"])
            assert view["objections"]["G1"] == []
            assert all(view["objections"][other] for other in view["objections"] if other != "G1"), "its machine is G1"
            (incoming / "again").write_bytes(made())
            assert (await operator.do("import_plan", file="again", name="other.dcm"))["id"] == view["id"]
            assert sorted(p.name for p in (state / "plans").iterdir()) == [".incoming", view["id"]]
            assert [p["id"] for p in await room.room.ask("plans", {})] == [view["id"]]
            return view["id"]

    plan = virtually(main())

    async def again():
        async with serving(state) as room:
            return [p["id"] for p in await room.room.ask("plans", {})]

    assert virtually(again()) == [plan], "the store outlives the process"


def test_the_interlock_system_takes_a_bypass_over_its_socket_and_says_why_not(state, virtually):
    """The same words that a room on real wires sends."""

    async def main():
        async with serving(state) as room:
            node = room.world.simulated.interlock
            line = bypass_line("VACUUM", "Sven S.", "Petra P.", 600.0, "the pump\nis  exchanged")
            assert line == "bypass VACUUM Sven_S. Petra_P. 600000 the pump is exchanged"
            assert (
                obey(node, line.encode(), now_ns())
                == b"bypass refused: bypass of VACUUM refused: the room is not in service mode"
            )
            await in_service(room)
            await asyncio.sleep(0.2)
            for wrong in (
                "bypass VACUUM a b",
                "bypass VACUUM a b long why",
                "bypass NOTHING a b 10 why",
                "bypass DOOR a b 10 why",
            ):
                assert obey(node, wrong.encode(), now_ns()).startswith(b"bypass refused")
            assert not node.engine.bypasses
            assert obey(node, line.encode(), now_ns()) == b"bypass taken"
            told = room.said_of("interlock.bypass")[-1].data
            assert (told["owner"], told["approver"], told["reason"]) == ("Sven_S.", "Petra_P.", "the pump is exchanged")
            assert obey(node, b"end-bypass VACUUM", now_ns()) == b"end-bypass taken"
            assert not node.engine.bypasses

    virtually(main())


def test_two_rooms_of_a_facility_share_its_plans_and_each_keeps_its_audit(made, state, virtually):
    async def main():
        async with serving(state) as first, serving(state, room="G2") as second:
            plan = await first.file(made())
            view = second.room.plans.get(plan).view()
            assert view.approved_by == "Petra" and view.objections["G2"]
            operator = second.console()
            await operator.control()
            await operator.refused("load_plan", plan_id=plan, fraction=1)
            await asyncio.sleep(0.5)
            assert not [e for e in first.room.audit.query(limit=1000) if e.get("name") == "load_plan"]
        assert sorted(path.name for path in state.glob("*.bin")) == ["audit-G2.bin", "audit.bin"]

    virtually(main())


def test_a_plan_for_quality_assurance_is_loaded_by_a_physicist_and_by_nobody_else(made, state, virtually):
    dataset = pydicom.dcmread(io.BytesIO(made()))
    dataset.PlanIntent = "VERIFICATION"
    file = io.BytesIO()
    dataset.save_as(file)

    async def main():
        async with serving(state) as room:
            operator, physicist = room.console(), room.physicist()
            plan, clinical = await room.file(file.getvalue()), await room.file(made())
            await operator.control()
            assert "not for the role operator in mode qa" in await operator.refused("load_plan", plan_id=plan, fraction=1)
            await operator.do("give_control")
            await physicist.control()
            assert "not for the role physicist" in await physicist.refused("load_plan", plan_id=clinical, fraction=1)
            await room.treat(physicist, plan)
            assert room.room.treating.loaded.status == "complete"
            assert room.room.view().mode == "treat", "it is over"

    virtually(main())
