"""Conversion figures for a facility's overlay of the interlock limits: counts of monitor 1 per MU and per particle.

From the facility's signed beam library, written out as TOML for people to read, approve and sign: the interlock system itself
takes nothing from a library. Where rooms differ the largest is taken: these are ceilings. Not responsible for the rest of an
overlay, nor for its signature (`sign_limits`).
"""

from __future__ import annotations

import math
from pathlib import Path

from controller.beam.library_file import load_library
from drivers.hal.facility import load_facility
from drivers.hal.ions import IONS

STEP = 1.06  # between energies: a straight line between two then misses the Bethe curve by less than 0.1 %
MARGIN_MEV_U = 0.5  # beyond the offered energies, so that the ends are inside


def figures_text(facility: str, keys: Path | None = None) -> str:
    """The `[conversion]` tables of a facility's overlay. Raises BeamlineError for an unknown facility or a bad library."""
    installed = load_facility(facility)
    library = load_library(installed, keys_dir=keys)
    per: dict[str, list[str]] = {"MU": [], "NP": []}
    for offer in installed.accelerator.species:
        ion = IONS[offer.symbol]
        low, high = offer.energy_min_mev_u, offer.energy_max_mev_u
        steps = max(1, math.ceil(math.log(high / low) / math.log(STEP)))
        energies = [min(high, low * (high / low) ** (i / steps)) for i in range(steps + 1)]
        for unit, counts in (("MU", library.counts_per_mu), ("NP", library.counts_per_ion)):
            values = [max(counts(ion, energy, room) for room in installed.rooms) for energy in energies]
            pairs = list(zip(energies, values, strict=True))
            inner = pairs if max(values) > min(values) else []
            pairs = [(low - MARGIN_MEV_U, values[0]), *inner, (high + MARGIN_MEV_U, values[-1])]
            rows = ", ".join(f"[{energy:.3f}, {value:.6g}]" for energy, value in pairs)
            per[unit].append(f"{ion.token} = [{rows}]")
    head = f"# Counts of monitor 1 per MU and per particle by species (1000 Z + A): [MeV/u, counts]; library {library.version}."
    tables = [line for unit, lines in per.items() for line in ("", f"[conversion.{unit}]", *lines)]
    return "\n".join([head, *tables]) + "\n"
