"""Judges the line itself: how fast answers came, and how many did not. Pure.

Not responsible for asking (`drive_bench`, `passive`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.hil.judge_drive import Finding

QUESTION_BYTES = 8  # unit, function, address, count, checksum
ANSWER_BYTES = 5  # unit, function, size, checksum; and two per register
SILENT_BYTES = 7  # 3.5 before and after a frame: Modbus over Serial Line V1.02, section 2.5.1.1
BITS_PER_BYTE = 11
TURN_ROUND_S = 0.010  # assumed: what a node may take between question and answer, computers on both sides included
LOST_SHARE = 0.01  # assumed
P99_COUNT = 200  # answers; of fewer, one in a hundred says nothing
P99_SHARE = 0.25  # of the supervision time: two tries of one node, and as much for the others


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """Distribution of answer times in ms."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, answers_s: Sequence[float]) -> AnswerTimes | None:
        """None without answers."""
        if not answers_s:
            return None
        p50, p95, p99, most = (float(v) for v in 1000.0 * np.percentile(np.asarray(answers_s), [50, 95, 99, 100]))
        return cls(len(answers_s), p50, p95, p99, most)


def line_time_s(registers: int, baud: int | None) -> float:
    """What the bytes of one read alone take on a serial line, s; 0 on TCP."""
    if baud is None:
        return 0.0
    return (QUESTION_BYTES + ANSWER_BYTES + 2 * registers + SILENT_BYTES) * BITS_PER_BYTE / baud


def responses(answers_s: Sequence[float], lost: int, registers: int, baud: int | None, deadline_s: float) -> Finding:
    """Median within line time and turn-round, 99 % within a quarter of the supervision time, hardly any lost."""
    times = AnswerTimes.of(answers_s)
    wire_ms = 1000.0 * line_time_s(registers, baud)
    median_ms, late_ms = wire_ms + 1000.0 * TURN_ROUND_S, 1000.0 * P99_SHARE * deadline_s
    speed = "TCP" if baud is None else f"{wire_ms:.1f} ms of it on the wire at {baud} baud"
    limit = f"50 %: {median_ms:.1f} ms ({speed}); 99 %: {late_ms:.0f} ms; at most 1 % lost"
    if times is None:
        return Finding(False, "no answer", limit, "nothing was answered")
    measured = (
        f"50 %: {times.p50_ms:.1f} ms, 95 %: {times.p95_ms:.1f} ms, 99 %: {times.p99_ms:.1f} ms, longest {times.max_ms:.1f} ms "
        f"of {times.count}; {lost} lost"
    )
    reason = ""
    if times.p50_ms > median_ms:
        reason = f"half of the answers take longer than {times.p50_ms:.1f} ms, allowed {median_ms:.1f} ms"
    elif times.count >= P99_COUNT and times.p99_ms > late_ms:
        reason = f"one in a hundred answers takes longer than {times.p99_ms:.1f} ms, allowed {late_ms:.0f} ms"
    elif lost > max(1, LOST_SHARE * times.count):
        reason = f"{lost} of {times.count} questions got no sound answer at once"
    return Finding(not reason, measured, limit, reason)
