"""A plan that is loaded without a fraction means what comes next of it, and is refused where that is not what was asked for."""

from datetime import UTC, datetime

from pydantic import TypeAdapter
from served import serving

from controller.console.api_records import TreatmentId
from controller.serving import loading
from drivers.hal.errors import DataError


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
