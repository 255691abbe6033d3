"""Conversion figures for a facility's overlay of the interlock limits: counts of monitor 1 per MU and per particle, counts of
monitor 2 per count of monitor 1, and what the second dose unit may have beyond the plan.

From the facility's signed beam library, written out as TOML for people to read, approve and sign: the interlock system itself
takes nothing from a library. Where rooms differ the largest is taken: these are ceilings. Not responsible for the rest of an
overlay, nor for its signature (`sign_limits`).
"""

from __future__ import annotations

import math
from pathlib import Path

from controller.beam.library import BeamLibrary, LibraryEntry
from controller.beam.library_file import load_library
from controller.plan.nominal import stopping_power_mev_cm2_g
from drivers.hal.facility import Room, load_facility
from drivers.hal.ions import IONS, Ion

STEP = 1.06  # between energies: a straight line between two then misses the Bethe curve by less than 0.1 %
MARGIN_MEV_U = 0.5  # beyond the offered energies, so that the ends are inside
EXCESS_GY = 0.25  # HW_SPOT_DOSE_2: beyond the plan in a field, over the area of one spot
WATER_I_EV, WATER_Z_OVER_A = 78.0, 0.55508
J_PER_MEV, G_PER_KG, MM2_PER_CM2 = 1.602177e-13, 1000.0, 100.0


def _entries(library: BeamLibrary, ion: Ion, energy_mev_u: float, room: Room) -> list[LibraryEntry]:
    """The library's rows of a room: the spot is the same at every gantry angle, but each fixed port has its own."""
    return [library.lookup(ion, energy_mev_u, room.name, angle_deg) for angle_deg in room.ports_deg or (0.0,)]


def ratio2(entry: LibraryEntry) -> float:
    """Counts of monitor 2 per count of monitor 1."""
    return entry.scanner_map.counts2_per_ion / entry.scanner_map.counts1_per_ion


def excess2(entry: LibraryEntry) -> float:
    """Counts of monitor 2 of 0.25 Gy in the entrance over one spot: 2 pi sigma_x sigma_y, as if dose were even in it."""
    area_mm2 = 2.0 * math.pi * entry.sigma_x_mm * entry.sigma_y_mm
    stopping = stopping_power_mev_cm2_g(entry.ion, entry.energy_kev_u / 1000.0, WATER_I_EV, WATER_Z_OVER_A)
    gy_mm2_per_ion = stopping * MM2_PER_CM2 * G_PER_KG * J_PER_MEV
    return EXCESS_GY * area_mm2 / gy_mm2_per_ion * entry.scanner_map.counts2_per_ion


def figures_text(facility: str, keys: Path | None = None) -> str:
    """The `[conversion]` tables of a facility's overlay. Raises BeamlineError for an unknown facility or a bad library."""
    installed = load_facility(facility)
    library = load_library(installed, keys_dir=keys)
    per: dict[str, list[str]] = {"MU": [], "NP": [], "ratio2": [], "excess2": []}
    for offer in installed.accelerator.species:
        ion = IONS[offer.symbol]
        low, high = offer.energy_min_mev_u, offer.energy_max_mev_u
        steps = max(1, math.ceil(math.log(high / low) / math.log(STEP)))
        energies = [min(high, low * (high / low) ** (i / steps)) for i in range(steps + 1)]
        entries = [
            [e for room in installed.rooms.values() for e in _entries(library, ion, energy, room)] for energy in energies
        ]
        of_rooms = {
            **{
                unit: [max(counts(ion, energy, room) for room in installed.rooms) for energy in energies]
                for unit, counts in (("MU", library.counts_per_mu), ("NP", library.counts_per_ion))
            },
            **{unit: [max(map(of, some)) for some in entries] for unit, of in (("ratio2", ratio2), ("excess2", excess2))},
        }
        for unit, values in of_rooms.items():
            pairs = list(zip(energies, values, strict=True))
            inner = pairs if max(values) > min(values) else []
            pairs = [(low - MARGIN_MEV_U, values[0]), *inner, (high + MARGIN_MEV_U, values[-1])]
            rows = ", ".join(f"[{energy:.3f}, {value:.6g}]" for energy, value in pairs)
            per[unit].append(f"{ion.token} = [{rows}]")
    head = (
        f"# Counts of monitor 1 per MU and per particle by species (1000 Z + A): [MeV/u, counts]; library {library.version}.\n"
        "# ratio2: counts of monitor 2 per count of monitor 1. excess2: counts of monitor 2 of 0.25 Gy over one spot."
    )
    tables = [line for unit, lines in per.items() for line in ("", f"[conversion.{unit}]", *lines)]
    return "\n".join([head, *tables]) + "\n"
