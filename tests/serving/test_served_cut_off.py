"""A room whose program died in beam: the next one says so, shows what is not known as such, and a physicist settles it."""

import asyncio
import re
import shutil

from served import serving

from controller.console.views import TreatmentSummary
from controller.recover import run_recovery
from controller.room.states import State
from controller.serving.console_words import for_console


async def died_in_beam(state, kept, plan_bytes):
    """State directory as a process leaves it that is killed within the third layer; plan and treatment."""
    async with serving(state) as room:
        operator = room.console()
        await operator.control()
        plan = await room.file(plan_bytes)
        name = await room.to_armed(operator, plan)
        await operator.answer()
        await room.until(lambda: len(room.said_of("pass.started")) >= 3, 60, "the third layer")
        (row,) = await room.room.ask("treatments", {})
        assert (row["status"], row["needs"]) == ("open", ""), "it is being treated"
        assert row["meterset_planned"] > 0 and row["meterset_delivered"] is None
        assert not cut_off(room), "what is being treated is not cut off"
        shutil.copytree(state, kept)
        await operator.do("terminate")
        await room.ended()
    shutil.rmtree(state)
    kept.rename(state)
    return plan, name


def cut_off(room):
    return [alarm for alarm in room.room.view().alarms if "cut_off" in alarm.id and alarm.active]


async def told(room):
    await room.until(lambda: cut_off(room), 10, "the alarm of what was cut off")
    (alarm,) = cut_off(room)
    return alarm


def test_a_death_in_beam_is_told_shown_as_unknown_and_settled_at_the_console(made, state, tmp_path, virtually):
    async def main():
        plan, name = await died_in_beam(state, tmp_path / "kept", made(diameter_mm=24.0))
        async with serving(state) as room:
            alarm = await told(room)
            words = f"treatment {name} was cut off in beam: a physicist takes control and presses Reconcile under Treatments"
            assert (alarm.severity, alarm.text) == ("high", words)
            assert room.state is State.STANDBY and room.room.view().why == words
            (row,) = await room.room.ask("treatments", {})
            row = TreatmentSummary.model_validate(row)
            assert (row.status, row.needs, row.meterset_delivered) == ("cut_off", "reconcile", None)
            assert row.meterset_planned > 0 and row.unit and row.fraction == 1 and row.plan_label
            assert "between 0 and" in row.bounds[0] and "iongantry" not in row.bounds[0]

            operator, physicist = room.console(), room.physicist()
            await operator.control()
            for remainder in (False, True):
                refused = await operator.refused("load_plan", plan_id=plan, fraction=1, remainder=remainder)
                assert "presses Reconcile under Treatments" in refused and "iongantry recover" not in refused
                assert str(state) not in refused
            refused = await operator.refused("load_plan", plan_id=plan)
            assert "which fraction comes next is not settled: fraction 1 to be reconciled" in refused
            assert "presses Reconcile under Treatments" in refused
            await operator.do("give_control")
            await physicist.control()

            first = await physicist.do("reconcile", treatment=name)
            assert first["status"] == "locked" and not any("iongantry recover" in line for line in first["lines"])
            (row,) = await room.room.ask("treatments", {})
            assert (row["status"], row["needs"]) == ("locked", "signature")
            assert (
                row["meterset_delivered"] is None and "between" in row["bounds"][0] and "between 0 and" not in row["bounds"][0]
            )
            assert "signs it under Treatments" in (await told(room)).text
            await room.until(lambda: not room.room.treating.under_way, 1, "nothing is treated")
            for nothing in ("", "   "):
                refused = await physicist.refused("reconcile", treatment=name, reason=nothing)
                assert "a signature needs a reason" in refused and "nothing was signed" in refused
            refused = await physicist.send("reconcile", treatment=name, reason="phantom")
            assert refused.accepted and refused.value["status"] == "recovered"
            assert not cut_off(room) and name not in room.room.view().why
            await room.until(
                lambda: "given; the last attempt ended: the program was cut off in beam" in room.room.view().why, 10
            )
            whole = await room.room.ask("treatment", {"id": name})
            assert (whole["status"], whole["needs"]) == ("partial", "")
            assert "accepted by Petra: phantom" in whole["bounds"][0]
            assert {"salvage-record.dcm", "salvage-summary.json", "salvage-spots.parquet"} <= set(whole["files"])

            await physicist.do("give_control")
            await operator.control()
            refused = await operator.refused("load_plan", plan_id=plan, fraction=1)
            assert "only what an earlier delivery left" in refused
            assert await room.treat(operator, plan, remainder=True) == name
            await asyncio.sleep(5.0)
            assert not cut_off(room)

    virtually(main())


def test_a_later_session_that_is_cut_off_is_told_too_and_what_all_sessions_gave_comes_from_the_ledger(
    made, state, tmp_path, virtually
):
    async def main():
        plan, name = await died_in_beam(state, tmp_path / "kept", made(diameter_mm=24.0))
        await asyncio.to_thread(run_recovery, state / "treatments" / name, sign="Petra", reason="phantom")
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            assert await room.to_armed(operator, plan, remainder=True) == name
            await operator.answer()
            await room.until(lambda: len(room.said_of("pass.started")) >= 2, 60, "two layers")
            (row,) = await room.room.ask("treatments", {})
            assert (row["status"], row["needs"]) == ("open", "")
            shutil.copytree(state, tmp_path / "again")
            await operator.do("terminate")
            await room.ended()
        shutil.rmtree(state)
        (tmp_path / "again").rename(state)
        async with serving(state) as room:
            assert name in (await told(room)).text
            assert f"G1: {(await told(room)).text}" in room.said, "and whoever starts the process reads it"
            (row,) = await room.room.ask("treatments", {})
            assert (row["status"], row["needs"], row["meterset_delivered"]) == ("cut_off", "reconcile", None)
            assert "the program ended while beam was on in session 2; not yet reconciled" in row["bounds"][0]
            assert "latch" not in row["bounds"][0], "that is what was found of the session before"
            assert row["bounds"][0].endswith("; what was in doubt before was accepted by Petra: phantom")
            await asyncio.to_thread(run_recovery, state / "treatments" / name, sign="Petra", reason="phantom")
            await room.until(lambda: not cut_off(room), 10, "the end of the alarm")
            operator = room.console()
            await operator.control()
            assert await room.treat(operator, plan, remainder=True) == name
            (row,) = await room.room.ask("treatments", {})
            assert row["status"] == "given"
            assert row["meterset_delivered"] is None, "two grants are known within bounds only: no session's sum is the dose"
            assert "given, received between" in row["bounds"][0] and "accepted by Petra" in row["bounds"][0]

            bounds = re.search(r"([\d.]+ to [\d.]+) % of plan", row["bounds"][0])[1].replace(" to ", " and ")
            words = f"given, between {bounds} % of plan"
            assert row["standing"] == f"fraction 1 is {words}" == room.room.view().why
            (held,) = await room.room.ask("plans", {})
            assert [(each["status"], each["words"]) for each in held["history"]] == [("given", words)]
            assert held["standing"].startswith(f"fraction 1 {words}. Next: fraction 2")
            assert (held["next"]["fraction"], held["next"]["remainder"]) == (2, False)
            whole = await room.room.ask("treatment", {"id": name})
            assert {"salvage-record.dcm", "salvage-report.html"} <= set(whole["sessions"][0]["files"])

    virtually(main())


def test_what_was_settled_by_another_tool_is_no_alarm_any_more(made, state, tmp_path, virtually):
    async def main():
        _, name = await died_in_beam(state, tmp_path / "kept", made(diameter_mm=24.0))
        async with serving(state) as room:
            await told(room)
            await asyncio.to_thread(run_recovery, state / "treatments" / name, sign="Petra", reason="phantom")
            await room.until(lambda: not cut_off(room), 10, "the end of the alarm")

    virtually(main())


def test_a_treatment_of_another_room_is_not_told_here(made, state, tmp_path, virtually):
    async def main():
        _, name = await died_in_beam(state, tmp_path / "kept", made(diameter_mm=24.0))
        async with serving(state, room="G2") as room:
            await asyncio.sleep(10.0)
            assert not cut_off(room)
            (row,) = await room.room.ask("treatments", {})
            assert (row["id"], row["room"], row["status"]) == (name, "G1", "cut_off")

    virtually(main())


def test_reasons_name_buttons_and_treatments_instead_of_commands_and_paths():
    (told,) = for_console(
        [
            "beam 1 of fraction 1 is partial in the ledger: at most 3 counts were given, journal "
            "/data of x/treatments/T-1/resume-2/journal.bin; resume it"
        ]
    )
    assert told.endswith("treatment T-1; load it under Plans with 'only what an earlier delivery left'")
    (told,) = for_console(
        ["beam 1 is locked: (why); a physicist must sign: `iongantry recover /data/T-1 --sign NAME --reason TEXT`"]
    )
    assert told == "beam 1 is locked: (why); a physicist takes control and signs it under Treatments"
