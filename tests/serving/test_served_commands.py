"""Commands in a room that is served: who may, when, with which challenge; losing a console; interlocks; stop wins."""

import asyncio
import itertools

import pytest
from served import serving

from controller.commands import Actor, Command
from controller.record.memory_store import MemoryStore
from controller.roles import RULES, Mode, Role, judge
from controller.room.states import State

IN_BEAM = (State.BEAM_ON, State.HELD)


async def irradiating(room, operator, plan):
    await room.to_armed(operator, plan)
    await operator.answer()
    await room.until(lambda: len(room.said_of("pass.ended")) >= 2, 60, "two layers")
    assert room.state in IN_BEAM


def test_every_cell_of_the_table_is_judged_here_as_the_table_says_and_refused_with_words(state, virtually):
    """Role x command x mode x state against a served room, whose handlers only count."""

    async def main():
        async with serving(state) as room:
            desk, machine, done = room.room.desk, room.room.ground.machine, []
            own = ("view", "take_control", "give_control")
            desk.offer({name: (lambda c: done.append(c.name)) for name in RULES if name not in own})
            cells, numbers = 0, itertools.count(1)
            mode = Mode.TREAT
            desk._mode, desk._mode_for = (lambda: mode), (lambda _command: None)
            here = machine._model.state
            for (name, rule), role, wanted, where in itertools.product(RULES.items(), Role, Mode, State):
                if name in own:
                    continue
                mode, machine._model.state = wanted, where.value
                actor = Actor("somebody", role)
                token = desk.entrust("c", actor)
                before = len(done)
                answer = await desk.submit(
                    Command(name, {}, actor, "c", token, room.room.ground.boot_id, next(numbers), 1_000_000)
                )
                allowed = name == "stop" or (role in rule.roles.get(wanted, ()) and where in rule.states)
                assert answer.accepted is allowed and (len(done) > before) is allowed, (name, role, wanted, where)
                if not allowed:
                    assert str(answer.rejection) == str(judge(name, role, wanted, where))
                    assert role.value in str(answer.rejection) or where.value in str(answer.rejection)
                cells += 1
            machine._model.state = here
            return cells

    assert virtually(main()) == (len(RULES) - 3) * len(Role) * len(Mode) * len(State)


def test_an_answer_needs_the_challenge_of_the_question_that_stands(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made())
            assert "nothing is asked" in await operator.refused("identify", challenge="x")
            await operator.do("reset_interlock")
            await operator.do("load_plan", plan_id=plan, fraction=1)
            first = await room.asked("identify")
            for forged in (None, "", "x", first.challenge[:-1], first.challenge + "x", 7):
                assert "challenge" in await operator.refused("identify", challenge=forged)
            await operator.do("identify", challenge=first.challenge)
            await room.asked("positioned")
            assert "challenge" in await operator.refused("accept_position", challenge=first.challenge)
            await operator.answer()
            await room.asked("beam_on")
            armed = room.room.questions.view()
            await operator.do("edit", what="setup", text="another cushion")
            await room.asked("identify")
            assert room.state is State.IDENTIFIED
            states = [e.data["state"] for e in room.said_of("room.state")]
            assert states[states.index("ready.armed") + 1] == "preparatory.identified", "disarmed before anything else"
            assert not room.room.ground.devices.access.requested
            assert "not possible in preparatory.identified" in await operator.refused("beam_on", challenge=armed.challenge)
            await operator.answer()
            await room.asked("positioned")
            await operator.answer()
            again = await room.asked("beam_on")
            assert again.challenge != armed.challenge
            assert "challenge" in await operator.refused("beam_on", challenge=armed.challenge)
            await operator.answer()
            assert (await room.ended()).status == "complete"

    virtually(main())


def test_every_command_of_the_table_is_executed_by_somebody(state, virtually):
    """A row that nothing executes would promise something in the rules and in every view."""

    async def main():
        async with serving(state) as room:
            offered = set(room.room.desk._handlers)
            assert set(RULES) - offered == {"manage_users"}, "the console process has users, and judges by the same row"
            assert offered <= set(RULES)
            service = room.service()
            for name in ("edit_config", "sign_config"):
                assert "there is no command" in await service.refused(name)
                assert name not in room.room.view().commands

    virtually(main())


def test_an_edit_to_another_fraction_starts_from_the_beginning(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made())
            first = await room.to_armed(operator, plan)
            second = (await operator.do("edit", what="fraction", fraction=2))["treatment"]
            assert second != first and not room.said_of("request.on")
            await room.asked("identify")
            view = room.room.view()
            assert view.treatment.fraction == 2 and view.state == "standby"
            assert not [item for item in view.checklist if item.name == "identified" and item.done]
            assert "facility file" in await operator.refused("edit", what="tolerance", value=5)
            await operator.answer(yes=False)
            assert (await room.ended()).status == "refused"
            assert room.state is State.STANDBY

    virtually(main())


def test_a_lost_console_pauses_the_beam_and_the_next_one_resumes_it(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            await irradiating(room, operator, await room.file(made(diameter_mm=24.0)))
            loop = asyncio.get_running_loop()
            silent = loop.time()
            await operator.fall_silent()
            await room.in_state(State.INTERRUPTED, 5.0)
            assert 0.6 < loop.time() - silent < 1.3, "1 s after its last sign of life"
            assert room.said_of("trip")[0].data["cause"] == "console.lost"
            assert "no commanding console" in room.room.view().why
            question = await room.asked("resume", 1.0) if room.room.questions.view() else None
            assert question is None, "nothing is asked while nobody could answer"
            other = room.console("console-9", "Oscar")
            assert "does not command" in await other.refused("resume", challenge="x")
            await other.control()
            await room.asked("resume", 10.0)
            await other.answer()
            loaded = await room.ended()
            assert loaded.status == "complete", loaded.reason
            assert {"Olga", "Oscar"} <= set(room.room.questions.answered_by)
            assert not operator.served.room.heartbeat("console-1", operator.token), "the old token is worth nothing"

    virtually(main())


def test_two_consoles_do_not_command_at_once(made, state, virtually):
    async def main():
        async with serving(state) as room:
            first, second = room.console("a", "Olga"), room.console("b", "Oscar")
            await first.control()
            words = await second.refused("take_control")
            assert "a (Olga) commands this room" in words
            plan = await room.file(made())
            assert "does not command" in await second.refused("load_plan", plan_id=plan, fraction=1)
            second.token = first.token
            assert "does not command" in await second.refused("load_plan", plan_id=plan, fraction=1)
            both = await asyncio.gather(
                first.send("load_plan", plan_id=plan, fraction=1), first.send("load_plan", plan_id=plan, fraction=1)
            )
            assert sorted(answer.accepted for answer in both) == [False, True]
            await room.asked("identify")
            await second.do("stop")
            assert (await room.ended()).status == "refused"

    virtually(main())


def test_stop_wins_over_a_start_in_the_same_instant(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, observer = room.console(), room.console("wall", "Otto", Role.OBSERVER)
            await operator.control()
            await room.to_armed(operator, await room.file(made()))
            question = room.room.questions.view()
            start = operator.send("beam_on", challenge=question.challenge)
            answers = await asyncio.gather(start, observer.send("stop", token=99, boot_id=1, age_ns=10**15))
            assert answers[1].accepted
            loaded = await room.ended()
            assert loaded.status == "partial" and "stop by Otto" in loaded.reason
            assert not room.said_of("request.on") and not room.said_of("pass.started")
            assert room.state is State.STANDBY
            gone = room.world.plant.rooms["G1"]
            assert gone.unit.counts()[0] == 0

    virtually(main())


@pytest.mark.parametrize("when", ["standby", "asked", "positioning", "beam", "interrupted"])
def test_stop_works_in_every_state(made, state, virtually, when):
    async def main():
        async with serving(state) as room:
            operator, observer = room.console(), room.console("wall", "Otto", Role.OBSERVER)
            await operator.control()
            far = {"angles_deg": (30.0,)} if when == "positioning" else {}
            plan = await room.file(made(diameter_mm=24.0, **far))
            if when in ("asked", "positioning"):
                await operator.do("load_plan", plan_id=plan, fraction=1)
                await room.asked("identify")
            if when == "positioning":
                await operator.answer()
                await room.until(lambda: room.said_of("motion.start"), 60)
                await asyncio.sleep(2.0)
            if when in ("beam", "interrupted"):
                await irradiating(room, operator, plan)
            if when == "interrupted":
                await operator.do("pause")
                await room.asked("resume", 10.0)
            await observer.do("stop")
            await asyncio.sleep(6.0)
            if when != "standby":
                assert (await room.ended(60.0)).status == {"asked": "refused"}.get(when, "partial")
            assert room.state is State.STANDBY
            ring = await room.room.ground.devices.gantry.read_state()
            assert ring.standstill and ring.brake_applied and not ring.enabled
            assert not room.world.plant.rooms["G1"].beam_present
            assert room.room.audit.query(name="stop")[-1]["actor"] == "Otto"
            assert room.room.view().question is None

    virtually(main())


def test_an_interlock_is_reset_by_its_role_alone_and_then_the_beam_is_resumed(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, physicist = room.console(), room.physicist()
            await operator.control()
            await irradiating(room, operator, await room.file(made(diameter_mm=24.0)))
            plant = room.world.plant.rooms["G1"]
            plant.services.area_extra_usv_h = 100.0
            await room.in_state(State.INTERRUPTED, 5.0)
            plant.services.area_extra_usv_h = 0.0
            await asyncio.sleep(2.0)
            shown = room.room.view().interlocks
            assert [t.id for t in shown.trips] == ["AREA_MONITOR"] and shown.first_out.reset_role == "physicist"
            assert shown.first_out.value and shown.first_out.limit and shown.first_out.advice
            assert not shown.relay_closed and shown.room_causes[0].id == "permit.b"
            words = await operator.refused("reset_interlock")
            assert "physicist" in words and "operator" in words and "AREA_MONITOR" in words
            assert "not for the role observer" in await room.console("wall", "Otto", Role.OBSERVER).refused("reset_interlock")
            assert not room.room.ground.devices.interlock.status.relay_closed
            assert room.room.questions.view() is None, "nothing is asked while the permit is withheld"
            value = await physicist.do("reset_interlock")
            assert value == {"relay_closed": True, "standing": [], "told": "cleared AREA_MONITOR"}
            await room.asked("resume", 10.0)
            await operator.answer()
            loaded = await room.ended()
            assert loaded.status == "complete", loaded.reason
            assert any(alarm.text for alarm in room.room.view().alarms)

    virtually(main())


def test_a_disk_that_is_full_refuses_commands_and_never_a_stop(made, state, virtually):
    class Full(MemoryStore):
        full = False

        def open(self, path, *, empty=False):
            file = super().open(path, empty=empty)
            write, store = file.write, self

            class Checked:
                def __getattr__(self, name):
                    return getattr(file, name)

                def write(self, data):
                    if store.full:
                        raise OSError(28, "No space left on device")
                    return write(data)

            return Checked()

    disk = Full()

    async def main():
        async with serving(state, store=disk) as room:
            operator = room.console()
            await operator.control()
            await irradiating(room, operator, await room.file(made(diameter_mm=24.0)))
            disk.full = True
            assert "could not be journalled" in await operator.refused("pause")
            assert room.state in IN_BEAM, "what was not written was not done"
            assert "No space left" in await operator.refused("pause")
            stopped = await operator.send("stop")
            assert stopped.accepted
            assert (await room.ended()).status == "partial"
            disk.full = False
            plan = room.room.plans.plans()[0].id
            await operator.do("load_plan", plan_id=plan, fraction=1, remainder=True)
            await asyncio.sleep(1.0)
            told = [(entry["kind"], entry.get("name")) for entry in room.room.audit.query(limit=1000)]
            assert ("command", "stop") in told, "what waited was written when there was room again"
            assert "pause" not in [e.get("name") for e in room.room.audit.query(limit=1000) if e["kind"] == "command"]

    virtually(main())


def test_the_audit_tells_every_command_and_what_became_of_it(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made())
            await operator.refused("load_plan", plan_id="nothing")
            await operator.refused("beam_on", challenge="x" * 10_000)
            await operator.do("load_plan", plan_id=plan, fraction=1)
            await asyncio.sleep(0.5)
            said = await room.room.ask("audit", {"limit": 1000})
            last = [(e["kind"], e["name"], e["actor"], bool(e.get("reason"))) for e in said if e["kind"] != "opened"]
            assert ("command", "load_plan", "Olga", False) in last
            assert ("command.failed", "load_plan", "Olga", True) in last
            assert ("command.refused", "beam_on", "Olga", True) in last
            assert ("command.done", "load_plan", "Olga", False) in last
            mine = await room.room.ask("audit", {"actor": "Petra"})
            assert mine and {e["actor"] for e in mine} == {"Petra"}
            later = await room.room.ask("audit", {"from_seq": said[-1]["seq"]})
            assert later and all(e["seq"] >= said[-1]["seq"] for e in later)
            return len(said)

    kept = virtually(main())

    async def again():
        async with serving(state) as room:
            return await room.room.ask("audit", {"limit": 1000})

    said = virtually(again())
    assert len(said) > kept, "the chain goes on over a restart"
    assert [e["kind"] for e in said].count("opened") == 2
