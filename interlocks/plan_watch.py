"""Holds the controller's presets and grants against this system's own reading of the plan, as registers of our own.

`PlanWatch.registers(image)` answers what rows PLAN_* compare: whether the armed beam is of the plan that was given, its
angle and species, its ceilings in counts of monitor 1, and how much was granted since it was armed. Ceilings are of the whole
beam: for a resumed one they are an upper bound. Not responsible for reading plans (`plan_ceilings`) nor for judging (`engine`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from operator import itemgetter
from struct import pack, unpack
from typing import NamedTuple

from interlocks.inputs import NO_ANGLE, SIGNALS, value_of
from interlocks.plan_ceilings import Beam, PlanNotUnderstood, read

Figures = Mapping[tuple[str, int], tuple[tuple[float, float], ...]]  # (unit, species): (MeV/u, counts per unit), ascending


SPOT_MARGIN, SPOT_MARGIN_COUNTS = 1.05, 20  # what the second dose unit may have beyond the largest spot; assumed


class Ceilings(NamedTuple):
    """Of one beam, in counts of monitor 1; of what the second dose unit may be loaded with, in counts of monitor 2."""

    angle_mdeg: int
    species: int
    field: float
    layers: tuple[float, ...]
    row: float
    field2: float
    spot2: float


def counts_per_unit(figures: Figures, unit: str, species: int, energy_mev_u: float) -> float:
    """The conversion figure at an energy, linear between those given. Raises PlanNotUnderstood outside of them."""
    table = figures.get((unit, species), ())
    at = bisect_left(table, (energy_mev_u,))
    if at < len(table) and table[at][0] == energy_mev_u:
        return table[at][1]
    if not 0 < at < len(table):
        raise PlanNotUnderstood([f"no conversion figure for {unit} of species {species} at {energy_mev_u:g} MeV/u"])
    (low, a), (high, b) = table[at - 1 : at + 1]
    return a + (b - a) * (energy_mev_u - low) / (high - low)


def ceilings_of(beam: Beam, figures: Figures) -> Ceilings:
    """Ceilings of a beam in counts. Raises PlanNotUnderstood where a conversion figure is missing."""
    per_unit = [counts_per_unit(figures, beam.unit, beam.species, layer.energy_mev_u) for layer in beam.layers]
    layers = tuple([layer.total * counts for layer, counts in zip(beam.layers, per_unit, strict=True)])
    row = max(layer.spot * counts for layer, counts in zip(beam.layers, per_unit, strict=True))
    ratio = max(counts_per_unit(figures, "ratio2", beam.species, layer.energy_mev_u) for layer in beam.layers)
    # The highest energy is given first; the unit is loaded then.
    excess = counts_per_unit(figures, "excess2", beam.species, max(layer.energy_mev_u for layer in beam.layers))
    second = sum(layers) * ratio + excess, row * ratio * SPOT_MARGIN + SPOT_MARGIN_COUNTS
    return Ceilings(round(beam.gantry_deg * 1000.0), beam.species, sum(layers), layers, row, *second)


class PlanWatch:
    """Ceilings of the plan that was given, and what has been granted.

    Args:
        figures: conversion into counts of monitor 1.
        required: whether nothing may be armed without a plan.
    """

    def __init__(self, figures: Figures, required: bool) -> None:
        self._figures = figures
        self._beams = self._none = None if not required else dict[tuple[int, int], Ceilings]()
        self._armed: tuple[int, int] | None = None  # plan and beam at the last look
        self._carried = self._given = 0  # given in fields before since arming, and seen to be given in this one
        self._last: tuple[tuple[int, ...], Sequence[int]] = (), ()  # what was looked at, and the answer: one has one

    def give(self, data: bytes | None, sha256: str = "") -> None:
        """Take the bytes of a plan file (None: there is none any more). After one that cannot be read no beam is known.

        Raises:
            PlanNotUnderstood: with every reason; another hash than `sha256`, if one is told, is one.
        """
        self._beams, self._last = self._none if data is None else {}, ((), ())
        if data is None:
            return
        if sha256 and hashlib.sha256(data).hexdigest() != sha256.lower():
            raise PlanNotUnderstood(["the file is not the one whose SHA-256 was told"])
        plan = read(data)
        self._beams = {(plan.hash, beam.number & 0xFFFF): ceilings_of(beam, self._figures) for beam in plan.beams}

    def registers(self, image: Sequence[int]) -> Sequence[int]:
        """Registers from OWN_FIRST on, without that of the proof test."""
        if (words := LOOKED_AT(image)) != self._last[0]:
            self._last = words, self._look(image)
        return self._last[1]

    def _look(self, image: Sequence[int]) -> Sequence[int]:
        """Take what the image says into account; a second look at the same changes nothing."""
        seen = {name: value_of(SIGNALS[name], image) for name in READ.split()}
        # A total of monitor 1 that falls is a new field, whoever began it: what came before since arming still counts.
        before = self._carried + self._given * (seen["counts1"] < self._given)
        key = (seen["preset_plan"], seen["preset_beam"]) if seen["armed"] else None
        self._carried = before if key is not None and key == self._armed else 0
        self._armed, self._given = key, seen["counts1"]
        known, beam = True, None
        if key is not None and self._beams is not None:
            beam = self._beams.get(key)
            same = (seen["granted_plan"], seen["granted_beam"]) in ((0, 0), key)
            known = beam is not None and same and seen["granted_layer_number"] <= len(beam.layers)
        total = self._carried + seen["granted_field"] if key is not None else 0
        if beam is None or not known:
            return _words(known, NO_ANGLE, 0, 0, 0, 0, total, 0, 0)
        layer = beam.layers[seen["granted_layer_number"] - 1] if seen["granted_layer_number"] else 0
        field, layer, row, *second = [max(1, round(x)) for x in (beam.field, layer, beam.row, beam.field2, beam.spot2)]
        return _words(1, beam.angle_mdeg, beam.species, field, layer, row, total, *second)


READ = "armed preset_plan preset_beam counts1 granted_field granted_layer_number granted_plan granted_beam"
LOOKED_AT = itemgetter(*(SIGNALS[name].register + i for name in READ.split() for i in range(SIGNALS[name].words)))
TOP = [(1 << 16 * count) - 1 for count in (1, 2, 2, 4, 4, 2, 4, 2, 2)]


def _words(*values: int) -> Sequence[int]:
    """Integers as registers, high word first; what does not fit is the largest that does."""
    return unpack(">23H", pack(">HIIQQIQII", *[min(value, top) & top for value, top in zip(values, TOP, strict=True)]))
