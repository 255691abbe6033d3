"""Where a room answers decides clock, operator and what may be asked; nothing falls back; all objections come at once."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from controller.cli import app
from controller.device_table import contributions, shown, survey
from controller.endpoints import locate
from drivers.hal.endpoints import EndpointMap, apply
from drivers.hal.facility import load_facility
from simulators import clock

STREAM, CHANNELS, MESSAGES = "tcp://127.0.0.1:1502", "ca://127.0.0.1:5064", "mqtt://127.0.0.1:1883"
WIRES = {"stream": STREAM, "channels": CHANNELS, "messages": MESSAGES}


@pytest.fixture(scope="module")
def asan():
    return load_facility("asan")


HEAD = 'backdoor = "http://127.0.0.1:1"\ntoken = "x"\n'


def written(tmp_path: Path, facility, *, real=(), leave_out=(), head=HEAD, room="G1") -> Path:
    """An endpoint file for a room; `real` names devices that no simulator answers for."""
    lines = [head]
    for name, device in facility.devices_of(room).items():
        if name not in leave_out:
            lines.append(f'[devices.{name}]\nendpoint = "{WIRES[device.wire]}"\nsimulated = {str(name not in real).lower()}\n')
    path = tmp_path / "endpoints.toml"
    path.write_text("".join(lines))
    return path


def test_a_simulated_room_has_a_scripted_operator_and_the_simulators_clock(asan, tmp_path):
    path = written(tmp_path, asan, head='backdoor = "http://127.0.0.1:1"\ntoken = "x"\nspeed = 2.0\n')
    where, reasons = locate(path, asan, "G1", factor=None)
    assert not reasons
    assert where.operator == "scripted"
    assert where.simulated
    assert where.endpoints.speed == 2.0
    assert {d.endpoint for d in where.facility.devices_of("G1").values()} == set(WIRES.values())


def test_where_nobody_is_treated_no_state_is_asked_for(asan, tmp_path):
    path = written(tmp_path, asan, real=["G1-imager"])
    assert locate(path, asan, "G1", factor=None)[1]
    assert not locate(path, asan, "G1", factor=None, treats=False)[1]


def test_a_room_with_one_real_sensor_has_a_person_and_says_simulated(asan, tmp_path):
    where, reasons = locate(written(tmp_path, asan, real=["G1-imager"]), asan, "G1", factor=1.0, state=tmp_path)
    assert not reasons
    assert where.real == ("G1-imager",)
    assert where.simulated
    assert where.operator == "console"


def test_nothing_falls_back_to_a_simulation(asan, tmp_path):
    _, (reason,) = locate(written(tmp_path, asan, leave_out=["G1-magnets", "G1-couch"]), asan, "G1", factor=None)
    assert "G1-couch, G1-magnets" in reason
    assert "falls back" in reason


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"factor": 3.0}, "--speed 3"),
        ({"operator": "scripted"}, "--operator scripted"),
        ({"lifted": {"machine"}}, "--override machine"),
        ({"state": None}, "--state"),
    ],
)
def test_what_a_real_device_forbids(asan, tmp_path, asked, word):
    path = written(tmp_path, asan, real=["G1-imager"])
    _, reasons = locate(path, asan, "G1", **{"factor": 1.0, "state": tmp_path, **asked})
    assert any(word in reason for reason in reasons)


def test_a_real_room_refuses_a_library_of_a_simulated_plant_and_any_other_clock(asan, tmp_path):
    every = tuple(asan.devices_of("G1"))
    path = written(tmp_path, asan, real=every, head="speed = 2.0\n")
    library = SimpleNamespace(origin="simulated")
    where, reasons = locate(path, asan, "G1", factor=None, state=tmp_path, library=library)
    assert not where.simulated
    assert any("library was measured on a simulated plant" in reason for reason in reasons)
    assert any("speed 2" in reason for reason in reasons)


def test_faults_and_scripted_people_need_a_simulator_process(asan, tmp_path):
    path = written(tmp_path, asan, head="")
    _, reasons = locate(path, asan, "G1", factor=None, operator="scripted", faults=True)
    assert any("--fault" in reason for reason in reasons)
    assert any("--operator" in reason for reason in reasons)


def test_which_permits_are_real(asan):
    real_chain = EndpointMap.model_validate({"devices": {"G1-safety": {"endpoint": STREAM}}})
    assert contributions(apply(asan, real_chain), "G1") == {"A": True, "B": False, "R": True}
    assert contributions(asan, "G1") == {"A": False, "B": False, "R": False}


def test_every_device_of_a_simulated_room_is_good_and_says_who_it_is(asan):
    found = []

    async def look():
        found.append(await survey(asan, None, "G1"))

    clock.run(look())
    (table,) = found
    assert not table.silent
    assert {row.device for row in table.rows} >= set(asan.devices_of("G1"))
    assert {row.quality for row in table.rows} <= {"good", ""}
    angle = next(row for row in table.rows if (row.device, row.signal) == ("G1-gantry", "angle"))
    assert angle.simulated
    assert angle.unit == "deg"
    assert abs(float(angle.value)) < 0.1


def test_a_device_that_is_not_what_it_should_be_is_named(asan):
    devices = {**asan.devices, "G1-couch": asan.devices["G1-couch"].model_copy(update={"identity": "1009:C9"})}
    found = []

    async def look():
        found.append(await survey(asan.model_copy(update={"devices": devices}), None, "G1"))

    clock.run(look())
    assert found[0].silent == ("G1-couch",)
    (row,) = [row for row in found[0].rows if row.device == "G1-couch"]
    assert "product 0xC1" in row.error
    assert "expected vendor 0x1009, product 0xC9" in row.error


def test_values_are_shown_short():
    assert shown(True) == "yes"
    assert shown(3.14159265) == "3.14159"
    assert shown([1.0, 2.0, 3.0, 4.0, 5.0]) == "[1, 2, 3, 4, ...]"


def test_the_command_refuses_with_every_reason_and_no_traceback(tmp_path, asan):
    path = written(tmp_path, asan, leave_out=["G1-magnets"], real=["G1-couch"])
    done = CliRunner().invoke(app, ["devices", "--endpoints", str(path)])
    assert done.exit_code == 2
    assert "chain A" in done.stderr
    done = CliRunner().invoke(app, ["devices", "--endpoints", str(tmp_path / "absent.toml")])
    assert done.exit_code == 2
    assert "cannot be read" in done.stderr
    done = CliRunner().invoke(app, ["interlock", "--endpoints", str(written(tmp_path, asan))])
    assert done.exit_code == 2
    assert "--buttons" in done.stderr


def test_a_treatment_asks_all_that_a_listing_asks(asan, tmp_path):
    plan = tmp_path / "plan.dcm"
    assert CliRunner().invoke(app, ["plan", "--shape", "qa-grid", "-o", str(plan)]).exit_code == 0
    path = written(tmp_path, asan, leave_out=["G1-magnets"])
    done = CliRunner().invoke(
        app, ["treat", str(plan), "--endpoints", str(path), "--operator", "robot", "--output", str(tmp_path / "o")]
    )
    assert done.exit_code == 2
    assert "--operator 'robot'" in done.stderr
    assert "G1-magnets: no endpoint" in done.stderr
    assert not (tmp_path / "o").exists()
