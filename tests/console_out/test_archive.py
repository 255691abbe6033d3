"""What rooms showed can be looked at a month later: no spike is smoothed away, no file torn; a full disk harms nothing."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import errno
import json
import os
import signal as signals
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shown_room import START, as_bytes, beam, device, room_view, signal, treatment

from controller.console import archive as archive_module
from controller.console.archive import FLUSH_S, RESERVE_BYTES, WAITING_MAX, Archive
from controller.console.archive_files import HOUR_US, PARTS_MAX, SCHEMA, US_PER_S, Files, Rows, found_in
from controller.console.archive_query import HOLD_S, POINTS_MAX, HistoryView, history
from drivers.hal.errors import DataError

T0_US = round(START.timestamp() * US_PER_S)


@contextlib.asynccontextmanager
async def archiving(folder: Path, **more: Any) -> AsyncIterator[Archive]:
    archive = Archive(folder, reserve_bytes=0, **more)
    archive.start()
    try:
        yield archive
    finally:
        await archive.close()


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not ready():  # noqa: ASYNC110 - a thread makes it ready
            await asyncio.sleep(0.005)


def files_in(root: Path, pattern: str = "*.parquet") -> list[Path]:
    return sorted(root.rglob(pattern))


def angle_view(number: int, after_s: float, angle_deg: float | None, **more: Any) -> bytes:
    shown = device("G1-gantry", signal("angle", angle_deg, "deg", **more))
    return as_bytes(room_view(number, after_s, devices=[shown]))


def asked(archive: Archive, name: str, length_s: float = 3600.0, points: int = 600, since_s: float = 0.0) -> HistoryView:
    begin = START + timedelta(seconds=since_s)
    return archive.query("G1", name, begin, begin + timedelta(seconds=length_s), points)


async def test_what_a_room_showed_is_in_a_parquet_dataset_that_others_read(tmp_path: Path) -> None:
    async with archiving(tmp_path) as archive:
        for number in range(20):
            archive.take_view(angle_view(number, 0.1 * number, 30.0 + (number == 7)))
    table = ds.dataset(tmp_path, partitioning="hive").to_table()
    assert {"date", "hour", "t_utc", "room", "signal", "value", "text", "quality", "simulated"} <= set(table.column_names)
    angles = [row for row in table.to_pylist() if row["signal"] == "G1-gantry.angle"]
    assert [(row["t_utc"], row["value"], row["quality"]) for row in angles] == [
        (START, 30.0, "good"),
        (START + timedelta(seconds=0.7), 31.0, "good"),
        (START + timedelta(seconds=0.8), 30.0, "good"),
    ], "only changes"
    assert [row["text"] for row in table.to_pylist() if row["signal"] == "state"] == ["standby"]
    assert archive.lost == 0 and archive.rows == table.num_rows
    assert (tmp_path / "date=2031-01-01" / "hour=08").is_dir()


async def test_who_is_treated_is_not_archived(tmp_path: Path) -> None:
    async with archiving(tmp_path) as archive:
        archive.take_view(as_bytes(room_view(treatment=treatment(beam(1, "current"), current=1))))
    text = json.dumps(ds.dataset(tmp_path, partitioning="hive").to_table().to_pylist(), default=str)
    assert not [secret for secret in ("4711", "Doe", "Secret", "abcdef", "1.2.3.4") if secret in text]
    assert "treatment.meterset_planned" in text


async def test_history_reaches_up_to_now_and_over_a_restart(tmp_path: Path) -> None:
    async with archiving(tmp_path) as archive:
        archive.take_view(angle_view(1, 0.0, 10.0))
    async with archiving(tmp_path) as archive:
        archive.take_view(angle_view(2, 3.0, 20.0))
        archive.flush()
        archive.take_view(angle_view(3, 4.0, 30.0))
        shown = asked(archive, "G1-gantry.angle", 10.0)
        assert [v for v in shown.last if v is not None] == [10.0, 20.0, 30.0]
        assert (shown.unit, shown.kind, shown.raw, shown.simulated) == ("deg", "number", True, True)
        named = {(info.room, info.signal): (info.unit, info.kind) for info in archive.signals()}
        assert named["G1", "G1-gantry.angle"] == ("deg", "number")
        assert named["G1", "state"] == ("", "text")


async def test_signals_of_before_the_start_are_known(tmp_path: Path) -> None:
    async with archiving(tmp_path) as archive:
        archive.take_view(as_bytes(room_view(devices=[device("G1-old", signal("field", 1.0, "T"))])))
    async with archiving(tmp_path) as archive:
        archive.take_view(angle_view(2, 3.0, 20.0))
        await archive.close()
        assert {"G1-old.field", "G1-gantry.angle"} <= {info.signal for info in archive.signals()}


async def test_one_spike_in_a_day_is_seen_in_a_plot_of_twenty_points(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.prepare()
    rows = Rows()
    for number in range(36_000):
        rows.add(
            T0_US + number * 100_000, "G1", "x", 3.0 if number == 23_456 else 1.0 + number % 2 / 10, None, "A", "good", True
        )
    files.write(rows)
    shown = asked(Archive(tmp_path), "x", points=20)
    assert not shown.raw and len(shown.t_ms) == 20
    peak = 23_456 * 20 // 36_000
    assert [index for index, value in enumerate(shown.max) if value == 3.0] == [peak]
    assert set(shown.min) == {1.0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.0, -1.0, 2.5, None])), min_size=1, max_size=25),
    st.integers(0, 60),
    st.integers(1, 400),
    st.integers(1, 12),
)
def test_least_and_greatest_of_each_span_are_those_of_the_signal(
    steps: list[tuple[int, float | None]], before_s: int, length_s: int, points: int
) -> None:
    """Against the definition, instant by instant: a value holds until the next one, HOLD_S at most."""
    t_s = (np.cumsum([step_s for step_s, _ in steps]) - before_s).tolist()
    values = [value for _, value in steps]
    rows = Rows()
    for at_s, value in zip(t_s, values, strict=True):
        rows.add(at_s * US_PER_S, "G1", "x", value, None, "", "good", True)
    since_us, to_us = -round(HOLD_S * US_PER_S), length_s * US_PER_S
    shown = history("G1", "x", found_in(rows.table(), since_us, to_us), 0, to_us, points)

    def at(moment_s: float) -> float | None:
        index = bisect.bisect_right(t_s, moment_s) - 1
        held = index >= 0 and t_s[index] >= -HOLD_S and moment_s < t_s[index] + HOLD_S
        return values[index] if held else None

    moments = [0.5 * index for index in range(2 * length_s)]
    if shown.raw:
        for moment_s in moments:
            index = bisect.bisect_right(shown.t_ms, 1000 * moment_s) - 1
            assert (shown.last[index] if index >= 0 else None) == at(moment_s)
        return
    for index, (low, high) in enumerate(zip(shown.min, shown.max, strict=True)):
        begin_s, end_s = length_s * index / points, length_s * (index + 1) / points
        truth = [v for m in moments if begin_s <= m < end_s and (v := at(m)) is not None]
        if truth:
            assert low is not None and low <= min(truth)
            assert high is not None and high >= max(truth)
        assert {low, high} <= {*values, None}, "nothing is made up"


async def test_silence_is_a_gap_and_constancy_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr(archive_module, "now_ns", lambda: now_ns[0])
    async with archiving(tmp_path) as archive:
        for number in range(600):
            after_s = 0.1 * number if number < 300 else 170.0 + 0.1 * number  # 30 s of views, 170 s of none
            now_ns[0] = round(after_s * 1e9)
            archive.take_view(angle_view(number, after_s, 12.0))
        shown = asked(archive, "G1-gantry.angle", 300.0)
        assert shown.t_ms[1] - shown.t_ms[0] == 10_000, "told every 10 s while it does not change"
        gap_begins_ms = next(t for t, v in zip(shown.t_ms, shown.last, strict=True) if v is None)
        assert gap_begins_ms == T0_US // 1000 + 20_000 + round(1000 * HOLD_S)
        few = asked(archive, "G1-gantry.angle", 300.0, points=6)
        assert few.last == [12.0, None, None, None, 12.0, None] or few.last[2] is None
        state = asked(archive, "state", 300.0)
        assert state.text == ["standby", "", "standby", ""], "nobody knows the state of a room that shows nothing"
        assert state.quality[1] == "disconnected"


async def test_a_text_signal_is_told_as_its_changes(tmp_path: Path) -> None:
    async with archiving(tmp_path) as archive:
        for number, state in enumerate(["standby", "standby", "ready.armed", "irradiating.beam_on", "standby"]):
            archive.take_view(as_bytes(room_view(number, float(number), state=state)))
        shown = asked(archive, "state", 4.5)
        assert (shown.kind, shown.text) == ("text", ["standby", "ready.armed", "irradiating.beam_on", "standby"])
        later = asked(archive, "state", 1.0, since_s=2.5)
        assert later.text == ["ready.armed", "irradiating.beam_on"], "what held when the span began comes first"
        assert later.t_ms[0] == T0_US // 1000 + 2500
        short = asked(archive, "state", 4.5, points=2)
        assert (short.text, short.left_out) == (["irradiating.beam_on", "standby"], 2)


async def test_bad_quality_in_a_span_is_not_hidden_by_good(tmp_path: Path) -> None:
    async with archiving(tmp_path) as archive:
        for number in range(100):
            quality = "stale" if number == 50 else "good"
            archive.take_view(angle_view(number, 0.1 * number, float(number), quality=quality))
        assert "stale" in asked(archive, "G1-gantry.angle", 10.0, points=2).quality


async def test_arrays_and_what_is_no_number(tmp_path: Path) -> None:
    shown = [device("d", signal("i", [1.0, 2.5], "A"), signal("n", None), signal("b", True), signal("t", "on"))]
    async with archiving(tmp_path) as archive:
        archive.take_view(as_bytes(room_view(devices=shown)))
        archive.take_view(as_bytes(room_view(2, 1.0, devices=[device("d", signal("i", [1.0, 7.0], "A"), connected=False)])))
        assert asked(archive, "d.i.1", 2.0).last == [2.5, 7.0]
        assert asked(archive, "d.i.1", 2.0).quality == ["good", "disconnected"]
        assert asked(archive, "d.n", 2.0).last == [None]
        assert asked(archive, "d.b", 2.0).last == [1.0]
        assert asked(archive, "d.t", 2.0).text == ["on"]
        assert asked(archive, "heartbeat", 2.0).last == []
        assert asked(archive, "no such signal").t_ms == []


@pytest.mark.parametrize(
    "view", [b"", b"{}", b"[]", b"nonsense", b'{"room": "G1"}', b"[" * 100_000, b'"x"', b"null", b"\xff\xfe"]
)
async def test_what_is_no_view_is_counted_and_harms_nothing(tmp_path: Path, view: bytes) -> None:
    async with archiving(tmp_path) as archive:
        archive.take_view(view)
        archive.take_view(as_bytes(room_view() | {"utc": "yesterday"}))
        archive.take_view(as_bytes(room_view(couch=[{"name": "x", "unit": "mm", "value": 1.0}]) | {"devices": 5}))
        assert archive.lost == 3
        archive.take_view(angle_view(1, 0.0, 4.0))
        assert asked(archive, "G1-gantry.angle", 1.0).last == [4.0]


async def test_a_full_disk_drops_rows_counts_them_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pq.write_table
    full = [True]

    def disk(table: pa.Table, path: Path, **options: Any) -> None:
        if full[0]:
            path.write_bytes(b"half a fi")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(table, path, **options)

    monkeypatch.setattr(pq, "write_table", disk)
    async with archiving(tmp_path) as archive:
        archive.take_view(angle_view(1, 0.0, 1.0))
        archive.flush()
        await until(lambda: archive.lost > 0)
        assert "space" in archive.last_error
        assert not files_in(tmp_path, "*.part") and not files_in(tmp_path)
        full[0] = False
        archive.take_view(angle_view(2, 1.0, 2.0))
    assert archive.rows > 0 and archive.last_error == ""
    assert asked(Archive(tmp_path), "G1-gantry.angle", 5.0).last == [2.0]


async def test_space_that_ledger_and_journals_may_need_is_left_to_them(tmp_path: Path) -> None:
    archive = Archive(tmp_path, reserve_bytes=1 << 62)
    archive.start()
    archive.take_view(angle_view(1, 0.0, 1.0))
    await archive.close()
    assert archive.lost > 0 and archive.rows == 0 and "free" in archive.last_error
    assert RESERVE_BYTES >= 1 << 30


async def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    archive = Archive(tmp_path, reserve_bytes=0)  # its worker never starts: nothing is taken from it
    for number in range(WAITING_MAX + 3):
        archive.take_view(angle_view(number, float(number), float(number)))
        archive.flush()
    assert archive.lost > 0 and "does not take" in archive.last_error
    assert len(asked(archive, "G1-gantry.angle", 60.0).last) >= WAITING_MAX, "what waits is shown all the same"
    await archive.close(timeout_s=0.01)


async def test_rows_are_written_in_time_even_when_the_room_shows_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FLUSH_S <= 10.0
    monkeypatch.setattr(archive_module, "FLUSH_S", 0.02)
    async with archiving(tmp_path) as archive:
        archive.take_view(angle_view(1, 0.0, 1.0))
        await until(lambda: files_in(tmp_path, "part-*") != [])


def filled(root: Path, hours: int, parts: int) -> Files:
    files = Files(root)
    files.prepare()
    for hour in range(hours):
        for part in range(parts):
            rows = Rows()
            for number in range(3):
                t_us = T0_US + hour * HOUR_US + (part * 3 + number) * US_PER_S
                rows.add(t_us, "G1", f"s{number % 2}", float(t_us % 97), None, "", "good", True)
            files.write(rows)
    return files


def all_rows(root: Path) -> list[tuple[datetime, str, float]]:
    table = ds.dataset(root, schema=SCHEMA).to_table()
    return sorted((row["t_utc"], row["signal"], row["value"]) for row in table.to_pylist())


def test_an_hour_that_is_over_becomes_one_file_with_the_same_rows(tmp_path: Path) -> None:
    files = filled(tmp_path, hours=2, parts=5)
    before = all_rows(tmp_path)
    files.tidy(T0_US + HOUR_US)
    assert sorted(len(list(hour.glob("*.parquet"))) for hour in tmp_path.glob("date=*/hour=*")) == [1, 5]
    assert all_rows(tmp_path) == before


def test_an_open_hour_of_many_parts_is_merged_meanwhile_and_again_when_it_is_over(tmp_path: Path) -> None:
    files = filled(tmp_path, hours=1, parts=PARTS_MAX)
    before = all_rows(tmp_path)
    files.tidy(T0_US)
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    rows = Rows()
    rows.add(T0_US + 1, "G1", "late", 1.0, None, "", "good", True)
    files.write(rows)
    files.tidy(T0_US + HOUR_US)
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert len(all_rows(tmp_path)) == len(before) + 1


def test_a_death_between_the_merged_file_and_the_end_of_its_parts_leaves_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = filled(tmp_path, hours=1, parts=5)
    before = all_rows(tmp_path)
    (tmp_path / "date=2031-01-01" / "hour=08" / ".x.parquet.part").write_bytes(b"torn")

    def died(_path: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", died)
        with pytest.raises(KeyboardInterrupt):
            files.tidy(T0_US + HOUR_US)
    assert len(list(tmp_path.rglob("*.parquet"))) == 6
    twice = found_in(files.read("G1", "s0", T0_US, T0_US + HOUR_US), T0_US, T0_US + HOUR_US)
    assert twice.t_us.size == len([row for row in before if row[1] == "s0"]), "not even before the next start"
    Files(tmp_path).prepare()
    assert all_rows(tmp_path) == before
    assert not list(tmp_path.rglob(".*.part"))


def test_a_damaged_file_costs_its_own_rows_alone_and_is_left_for_somebody_to_look_at(tmp_path: Path) -> None:
    files = filled(tmp_path, hours=1, parts=4)
    damaged = sorted(tmp_path.rglob("*.parquet"))[1]
    data = bytearray(damaged.read_bytes())
    data[-20:] = b"\0" * 20
    damaged.write_bytes(data)
    found = found_in(files.read("G1", "s0", T0_US, T0_US + HOUR_US), T0_US, T0_US + HOUR_US)
    assert (found.t_us.size, files.unreadable) == (6, 1)
    files.tidy(T0_US + HOUR_US)
    assert damaged.exists()
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


async def test_days_older_than_the_retention_go_and_a_clock_that_jumps_removes_none(tmp_path: Path) -> None:
    for day in range(1, 4):
        rows = Rows()
        rows.add(T0_US - day * 24 * HOUR_US, "G1", "x", 1.0, None, "", "good", True)
        files = Files(tmp_path)
        files.prepare()
        files.write(rows)
    (tmp_path / "date=nonsense").mkdir()
    async with archiving(tmp_path, retention_days=2) as archive:
        archive.take_view(angle_view(1, 0.0, 1.0))
        archive.flush()
        archive.take_view(angle_view(2, 40 * 86_400.0, 2.0))
    assert {folder.name for folder in files_in(tmp_path, "date=*")} == {
        "date=nonsense",
        "date=2030-12-30",
        "date=2030-12-31",
        "date=2031-01-01",
        "date=2031-02-10",
    }


@pytest.mark.parametrize(
    ("span", "points", "code"),
    [
        (("yesterday", "2031-01-01T00:00:00Z"), 10, 5161),
        (("2031-01-01T00:00:00Z", "9" * 100), 10, 5161),
        (("2031-01-01T00:00:00Z", "2031-01-01T00:00:00Z"), 10, 5162),
        (("2031-01-02", "2031-01-01"), 10, 5162),
        (("0001-01-01", "2031-01-01"), 10, 5162),
        (("2031-01-01", "2031-01-02"), 0, 5163),
        (("2031-01-01", "2031-01-02"), POINTS_MAX + 1, 5163),
    ],
)
def test_a_span_that_cannot_be_is_refused_with_words(tmp_path: Path, span: tuple[str, str], points: int, code: int) -> None:
    with pytest.raises(DataError) as refused:
        Archive(tmp_path).query("G1", "x", *span, points)
    assert refused.value.code == code and refused.value.hint


WRITER = """
import asyncio, json, sys
from pathlib import Path
from controller.console import archive
archive.FLUSH_S, archive.WAITING_MAX = 0.01, 1_000_000  # a loaded disk drops nothing here
async def main():
    kept = archive.Archive(Path(sys.argv[1]), reserve_bytes=0)
    kept.start()
    view = json.loads(sys.stdin.readline())
    for number in range(10**9):
        view["seq"] = number
        view["devices"][0]["signals"][0]["value"] = float(number)
        view["utc"] = f"2031-01-01T{8 + number // 360000 % 16:02d}:{number // 6000 % 60:02d}:{number % 6000 / 100:06.3f}Z"
        kept.take(view)
        if kept.rows > 50:
            sys.stdout.write("x")
            sys.stdout.flush()
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        process.stdin.write(as_bytes(room_view()) + b"\n")
        process.stdin.flush()
        yield process
        process.kill()


@pytest.mark.xdist_group("wires")
def test_a_killed_process_leaves_no_torn_file(writer: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert writer.stdout is not None
    writer.stdout.read(200)
    writer.send_signal(signals.SIGKILL)
    writer.wait()
    values = [
        row.as_py()
        for row in ds.dataset(tmp_path, schema=SCHEMA).to_table(filter=ds.field("signal") == "G1-gantry.angle")["value"]
    ]
    assert sorted(values) == [float(number) for number in range(len(values))], "whole, and without holes up to the end"
    assert len(values) > 50
