"""The file is refused with every reason, and the table in the docs is that of the file."""

import hashlib
import re
from pathlib import Path

import pytest

from controller.interlock_table import main, markdown
from interlocks.inputs import SIGNALS
from interlocks.matrix import SHIPPED, LimitsError, load, parse

TEXT = SHIPPED.read_text(encoding="utf-8")
DOCS = Path(__file__).parents[2] / "docs" / "interlocks.md"


def changed(row: str, old: str, new: str) -> str:
    """The shipped file with one replacement inside one row."""
    head, _, rest = TEXT.partition(f"[interlock.{row}]\n")
    body, separator, tail = rest.partition("\n[interlock.")
    assert old in body, (row, old)
    return f"{head}[interlock.{row}]\n{body.replace(old, new, 1)}{separator}{tail}"


def without(row: str) -> str:
    head, _, rest = TEXT.partition(f"[interlock.{row}]\n")
    return head + rest[rest.index("\n[interlock.") + 1 :]


BAD = {
    "unknown input": (changed("DOOR", "door_b_closed", "door_c_closed"), "DOOR: unknown input 'door_c_closed'"),
    "missing deadline": (changed("RING_ANGLE", ", deadline_ms = 50", ""), "RING_ANGLE: deadline_ms missing"),
    "deadline too short": (changed("PERMIT_A", "deadline_ms = 100", "deadline_ms = 60"), "cannot be met"),
    "hardware without deadline": (changed("HW_DOOR", "deadline_ms = 10", ""), "HW_DOOR: deadline_ms missing"),
    "no action": (changed("RING_ANGLE", '["BEAM_OFF"]', "[]"), "RING_ANGLE: trips nothing"),
    "unknown action": (changed("RING_ANGLE", "BEAM_OFF", "BEAM_DIM"), "RING_ANGLE: trips nothing"),
    "no phase": (changed("RING_ANGLE", 'trips = "armed"', 'trips = "never"'), "RING_ANGLE: trips nothing"),
    "unlatched personnel": (changed("DOOR", "latch = true", "latch = false"), "relaxed personnel class: must latch"),
    "bypassed personnel": (changed("ESTOP", "bypassable_in = []", 'bypassable_in = ["service"]'), "cannot be bypassed"),
    "outvoted personnel": (changed("DOOR", "value = 1", "value = 1, vote = 2"), "any one channel must trip it"),
    "personnel only when armed": (changed("SEARCH", '"always"', '"tripped"'), "must withhold always"),
    "weak personnel action": (changed("DOOR", '"DUMP_AND_STOP"', '"BEAM_OFF"'), "must dump the beam"),
    "slow personnel": (
        changed("DOOR", "deadline_ms = 50", "debounce_ms = 5000, deadline_ms = 5050"),
        "deadline 5050 ms is too long",
    ),
    "inverted personnel": (changed("ESTOP", "value = 1", "value = 0"), "no row wants estop_healthy = 1"),
    "removed personnel": (without("SEARCH"), "no row wants search_complete = 1"),
    "reclassed personnel": (changed("DOOR", "PERS", "OPS"), "no row wants door_a_closed = 1"),
    "unwatched relay": (without("RELAY_WELDED"), "no row watches the permit relay"),
    "no boot row": (without("POWER_UP"), "exactly one row of kind 'boot'"),
    "duplicate code": (changed("SEARCH", "code = 13", "code = 11"), "SEARCH: code 11 is also that of DOOR"),
    "duplicate id": (TEXT + "\n[interlock.DOOR]\n", "not a limits file"),
    "unknown class": (changed("DOOR", "PERS", "VIP"), "class must be one of"),
    "unknown role": (changed("DOOR", '"operator"', '"visitor"'), "reset_role must be one of"),
    "unknown kind": (changed("DOOR", '"equal"', '"roughly"'), "kind 'roughly' is unknown"),
    "misspelt figure": (changed("RING_ANGLE", "limit =", "limitt ="), "takes no 'limitt'"),
    "figure without effect": (changed("DOOR", "value = 1", "value = 1, hysteresis = 3"), "takes no 'hysteresis'"),
    "text as figure": (changed("RING_ANGLE", "limit = 200", 'limit = "200"'), "not a finite number"),
    "nan": (changed("RING_ANGLE", "limit = 200", "limit = nan"), "not a finite number"),
    "negative": (changed("RING_ANGLE", "limit = 200", "limit = -200"), "out of range"),
    "vote of too many": (changed("MONITOR_HEALTH", "value = 1", "value = 1, vote = 5"), "vote = 5 of 4"),
    "values for other inputs": (changed("SEARCH", "[1, 2, 1]", "[1, 2]"), "nor one for each input"),
    "wrong number of inputs": (changed("RING_ANGLE", '"ring_angle_mdeg", ', ""), "takes 2 input(s), 1 given"),
    "junk in place of lists": (changed("RING_ANGLE", '["BEAM_OFF"]', "3"), "trips nothing"),
    "junk in place of tables": (
        changed("RING_ANGLE", 'sort = { class = "PAT", acts = "software", code = 21 }', "sort = 5"),
        "RING_ANGLE: sort: table missing",
    ),
    "no source": (changed("RING_ANGLE", 'source = "M3; 0.2 deg assumed"', ""), "source missing"),
    "no advice": (changed("RING_ANGLE", "advice =", "hint ="), "advice missing"),
    "hardware without unit": (changed("HW_DOOR", ', unit = "open contacts"', ""), "at least one figure and its unit"),
    "hardware without actor": (changed("HW_DOOR", ', by = "chain A"', ""), "hardware with `by`"),
    "slow poll": (TEXT.replace("poll_ms = 50 ", "poll_ms = 80 "), "poll_ms at most 50"),
    "long bypass": (TEXT.replace("bypass_max_h = 8.0", "bypass_max_h = 24.0"), "bypass_max_h is at most 8"),
    "no engine table": (TEXT.replace("[engine]", "[motor]"), "unknown table 'motor'"),
    "nothing at all": ("", "interlock: table missing"),
    "not TOML": ("]]", "not a limits file"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_file_is_refused_with_the_reason(name):
    text, reason = BAD[name]
    assert text != TEXT
    with pytest.raises(LimitsError, match=re.escape(reason)):
        parse(text.encode())


def test_all_reasons_come_at_once():
    text = changed("DOOR", "latch = true", "latch = false").replace('["BEAM_OFF", "MOTION_STOP"]', "[]", 1)
    with pytest.raises(LimitsError) as caught:
        parse(text.encode(), "plant.toml")
    assert len(caught.value.reasons) >= 2
    assert str(caught.value).startswith("plant.toml: ")
    assert all(reason in str(caught.value) for reason in caught.value.reasons)


def test_bytes_that_are_not_text_are_refused():
    with pytest.raises(LimitsError):
        parse(b"\xff\xfe")


def test_the_shipped_file_loads_and_is_identified_by_its_bytes():
    limits = load()
    assert limits.sha256 == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert limits.row("RING_ANGLE").params["limit"] == 200
    assert {row.klass for row in limits.rows} == {"PERS", "PAT", "MACH", "OPS"}
    with pytest.raises(KeyError):
        limits.row("NO_SUCH_ROW")


def test_every_input_that_a_row_names_is_in_the_register_map():
    assert {name for row in load().software for name in row.inputs} <= SIGNALS.keys()


def test_a_signature_is_asked_for_when_somebody_can_verify_it(tmp_path):
    path = tmp_path / "limits.toml"
    path.write_text(TEXT, encoding="utf-8")
    digest = hashlib.sha256(TEXT.encode()).hexdigest()

    def verify(sha256: str, signature: str) -> bool:
        return (sha256, signature) == (digest, "signed by two")

    assert load(path).signature == ""
    with pytest.raises(LimitsError, match="signature"):
        load(path, verify)
    path.with_suffix(".toml.sig").write_text("signed by nobody\n", encoding="ascii")
    with pytest.raises(LimitsError, match="signature"):
        load(path, verify)
    path.with_suffix(".toml.sig").write_text("signed by two\n", encoding="ascii")
    assert load(path, verify).signature == "signed by two"
    path.write_text(TEXT.replace("limit = 200", "limit = 900"), encoding="utf-8")
    with pytest.raises(LimitsError, match="signature"):
        load(path, verify)


def test_the_table_in_the_docs_is_that_of_the_file(tmp_path, capsys):
    copy = tmp_path / "interlocks.md"
    copy.write_text(DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["--update", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == DOCS.read_text(encoding="utf-8"), "run: make docs"
    assert main(["--markdown"]) == 0
    assert capsys.readouterr().out == markdown(load())
    assert main([]) == 2


def test_each_row_is_in_the_table():
    table = markdown(load())
    for row in load().rows:
        assert f"|{row.code}|{row.id}|{row.klass}|" in table
