"""What one field costs in a campaign: CPU time of a clinical-like field in virtual time, every invariant on, outputs off.

The field is one beam of the pancreas-like example. CPU time of the whole call, as for `treat_speed`.
"""

from __future__ import annotations

from bench.figures import Bench, Figure

AIM_S = 0.5
SHAPE, BEAMS = "pancreas", (1,)


def measure(bench: Bench) -> list[Figure]:
    """CPU s per field."""
    bench.treat(SHAPE, beams=BEAMS)
    samples = []
    for seed in range(bench.repeat):
        treated = bench.treat(SHAPE, beams=BEAMS, seed=seed)
        samples.append(treated.cpu_s)
    beam = treated.result.summary["beams"][0]
    note = f"{beam['layers']} layers, {beam['spots']} spots, {treated.simulated_s:.0f} s simulated"
    return [Figure("campaign field", "s CPU", tuple(samples), AIM_S, False, note)]
