"""How much faster than real time a treatment runs: simulated time over wall time of `treat`, 30,000 spots, `--speed max`.

Wall time is that of the whole call in a process that has treated once before (imports are paid once): plan read, checked and
scheduled, world built, treated with every invariant on, outcome summed up, and, in the second figure, every output written.
The third figure is a process of its own, from the command line to its end.
"""

from __future__ import annotations

import subprocess
import time

from bench.figures import IONGANTRY, Bench, Figure

AIM_WITHOUT, AIM_WITH = 500.0, 100.0
SHAPE = "benchmark"


def measure(bench: Bench) -> list[Figure]:
    """Simulated s per wall s: outputs off, outputs on, outputs on in a fresh process."""
    bench.treat(SHAPE, outputs=True)
    without: list[float] = []
    cpu: list[float] = []
    with_: list[float] = []
    fresh: list[float] = []
    for _ in range(bench.repeat):
        treated = bench.treat(SHAPE)
        without.append(treated.simulated_s / treated.wall_s)
        cpu.append(treated.simulated_s / treated.cpu_s)
        treated = bench.treat(SHAPE, outputs=True)
        with_.append(treated.simulated_s / treated.wall_s)
        fresh.append(treated.simulated_s / _process_s(bench, len(fresh)))
    simulated = f"{treated.simulated_s:.0f} s simulated, {treated.result.summary['beams'][0]['spots']} spots"
    return [
        Figure("treat, outputs off", "x real time", tuple(without), AIM_WITHOUT, True, simulated),
        Figure(
            "treat, outputs off, per CPU time", "x real time", tuple(cpu), None, True, "what the wall figure is on an idle core"
        ),
        Figure(
            "treat, outputs on", "x real time", tuple(with_), AIM_WITH, True, "record, spots, events, journal, summary, report"
        ),
        Figure("treat, outputs on, fresh process", "x real time", tuple(fresh), None, True, "interpreter and imports included"),
    ]


def _process_s(bench: Bench, number: int) -> float:
    output = bench.directory / f"fresh-{number}"
    command = [*IONGANTRY, "treat", str(bench.plan(SHAPE)), "--output", str(output), "--json"]
    start_s = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start_s
