"""The same seed gives the same integers: events in ns, journal bytes, spots; also in another process with other hash seeds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from stage import Stage, treat

from controller.record.event_file import event_line
from controller.record.spots import build_spots

HERE = Path(__file__).parent


def trace(run: Stage) -> dict[str, str]:
    """Digests of everything that a run leaves behind, by what it is."""
    events = b"".join(event_line(event) for event in run.events)
    truth = "".join(f"{e.t_ns} {e.source} {e.kind}\n" for e in run.truth)
    pieces = b"".join(p.pieces.tobytes() for beam in run.result.outcome.beams for p in beam.passes)
    table = build_spots(run.result.outcome.beams)
    spots = b"".join(column.tobytes() for _, column in sorted(table.items())) if isinstance(table, dict) else table.tobytes()
    parts = {"events": events, "truth": truth.encode(), "journal": run.journal_bytes(), "pieces": pieces, "spots": spots}
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


def test_one_seed_twice(sphere):
    first, second = trace(treat(sphere, seed=5)), trace(treat(sphere, seed=5))
    assert first == second


def test_another_seed_differs(sphere):
    first, second = trace(treat(sphere, seed=5)), trace(treat(sphere, seed=6))
    assert all(first[name] != second[name] for name in ("truth", "journal", "pieces"))


def test_one_seed_in_another_process_with_other_hash_seeds(sphere):
    code = (
        f"import sys, json; sys.path.insert(0, {str(HERE)!r})\n"
        "from pathlib import Path\nfrom stage import treat\nfrom test_equal_runs import trace\n"
        f"print(json.dumps(trace(treat(Path({str(sphere)!r}), 'door-opened@beam+0.3', seed=5))))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert json.loads(ran.stdout) == trace(treat(sphere, "door-opened@beam+0.3", seed=5))
