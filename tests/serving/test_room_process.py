"""`serve` as processes: one for a room, that survives a stall, and whose death in beam the next one settles."""

import asyncio
import json
import os
import signal

import pytest
from room_process import LineConsole, RoomProcess
from typer.testing import CliRunner

from controller.cli import app
from controller.roles import Role

pytestmark = [pytest.mark.xdist_group("wires"), pytest.mark.timeout(200)]


@pytest.fixture
def serve(tmp_path):
    started = []

    def start(*arguments):
        started.append(RoomProcess(tmp_path / "s", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_a_room_outlives_a_stall_and_its_death_in_beam_is_settled_by_the_next_process(serve, tmp_path):
    first = serve("--no-console", "--speed", "10")
    first.until_said("example plan")

    async def to_beam():
        console = LineConsole(tmp_path / "s")
        await console.start()
        assert "POWER_UP" in " ".join(alarm["text"] + alarm["id"] for alarm in console.view["alarms"]), (
            "it stood from the start"
        )
        await console.control()
        await console.do("reset_interlock")
        plans = (await console.link.ask("plans")).value
        name = (await console.do("load_plan", plan_id=plans[0]["id"], fraction=1))["treatment"]
        for kind in ("identify", "positioned"):
            await console.answer(kind)
        os.kill(first.process.pid, signal.SIGSTOP)  # the clock of the computer goes on, that of the room does not
        await asyncio.sleep(0.7)
        os.kill(first.process.pid, signal.SIGCONT)
        await console.answer("beam_on")
        await console.until(lambda: (console.view["delivery"]["counts1"] or 0) > 0)  # in its first grant: nothing is done yet
        first.kill()
        await console.close()
        return plans[0]["id"], name

    twice = CliRunner().invoke(app, ["serve", "--no-console", "--state", str(tmp_path / "s")])
    assert twice.exit_code == 2
    assert f"is served already by process {first.process.pid}" in twice.stderr
    plan, name = asyncio.run(to_beam())
    assert "LOOP_STALL" not in first.said()

    second = serve("--no-console", "--speed", "10")
    second.until_said("stands by")

    async def settle():
        console = LineConsole(tmp_path / "s", actor="Petra", role=Role.PHYSICIST)
        await console.start()
        await console.control()
        await console.until(lambda: all(device["connected"] for device in console.view["devices"]))
        listed = (await console.link.ask("treatments")).value
        await console.until(lambda: any(name in alarm["text"] for alarm in console.view["alarms"]))
        value = await console.do("reconcile", treatment=name)
        assert value["status"] == "locked", "the delivery unit died with its room: nobody knows what the open grant gave"
        value = await console.do("reconcile", treatment=name, reason="a phantom")
        assert value["status"] == "recovered"
        await console.do("give_control")
        operator = LineConsole(tmp_path / "s", name="desk-2")
        await operator.start()
        await operator.control()
        refused = await operator.send("load_plan", plan_id=plan, fraction=1)
        assert not refused.accepted and "partial in the ledger" in refused.reason
        refused = await operator.send("load_plan", plan_id=plan)
        assert not refused.accepted and "what is left of fraction 1" in refused.reason and "remainder" in refused.hint
        again = await operator.do("load_plan", plan_id=plan, remainder=True)
        assert (again["fraction"], again["remainder"]) == (1, True)
        await operator.do("unload_plan")
        for one in (console, operator):
            await one.close()
        return listed, again["treatment"]

    listed, again = asyncio.run(settle())
    assert [row["status"] for row in listed if row["id"] == name] == ["cut_off"]
    assert again == name
    assert second.end() == 0
    assert not (tmp_path / "s" / "run" / "G1.sock").exists()


def test_a_console_that_dies_is_started_again_where_it_was_and_ends_with_the_room(serve, tmp_path):
    room = serve("--port", "0")
    room.until_said("console: http")
    file = tmp_path / "s" / "run" / "console.json"
    before = json.loads(file.read_text())
    os.kill(before["pid"], signal.SIGKILL)

    async def back():
        deadline = asyncio.get_running_loop().time() + 60
        while True:
            try:
                now = json.loads(file.read_text())
                if now["pid"] != before["pid"]:
                    return now
            except (OSError, ValueError):
                pass
            assert asyncio.get_running_loop().time() < deadline, room.said()
            await asyncio.sleep(0.1)

    after = asyncio.run(back())
    assert after["port"] == before["port"]
    assert room.said().count("the console process ended by itself (SIGKILL)") == 1
    assert room.end() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(after["pid"], 0)


def test_a_room_that_was_killed_is_served_again_at_the_same_port_at_once(serve, tmp_path):
    first = serve("--port", "0")
    first.until_said("console: http")
    before = json.loads((tmp_path / "s" / "run" / "console.json").read_text())
    os.kill(first.process.pid, signal.SIGKILL)
    again = serve("--port", str(before["port"]))
    again.until_said("console: http")
    after = json.loads((tmp_path / "s" / "run" / "console.json").read_text())
    assert after["port"] == before["port"] and after["pid"] != before["pid"]
    assert again.end() == 0


def test_what_serve_refuses_is_told_before_anything_starts(tmp_path):
    run = CliRunner()
    wrong = ["--speed", "max", "--seed", "-1", "--staff", "lazy", "--tls-cert", "x"]
    told = run.invoke(app, ["serve", *wrong, "--state", str(tmp_path / "s")])
    assert told.exit_code == 2
    for words in ("--speed max", "--seed -1", "staff 'lazy'", "belong together"):
        assert words in told.stderr
    assert not (tmp_path / "s").exists()
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"no plan")
    told = run.invoke(app, ["up", str(bad), "--directory", str(tmp_path / "up")])
    assert told.exit_code == 2
    assert not (tmp_path / "up").exists(), "a bad plan is refused before the plant starts"
