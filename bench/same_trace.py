"""Whether the same seed gives the same run: journal, events and the integer columns of the spot table, bit by bit.

Two runs of each plan in this process and one in a process of its own with another hash seed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from bench.figures import IONGANTRY, Bench, Figure

SHAPES = ("sphere", "benchmark")


def measure(bench: Bench) -> list[Figure]:
    """Share of runs whose trace equals that of the first, per shape."""
    figures = []
    for shape in SHAPES:
        traces = []
        for _ in range(2):
            output = bench.treat(shape, outputs=True, seed=7).result.output
            if output is None:
                raise RuntimeError("no output was written")
            traces.append(trace(output))
        output = bench.directory / f"other-process-{shape}"
        command = [*IONGANTRY, "treat", str(bench.plan(shape)), "--seed", "7"]
        environment = {**os.environ, "PYTHONHASHSEED": "77"}
        subprocess.run([*command, "--output", str(output), "--json"], check=True, capture_output=True, env=environment)
        traces.append(trace(output))
        same = tuple(float(other == traces[0]) for other in traces)
        figures.append(Figure(f"same seed, same trace, {shape}", "of 1", (min(same),), 1.0, True, f"sha256 {traces[0][:16]}"))
    return figures


def trace(output: Path) -> str:
    """SHA-256 over everything of a run that must not depend on when or where it was made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    for name in ("journal.bin", "events.jsonl"):
        digest.update((output / name).read_bytes())
    table = pq.read_table(output / "spots.parquet")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_integer(column.type):
            digest.update(name.encode())
            digest.update(column.combine_chunks().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()
