"""A room is served only where its console can stand: what the console would refuse is refused before the room begins."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli import app


@pytest.mark.parametrize("command", ["serve", "up"])
def test_an_open_address_without_tls_is_refused_before_anything_begins(command: str, tmp_path: Path) -> None:
    where = ["--state", str(tmp_path / "state"), *(["--directory", str(tmp_path / "up")] if command == "up" else [])]
    done = CliRunner().invoke(app, [command, "--host", "0.0.0.0", *where])
    assert done.exit_code == 2
    assert "needs TLS" in done.output
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_port_that_is_taken_is_refused_before_anything_begins(command: str, tmp_path: Path) -> None:
    where = ["--state", str(tmp_path / "state"), *(["--directory", str(tmp_path / "up")] if command == "up" else [])]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = CliRunner().invoke(app, [command, "--port", str(taken.getsockname()[1]), *where])
    assert done.exit_code == 2
    assert "cannot listen at 127.0.0.1" in done.output
    assert not any(tmp_path.iterdir())


def test_a_number_that_is_no_port_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "70000", "--state", str(tmp_path / "state")])
    assert done.exit_code == 2
    assert "70000 is no port" in done.output
