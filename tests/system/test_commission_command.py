"""`commission` measures, signs and writes; a treatment then uses what was measured, and nobody else's rows are lost."""

import json

import pytest
from outputs import Treated
from typer.testing import CliRunner

from controller.admission import TreatOptions
from controller.beam.library_file import load_library
from controller.cli import app
from controller.treatment import run_treatment
from drivers.hal.errors import DataError
from drivers.hal.facility import load_facility


@pytest.fixture
def run():
    def call(*arguments):
        result = CliRunner().invoke(app, ["commission", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def test_a_room_is_commissioned_into_the_state_and_treats_with_it(run, made, tmp_path):
    state = tmp_path / "state"
    code, out, err = run("--room", "G1", "--species", "C", "--nodes", "4", "--seed", "77", "--state", state)
    assert (code, err) == (0, "")
    rows = out.splitlines()
    assert len(rows) == 5 and all("released" in row and "mm at most" in row for row in rows[:4])
    assert "4 rows measured, 0 withdrawn" in rows[4] and str(state / "library.json") in rows[4]

    facility = load_facility("asan")
    own, shipped = load_library(facility, state / "library.json", state / "keys"), load_library(facility)
    assert own.version == shipped.version + 1 and own.signed_by != shipped.signed_by
    for symbol, room, energy in (("C", "G1", 430.0), ("C", "G1", 250.0), ("C", "G1", 60.5)):
        mine, theirs = own.lookup(symbol, energy, room, 0.0), shipped.lookup(symbol, energy, room, 0.0)
        assert mine.counts1_per_ion == pytest.approx(theirs.counts1_per_ion, rel=5e-3)
        assert mine.scanner_map.xx_a_mm == pytest.approx(theirs.scanner_map.xx_a_mm, rel=2e-3)
        assert mine.dipole_a == pytest.approx(theirs.dipole_a, rel=1e-3)
    assert own.lookup("Ne", 300.0, "F1", 90.0).counts1_per_ion == shipped.lookup("Ne", 300.0, "F1", 90.0).counts1_per_ion
    assert len(own.rows) == len(shipped.rows) - 16 + 4

    (tmp_path / "plan.dcm").write_bytes(made(diameter_mm=8.0))
    done = Treated(run_treatment(TreatOptions(plan=tmp_path / "plan.dcm", output=tmp_path / "out", state=state)))
    assert done.status == "complete"

    code, out, _ = run("--room", "F1", "--species", "C", "--nodes", "2", "--state", state, "--json")
    told = json.loads(out)
    assert (code, told["version"], len(told["rows"])) == (0, own.version + 1, 4)
    assert {row["port_deg"] for row in told["rows"]} == {0.0, 90.0}
    assert (state / f"library-{own.version}.json").exists()
    assert load_library(facility, state / "library.json", state / "keys").signed_by == own.signed_by


def test_a_library_in_a_file_is_trusted_by_nobody_who_has_not_its_key(run, tmp_path):
    file = tmp_path / "new" / "library.json"
    assert run("--room", "F1", "--species", "C", "--nodes", "2", "-o", file)[0] == 0
    facility = load_facility("asan")
    assert load_library(facility, file, file.parent / "keys").version == 2
    with pytest.raises(DataError, match="not trusted"):
        load_library(facility, file)
    code, _, err = run("--room", "F1", "--species", "C", "--nodes", "2", "-o", file)
    assert code == 2 and "is there already" in err


def test_everything_wrong_is_told_at_once(run, tmp_path):
    code, out, err = run("--room", "G9", "--species", "Fe", "--nodes", "1", "--seed", "-1")
    assert (code, out) == (2, "")
    for words in ("--room G9", "--species Fe", "--nodes 1", "--seed -1", "either --state DIR or --output FILE"):
        assert words in err
    code, out, _ = run("--facility", "nix", "--state", tmp_path / "s", "--json")
    assert code == 2 and "no facility 'nix'" in json.loads(out)["reasons"][0]
    assert list(tmp_path.iterdir()) == []
