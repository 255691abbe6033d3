"""The operator at a terminal: only the whole word yes gives beam, the end of the input declines, and nothing blocks."""

import asyncio
import os

import pytest

from controller.console.prompts import ConsoleOperator


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
    assert "Beam on?" in said[0]
    assert "gantry_deg 30.0" in said[0]


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
