"""A whole field over real wires, against the wall clock: what processes, kernels and our waiting add to the machine's time.

Simulators (plant, IOC, broker, interlock system) and controller are processes of their own, joined by a pty, TCP, Channel
Access and MQTT; the oracle that says `machine_limited_s` sits in the simulator process. One sample per treatment, each about
as long as the field, so only a few are taken.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from bench.figures import IONGANTRY, Bench, Figure

AIM_PERCENT = 2.0
SHAPE = "sphere"
SAMPLES_MAX = 3
READY_S = 60.0


def measure(bench: Bench) -> list[Figure]:
    """Percent of irradiation time over `machine_limited_s`, per treatment, and how late the controller's loop was."""
    plan = bench.plan(SHAPE)
    samples, late_ms, seconds = [], [], 0.0
    for number in range(min(bench.repeat, SAMPLES_MAX)):
        directory = bench.directory / f"wires-{number}"
        directory.mkdir()
        summary = _treated(directory, plan, number)
        (beam,) = summary["beams"]
        samples.append(100.0 * (beam["irradiation_s"] / beam["machine_limited_s"] - 1.0))
        late_ms.append(summary["loop_lag_ms"]["p99"])
        seconds = beam["machine_limited_s"]
    note = f"a field of {seconds:.1f} s, {beam['layers']} layers; loop late by {max(late_ms):.1f} ms at p99"
    return [Figure("overhead over real wires", "%", tuple(samples), AIM_PERCENT, False, note)]


def _treated(directory: Path, plan: Path, seed: int) -> dict[str, object]:
    """One treatment; its summary. Raises RuntimeError unless it was delivered as prescribed."""
    endpoints = directory / "endpoints.toml"
    staged = ["--room", "G1", "--staff", "quick", "--route", "G1", "--seed", str(seed), "--directory", str(directory)]
    with (directory / "simulate.log").open("wb") as log:
        site = subprocess.Popen([*IONGANTRY, "simulate", *staged], stdout=log, stderr=log, start_new_session=True)
    try:
        deadline_s = time.monotonic() + READY_S
        while not endpoints.exists():
            if site.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError((directory / "simulate.log").read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.1)
        output = directory / "output"
        command = [*IONGANTRY, "treat", str(plan), "--endpoints", str(endpoints), "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
        return dict(json.loads((output / "summary.json").read_text(encoding="utf-8")))
    finally:
        site.send_signal(signal.SIGINT)
        site.wait(30)
