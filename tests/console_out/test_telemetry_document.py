"""docs/telemetry.md says what the code does: its tables are made from it, and its figures are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from shown_room import device, room_view, signal

from controller.console import alarms, archive, archive_query, telemetry_tables
from controller.console.metrics import Metrics
from controller.published_pvs import SILENT_S
from controller.published_pvs_table import Table

TEXT = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_code() -> None:
    for table in (telemetry_tables.signal_table(), telemetry_tables.list_table(), telemetry_tables.alarm_table()):
        assert table in TEXT


def test_every_metric_is_named() -> None:
    names = {family.name for family in Metrics(archive.Archive(Path("nowhere"))).describe()}
    text = Path(__file__).parents[2].joinpath("controller/console/metrics.py").read_text(encoding="utf-8")
    names |= set(re.findall(r'"iongantry(_[a-z_]+)"', text))
    assert len(names) > 15
    assert not [name for name in names if f"{name}" not in TEXT]


def test_every_variable_that_a_room_shows_is_in_the_table() -> None:
    view = room_view(devices=[device("G1-gantry", signal("angle", 1.0))], couch=[])
    names = {name.removeprefix("ASAN:G1:") for name, _ in Table().posts(view)}
    told = {name for name in names if f"| `{name}` |" in TEXT}
    assert names - told == {"GANTRY:ANGLE", "GANTRY:CONNECTED"}


def test_the_figures_are_those_of_the_code() -> None:
    assert (archive.FLUSH_S, archive.REPEAT_S, archive.RETENTION_DAYS, archive.RESERVE_BYTES) == (10.0, 10.0, 30, 1 << 30)
    assert (archive_query.HOLD_S, SILENT_S) == (25.0, 2.0)
    assert (alarms.SHELVED_MAX_S, alarms.ALARMS_MAX, alarms.SHOWN_MAX) == (8 * 3600.0, 1000, 200)
