"""What recording the wires costs a treatment, and how quick its replay is: CPU time with over without, same plan, in turn.

CPU time of all threads, so what the recorder's own thread packs and writes is in it. Virtual time is the hardest case: a
treatment of minutes is recorded in seconds.
"""

from __future__ import annotations

import time

from bench.figures import Bench, Figure

AIM_RATIO = 1.2
SHAPE = "sphere"


def measure(bench: Bench) -> list[Figure]:
    """Ratio of recording, and of replay."""
    from controller.admission import TreatOptions
    from controller.replay import run_replay
    from controller.treatment import run_treatment

    plan = bench.plan(SHAPE)
    bench.treat(SHAPE)
    recording, replaying = [], []
    entries = size = 0
    for number in range(bench.repeat):
        bare_s = bench.treat(SHAPE).cpu_s
        file = bench.directory / f"run-{number}.jsonl.gz"
        start_s = time.process_time()
        result = run_treatment(TreatOptions(plan=plan, record=file))
        recording.append((time.process_time() - start_s) / bare_s)
        start_s = time.process_time()
        replayed = run_replay(file)
        replaying.append((time.process_time() - start_s) / bare_s)
        if result.status != "complete" or not replayed.same:
            raise RuntimeError(f"{SHAPE}: ended {result.status}; {replayed.lines()[0]}")
        entries, size = len(replayed.recording.entries), file.stat().st_size
    note = f"{entries} entries, {size / max(entries, 1):.0f} bytes each"
    return [
        Figure("recording the wires", "CPU with / without", tuple(recording), AIM_RATIO, False, note),
        Figure("replay of a recording", "CPU of the run / of treat", tuple(replaying), None, False, "no simulators"),
    ]
