"""What a trend plot is told of a signal: at most so many points, and never a spike less than there was.

An archived value holds until the next one, for `HOLD_S` at most: then nobody knows. Pure. Not responsible for files.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controller.console.archive_files import US_PER_S, Found
from controller.console.shown import QUALITIES
from controller.console.views import View
from drivers.hal.errors import DataError

HOLD_S = 25.0  # what does not change is archived every 10 s: two and a half of them
POINTS_MAX = 5000
SPAN_MAX_S = 366 * 86_400.0
_RANKS = {name: rank for rank, name in enumerate(QUALITIES)}


class HistoryView(View):
    """One signal over time. Lists are of equal length; `min`, `max` and `last` are None where nothing is known."""

    room: str
    signal: str
    unit: str
    simulated: bool
    kind: Literal["number", "text"]
    from_utc: str
    to_utc: str
    raw: bool = Field(description="points are the archived values themselves; otherwise each stands for a span of equal length")
    t_ms: list[int] = Field(description="since 1970 UTC, ms; where a span begins")
    min: list[float | None]
    max: list[float | None]
    last: list[float | None]
    text: list[str] = Field(description="of a text signal: what it changed to")
    quality: list[str] = Field(description="the worst within the span")
    left_out: int = Field(default=0, description="changes of a text signal before the first one that is told")


class SignalInfo(View):
    """A signal that the archive holds."""

    room: str
    signal: str
    unit: str
    kind: Literal["number", "text"]


def span_us(from_utc: str | datetime, to_utc: str | datetime, points: int) -> tuple[int, int]:
    """Both ends in microseconds since 1970 UTC. A time without a zone is UTC.

    Raises:
        DataError: a time cannot be read (5161), nothing is between them or too much (5162), or `points` is out of range (5163).
    """
    ends = [_instant_us(name, at) for name, at in (("from_utc", from_utc), ("to_utc", to_utc))]
    length_s = (ends[1] - ends[0]) / US_PER_S
    if not 0.0 < length_s <= SPAN_MAX_S:
        raise DataError(
            f"from_utc to to_utc is {length_s:g} s (more than 0, at most {SPAN_MAX_S:g} s)",
            code=5162,
            hint="choose another span",
        )
    if not 1 <= points <= POINTS_MAX:
        raise DataError(f"points is {points} (1 to {POINTS_MAX})", code=5163, hint="ask for as many as the plot is wide")
    return ends[0], ends[1]


def _instant_us(name: str, at: str | datetime) -> int:
    try:
        parsed = datetime.fromisoformat(at) if isinstance(at, str) else at
        whole = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
        return round(whole.timestamp() * US_PER_S)
    except (ValueError, OverflowError):
        hint = "write for example 2031-01-01T08:00:00Z"
        raise DataError(f"{name} {str(at)[:40]!r} is not a time", code=5161, hint=hint) from None


def history(room: str, signal: str, rows: Found, from_us: int, to_us: int, points: int) -> HistoryView:
    """Rows, which may begin `HOLD_S` before the span, as at most `points` points."""
    numeric = not rows.t_us.size or bool(np.isfinite(rows.value).any()) or not any(text is not None for text in rows.text)
    common: dict[str, Any] = {
        "room": room,
        "signal": signal,
        "unit": rows.unit,
        "simulated": rows.simulated,
        "from_utc": _iso(from_us),
        "to_utc": _iso(to_us),
    }
    if not numeric:
        return HistoryView(kind="text", raw=True, min=[], max=[], last=[], **common, **_changes(rows, from_us, to_us, points))
    inside = int(rows.t_us.size - np.searchsorted(rows.t_us, from_us))
    if inside < points:
        return HistoryView(kind="number", raw=True, text=[], **common, **_as_they_are(rows, from_us, to_us))
    return HistoryView(kind="number", raw=False, text=[], **common, **_spans(rows, from_us, to_us, points))


def _as_they_are(rows: Found, from_us: int, to_us: int) -> dict[str, Any]:
    """Every value of the span, after the one that held when it began; a None where one no longer held."""
    t_us: list[int] = []
    values: list[float | None] = []
    qualities: list[str] = []
    held_us = round(HOLD_S * US_PER_S)
    for at_us, until_us, value, quality in zip(
        rows.t_us.tolist(), _ends(rows, to_us), rows.value.tolist(), rows.quality, strict=True
    ):
        if at_us + held_us <= from_us or until_us <= from_us:
            continue
        t_us.append(max(at_us, from_us))
        values.append(_known(value))
        qualities.append(str(quality))
        if until_us - at_us > held_us:
            t_us.append(at_us + held_us)
            values.append(None)
            qualities.append("disconnected")
    return {"t_ms": [t // 1000 for t in t_us], "min": values, "max": values, "last": values, "quality": qualities}


def _spans(rows: Found, from_us: int, to_us: int, points: int) -> dict[str, Any]:
    """Least, greatest and last of each span of time, with the value that held when it began."""
    length_us = to_us - from_us
    starts = from_us + (np.arange(points, dtype=np.int64) * length_us) // points
    first = np.searchsorted(rows.t_us, starts)  # rows [first, first of the next) lie in the span
    after = np.append(first[1:], rows.t_us.size)
    before = first - 1
    held = (before >= 0) & (rows.t_us[np.maximum(before, 0)] + round(HOLD_S * US_PER_S) > starts)
    ranks = np.asarray([_RANKS.get(str(q), len(QUALITIES) - 1) for q in rows.quality], np.int64)
    low, high = (_folded(fold, rows.value, first, after, held) for fold in (np.fmin, np.fmax))
    some = after > first
    last_row = np.where(some, after - 1, np.maximum(before, 0))
    last = np.where(some | held, rows.value[last_row], np.nan)
    worst = _folded(np.fmax, ranks.astype(np.float64), first, after, held)
    return {
        "t_ms": (starts // 1000).tolist(),
        "min": [_known(v) for v in low.tolist()],
        "max": [_known(v) for v in high.tolist()],
        "last": [_known(v) for v in last.tolist()],
        "quality": [QUALITIES[int(rank)] if rank == rank else "disconnected" for rank in worst.tolist()],  # noqa: PLR0124
    }


def _folded(
    fold: np.ufunc, values: NDArray[np.float64], first: NDArray[np.int64], after: NDArray[np.int64], held: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """`fold` over the rows of each span and the one that held when it began; NaN where there is neither."""
    result = np.where(held, values[np.maximum(first - 1, 0)], np.nan)
    some = np.flatnonzero(after > first)
    if some.size:
        inside = fold.reduceat(values[: after[some[-1]]], first[some])
        result[some] = fold(result[some], inside)
    return result


def _changes(rows: Found, from_us: int, to_us: int, points: int) -> dict[str, Any]:
    """The text when the span began, and what it changed to since; the last `points` of that."""
    told: list[tuple[int, str, str]] = []
    for at_us, until_us, text, quality in zip(rows.t_us.tolist(), _ends(rows, to_us), rows.text, rows.quality, strict=True):
        words = "" if text is None else str(text)
        if not told or told[-1][1:] != (words, quality):
            if at_us <= from_us:  # it held when the span began, and nothing before it did
                told.clear()
            told.append((max(at_us, from_us), words, str(quality)))
        if until_us - at_us > round(HOLD_S * US_PER_S):
            told.append((at_us + round(HOLD_S * US_PER_S), "", "disconnected"))
    kept = told[-points:]
    return {
        "t_ms": [at_us // 1000 for at_us, _, _ in kept],
        "text": [words for _, words, _ in kept],
        "quality": [quality for _, _, quality in kept],
        "left_out": len(told) - len(kept),
    }


def _ends(rows: Found, to_us: int) -> list[int]:
    """Until when each row is the latest one."""
    return [*rows.t_us[1:].tolist(), to_us][: rows.t_us.size]


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _iso(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / US_PER_S, UTC).isoformat().replace("+00:00", "Z")
