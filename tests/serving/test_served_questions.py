"""What a person is asked to accept is said with value, limit and unit; in the same words at a terminal and at a console."""

import re

from served import serving

from controller.assembly import SimulatedOperator
from controller.console.question_words import question_text
from controller.resume import ResumeOptions, run_resume
from controller.room.imaging import RESIDUAL_DEG, RESIDUAL_MM
from controller.room.ports import Confirm
from controller.room.positioning import GANTRY_TOLERANCE_DEG


def test_the_position_is_accepted_by_deviation_and_limit(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            await operator.do("load_plan", plan_id=await room.file(made()), fraction=1)
            await room.asked("identify")
            await operator.answer()
            asked = await room.asked("positioned")
            couch = room.room.ground.belief.couch
            residual, limit = asked.facts["residual"], asked.facts["residual_limit"]
            assert residual.keys() == limit.keys() == asked.facts["correction_limit"].keys()
            assert all(limit[axis] == (RESIDUAL_MM if axis.endswith("_mm") else RESIDUAL_DEG) for axis in residual)
            assert all(abs(residual[axis]) <= limit[axis] for axis in residual)
            shown = {axis: value for axis, value in residual.items() if abs(value) >= 0.005}
            assert shown, "a registration that leaves nothing at all would show nothing here"
            for axis, value in shown.items():
                name, unit = axis.rsplit("_", 1)
                assert f"{name} {value:+.2f} {unit}" in asked.text
            remaining, corrected = asked.text.split("corrected before by")
            assert f"(limit {RESIDUAL_MM:g} mm)" in remaining and f"(limit {RESIDUAL_DEG:g} deg)" in remaining
            assert f"(limit {couch.correction_max_mm:g} mm)" in corrected
            assert f"(limit {couch.correction_max_deg:g} deg)" in corrected
            await operator.answer()
            await room.until(lambda: room.world.plant.rooms["G1"].access.state.name == "SECURED", 900, "the room is closed")
            if room.room.interlocks.roles():
                await operator.do("reset_interlock")
            asked = await room.asked("beam_on")
            assert asked.facts["gantry_limit_deg"] == GANTRY_TOLERANCE_DEG
            assert f"gantry at 0.0 deg (limit {GANTRY_TOLERANCE_DEG:g} deg off)" in asked.text

    virtually(main())


def test_no_number_is_asked_about_without_its_unit():
    facts = {
        "room": "G1",
        "beam_number": 1,
        "beam_name": "left",
        "meterset": 874.64,
        "meterset_unit": "MU",
        "remainder": "what is left of fraction 2: 874.64 of 6100.96 MU",
        "gantry_deg": 30.0,
        "gantry_limit_deg": 0.2,
        "residual": {"lateral_mm": 0.31, "vertical_mm": -0.1, "pitch_deg": 0.0},
        "residual_limit": {"lateral_mm": 1.0, "vertical_mm": 1.0, "pitch_deg": 1.0},
        "correction": {"lateral_mm": 3.2},
        "correction_limit": {"lateral_mm": 20.0, "pitch_deg": 3.0},
        "fraction": 2,
        "device": "gantry",
        "stopped": "the motion was stopped",
    }
    for kind in Confirm:
        asked = question_text(kind.value, facts)
        counted = re.sub(r"beam 1|fraction 2|room G1", "", asked)
        numbers = re.findall(r"[+-]?\d+(?:\.\d+)?(?: (?:of|mm|deg|MU))?", counted)
        assert all(number.split()[-1] in ("mm", "deg", "MU", "of") for number in numbers), (kind, numbers)
    position = question_text("positioned", facts)
    assert "Remaining deviation lateral +0.31 mm, vertical -0.10 mm (limit 1 mm), no angle (limit 1 deg)" in position
    assert "corrected before by lateral +3.20 mm (limit 20 mm), no angle (limit 3 deg)" in position


def test_a_resumed_fraction_asks_at_the_terminal_what_it_asks_at_the_console(made, state, virtually, monkeypatch):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0))
            name = await room.to_armed(operator, plan, fraction=2)
            await operator.answer()
            await room.until(lambda: len(room.said_of("pass.ended")) >= 3, 60, "three layers")
            await operator.do("terminate")
            await room.ended()
            await room.to_armed(operator, plan, fraction=2, remainder=True)
            asked = room.room.questions.view()
            await operator.do("cancel")
            await room.ended()
            return state / "treatments" / name, asked

    root, at_console = virtually(main())
    assert "what is left of fraction 2: " in at_console.text
    asked, answering = {}, SimulatedOperator.confirm

    async def listening(self, kind, facts):
        asked[str(kind)] = dict(facts)
        return await answering(self, kind, facts)

    monkeypatch.setattr(SimulatedOperator, "confirm", listening)
    resumed = run_resume(ResumeOptions(root))
    assert resumed.status == "complete"
    assert question_text("beam_on", asked["beam_on"]) == at_console.text
    assert asked["identify"]["remainder"] == asked["beam_on"]["remainder"] == at_console.facts["remainder"]
    names = list(asked["identify"])
    assert names.index("patient_name") == names.index("patient_id") + 1
