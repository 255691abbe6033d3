"""What a person is told of a fraction that ended early: how far it came, how it goes on, and what will be given next."""

import asyncio

import pytest
from served import serving

from controller.console.views import PlanView
from controller.record.ledger import BeamState
from controller.room.states import State
from controller.serving.console_words import LEFT, RECONCILE, SIGN
from controller.serving.cut_off import Given
from controller.serving.fraction_words import ended_words, judged
from controller.serving.loading import WRITING


async def to_third_layer(room, operator, plan, **more):
    """Beam on, until three layers are given."""
    name = await room.to_armed(operator, plan, **more)
    await operator.answer()
    begun = len(room.said_of("pass.ended"))
    await room.until(lambda: len(room.said_of("pass.ended")) >= begun + 3, 60, "three layers")
    return name


async def listed(room, plan):
    """The plan, as the list of plans and the plan alone tell it."""
    (row,) = [row for row in await room.room.ask("plans", {}) if row["id"] == plan]
    assert row == await room.room.ask("plan", {"id": plan})
    return PlanView.model_validate(row)


def test_a_remainder_is_asked_for_with_what_is_left_of_it(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0))
            (whole,) = [beam["meterset"] for beam in room.room.plans.get(plan).about["beams"]]
            await operator.do("load_plan", plan_id=plan, fraction=2)
            asked, view = await room.asked("identify"), room.room.view()
            assert asked.facts["meterset"] == pytest.approx(whole) and "remainder" not in asked.facts
            patient = room.room.treating.loaded.admitted.intake.plan.patient
            names = list(asked.facts)
            assert asked.facts["patient_name"] == patient.name != ""
            assert names.index("patient_name") == names.index("patient_id") + 1
            assert patient.id in asked.text and all(part in asked.text for part in patient.name.split("^"))
            assert view.state == "standby" and view.why == "fraction 2 is loaded: confirm patient, plan and room"
            await operator.answer(yes=False)
            await room.ended()
            assert room.room.view().why == (
                "fraction 2 was not begun: nothing was given; the last attempt ended: G1: the operator did not confirm "
                "identify (start again when ready). Next: load fraction 2 again under Plans"
            )

            await to_third_layer(room, operator, plan, fraction=2)
            await operator.do("terminate")
            loaded = await room.ended()
            given = sum(beam.meterset_delivered for beam in loaded.picture.beams())
            assert loaded.status == "partial" and 0.0 < given < whole
            await room.in_state(State.STANDBY)
            words = room.room.view().why
            assert words.startswith(f"fraction 2: beam 1 ended early at {100 * given / whole:.1f} %; the last attempt ended: ")
            assert "terminate by Olga. Next: " in words
            assert "under Plans" in words and "what an earlier delivery left" in words
            assert patient.id not in words and loaded.admitted.intake.plan.label not in words

            await operator.do("load_plan", plan_id=plan, fraction=2, remainder=True)
            for kind in ("identify", "positioned", "beam_on"):
                asked = await room.asked(kind)
                left = asked.facts["meterset"]
                assert left == pytest.approx(whole - given, rel=0.01), kind
                assert asked.facts["remainder"] == f"what is left of fraction 2: {left:.2f} of {whole:.2f} MU"
                assert asked.facts["fraction"] == 2
                assert kind == "positioned" or f"{left:.6g} MU (what is left of fraction 2" in asked.text
                if kind == "beam_on":
                    break
                if kind == "identify":
                    assert room.room.view().why == "what is left of fraction 2 is loaded: confirm patient, plan and room"
                await operator.answer()
                if kind == "positioned":
                    access = room.world.plant.rooms["G1"].access
                    await room.until(lambda: access.state.name == "SECURED", 900, "the room is closed")  # noqa: B023
                    if room.room.interlocks.roles():
                        await operator.do("reset_interlock")
            shown = room.room.view().treatment.beams[0]
            assert asked.facts["meterset"] == pytest.approx(shown.meterset_planned - shown.meterset_delivered)

            await operator.answer()
            await room.until(lambda: room.room.view().treatment.beams[0].meterset_delivered > 0, 60, "a layer")
            await operator.do("pause")
            await room.in_state(State.INTERRUPTED)
            await room.asked("resume")
            shown = room.room.view().treatment.beams[0]
            asked = room.room.view().question
            assert 0.0 < asked.facts["meterset"] < left
            assert asked.facts["meterset"] == pytest.approx(shown.meterset_planned - shown.meterset_delivered)
            assert "Beam on again for beam 1" in asked.text and f"{asked.facts['meterset']:.6g} MU" in asked.text
            await operator.answer()
            await room.ended()
            await room.in_state(State.STANDBY)
            assert room.room.view().why == "fraction 2 is complete"
            await operator.do("unload_plan")
            assert "fraction" not in room.room.view().why

    virtually(main())


def test_a_plan_tells_what_was_given_and_proposes_what_comes_next(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0))
            fresh = await listed(room, plan)
            assert (fresh.history, fresh.standing) == ([], "no fraction of 5 was begun")
            assert (fresh.next.fraction, fresh.next.remainder) == (1, False)
            first = await room.treat(operator, plan)
            second = await to_third_layer(room, operator, plan, fraction=2)
            during = await listed(room, plan)
            assert [(f.number, f.status) for f in during.history] == [(1, "complete"), (2, "under_way")]
            assert during.next is None
            await operator.do("terminate")
            loaded = await room.ended()
            share = loaded.picture.beams()[0].meterset_delivered / loaded.picture.beams()[0].meterset_planned
            told = await listed(room, plan)
            assert [(f.number, f.status, f.treatment) for f in told.history] == [
                (1, "complete", first),
                (2, "partial", second),
            ]
            assert told.history[0].share == pytest.approx(1.0, abs=0.005)
            assert told.history[1].share == pytest.approx(share, abs=0.002)
            assert (told.next.fraction, told.next.remainder) == (2, True)
            done = f"fraction 1 of 5 complete; fraction 2 partial, {100 * told.history[1].share:.1f} % given"
            ended = "the last attempt at fraction 2 ended: stopped: terminate by Olga"
            assert told.standing == f"{done}; {ended}. Next: what is left of fraction 2"
            await room.treat(operator, plan, fraction=told.next.fraction, remainder=told.next.remainder)
            after = await listed(room, plan)
            assert after.standing == "fractions 1 to 2 of 5 complete. Next: fraction 3"
            assert (after.next.fraction, after.next.remainder) == (3, False)

    virtually(main())


def test_nothing_is_called_given_that_was_not():
    def of(**states):
        shares = {"complete": 0.9997, "partial": 0.9996, "locked": None, "open": None, "signed": None}
        states = {beam: ("complete" if state == "signed" else state, shares[state]) for beam, state in states.items()}
        return {
            int(beam[1:]): Given(BeamState(state), share, "x/journal.bin", None if share else (0.9610, 1.0007))
            for beam, (state, share) in states.items()
        }

    one, two = {1: 10.0}, {1: 10.0, 2: 30.0}
    assert ended_words(3, two, {}, "the nozzle is gone") == (
        "fraction 3 was not begun: nothing was given; the last attempt ended: the nozzle is gone. "
        "Next: load fraction 3 again under Plans"
    )
    assert ended_words(3, one, of(b1="complete")) == "fraction 3 is complete"
    assert ended_words(3, one, of(b1="signed")) == "fraction 3 is given, between 96.10 and 100.07 % of plan"
    words = ended_words(3, two, of(b1="complete", b2="signed"))
    assert words == f"fraction 3 is {judged(3, two, of(b1='complete', b2='signed')).words}"
    assert words == "fraction 3 is given, between 97.07 and 100.05 % of plan", "by metersets"
    assert judged(3, two, of(b1="complete", b2="signed")).status == "given"
    assert judged(3, two, of(b1="signed")).words == "partial, between 24.02 and 25.02 % of plan given"
    words = ended_words(3, two, of(b1="partial"))
    assert words.startswith("fraction 3: beam 1 ended early at 99.9 %, beam 2 was not begun. Next: ") and LEFT in words
    words = ended_words(3, two, of(b2="signed"), asked=[2])
    assert words == (
        "fraction 3: beam 1 was not begun, beam 2 is given, between 96.10 and 100.07 % of plan. "
        "Next: beam 1 of fraction 3, under Plans"
    )
    for state, advice in (("open", RECONCILE), ("locked", SIGN)):
        words = ended_words(3, two, of(b1="complete", b2=state))
        assert words == f"fraction 3: beam 1 is complete, what beam 2 was given is not settled. Next: {advice}"


def test_what_is_loaded_while_the_last_outputs_are_written_waits_for_them(made, state, virtually, monkeypatch):
    """The room stands by already, so nobody can know that it is too soon."""

    async def slowly(work, *given):
        await asyncio.sleep(5.0)
        return work(*given)

    monkeypatch.setattr(asyncio, "to_thread", slowly)

    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0))
            await to_third_layer(room, operator, plan, fraction=2)
            await operator.do("terminate")
            await room.until(lambda: room.room.treating.loaded.status == WRITING, 60, "outputs under way")
            before = room.room.treating.loaded
            await operator.do("load_plan", plan_id=plan, fraction=2, remainder=True)
            assert (
                room.room.treating.loaded is not before
                and before.status == "partial"
                and (await room.asked("identify")).facts["fraction"] == 2
            )

    virtually(main())
