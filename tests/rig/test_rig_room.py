"""A real load encoder in a simulated room: the driver and the plant's model both see that it does not turn with the ring."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_rig import foreign_drives

sys.path.insert(0, str(Path(__file__).parents[1] / "site"))
from site_process import SiteProcess

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wires")]
PROGRAM = [sys.executable, "-m", "controller"]


def test_a_treatment_ends_where_a_real_encoder_does_not_turn_with_the_simulated_ring(tmp_path: Path) -> None:
    plan = tmp_path / "plan.dcm"
    shape = ["--shape", "sphere", "--diameter-mm", "20", "--depth-mm", "100", "--dose-gy", "0.5", "--angle", "5"]
    subprocess.run([*PROGRAM, "plan", *shape, "-o", plan], check=True, capture_output=True)
    site = SiteProcess(tmp_path, "--room", "G1", "--staff", "quick")
    try:
        with foreign_drives(["pair"]) as ttys:
            site.ready()
            assert site.room()["chain"]["standstill"]
            overlay = tmp_path / "overlay.toml"
            overlay.write_text(
                'simulation = "endpoints.toml"\n[devices.G1-load-encoder]\n'
                f'endpoint = "serial://{ttys["pair"]}?baudrate=115200"\n[rig]\nlocal_stop = "plug"\n',
                encoding="utf-8",
            )
            command = [*PROGRAM, "treat", plan, "--endpoints", overlay, "--state", tmp_path / "state"]
            command += ["--output", tmp_path / "out", "--operator", "console"]
            ran = subprocess.run(command, input="yes\n" * 5, capture_output=True, text=True, timeout=90, check=False)
            assert ran.returncode == 3, ran.stdout + ran.stderr
            assert "encoders differ by" in ran.stdout
            summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
            assert summary["beams"][0]["meterset_delivered_primary"] == 0
            room = site.room()
            assert not room["chain"]["standstill"]  # the model has heard the real encoder, and trusts its ring no more
            assert abs(room["gantry"]["angle_deg"]) < 1.0  # of the 5 deg asked for
    finally:
        site.end()
