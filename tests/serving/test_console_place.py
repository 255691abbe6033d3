"""A room is served only where its console can stand: what the console would refuse is refused before the room begins."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli import app
from controller.console.process import check_place
from drivers.hal.errors import ConfigError


@pytest.mark.parametrize("command", ["serve", "up"])
def test_an_open_address_without_tls_is_refused_before_anything_begins(command: str, tmp_path: Path) -> None:
    where = ["--state", str(tmp_path / "state"), *(["--directory", str(tmp_path / "up")] if command == "up" else [])]
    done = CliRunner().invoke(app, [command, "--host", "0.0.0.0", *where])
    assert done.exit_code == 2
    assert "needs TLS" in done.output
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_port_that_is_taken_is_refused_before_anything_begins(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.standby.PLACE_S", 0.3)
    where = ["--state", str(tmp_path / "state"), *(["--directory", str(tmp_path / "up")] if command == "up" else [])]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = CliRunner().invoke(app, [command, "--port", str(taken.getsockname()[1]), *where])
    assert done.exit_code == 2
    assert "cannot listen at 127.0.0.1" in done.output
    assert not any(tmp_path.iterdir())


def test_a_port_that_becomes_free_in_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            taken.close()

    monkeypatch.setattr("controller.console.process.time.sleep", wait)
    check_place("127.0.0.1", port, None, None, 60.0)
    assert len(waits) == 3
    with pytest.raises(ConfigError, match="no port"):
        check_place("127.0.0.1", 70000, None, None, 60.0)
    assert len(waits) == 3, "what time does not heal is refused at once"


def test_a_number_that_is_no_port_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "70000", "--state", str(tmp_path / "state")])
    assert done.exit_code == 2
    assert "70000 is no port" in done.output
