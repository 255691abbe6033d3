"""Noise of an extracted beam: ripple as a sum of tones with closed-form integrals, and counting statistics.

RF-KO extraction is modelled as flat with 10 to 20 % rms ripple at 0.1 to 2 kHz (assumed). The
expected number of ions is then an explicit function of time that can be inverted for whole arrays, so no sample grid
is needed. Not responsible for when the beam is on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Ripple:
    """Relative intensity 1 + sum a sin(w t + phase), and, on top, a rectangular burst by a factor.

    Attributes:
        amplitude: (m,), sum below 1 so that the intensity stays positive.
        omega_rad_s: (m,).
        phase_rad: (m,).
        burst_start_s: start of the burst on the same clock.
        burst_length_s: 0 for none.
        burst_factor: relative intensity during the burst.
    """

    amplitude: Floats
    omega_rad_s: Floats
    phase_rad: Floats
    burst_start_s: float = 0.0
    burst_length_s: float = 0.0
    burst_factor: float = 1.0

    def intensity(self, t_s: Floats) -> Floats:
        """Relative intensity at beam-on times, same shape."""
        wave = self.amplitude[:, None] * np.sin(self.omega_rad_s[:, None] * t_s + self.phase_rad[:, None])
        inside = (t_s >= self.burst_start_s) & (t_s < self.burst_start_s + self.burst_length_s)
        return np.asarray(1.0 + wave.sum(axis=0) + np.where(inside, self.burst_factor - 1.0, 0.0))

    def integral_s(self, t_s: Floats) -> Floats:
        """Integral of the relative intensity from 0 to t, in s."""
        scale = (self.amplitude / self.omega_rad_s)[:, None]
        wave = scale * (np.cos(self.phase_rad)[:, None] - np.cos(self.omega_rad_s[:, None] * t_s + self.phase_rad[:, None]))
        return np.asarray(self._burst(t_s) + wave.sum(axis=0))

    def invert_s(self, integral_s: Floats) -> Floats:
        """Times at which the integral reaches the given values (0 or more); Newton steps from the smooth part's inverse."""
        if self.burst_length_s > 0.0:
            knot = np.array([0.0, self.burst_start_s, self.burst_start_s + self.burst_length_s])
            t = np.interp(integral_s, self._burst(knot), knot)
            beyond = integral_s - self._burst(knot[-1:])[0]
            t = np.where(beyond > 0.0, knot[-1] + beyond, t)
        else:
            t = integral_s.copy()
        for _ in range(2):
            t = np.maximum(t - (self.integral_s(t) - integral_s) / np.maximum(self.intensity(t), 0.2), 0.0)
        return np.asarray(np.maximum.accumulate(t))

    def _burst(self, t_s: Floats) -> Floats:
        extra = np.clip(t_s - self.burst_start_s, 0.0, self.burst_length_s) * (self.burst_factor - 1.0)
        return np.asarray(t_s + extra)


def draw_ripple(rng: np.random.Generator, rms: float, tones_hz: tuple[float, ...]) -> Ripple:
    """A ripple of given rms, its power spread over the tones as 1/f, with random phases."""
    frequency = np.array(tones_hz, dtype=np.float64)
    weight = 1.0 / np.sqrt(frequency)
    amplitude = weight * (rms * np.sqrt(2.0) / np.sqrt(np.sum(weight * weight)))
    return Ripple(amplitude, 2.0 * np.pi * frequency, rng.uniform(0.0, 2.0 * np.pi, frequency.size))
