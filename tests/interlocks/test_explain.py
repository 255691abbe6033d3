"""From the name of a trip to its line: whatever the file has, the explanation leads to places that are there."""

import re
from pathlib import Path

import pytest
from oracle import RAW
from typer.testing import CliRunner

from controller.cli import app
from controller.explain_trip import NoSuchRow, explain
from interlocks.matrix import load

ROOT = Path(__file__).parents[2]
LIMITS = load()


@pytest.mark.parametrize("name", list(RAW["interlock"]))
def test_every_row_leads_to_lines_that_are_there(name):
    row, text = RAW["interlock"][name], explain(LIMITS, name)
    assert text.startswith(f"{name}, first-out code {row['sort']['code']}, class {row['sort']['class']}: {row['what']}")
    places = dict(re.findall(r"(interlocks/[\w.]+):(\d+)", text))
    for file, number in re.findall(r"(interlocks/[\w.]+):(\d+)", text):
        assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) >= int(number)
    line = (ROOT / "interlocks/limits.toml").read_text(encoding="utf-8").splitlines()[int(places["interlocks/limits.toml"]) - 1]
    assert line == f"[interlock.{name}]"
    assert row["reaction"]["reset_role"] in text or not row["reaction"]["latch"]
    for action in row["reaction"]["action"]:
        assert action in text
    if row["sort"]["acts"] == "software":
        assert f"{row['when']['deadline_ms']} ms" in text
        assert row["advice"] in text
        for name_of_input in row["test"].get("inputs", ()):
            (told,) = [line for line in text.splitlines() if line[10:].startswith(f"{name_of_input}: ")]
            where = re.search(r"\((interlocks/inputs.py):(\d+)\)", told)
            assert where is not None, told
            source = (ROOT / where[1]).read_text(encoding="utf-8").splitlines()[int(where[2]) - 1]
            assert name_of_input.removeprefix("chain_") in source or name_of_input.partition("_")[0] in source, told


def test_the_function_named_is_the_one_that_judges():
    text = explain(LIMITS, "ring_angle")
    number = int(re.search(r"difference in interlocks/conditions.py:(\d+)", text)[1])
    assert (
        (ROOT / "interlocks/conditions.py").read_text(encoding="utf-8").splitlines()[number - 1].startswith("def difference(")
    )
    assert "register 14 to 15, signed" in text
    assert explain(LIMITS, "21") == text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("RING_ENCODERS", "motion    withheld until the row is reset"),
        ("COLLISION", "motion    withheld until the row is reset"),
        ("DOOR", "motion    withheld while the cause is there"),
        ("LOOP_STALL", "motion    gone while this lasts"),
        ("POWER_UP", "motion    not withheld"),
        ("PLAN_SPOT", "motion    not withheld"),
    ],
)
def test_what_a_row_does_to_motion_is_told_with_the_line_that_decides_it(row, words):
    text = explain(LIMITS, row)
    assert words in text
    number = int(re.search(r"motion .*interlocks/engine.py:(\d+)", text)[1])
    assert "def stops_motion" in (ROOT / "interlocks/engine.py").read_text(encoding="utf-8").splitlines()[number - 1]


def test_what_this_system_works_out_itself_leads_to_the_code_that_does():
    told = re.search(r"plan_row_ceiling: worked out .* in (interlocks/plan_watch.py):(\d+)", explain(LIMITS, "PLAN_SPOT"))
    assert "def registers(" in (ROOT / told[1]).read_text(encoding="utf-8").splitlines()[int(told[2]) - 1]
    assert "interlocks/proof.py" in explain(LIMITS, "PROOF_TEST")
    assert "permit B" not in explain(LIMITS, "HW_MOTION_RELAY"), "what hardware does is not the permit's affair"


def test_a_name_nearly_right_is_told_which_come_near():
    with pytest.raises(NoSuchRow, match="RING_ANGLE"):
        explain(LIMITS, "RING_ANGEL")
    run = CliRunner().invoke(app, ["explain-trip", "RING_ANGEL"])
    assert run.exit_code == 2
    run = CliRunner().invoke(app, ["explain-trip", "DOOR"])
    assert run.exit_code == 0 and "see also" not in run.output
    assert "Search the room again" in run.output


@pytest.mark.parametrize(
    "said", ["Room door not closed", "ROOM DOOR NOT CLOSED", " room door not closed: door_a_closed 0; limit 1"]
)
def test_words_as_on_the_screen_find_their_row_and_the_others_of_the_same_thing(said):
    text = explain(LIMITS, said)
    assert text.splitlines()[0] == "DOOR, first-out code 11, class PERS: room door not closed"
    assert "see also  DOOR_CONTACTS: the two contacts of the room door disagree" in text.splitlines()


def test_every_row_is_found_by_its_words():
    for row in LIMITS.rows:
        assert explain(LIMITS, row.what.capitalize()).startswith(f"{row.id}, "), "each has words of its own"


def test_a_few_words_are_told_which_rows_have_them():
    with pytest.raises(NoSuchRow, match="near: DOOR, DOOR_CONTACTS, "):
        explain(LIMITS, "room door")
