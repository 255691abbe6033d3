"""How long `iongantry --help` takes, as a user waits for it: wall time of a fresh process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.figures import IONGANTRY, Bench, Figure

AIM_S = 0.3
COMMAND = Path(sys.executable).with_name("iongantry")


def measure(bench: Bench) -> list[Figure]:
    """Wall s, and that of an interpreter that does nothing, in turn."""
    command = [str(COMMAND), "--help"] if COMMAND.exists() else [*IONGANTRY, "--help"]
    ours, bare = [], []
    for _ in range(max(bench.repeat, 5)):
        ours.append(_wall_s(command))
        bare.append(_wall_s([sys.executable, "-c", "pass"]))
    note = f"of which the bare interpreter {sorted(bare)[len(bare) // 2]:.3f} s"
    return [Figure("iongantry --help", "s", tuple(ours), AIM_S, False, note)]


def _wall_s(command: list[str]) -> float:
    start_s = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start_s
