"""Runs the measures, prints a table and writes bench.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import (
    campaign_field,
    cli_start,
    console_stream,
    false_trips,
    interlock_matrix,
    interlock_reaction,
    message_round_trip,
    modbus_round_trip,
    page_ready,
    plan_load,
    protocol_overhead,
    pv_round_trip,
    real_wires,
    record_cost,
    same_trace,
    treat_speed,
)
from bench.figures import Bench, Figure, bench

MEASURES: dict[str, Callable[[Bench], list[Figure]]] = {
    "treat-speed": treat_speed.measure,
    "campaign-field": campaign_field.measure,
    "plan-load": plan_load.measure,
    "protocol-overhead": protocol_overhead.measure,
    "same-trace": same_trace.measure,
    "cli-start": cli_start.measure,
    "modbus-round-trip": modbus_round_trip.measure,
    "pv-round-trip": pv_round_trip.measure,
    "message-round-trip": message_round_trip.measure,
    "real-wires": real_wires.measure,
    "page-ready": page_ready.measure,
    "record-cost": record_cost.measure,
    "console-stream": console_stream.measure,
    "interlock-reaction": interlock_reaction.measure,
    "interlock-matrix": interlock_matrix.measure,
    "false-trips": false_trips.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 whether or not aims are met: a figure is a fact, and a busy machine no failure. 1 when traces differ."""
    parser = argparse.ArgumentParser(prog="bench", description="Measures of the program; see docs/measures.md.")
    parser.add_argument("measures", nargs="*", choices=[[], *MEASURES], help="which (default: all)")
    parser.add_argument("--repeat", type=int, default=5, help="samples per figure")
    parser.add_argument("--output", type=Path, default=Path("run/bench.json"))
    given = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    figures: list[Figure] = []
    with bench(given.repeat, console.print) as tools:
        for name in given.measures or MEASURES:
            with console.status(f"{name} ..."):
                figures += MEASURES[name](tools)
    console.print(_table(figures))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(_document(figures), indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {given.output}")
    return int(any(figure.met is False for figure in figures if figure.unit == "of 1"))


def _table(figures: Sequence[Figure]) -> Table:
    table = Table("measure", "median", "spread", "aim", "met", "note")
    for figure in figures:
        aim = "" if figure.aim is None else f"{'>=' if figure.at_least else '<='} {figure.aim:g} {figure.unit}"
        met = {True: "yes", False: "no", None: ""}[figure.met]
        spread = f"{min(figure.samples):.3g} .. {max(figure.samples):.3g}"
        table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", spread, aim, met, figure.note)
    return table


def _document(figures: Sequence[Figure]) -> dict[str, object]:
    return {
        "made_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("iongantry"),
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "load_average": os.getloadavg()[0],
        },
        "figures": [figure.as_data() for figure in figures],
    }


if __name__ == "__main__":
    raise SystemExit(main())
