"""A plan that is loaded without a fraction means what comes next of it, and is refused where that is not what was asked for."""

import asyncio
import shutil
from datetime import UTC, datetime

from pydantic import TypeAdapter
from served import serving

from controller.console.api_records import TreatmentId
from controller.room.states import State
from controller.serving import loading
from drivers.hal.errors import DataError
from simulators.faults import parse_fault


async def given(room, operator, plan, **more):
    """One fraction, whole, without naming it; its number."""
    await room.to_armed(operator, plan, fraction=None, **more)
    await operator.answer()
    loaded = await room.ended()
    assert loaded.status == "complete", loaded.reason
    return loaded.options.fraction


def test_without_a_fraction_the_next_one_is_loaded_and_a_remainder_only_when_it_is_asked_for(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, treatments = room.console(), state / "treatments"
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0, fractions=2))
            refused = await operator.refused("load_plan", plan_id=plan, remainder=True)
            assert "no earlier delivery left anything of this plan: no fraction of 2 was begun" in refused
            assert await given(room, operator, plan) == 1

            value = await operator.do("load_plan", plan_id=plan)
            assert (value["fraction"], value["remainder"]) == (2, False) and value["treatment"].endswith("-f2")
            asked = await room.asked("identify")
            assert asked.facts["fraction"] == 2 and "fraction 2" in asked.text
            await operator.do("unload_plan")
            await room.ended()
            named = await operator.do("load_plan", plan_id=plan, fraction=2)
            assert (named["fraction"], "told" in named) == (2, False)
            await operator.do("unload_plan")
            await room.ended()

            await room.to_armed(operator, plan, fraction=None)
            await operator.answer()
            begun = len(room.said_of("pass.ended"))
            await room.until(lambda: len(room.said_of("pass.ended")) >= begun + 3, 60, "three layers")
            await operator.do("terminate")
            await room.ended()
            before = sorted(treatments.iterdir())
            refused = await operator.refused("load_plan", plan_id=plan)
            assert "what is left of fraction 2" in refused and "remainder true" in refused and "% given" in refused
            assert "what is left of fraction 2" in await operator.refused("load_plan", plan_id=plan, beams=[1])
            assert "beams: what is left of every beam" in await operator.refused(
                "load_plan", plan_id=plan, remainder=True, beams=[1]
            )
            assert sorted(treatments.iterdir()) == before and not room.room.treating.under_way
            assert await given(room, operator, plan, remainder=True) == 2
            assert room.room.treating.loaded.view().remainder

            for remainder in ({}, {"remainder": True}):
                refused = await operator.refused("load_plan", plan_id=plan, **remainder)
                assert "every fraction of this plan is given: fractions 1 to 2 of 2 complete" in refused
            await room.until(lambda: room.room.audit.query(limit=1000)[-1]["kind"] == "command.failed", 5, "the audit")
            told = [
                entry.get("reason")
                for entry in room.room.audit.query(limit=1000, name="load_plan")
                if entry["kind"] == "command.done"
            ]
            assert told == [
                "fraction 1, which comes next",
                *["fraction 2, which comes next", None, "fraction 2, which comes next"],
                "what is left of fraction 2, which comes next",
            ]

    virtually(main())


def test_beams_that_were_left_out_of_a_fraction_come_next_of_it(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(angles_deg=(0.0, 2.0), fractions=2))
            assert await given(room, operator, plan, beams=[2]) == 1
            assert await given(room, operator, plan) == 1
            beams = [beam.number for beam in room.room.treating.loaded.admitted.intake.beams]
            assert beams == [1], "the one that was given is not given again"
            assert await given(room, operator, plan, beams=[1]) == 2

    virtually(main())


def test_nothing_comes_next_while_nobody_knows_what_was_given(made, state, virtually, monkeypatch):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made())

            def unreadable(uids):
                raise DataError("the chain is broken at entry 3", code=5001)

            monkeypatch.setattr(room.room.treating._fractions._ledger, "given", unreadable)
            refused = await operator.refused("load_plan", plan_id=plan)
            assert "what was given is not known" in refused and "broken at entry 3" in refused

    virtually(main())


def test_another_plan_takes_nothing_over_from_the_one_before(made, state, virtually):
    """Its fraction, its beams and the reason of an override were said of the plan that was put back."""

    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            draft = await room.file(made(approval="UNAPPROVED", label="draft", fractions=5))
            other = await room.file(made(approval="UNAPPROVED", label="other", fractions=5))
            plan = await room.file(made(label="third", fractions=5))
            await operator.do("load_plan", plan_id=draft, fraction=4, beams=[1], overrides={"approval": "phantom"})
            await room.asked("identify")
            value = await operator.do("edit", what="plan", plan_id=plan)
            loaded = room.room.treating.loaded
            assert (loaded.held.id, loaded.options.fraction, loaded.options.beams) == (plan, 1, ())
            assert loaded.options.overrides == {} and value["fraction"] == 1
            await room.asked("identify")
            value = await operator.do("edit", what="fraction", fraction=3)
            assert (room.room.treating.loaded.held.id, value["fraction"]) == (plan, 3)
            await room.asked("identify")
            assert "approved" in await operator.refused("edit", what="plan", plan_id=other), "nobody overrode that one"

    virtually(main())


class Stopped(datetime):
    """A clock that shows one second all the time."""

    @classmethod
    def now(cls, tz=None):
        return datetime(2031, 1, 1, 8, tzinfo=UTC)


def test_no_two_treatments_share_an_id_in_one_second_nor_after_a_restart(made, state, virtually, monkeypatch):
    monkeypatch.setattr(loading, "datetime", Stopped)
    name = "20310101T080000Z-G1-sphere-f1"

    async def loaded_twice():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(label="sphere"))
            ids = []
            for _ in range(2):
                ids.append((await operator.do("load_plan", plan_id=plan, fraction=1))["treatment"])
                await operator.do("unload_plan")
                await room.ended()
            listed = [row["id"] for row in await room.room.ask("treatments", {})]
            assert set(ids) <= set(listed)
            for each in ids:
                assert TypeAdapter(TreatmentId).validate_python(each) == each, "the interface's own pattern"
                assert (await room.room.ask("treatment", {"id": each}))["id"] == each
            return ids

    assert virtually(loaded_twice()) == [name, f"{name}-2"]
    kept = (state / "treatments" / name / "summary.json").read_bytes()
    assert virtually(loaded_twice()) == [f"{name}-3", f"{name}-4"]
    assert (state / "treatments" / name / "summary.json").read_bytes() == kept


def test_a_directory_that_somebody_else_makes_meanwhile_is_nobody_elses(made, state, virtually, monkeypatch):
    """Between the look whether there is one and the making of it, and whatever is in it."""
    monkeypatch.setattr(loading, "datetime", Stopped)
    name, admit = "20310101T080000Z-G1-sphere-f1", loading.admit

    def and_somebody_else(options):
        admitted = admit(options)
        (state / "treatments" / name).mkdir()
        (state / "treatments" / f"{name}-2").write_text("no directory at all")
        return admitted

    monkeypatch.setattr(loading, "admit", and_somebody_else)

    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(label="sphere"))
            assert (await operator.do("load_plan", plan_id=plan, fraction=1))["treatment"] == f"{name}-3"
            await operator.do("unload_plan")
            await room.ended()

    virtually(main())
    assert not list((state / "treatments" / name).iterdir())


def test_why_nothing_was_given_is_said_everywhere_and_again_after_a_restart(made, state, virtually):
    async def told(room, plan):
        (row,) = await room.room.ask("treatments", {})
        (held,) = await room.room.ask("plans", {})
        assert held["id"] == plan
        return row, held["standing"]

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
            ended = (await room.ended()).ended
            before, standing = await told(room, plan)
        assert before["reason"] and "fault" in before["reason"]
        said = f"fraction 1 was not begun: nothing was given; the last attempt ended: {before['reason']}"
        assert ended == before["standing"] == f"{said}. Next: load fraction 1 again under Plans"
        assert standing == (
            f"no fraction of 5 was begun; the last attempt at fraction 1 ended: {before['reason']}. Next: fraction 1"
        )
        async with serving(state) as room:
            await room.until(lambda: room.room.view().why == ended, 10, "the room says how the last attempt ended")
            assert await told(room, plan) == (before, standing)
            operator = room.console()
            await operator.control()
            assert await room.treat(operator, plan) != before["id"]
            assert room.room.view().why == "fraction 1 is complete"
            rows = {row["id"]: row for row in await room.room.ask("treatments", {})}
            assert rows[before["id"]]["standing"] == said, "what comes next is not for an attempt that another one followed"
            (held,) = await room.room.ask("plans", {})
            assert held["standing"] == "fraction 1 of 5 complete. Next: fraction 2"
        async with serving(state) as room:
            await asyncio.sleep(5.0)
            assert "fraction" not in room.room.view().why, "what is complete is not told again"

    virtually(main())


def test_a_program_that_ended_while_the_room_was_prepared_is_told_by_the_next(made, state, tmp_path, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made())
            await operator.do("load_plan", plan_id=plan, fraction=2)
            await room.asked("identify")
            (held,) = await room.room.ask("plans", {})
            assert held["standing"] == "no fraction of 5 was begun", "it is under way, and has not ended"
            shutil.copytree(state, tmp_path / "kept")
        shutil.rmtree(state)
        (tmp_path / "kept").rename(state)
        async with serving(state) as room:
            words = (
                "fraction 2 was not begun: nothing was given; the last attempt ended: the program was cut off. "
                "Next: load fraction 2 again under Plans"
            )
            await room.until(lambda: room.room.view().why == words, 10, "it is said")
            (row,) = await room.room.ask("treatments", {})
            assert (row["status"], row["standing"]) == ("unbegun", room.room.view().why)

    virtually(main())


def test_what_is_left_of_a_fraction_is_not_edited_and_nothing_ends(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0))
            other = await room.file(made(label="other"))
            await room.to_armed(operator, plan, fraction=2)
            await operator.answer()
            await room.until(lambda: len(room.said_of("pass.ended")) >= 3, 60, "three layers")
            await operator.do("terminate")
            await room.ended()
            await room.to_armed(operator, plan, fraction=2, remainder=True)
            loaded = room.room.treating.loaded
            for what, edited in (("fraction", {"fraction": 3}), ("beams", {"beams": [1]}), ("plan", {"plan_id": plan})):
                refused = await operator.refused("edit", what=what, **edited)
                assert "what is left of fraction 2 is loaded" in refused and "put the plan back" in refused
                assert "unknown: colour" in await operator.refused("edit", what=what, colour="red", **edited)
            assert room.room.treating.loaded is loaded and room.room.treating.under_way
            assert room.state is State.ARMED and room.room.questions.view().kind == "beam_on", "it stands as it stood"
            value = await operator.do("edit", what="plan", plan_id=other)
            assert (value["fraction"], value["remainder"]) == (1, False), "another plan takes nothing over"

    virtually(main())


def test_a_remainder_that_ended_before_its_journal_was_begun_is_loaded_again(made, state, virtually, monkeypatch):
    """The interlock system did not take the plan: its directory has a summary and no journal."""

    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0))
            await room.to_armed(operator, plan, fraction=2)
            await operator.answer()
            await room.until(lambda: len(room.said_of("pass.ended")) >= 3, 60, "three layers")
            await operator.do("terminate")
            await room.ended()

            async def untaken(*_):
                raise DataError("the interlock system reads another plan", code=5001)

            with monkeypatch.context() as patch:
                patch.setattr(room.world, "give_plan", untaken)
                for _ in range(2):
                    await operator.do("load_plan", plan_id=plan, fraction=2, remainder=True)
                    await room.ended()
            left = room.room.treating.loaded.output
            assert sorted(path.name for path in left.iterdir()) == ["events.jsonl", "refused-1", "summary.json"]
            assert "reads another plan. Next: for what is left of fraction 2" in room.room.view().why
            await room.to_armed(operator, plan, fraction=2, remainder=True)
            assert not (left / "summary.json").exists(), "what is cut off now must not be taken for what has a record"
            await operator.answer()
            await room.ended()
            assert room.room.view().why == "fraction 2 is complete"
            assert room.room.treating.loaded.output == left and (left / "journal.bin").exists()

    virtually(main())


def test_a_room_that_has_ended_a_field_never_says_that_it_makes_ready(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator, said = room.console(), []
            await operator.control()
            plan = await room.file(made())
            await room.to_armed(operator, plan)

            async def read():
                while True:
                    said.append(room.room.view().why)
                    await asyncio.sleep(0.01)

            await operator.answer()
            await room.in_state(State.BEAM_ON)
            reading = asyncio.create_task(read())
            await room.ended()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert "fraction 1 has ended: its outputs are being written" in said
            assert not [words for words in said if "makes ready" in words]

    virtually(main())


def test_a_plan_that_is_held_already_is_said_to_be(made, state, virtually):
    async def main():
        async with serving(state) as room:
            data = made()
            plan = await room.file(data)
            (room.room.plans.incoming / "received-2").write_bytes(data)
            again = await room.console("upload").do("import_plan", file="received-2", name="copy.dcm")
            assert again["id"] == plan and again["told"].startswith("this plan is held already, as plan.dcm, received ")
            assert len(room.said_of("plan.received")) == 1 and len(room.room.plans.plans()) == 1

    virtually(main())
