"""What the operator sees while a fraction runs and when it is over: the state, the dose, and every cause with what to do."""

import io

import pytest
from rich.console import Console

from controller.console.progress import Picture, Progress, commission_line
from controller.console.verdict import TRIPS_SHOWN, verdict_lines
from drivers.hal.events import Event


class Stage:
    """Makes events one after another."""

    def __init__(self, take):
        self.take, self.seq = take, 0

    def __call__(self, kind, t_s=0.0, source="test", **data):
        self.seq += 1
        return self.take(Event(self.seq, round(t_s * 1e9), source, kind, data))


STARTED = {
    "plan_label": "Boost", "fraction": 3, "beams": [1, 2], "facility": "asan", "room": "G2", "simulated": True,
}  # fmt: skip
SELECTED = {"beam_number": 1, "name": "AP", "layers": 2, "spots": 40, "meterset": 200.0, "unit": "MU"}
ENDED = {"spots": 10, "meterset": 50.0, "spill": 1}


def drawn(picture, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(picture)
    return console.file.getvalue()


def test_the_panel_shows_room_beam_layer_dose_angle_state_and_spill():
    picture = Picture()
    stage = Stage(picture.take)
    stage("treatment.started", **STARTED)
    stage("beam.selected", 4.0, **SELECTED)
    stage("gantry.angle", 90.0, angle_deg=29.4)
    stage("room.state", 300.0, state="irradiating.beam_on", why="")
    stage("pass.started", 300.0, layer=1, energy_mev_u=280.5)
    stage("pass.ended", 301.5, **ENDED)
    text = drawn(picture)
    for words in (
        "SIMULATED  G2 of asan  Boost, fraction 3", "irradiating.beam_on", "1 AP   (1 of 2)", "29.40 deg", "2 of 2",
        "280.5 MeV/u", "spill 1", "10 of 40", "50.00 of 200.00 MU", "25 %", "301.5 s",
    ):  # fmt: skip
        assert words in text, words
    stage("beam.selected", 400.0, **{**SELECTED, "beam_number": 2, "name": "PA"})
    text = drawn(picture)
    assert "2 PA   (2 of 2)" in text and "0 of 40" in text and "280.5" not in text


def test_trips_stay_on_the_panel_with_value_and_limit():
    picture = Picture()
    stage = Stage(picture.take)
    stage("interlock.trip", id="POWER_UP", cause="just started")
    assert not picture.news
    stage("interlock.trip", 5.0, id="SPOT_POSITION", cause="off its place: 2.5 mm; limit 2 mm")
    stage("trip", 5.0, cause="chain.dose_1", message="dose unit 1 is not healthy", value="open", limit="closed")
    text = drawn(picture)
    assert "TRIP SPOT_POSITION: off its place: 2.5 mm; limit 2 mm" in text
    assert "TRIP chain.dose_1: dose unit 1 is not healthy (open; limit closed)" in text
    for _ in range(30):
        stage("trip", 6.0, cause="x", message="[red]not markup[/]", value="", limit="")
    assert "[red]not markup[/]" in drawn(picture) and len(drawn(picture).splitlines()) < 20
    assert all(len(line) <= 60 for line in drawn(picture, width=60).splitlines())


def test_plain_lines_tell_states_layers_and_news_and_leave_routine_out():
    stream = io.StringIO()
    with Progress(stream) as listener:
        stage = Stage(listener)
        stage("treatment.started", **STARTED)
        stage("room.bits", bits=3)
        stage("beam.selected", 4.0, **SELECTED)
        stage("room.state", 300.0, state="irradiating.beam_on", why="")
        stage("room.state", 300.1, state="irradiating.held", why="tuning")
        stage("room.state", 300.2, state="irradiating.beam_on", why="")
        stage("pass.started", 300.2, layer=0, energy_mev_u=280.5)
        stage("pass.ended", 301.5, **ENDED)
        stage("room.state", 302.0, state="irradiating.held", why="spill end")
        stage("override", 302.0, name="machine", reason="moved", detail="x")
        stage("fault.planted", 303.0, name="estop", value=0.0)
    assert stream.getvalue().splitlines() == [
        "      0.0 s  SIMULATED  G2 of asan  Boost, fraction 3",
        "      4.0 s  beam 1 AP: 2 layers, 40 spots, 200 MU",
        "    300.0 s  irradiating.beam_on",
        "    301.5 s  beam 1 AP  layer 1/2  280.5 MeV/u  spots 10/40  50/200 MU  spill 1",
        "    302.0 s  irradiating.held: spill end",
        "    302.0 s  overridden: machine: moved",
        "    303.0 s  fault planted: estop",
    ]


def test_commissioning_says_what_it_measured_row_by_row():
    row = {
        "species": "He", "energy_mev_u": 56.0, "port_deg": 90.0, "released": False, "error_mean_mm": 0.2, "error_max_mm": 0.41,
        "counts_rel": 0.0061,
    }  # fmt: skip
    line = commission_line(Event(1, 0, "commission.F1", "commission.row", row))
    assert line.startswith("F1 at 90 deg  He") and "0.410 mm at most" in line and "0.61 %" in line and "WITHDRAWN" in line
    assert commission_line(Event(1, 0, "x", "device.up", {})) == ""


@pytest.fixture(scope="module")
def ended(made, tmp_path_factory):
    """A field that the dose monitors ended."""
    from controller.admission import TreatOptions
    from controller.treatment import run_treatment

    path = tmp_path_factory.mktemp("ended") / "plan.dcm"
    path.write_bytes(made())
    return run_treatment(TreatOptions(plan=path, faults=("mu2-gain:0.5@beam",)))


def test_the_verdict_names_cause_value_limit_and_what_to_do(ended):
    lines = list(verdict_lines(ended.outcome, ended.summary))
    assert lines[0] == "ended early (MACHINE; simulated)" and lines[1].startswith("  because: ")
    assert any("of " in line and "MU in" in line and line.startswith("  beam 1") for line in lines)
    trips = [line for line in lines if line.startswith(("  first out", "  then"))]  # unit and chain tell of it within ms
    assert [line.startswith("  first out") for line in trips] == [True] + [False] * (len(trips) - 1)
    (unit,) = [line for line in trips if "monitors disagree (grant 1, row " in line]
    assert unit.endswith("; physicist: reconcile, then reset the unit")
    assert any("limit" in line and line.rstrip().endswith(".") for line in trips), lines  # an interlock's advice


def test_a_long_list_of_trips_is_cut_and_says_so(ended):
    many = {**ended.summary, "interlocks": ended.summary["interlocks"][:1] * 40}
    lines = list(verdict_lines(ended.outcome, many))
    assert sum("first out" in line for line in lines) == TRIPS_SHOWN
    assert lines[-1] == f"  and {40 - TRIPS_SHOWN} more, see the report"
