"""The operator at a terminal: only the whole word yes gives beam, the end of the input declines, and nothing blocks."""

import asyncio
import os

import pytest

from controller.console.prompts import ConsoleOperator
from controller.console.question_words import question_text
from controller.what_is_left import LiveFacts

ASKED = {"beam_number": 1, "beam_name": "left", "meterset": 6100.96, "meterset_unit": "MU", "gantry_deg": 30.0}


@pytest.fixture
def terminal():
    read_end, write_end = os.pipe()
    lines = os.fdopen(read_end, encoding="utf-8")
    said: list[str] = []
    yield ConsoleOperator(lines, said.append), write_end, said
    lines.close()
    try:
        os.close(write_end)
    except OSError:
        return


@pytest.mark.parametrize(("typed", "answer"), [("yes\n", True), ("YES \n", True), ("no\n", False), ("n\n", False)])
async def test_an_answer_is_taken(terminal, typed, answer):
    operator, pipe, said = terminal
    os.write(pipe, typed.encode())
    assert await operator.confirm("beam_on", {"gantry_deg": 30.0}) is answer
    assert "gantry at 30.0 deg" in said[0]


async def test_what_is_no_answer_is_asked_again(terminal):
    operator, pipe, said = terminal
    os.write(pipe, b"y\n\nok\nyes\n")
    assert await operator.confirm("beam_on", {}) is True
    assert sum("whole word" in line for line in said) == 3


async def test_the_end_of_the_input_declines(terminal):
    operator, pipe, _ = terminal
    os.close(pipe)
    assert await operator.confirm("identify", {}) is False


async def test_waiting_blocks_nothing_and_can_be_taken_back(terminal):
    operator, pipe, _ = terminal
    asked = asyncio.create_task(operator.confirm("identify", {}))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    os.write(pipe, b"no\n")
    assert await operator.confirm("identify", {}) is False


async def test_two_answers_in_one_piece_answer_two_questions(terminal):
    operator, pipe, _ = terminal
    os.write(pipe, b"yes\nno\n")
    assert await operator.confirm("identify", {}) is True
    assert await operator.confirm("positioned", {}) is False


async def test_the_words_are_those_of_every_console(terminal):
    operator, pipe, said = terminal
    facts = {
        **ASKED,
        "meterset": 874.64,
        "remainder": "what is left of fraction 2: 874.64 of 6100.96 MU",
        "gantry_limit_deg": 0.2,
    }
    os.write(pipe, b"yes\n")
    assert await operator.confirm("beam_on", facts)
    assert question_text("beam_on", facts) in said[0]
    assert "874.64 MU (what is left of fraction 2: 874.64 of 6100.96 MU)" in said[0]


async def test_a_yes_to_a_dose_that_has_changed_since_gives_no_beam(terminal):
    """Results of the pass that was cut come after the question whether to go on."""
    operator, pipe, said = terminal
    left = {"meterset": 900.0}
    asked = asyncio.create_task(operator.confirm("resume", LiveFacts(ASKED, lambda _beam: left)))
    await wait_for(lambda: said)
    left["meterset"] = 874.64
    os.write(pipe, b"yes\n")
    await wait_for(lambda: len(said) == 2)
    assert "900 MU" in said[0] and "874.64 MU" in said[1]
    assert not asked.done()
    os.write(pipe, b"yes\n")
    assert await asked


async def test_what_has_changed_is_told_before_anything_is_typed(terminal):
    operator, pipe, said = terminal
    left = {"meterset": 900.0}
    asked = asyncio.create_task(operator.confirm("resume", LiveFacts(ASKED, lambda _beam: left)))
    await wait_for(lambda: said)
    left["meterset"] = 874.64
    await wait_for(lambda: len(said) == 2)
    os.write(pipe, b"no\n")
    assert not await asked


async def wait_for(true):
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come")
