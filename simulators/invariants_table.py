"""Writes docs/invariants.md from the catalogue: `python -m simulators.invariants_table`."""

from __future__ import annotations

import inspect
from pathlib import Path

from simulators.invariants import CATALOGUE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "invariants.md"

HEAD = """# What must be true of the plant

Each line is a function of `simulators/invariants.py`. It sees the simulated plant's truth, the prescription as a table of its
own and what the disk holds of the record; it never sees what the controller believes. All are judged in every simulated run,
and a violation ends the run with its name (exit code 4). `tests/scenarios` proves each by planted bugs that it catches.

Written by `python -m simulators.invariants_table`; a test compares.

| name | hazard | judged at | answer within | says |
|---|---|---|---|---|
"""


def page() -> str:
    """The page as it should be."""
    rows = []
    for rule in CATALOGUE.values():
        said = " ".join((inspect.getdoc(rule.check) or "").split())
        kinds = ", ".join(f"`{kind}`" for kind in sorted(rule.kinds)) or "every event"
        grace = f"{rule.grace_ns / 1e6:g} ms" if rule.grace_ns else "at once"
        rows.append(f"| {rule.name} | {rule.hazard} | {kinds} | {grace} | {said} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
