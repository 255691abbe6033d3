"""Limits of the interlocks that nobody signed: a simulated room runs with them, and says so where people look."""

import shutil
import signal

import pytest
from served import serving

from controller.interlock_rows import unsigned_limits
from controller.standby import Serving, serve_room
from drivers.hal.facility import load_facility
from interlocks.matrix import SHIPPED


@pytest.fixture
def tampered(tmp_path, monkeypatch):
    """A copy of the limits with a word more than was signed."""
    copy = tmp_path / SHIPPED.name
    shutil.copy(SHIPPED, copy)
    shutil.copy(f"{SHIPPED}.sig", f"{copy}.sig")
    with copy.open("a", encoding="utf-8") as file:
        file.write("# tampered\n")
    monkeypatch.setattr("controller.interlock_rows.SHIPPED", copy)
    return copy


def test_changed_and_unsigned_limits_are_told_apart(tampered):
    assert "changed since" in unsigned_limits("asan")
    tampered.with_suffix(".toml.sig").unlink()
    assert "signature missing" in unsigned_limits("asan")
    assert "\n" not in unsigned_limits("asan")


def test_a_room_that_is_served_with_them_prints_one_line(tampered, state):
    said = []

    def say(line):
        said.append(line)
        if line.startswith("example plan"):
            signal.raise_signal(signal.SIGINT)

    assert serve_room(Serving("asan", load_facility("asan"), "G1", state, console=False), say) == []
    (line,) = [line for line in said if line.startswith("limits unsigned: ")]
    assert "changed since" in line and "a real one does not start" in line


def test_the_room_shows_it_as_a_banner_and_an_alarm(state, virtually):
    async def main():
        async with serving(state) as room:
            assert "LIMITS UNSIGNED" not in room.room.view().banners
            room.room.ground.limits_unsigned = "limits.toml: changed since"
            room.bus.emit("G1-interlocks", "limits.unsigned", error="limits.toml: changed since")
            view = room.room.view()
            assert view.banners == ["SIMULATED", "LIMITS UNSIGNED"]
            assert any("limits unsigned" in alarm.text and "changed since" in alarm.text for alarm in view.alarms)

    virtually(main())
