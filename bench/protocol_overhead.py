"""What our protocol costs the patient: irradiation time over `machine_limited_s`, in virtual time.

`machine_limited_s` is what the same plant with the same seed needs when an oracle feeds it every grant without delay.
"""

from __future__ import annotations

from bench.figures import Bench, Figure

AIM_PERCENT = 0.2
SHAPES = ("benchmark", "pancreas")


def measure(bench: Bench) -> list[Figure]:
    """Percent of irradiation time, per shape; one sample per seed and beam."""
    figures = []
    for shape in SHAPES:
        samples = []
        for seed in range(2):
            for beam in bench.treat(shape, seed=seed).result.summary["beams"]:
                samples.append(100.0 * (beam["irradiation_s"] / beam["machine_limited_s"] - 1.0))
        note = f"worst {max(samples):.3f} %; a beam of {beam['machine_limited_s']:.1f} s"
        figures.append(Figure(f"protocol overhead, {shape}", "%", tuple(samples), AIM_PERCENT, False, note))
    return figures
