"""Breathing of a patient: displacement of the target at any time, and the instants at which it crosses a gating level.

Each breath is A sin^(2n)(pi phi), long at exhale (phi = 0) and short at inhale (phi = 1/2), with its own period and
amplitude, a slow drift of the baseline, and coughs. Model "assumed" after Lujan et al. 1999 (even powers of a cosine): sin^4 to
sin^6, 3 to 6 s, 5 to 25 mm. Not responsible for the sensor that watches it or its delays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COUGH_WIDTH_S = 0.15  # assumed: a cough moves the chest for a third of a second
EDGE_GRID_S = 0.005  # crossings closer together than this are not separated


@dataclass(frozen=True, slots=True)
class BreathingPattern:
    """How a patient breathes; all "assumed".

    Attributes:
        period_s: mean length of a breath.
        period_sd_s: its spread from breath to breath.
        amplitude_mm: mean displacement between exhale and inhale.
        amplitude_sd_mm: its spread from breath to breath.
        half_exponent: n of sin^(2n): 2 gives sin^4, 3 gives sin^6.
        drift_mm_per_min: movement of the exhale baseline.
        cough_s: times of coughs.
        cough_mm: displacement of a cough.
    """

    period_s: float = 4.0
    period_sd_s: float = 0.3
    amplitude_mm: float = 12.0
    amplitude_sd_mm: float = 1.5
    half_exponent: int = 2
    drift_mm_per_min: float = 0.3
    cough_s: tuple[float, ...] = ()
    cough_mm: float = 10.0


class Breathing:
    """One patient's breathing over a session, fixed when made: a pure function of time from then on.

    Args:
        pattern: how the patient breathes.
        rng: draws the breaths.
        horizon_s: length of the session; later times repeat the last breath.
    """

    def __init__(self, pattern: BreathingPattern, rng: np.random.Generator, horizon_s: float = 3600.0) -> None:
        if pattern.period_s <= 0 or pattern.half_exponent < 1:
            raise ValueError(f"breathing needs a period above 0 s and an exponent of at least 2, not {pattern}")
        self.pattern = pattern
        n = math.ceil(horizon_s / pattern.period_s * 1.5) + 1
        periods = np.maximum(rng.normal(pattern.period_s, pattern.period_sd_s, n), pattern.period_s / 3.0)
        self._amplitude_mm = np.maximum(rng.normal(pattern.amplitude_mm, pattern.amplitude_sd_mm, n), 0.0)
        # The session begins somewhere inside the first breath.
        ends = np.cumsum(periods) - rng.uniform(0.0, periods[0])
        self._start_s = np.concatenate(([ends[0] - periods[0]], ends[:-1]))
        self._period_s = periods

    def displacement_mm(self, t_s: Floats) -> Floats:
        """Displacement from the first exhale, mm, at each of `t_s` (s from the start of the session), shape (n,)."""
        t = np.asarray(t_s, dtype=np.float64)
        k = np.clip(np.searchsorted(self._start_s, t, side="right") - 1, 0, self._start_s.size - 1)
        phase = (t - self._start_s[k]) / self._period_s[k]
        z: Floats = self._amplitude_mm[k] * np.sin(np.pi * phase) ** (2 * self.pattern.half_exponent)
        z = z + self.pattern.drift_mm_per_min * t / 60.0
        for cough_s in self.pattern.cough_s:
            z = z + self.pattern.cough_mm * np.exp(-(((t - cough_s) / COUGH_WIDTH_S) ** 2))
        return z

    def at(self, t_s: float) -> float:
        """Displacement, mm, at one time."""
        return float(self.displacement_mm(np.array([t_s]))[0])

    def open_intervals_s(self, level_mm: float, t0_s: float, t1_s: float) -> Floats:
        """Intervals inside [t0_s, t1_s] in which the displacement is at most `level_mm`, shape (n, 2), ascending, in s."""
        n = max(math.ceil((t1_s - t0_s) / EDGE_GRID_S), 1) + 1
        t = np.linspace(t0_s, t1_s, n)
        inside = self.displacement_mm(t) <= level_mm
        change = np.flatnonzero(inside[1:] != inside[:-1])
        low, high, before = t[change], t[change + 1], inside[change]
        for _ in range(24):  # 5 ms halved 24 times: below 1 ns
            middle = (low + high) / 2.0
            same = (self.displacement_mm(middle) <= level_mm) == before
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        opens = list(high[~before])
        closes = list(high[before])
        if inside[0]:
            opens.insert(0, t0_s)
        if inside[-1]:
            closes.append(t1_s)
        return np.column_stack((opens, closes)) if opens else np.empty((0, 2))
