"""From a device's change to the client that shows it: 20 clients of one console, 200 channels, 10 views a second.

A room without a plant (the tests' stand-in) and the console are processes of their own; one signal changes at times that have
nothing to do with the views, and its value is the time of the change, by the clock that all processes of a computer share. So a
sample holds the wait for the next view (up to 100 ms), encoding, both lines and the client's own reading. CPU is that of the
console process alone, with archive and metrics at work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.figures import Bench, Figure

CLIENTS, CHANNELS = 20, 200
AIM_P95_MS, AIM_CPU_PERCENT = 150.0, 50.0
WINDOW_S, SETTLE_S, READY_S = 6.0, 1.0, 60.0
STANDIN = Path(__file__).parents[1] / "tests" / "console" / "standin_room.py"
_MARK = re.compile(r'"name":"value_0","value":([0-9.]+)')


class Row(NamedTuple):
    """One repetition."""

    p50_ms: float
    p95_ms: float
    cpu_percent: float
    view_bytes: int
    pace_hz: float


def measure(bench: Bench) -> list[Figure]:
    """p50 and p95 of change to client, and the console's CPU, per repetition of some seconds."""
    state = bench.directory / "console"
    with _processes(state) as (url, pid):
        rows = asyncio.run(_watched(url, pid, state, bench.repeat))
    pace_hz = min(row.pace_hz for row in rows)
    note = f"{CLIENTS} clients, {CHANNELS} channels, {rows[0].view_bytes} bytes a view, {pace_hz:.1f} views a second to each"
    return [
        Figure("telemetry, change to client, median", "ms", tuple(row.p50_ms for row in rows), note=note),
        Figure("telemetry, change to client, p95", "ms", tuple(row.p95_ms for row in rows), AIM_P95_MS, note=note),
        Figure("CPU of the console process", "% of a core", tuple(row.cpu_percent for row in rows), AIM_CPU_PERCENT, note=note),
    ]


@contextlib.contextmanager
def _processes(state: Path) -> Iterator[tuple[str, int]]:
    """Room and console, both ended afterwards; the console's address and process number."""
    state.mkdir(parents=True)
    room = [sys.executable, str(STANDIN), "--state", str(state), "--channels", str(CHANNELS), "--marks", "--room-only"]
    console = [sys.executable, "-P", "-m", "controller.console.process", "--state", str(state), "--rooms", "G1"]
    with contextlib.ExitStack() as stack:
        for command in (room, console):
            process = subprocess.Popen(command)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        told = state / "run" / "console.json"
        deadline_s = time.monotonic() + READY_S
        while not told.exists():
            if time.monotonic() > deadline_s:
                raise RuntimeError("the console did not start")
            time.sleep(0.05)
        found = json.loads(told.read_text(encoding="utf-8"))
        yield found["url"], found["pid"]


async def _watched(url: str, pid: int, state: Path, repeat: int) -> list[Row]:
    import httpx

    words = (state / "first-passwords.txt").read_text(encoding="utf-8").splitlines()[1:]
    password = dict(line.split(" ", 1) for line in words)["observer"]
    async with httpx.AsyncClient(base_url=url, timeout=READY_S) as http:
        tokens = []
        for number in range(CLIENTS):
            body = {"name": "observer", "password": password, "console": f"bench-{number}"}
            tokens.append((await http.post("/api/login", json=body)).raise_for_status().json()["token"])
    samples: list[float] = []
    sizes: list[int] = []
    clients = [asyncio.create_task(_client(url, f"bench-{n}", token, samples, sizes)) for n, token in enumerate(tokens)]
    rows = []
    try:
        await asyncio.sleep(SETTLE_S)
        for _ in range(repeat):
            samples.clear()
            sizes.clear()
            cpu_s, began_s = _cpu_s(pid), time.monotonic()
            await asyncio.sleep(WINDOW_S)
            cpu_percent = 100.0 * (_cpu_s(pid) - cpu_s) / (time.monotonic() - began_s)
            if failed := [task for task in clients if task.done()]:
                failed[0].result()
            seen = sorted(samples)
            pace_hz = len(sizes) / CLIENTS / (time.monotonic() - began_s)
            rows.append(Row(1e3 * seen[len(seen) // 2], 1e3 * seen[int(0.95 * len(seen))], cpu_percent, max(sizes), pace_hz))
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return rows


async def _client(url: str, console: str, token: str, samples: list[float], sizes: list[int]) -> None:
    """A browser's part: it reads what comes, and notes how old the change is that it sees first."""
    from websockets.asyncio.client import connect

    last = ""
    async with connect(f"{url.replace('http', 'ws', 1)}/api/rooms/G1/stream", compression=None) as stream:
        await stream.send(json.dumps({"kind": "hello", "token": token, "console": console}))
        async for text in stream:
            if not str(text).startswith('{"kind":"view"'):
                continue
            sizes.append(len(text))
            found = _MARK.search(str(text))
            if found is None or found[1] == last:
                continue
            if last:
                samples.append(time.monotonic() - float(found[1]))
            last = found[1]


def _cpu_s(pid: int) -> float:
    """User and system time of a process, s; nan where the system does not tell (it is not Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
