"""Replays: a recorded treatment is the same again to the frame and nanosecond; what is changed is named at its place."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from pathlib import Path

import pytest
from stage import HURRIED, Stage, treat
from typer.testing import CliRunner

import controller.treatment
from controller.admission import Admitted
from controller.cli import app
from controller.delivery.layers import BeamDelivery
from controller.intake import Refused
from controller.replay import run_replay
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.devices.room_access import RoomAccessIO
from drivers.wire.tap.format import read_recording


@pytest.fixture(scope="module")
def recorded(turned, tmp_path_factory) -> Path:
    """A small treatment: the ring turns, six layers, 106 spots."""
    path = tmp_path_factory.mktemp("recorded") / "run.jsonl.gz"
    run = treat(turned, record=path)
    assert run.status == "complete"
    return path


def test_a_recorded_treatment_is_the_same_again(recorded: Path) -> None:
    result = run_replay(recorded)
    assert result.difference is None, result.lines()
    assert result.status == result.recorded_status == "complete"
    entries = read_recording(recorded).entries
    assert sum(result.matched.values()) == sum(entry.outward for entry in entries)  # everything was compared
    assert result.matched["write"] > 1000 and result.matched["put"] > 30 and result.matched["ask"] == 3
    assert result.lines()[0].startswith("no difference in ")


@pytest.mark.parametrize(
    ("faults", "status"),
    [
        (("estop@beam+0.3",), "partial"),
        (("unit-power-dip@beam+0.5",), "partial"),
        (("wire-silence:G1-safety@beam+0.3+0.5",), "complete"),
        (("wire-garbage:G1-motion@t=5+3", "wire-shuffle:epics", "wire-garbage:mqtt@t=6+20"), None),
        (("wire-disconnect:epics@beam+0.3",), "partial"),
    ],
    ids=str,
)
def test_a_run_with_faults_is_the_same_again(turned: Path, tmp_path: Path, faults, status) -> None:
    """What was planted then, in the plant or on the wires, is in what was recorded."""
    path = tmp_path / "run.jsonl.gz"
    run = treat(turned, *faults, record=path, seed=5)
    assert status is None or run.status == status
    for file in (path, as_on_real_wires(path, tmp_path)):
        result = run_replay(file)
        assert result.difference is None, result.lines()
        assert result.status == result.recorded_status


def test_a_run_that_somebody_stopped_is_stopped_again(turned: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "run.jsonl.gz"
    stops: list = []
    real = controller.treatment.stopping

    def stopping(by_signal):
        context = real(by_signal)
        entered = context.__enter__()
        stops.append(entered)
        return _Given(entered, context)

    def hook(stage: Stage) -> None:
        stage.world.plant.kernel.at(20_000_000_000, lambda _t: stops[-1]("SIGINT at the console"))

    with monkeypatch.context() as patched:
        patched.setattr(controller.treatment, "stopping", stopping)
        run = treat(turned, hook=hook, record=path)
    assert run.status == "partial" and run.termination == "OPERATOR"
    result = run_replay(path)
    assert result.difference is None, result.lines()
    assert result.status == "partial"


def test_a_room_that_is_disarmed_first_is_disarmed_first_again(turned: Path, tmp_path: Path, monkeypatch) -> None:
    """On real wires somebody may have left it armed: what is sent there before anything else belongs to the run."""
    path = tmp_path / "run.jsonl.gz"
    with monkeypatch.context() as patched:
        patched.setattr(Admitted, "on_wires", True)
        assert treat(turned, record=path).status == "complete"
    assert run_replay(path).difference is not None, "a simulated world in here was armed by nobody"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines.insert(1, json.dumps({"k": "fact", "name": "devices", "value": {}}))  # as a run on real wires tells where they were
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    for file in (path, as_on_real_wires(path, tmp_path)):
        result = run_replay(file)
        assert result.difference is None, result.lines()
        assert result.status == "complete"


class _Given:
    """A context whose value is known already."""

    def __init__(self, value, inner) -> None:
        self._value = value
        self._inner = inner

    def __enter__(self):
        return self._value

    def __exit__(self, *args):
        return self._inner.__exit__(*args)


# --- a change in the program is named at its place ---------------------------------------------------------------------


def test_one_register_written_differently_is_named(recorded: Path, monkeypatch) -> None:
    preset = RoomAccessIO.preset

    async def other(self, room_token, angle_deg, *rest):
        await preset(self, room_token, angle_deg + 0.5, *rest)

    monkeypatch.setattr(RoomAccessIO, "preset", other)
    found = run_replay(recorded).difference
    assert found is not None
    assert (found.wire, found.what) == ("G1-safety", "content")
    assert "write registers 129 to 137 = " in found.recorded
    assert "write values" in found.detail and "2500" in found.present and "2000" in found.recorded


def test_one_row_of_a_grant_is_named(recorded: Path, monkeypatch) -> None:
    submit = DeliveryUnitClient.submit

    async def other(self, grant):
        if grant.layer_index == 2:
            grant.x_um[3] += 1
        return await submit(self, grant)

    monkeypatch.setattr(DeliveryUnitClient, "submit", other)
    found = run_replay(recorded).difference
    assert found is not None
    assert (found.wire, found.what) == ("epics", "content")
    assert "ASAN:G1:DU:GRANT:SP" in found.recorded
    assert found.detail.startswith(f"word {14 + 5 * 3 + 1} (from 0) is ")
    grants = [e for e in read_recording(recorded).entries if e.kind == "put" and e.data["n"].endswith("GRANT:SP")]
    assert found.line == grants[2].line


def test_a_put_that_is_left_out_is_named(recorded: Path, monkeypatch) -> None:
    async def never(self, open_):
        """Do not tell the unit."""

    monkeypatch.setattr(DeliveryUnitClient, "set_gate", never)
    result = run_replay(recorded)
    found = result.difference
    assert found is not None
    gates = [e for e in read_recording(recorded).entries if e.kind == "put" and e.data["n"].endswith("GATE:SP")]
    assert (found.wire, found.line) == ("epics", gates[0].line)
    assert "GATE:SP" in found.recorded
    assert found.t_ns == gates[0].t_ns


def test_a_second_of_waiting_is_named_where_it_begins_to_show(recorded: Path, monkeypatch) -> None:
    run = BeamDelivery.run

    async def late(self, passes):
        await asyncio.sleep(1.0)
        return await run(self, passes)

    monkeypatch.setattr(BeamDelivery, "run", late)
    found = run_replay(recorded).difference
    assert found is not None
    assert found.wire == "epics" and found.what in ("missing", "time")
    entries = read_recording(recorded).entries
    ready = next(e.t_ns for e in entries if e.kind == "answer" and e.data["yes"] and e.t_ns > entries[-1].t_ns / 2)
    assert found.t_ns >= ready


# --- recordings of real wires ------------------------------------------------------------------------------------------


def as_on_real_wires(path: Path, folder: Path, seed: int = 1) -> Path:
    """The recording as a wall clock would have made it: another origin, and each time late by up to 3 ms."""
    rng = random.Random(seed)
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    lines[0]["clock"] = "wall"
    late_ns = last_ns = 0
    for data in lines:
        if "t" in data:
            late_ns = max(late_ns - 1_000_000, rng.randrange(3_000_000))
            last_ns = max(7_000_000_000 + data["t"] + late_ns, last_ns + 1)
            data["t"] = last_ns
    copy = folder / "wall.jsonl.gz"
    copy.write_bytes(gzip.compress(("\n".join(json.dumps(data) for data in lines) + "\n").encode()))
    return copy


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_times_that_jitter_are_no_difference(recorded: Path, tmp_path: Path, seed: int) -> None:
    result = run_replay(as_on_real_wires(recorded, tmp_path, seed))
    assert result.difference is None, result.lines()
    puts = sum(entry.kind == "put" for entry in read_recording(recorded).entries)
    assert (result.status, result.matched["put"], result.matched["ask"]) == ("complete", puts, 3)


def test_another_command_on_real_wires_is_named(recorded: Path, tmp_path: Path, monkeypatch) -> None:
    preset = RoomAccessIO.preset

    async def other(self, room_token, angle_deg, *rest):
        await preset(self, room_token, angle_deg + 0.5, *rest)

    monkeypatch.setattr(RoomAccessIO, "preset", other)
    found = run_replay(as_on_real_wires(recorded, tmp_path)).difference
    assert found is not None
    assert (found.wire, found.what) == ("G1-safety", "content")
    assert "2500" in found.present and "2000" in found.recorded


def test_a_command_left_out_or_added_on_real_wires_is_named(recorded: Path, tmp_path: Path, monkeypatch) -> None:
    wall = as_on_real_wires(recorded, tmp_path)
    submit, load_map = DeliveryUnitClient.submit, DeliveryUnitClient.load_map

    async def never(self, scanner_map):
        """Do not load it."""

    with monkeypatch.context() as patched:
        patched.setattr(DeliveryUnitClient, "load_map", never)
        found = run_replay(wall).difference
    assert found is not None and found.wire == "epics"
    assert "MAP:SP" in found.recorded and "MAP:SP" not in found.present

    async def twice(self, scanner_map):
        await load_map(self, scanner_map)
        await load_map(self, scanner_map)

    with monkeypatch.context() as patched:
        patched.setattr(DeliveryUnitClient, "load_map", twice)
        found = run_replay(wall).difference
    assert found is not None and "MAP:SP" in found.present

    async def other(self, grant):
        if grant.layer_index == 4:
            grant.counts1_max[0] -= 1
        return await submit(self, grant)

    monkeypatch.setattr(DeliveryUnitClient, "submit", other)
    found = run_replay(wall).difference
    assert found is not None and "GRANT:SP" in found.recorded
    assert found.detail.startswith(f"word {14 + 3} (from 0) is ")


# --- files that cannot be replayed -------------------------------------------------------------------------------------


def changed(path: Path, folder: Path, change) -> Path:
    """A copy whose lines were changed."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    copy = folder / "changed.jsonl.gz"
    copy.write_bytes(gzip.compress(("\n".join(change(lines)) + "\n").encode()))
    return copy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[:-1], "without its end line"),
        (lambda lines: [lines[0].replace('"version": 1', '"version": 9'), *lines[1:]], "format version 9"),
        (lambda lines: [*lines[:50], lines[50][:-5], *lines[51:]], "line 51 is no JSON"),
        (lambda lines: [line for line in lines if '"name": "plan"' not in line], "holds no plan"),
        (lambda lines: [*lines[:-1], json.dumps({**json.loads(lines[-1]), "violation": True})], "broke an invariant"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(recorded: Path, tmp_path: Path, change, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        run_replay(changed(recorded, tmp_path, change))


def test_exit_codes_of_replay(recorded: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    same = runner.invoke(app, ["replay", str(recorded), "--json"])
    assert same.exit_code == 0
    assert json.loads(same.output)["same"] is True

    def shift(lines):
        """One recorded put has another value."""
        index = next(i for i, line in enumerate(lines) if '"k":"put"' in line and "CYCLE:SP" in line)
        return [*lines[:index], lines[index].replace('"i":', '"i":1'), *lines[index + 1 :]]

    other = runner.invoke(app, ["replay", str(changed(recorded, tmp_path, shift))])
    assert other.exit_code == 3
    assert "first difference at" in other.output and "CYCLE:SP" in other.output
    bad = runner.invoke(app, ["replay", str(tmp_path / "nothing.gz")])
    assert bad.exit_code == 2
    assert "No such file" in bad.output + bad.stderr


def test_a_recording_is_never_written_over(turned: Path, recorded: Path) -> None:
    with pytest.raises(Refused, match="is there already"):
        treat(turned, record=recorded, pace=HURRIED)
