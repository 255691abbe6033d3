"""The archive of readings: everything that rooms show, ten times a second, on disk for a month, and asked for by trend plots.

A signal is archived when it changes, and every 10 s when it does not, with the time of the view that showed it. A worker's
thread writes what came every 10 s: a death, or a loss of power, costs at most `FLUSH_S` of rows and what waits for a slow disk,
and never leaves a torn file. Nothing here may harm anything else: where the disk is slow, full or gone, or less than
`RESERVE_BYTES` are free (ledger and journals need them more), rows are dropped and counted.

For the console process. Not responsible for files (`archive_files`), for spans and points (`archive_query`), nor for the record
of a treatment, which is another thing (`controller.record`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from controller.console.archive_files import US_PER_S, Files, Rows, found_in
from controller.console.archive_query import HOLD_S, HistoryView, SignalInfo, history, span_us
from controller.console.shown import Shown, signals_of
from drivers.hal.clock import NS_PER_S, now_ns

RETENTION_DAYS = 30
FLUSH_S = 10.0
REPEAT_S = 10.0  # what does not change is archived so often, so that silence is told from constancy
WAITING_MAX = 6  # batches that wait for the disk: a minute
ROWS_MAX = 200_000  # of a batch; 200 signals at 10 Hz give 20,000 in 10 s
RESERVE_BYTES = 1 << 30  # assumed: days of ledger and journals
ELEMENTS_MAX = 64  # of an array that is archived, each as a signal
_LIVELY = frozenset({"heartbeat"})  # changes with every view and says nothing afterwards

_log = logging.getLogger(__name__)
_Kind = tuple[str, bool]  # unit, whether it is text


class Archive:
    """One directory, any number of rooms. `take_view` is for the loop; `query` and `signals` may be called in any thread.

    Args:
        directory: of the archive; made when it is not there.
        retention_days: whole days before today that are kept.
        reserve_bytes: free space that is left to others.

    Attributes:
        rows: rows written.
        lost: rows that were dropped, and views that could not be read.
        last_error: why rows were dropped last; empty while all is well.
    """

    def __init__(self, directory: Path, retention_days: int = RETENTION_DAYS, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.rows = 0
        self.lost = 0
        self.last_error = ""
        self._files = Files(directory)
        self._retention = timedelta(days=retention_days)
        self._reserve_bytes = reserve_bytes
        self._last: dict[tuple[str, str], tuple[object, str, int]] = {}  # value, quality, when it was archived
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._pending = Rows()
        self._pending_since_ns = 0
        self._newest_us = 0
        self._first_seen: tuple[int, int] | None = None  # UTC in us, loop time in ns
        self._waiting: queue.Queue[tuple[Rows, int] | None] = queue.Queue(WAITING_MAX)
        self._unwritten: list[Rows] = []
        self._guard = threading.Lock()  # of `_unwritten` and `_kinds`
        self._worker: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def unreadable(self) -> int:
        """How often an archived file could not be read."""
        return self._files.unreadable

    def start(self) -> None:
        """Begin to write. The directory is looked at by the worker: a slow disk holds nobody up."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="archive", daemon=True)
            self._worker.start()

    async def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, as far as that takes no longer than `timeout_s`, and end."""
        self.flush()
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(self._end, worker, timeout_s)

    def take_view(self, view_bytes: bytes) -> None:
        """A `RoomView` as it came over the link. Never raises, never waits: what cannot be read is counted."""
        try:
            view = json.loads(view_bytes)
            self.take(view)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            self._drop(1, f"a view could not be read: {error!r}")

    def take(self, view: Mapping[str, Any]) -> None:
        """The same, decoded. Raises ValueError, TypeError or KeyError when it is no view of a room."""
        room = view["room"]
        t_us = round(datetime.fromisoformat(view["utc"]).timestamp() * US_PER_S)
        at_ns = now_ns()
        if self._first_seen is None:
            self._first_seen = t_us, at_ns
        self._newest_us = max(self._newest_us, t_us)
        for shown in signals_of(view):
            if shown.signal in _LIVELY:
                continue
            if isinstance(shown.value, list):
                for index, element in enumerate(shown.value[:ELEMENTS_MAX]):
                    self._take(room, f"{shown.name}.{index}", shown._replace(value=element), t_us, at_ns)
            else:
                self._take(room, shown.name, shown, t_us, at_ns)
        if len(self._pending) >= ROWS_MAX or at_ns - self._pending_since_ns >= FLUSH_S * NS_PER_S:
            self.flush()

    def flush(self) -> None:
        """Hand what came to the worker. Never waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._pending = self._pending, Rows()
        if not len(rows):
            return
        with self._guard:
            self._unwritten.append(rows)
        try:
            self._waiting.put_nowait((rows, self._today_us()))
        except queue.Full:
            self._written(rows)
            self._drop(len(rows), "the disk does not take what comes")

    def signals(self) -> list[SignalInfo]:
        """What was seen since the start, and what the newest day on disk held before. In order of room and name."""
        with self._guard:
            kinds = dict(self._kinds)
        return [
            SignalInfo(room=room, signal=signal, unit=unit, kind="text" if text else "number")
            for (room, signal), (unit, text) in sorted(kinds.items())
        ]

    def query(self, room: str, signal: str, from_utc: str | datetime, to_utc: str | datetime, points: int = 600) -> HistoryView:
        """One signal as at most about `points` points, with least, greatest and last of each span. Reads files.

        Raises:
            DataError: the span or the number of points cannot be (5161 to 5163). A signal that nobody knows is empty.
        """
        from_us, to_us = span_us(from_utc, to_utc, points)
        since_us = from_us - round(HOLD_S * US_PER_S)
        with self._guard:
            fresh = [
                rows.of(room, signal).table() for rows in [*self._unwritten, self._pending]
            ]  # first: then nothing falls between
        stored = self._files.read(room, signal, since_us, to_us)
        rows = found_in(pa.concat_tables([stored, *fresh]), since_us, to_us)
        return history(room, signal, rows, from_us, to_us, points)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _take(self, room: str, name: str, shown: Shown, t_us: int, at_ns: int) -> None:
        key = room, name
        value, quality = shown.value, shown.quality
        last = self._last.get(key)
        if last is not None and last[0] == value and last[1] == quality and at_ns - last[2] < REPEAT_S * NS_PER_S:
            return
        text = value if isinstance(value, str) else None
        if last is None or (text is not None) != isinstance(last[0], str):
            self._know(key, shown.unit, text is not None)
        number = float(value) if isinstance(value, int | float) else None
        if not len(self._pending):
            self._begin(at_ns)
        self._pending.add(t_us, room, name, number, text, shown.unit, quality, shown.simulated)
        self._last[key] = value, quality, at_ns

    def _begin(self, at_ns: int) -> None:
        """The first row of a batch: it is written in time even when no other view comes."""
        self._pending_since_ns = at_ns
        self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def _know(self, key: tuple[str, str], unit: str, text: bool) -> None:
        with self._guard:
            known = self._kinds.get(key)
            if known is None or text:  # None comes before the first text
                self._kinds[key] = unit, text

    def _today_us(self) -> int:
        """UTC by this process's own loop since the first view: a wall clock that jumps removes nothing."""
        if self._first_seen is None:
            return 0
        utc_us, seen_ns = self._first_seen
        return utc_us + (now_ns() - seen_ns) // 1000

    def _drop(self, rows: int, why: str) -> None:
        self.lost += rows
        if why != self.last_error:
            self.last_error = why
            _log.warning("archive: rows are dropped: %s", why)

    def _written(self, rows: Rows) -> None:
        with self._guard:
            self._unwritten = [other for other in self._unwritten if other is not rows]

    # --- the worker's thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        prepared = False
        while (job := self._waiting.get()) is not None:
            rows, today_us = job
            try:
                if not prepared:
                    self._prepare()
                    prepared = True
                if self._files.free_bytes() < self._reserve_bytes:
                    raise OSError(f"less than {self._reserve_bytes / 1e6:.0f} MB are free")
                self._files.write(rows)
            except Exception as error:  # noqa: BLE001 - telemetry is lost and counted; whatever it was, the next batch is tried
                self._drop(len(rows), str(error) or repr(error))
                self._written(rows)
                continue
            self.rows += len(rows)
            self.last_error = ""
            self._written(rows)
            self._keep_house(rows, today_us)

    def _prepare(self) -> None:
        self._files.prepare()
        for room, signal, unit, text in self._files.names():
            with self._guard:
                self._kinds.setdefault((room, signal), (unit, text))

    def _keep_house(self, rows: Rows, today_us: int) -> None:
        try:
            self._files.tidy(max(rows.t_us))
            first_kept = datetime.fromtimestamp(today_us / US_PER_S, UTC).date() - self._retention
            self._files.remove_before(first_kept)
        except Exception as error:  # noqa: BLE001 - the rows are safe in their parts; it is tried again with the next ones
            _log.warning("archive: files are not merged: %s", error)

    def _end(self, worker: threading.Thread, timeout_s: float) -> None:
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return  # a disk that hangs; the thread ends with the process
        worker.join(timeout_s)
