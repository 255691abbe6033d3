"""The archive's files: Parquet, one folder an hour (`date=YYYY-MM-DD/hour=HH`), each file whole or not there.

New rows come as small parts; many parts are merged into one file, sorted so that one signal is found without reading the rest.
A merged file names what it replaces, so that a death between its birth and their end leaves nothing twice. Blocking; for a
worker's thread. Not responsible for what is archived (`archive`) nor for making sense of rows (`archive_query`).
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from controller.record.whole_file import whole_file

US_PER_S = 1_000_000
HOUR_US = 3600 * US_PER_S
PARTS_MAX = 60  # so many parts of one hour are merged before the hour is over: ten minutes of them; assumed
GROUP_ROWS = 32_768  # a signal at 10 Hz gives 36,000 rows an hour
_REPLACES = b"replaces"
_PART, _MERGED = "part-", "merged-"
_DAY = re.compile(r"date=(\d{4}-\d{2}-\d{2})")
_WORDS = ("room", "signal", "text", "unit", "quality")
SCHEMA = pa.schema(
    [
        ("t_utc", pa.timestamp("us", tz="UTC")),
        ("room", pa.string()),
        ("signal", pa.string()),
        ("value", pa.float64()),
        ("text", pa.string()),
        ("unit", pa.string()),
        ("quality", pa.string()),
        ("simulated", pa.bool_()),
    ]
)


@dataclass(slots=True)
class Rows:
    """Columns of rows that are to be written, in the order in which they came."""

    t_us: list[int] = field(default_factory=list)
    room: list[str] = field(default_factory=list)
    signal: list[str] = field(default_factory=list)
    value: list[float | None] = field(default_factory=list)
    text: list[str | None] = field(default_factory=list)
    unit: list[str] = field(default_factory=list)
    quality: list[str] = field(default_factory=list)
    simulated: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.simulated)  # the last one to be added to: what is counted is whole

    def add(
        self, t_us: int, room: str, signal: str, value: float | None, text: str | None, unit: str, quality: str, simulated: bool
    ) -> None:
        """One row."""
        self.t_us.append(t_us)
        self.room.append(room)
        self.signal.append(signal)
        self.value.append(value)
        self.text.append(text)
        self.unit.append(unit)
        self.quality.append(quality)
        self.simulated.append(simulated)

    def of(self, room: str, signal: str) -> Rows:
        """Rows of one signal. May be called while another thread adds some."""
        chosen = Rows()
        for index in range(len(self)):
            if self.signal[index] == signal and self.room[index] == room:
                chosen.add(*(column[index] for column in self._columns))
        return chosen

    @property
    def _columns(self) -> tuple[list[Any], ...]:
        return self.t_us, self.room, self.signal, self.value, self.text, self.unit, self.quality, self.simulated

    def table(self) -> pa.Table:
        """The rows as a table of `SCHEMA`."""
        columns = self._columns
        return pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of one signal in the order of time: microseconds since 1970 UTC, values (NaN for none), texts, qualities, unit."""

    t_us: NDArray[np.int64]
    value: NDArray[np.float64]
    text: NDArray[Any]
    quality: NDArray[Any]
    unit: str
    simulated: bool


class Files:
    """One directory of archived hours.

    Attributes:
        unreadable: files that were passed over because they could not be read.
    """

    def __init__(self, root: Path) -> None:
        self.unreadable = 0
        self._root = root
        self._swap = threading.Lock()  # nobody reads a folder while a merged file takes the place of its parts
        self._run, self._made = secrets.token_hex(6), 0  # names that no earlier run has given
        self._open: set[Path] = set()  # folders that may have more than one file
        self._damaged: set[Path] = set()  # files that stay as they are, for somebody to look at

    def prepare(self) -> None:
        """Make the directory; remove what a death left half done. Raises OSError."""
        with self._swap:
            self._root.mkdir(parents=True, exist_ok=True)
            for draft in self._root.glob("date=*/hour=*/.*.part"):
                draft.unlink(missing_ok=True)
            for folder in self._root.glob("date=*/hour=*"):
                files = _files(folder)
                for merged in [file for file in files if file.name.startswith(_MERGED)] if len(files) > 1 else ():
                    for name in self._replaced_by(merged):
                        (folder / name).unlink(missing_ok=True)
                if len(files) > 1:
                    self._open.add(folder)

    def write(self, rows: Rows) -> None:
        """Add rows, each to the folder of its hour. Raises OSError or pyarrow's own errors; parts written before stay."""
        table = rows.table()
        hours = np.asarray(rows.t_us, np.int64) // HOUR_US
        for hour in np.unique(hours):
            chosen = np.flatnonzero(hours == hour)
            folder = self._folder(int(hour))
            folder.mkdir(parents=True, exist_ok=True)
            part = table if chosen.size == len(rows) else table.take(pa.array(chosen))
            self._made += 1
            _write(part, folder / f"{_PART}{self._run}-{self._made}.parquet")
            self._open.add(folder)

    def tidy(self, newest_us: int) -> None:
        """Merge hours that are over, and an open hour of many parts. Raises OSError or pyarrow's own errors."""
        newest = self._folder(newest_us // HOUR_US)
        for folder in sorted(self._open):
            files = [file for file in _files(folder) if file not in self._damaged]
            parts = [file for file in files if file.name.startswith(_PART)]
            if folder < newest:
                if len(files) > 1:
                    self._merge(folder, files)
                self._open.discard(folder)
            elif len(parts) >= PARTS_MAX:
                self._merge(folder, parts)

    def remove_before(self, first_kept: date) -> int:
        """Remove whole days; how many were."""
        removed = 0
        for folder in self._root.glob("date=*"):
            day = _day(folder)
            if day is not None and day < first_kept:
                with self._swap:
                    shutil.rmtree(folder, ignore_errors=True)
                self._open = {hour for hour in self._open if hour.parent != folder}
                removed += 1
        return removed

    def read(self, room: str, signal: str, from_us: int, to_us: int) -> pa.Table:
        """Rows of a signal, at least those from `from_us` up to `to_us`. A file that cannot be read is passed over, counted."""
        chosen = [("room", "=", room), ("signal", "=", signal)]
        tables = [SCHEMA.empty_table()]
        for hour in self._hours(from_us, to_us):
            with self._swap:
                for file in _files(hour):
                    with self._passing_over():
                        tables.append(pq.read_table(file, schema=SCHEMA, filters=chosen, partitioning=None, use_threads=False))
        return pa.concat_tables(tables)

    def names(self) -> Iterator[tuple[str, str, str, bool]]:
        """Room, signal, unit and whether it is text, of what the newest day holds."""
        days = sorted(folder for folder in self._root.glob("date=*") if _day(folder) is not None)
        for hour in sorted(days[-1].glob("hour=*")) if days else ():
            with self._swap:
                tables = []
                for file in _files(hour):
                    with self._passing_over():
                        columns = ["room", "signal", "unit", "text"]
                        tables.append(pq.read_table(file, columns=columns, partitioning=None, use_threads=False))
            for table in tables:
                told = table.group_by(["room", "signal", "unit"]).aggregate([("text", "count")])
                for row in told.to_pylist():
                    yield row["room"], row["signal"], row["unit"], row["text_count"] > 0

    def free_bytes(self) -> int:
        """Free space of the disk. Raises OSError."""
        return shutil.disk_usage(self._root).free

    # --- inside ------------------------------------------------------------------------------------------------------

    def _merge(self, folder: Path, files: list[Path]) -> None:
        """One file instead of several."""
        tables, merged = [], []
        for file in files:
            self._damaged.add(file)
            with self._passing_over():
                tables.append(pq.read_table(file, schema=SCHEMA, partitioning=None, use_threads=False))
                merged.append(file)
                self._damaged.discard(file)
        if not merged:
            return
        order = [("signal", "ascending"), ("room", "ascending"), ("t_utc", "ascending")]
        table = pa.concat_tables(tables).sort_by(order)
        told = json.dumps([file.name for file in merged]).encode()
        self._made += 1
        target = folder / f"{_MERGED}{self._run}-{self._made}.parquet"
        with self._swap:
            _write(table.replace_schema_metadata({_REPLACES: told}), target)
            for file in merged:
                file.unlink(missing_ok=True)

    def _replaced_by(self, merged: Path) -> list[str]:
        with self._passing_over():
            told = (pq.read_schema(merged).metadata or {}).get(_REPLACES, b"[]")
            return [name for name in json.loads(told) if isinstance(name, str) and "/" not in name and name != merged.name]
        return []

    @contextlib.contextmanager
    def _passing_over(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # pyarrow's own errors are ValueErrors
            self.unreadable += 1

    def _folder(self, hour: int) -> Path:
        at = datetime.fromtimestamp(hour * 3600, UTC)
        return self._root / f"date={at:%Y-%m-%d}" / f"hour={at:%H}"

    def _hours(self, from_us: int, to_us: int) -> Iterator[Path]:
        """Folders that are there, of hours between two instants."""
        first, last = (datetime.fromtimestamp(at_us // US_PER_S, UTC) for at_us in (from_us, max(to_us - 1, from_us)))
        day = first.date()
        while day <= last.date():
            at = self._root / f"date={day.isoformat()}"
            if at.is_dir():
                for hour in sorted(at.glob("hour=*")):
                    if first.strftime("%Y-%m-%d/hour=%H") <= f"{day}/{hour.name}" <= last.strftime("%Y-%m-%d/hour=%H"):
                        yield hour
            day += timedelta(days=1)


def found_in(table: pa.Table, from_us: int, to_us: int) -> Found:
    """Rows of one signal between two instants, each instant once, in the order of time."""
    t_us = table.column("t_utc").cast(pa.int64()).to_numpy()
    order = np.argsort(t_us, kind="stable")
    t_us = t_us[order]
    inside = (t_us >= from_us) & (t_us < to_us)
    if t_us.size > 1:
        inside[1:] &= t_us[1:] != t_us[:-1]
    order = order[inside]
    rows = table.take(pa.array(order))
    value = pc.fill_null(rows.column("value"), float("nan")).to_numpy()
    text, quality = (np.asarray(rows.column(name).to_pylist(), object) for name in ("text", "quality"))
    unit = rows.column("unit")[-1].as_py() if order.size else ""
    simulated = bool(rows.column("simulated")[-1].as_py()) if order.size else False
    return Found(t_us[inside], value, text, quality, unit, simulated)


def _write(table: pa.Table, path: Path) -> None:
    with whole_file(path) as draft:
        pq.write_table(
            table,
            draft,
            compression="zstd",
            row_group_size=GROUP_ROWS,
            use_dictionary=list(_WORDS),
            column_encoding={"t_utc": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},
        )


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("."))


def _day(folder: Path) -> date | None:
    match = _DAY.fullmatch(folder.name)
    try:
        return date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None
