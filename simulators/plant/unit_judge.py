"""Whether a delivery unit takes a grant: every refusal of docs/wires.md that can be judged on arrival, in a fixed order.

A function of what the unit knows and measures at that instant. Not responsible for the start (age, permission), nor
for anything that happens later.
"""

from __future__ import annotations

import numpy as np

from simulators.plant.grants import GrantMessage, Refusal
from simulators.plant.magnets import BeamlineMagnets
from simulators.plant.synchrotron import RingState, Synchrotron
from simulators.plant.truth import UnitTruth
from simulators.plant.unit_map import LoadedMap
from simulators.plant.unit_terms import Hold

QUANTUM_SHARE = 0.9  # a quantum must hold this share of what the cut-off lets through


def judge(
    grant: GrantMessage,
    *,
    boot_id: int,
    last_grant_id: int,
    busy: bool,
    latched: bool,
    ring: Synchrotron,
    loaded: LoadedMap | None,
    unit: UnitTruth,
) -> Refusal:
    """The first reason to refuse a well-formed grant, or NONE.

    An energy that is not settled yet is no reason: the grant waits for it, and is delivered at no other.
    """
    inside = (np.abs(grant.x_mm) <= unit.field_x_mm / 2) & (np.abs(grant.y_mm) <= unit.field_y_mm / 2)
    low, high = ring.truth.intensity_min_per_s, ring.truth.intensity_max_per_s
    if grant.boot_id != boot_id:
        return Refusal.BOOT_ID
    if grant.grant_id != last_grant_id + 1:
        return Refusal.ID
    if busy:
        return Refusal.OPEN
    if latched:
        return Refusal.LATCHED
    if grant.species != ring.measured_species:
        return Refusal.SPECIES
    if ring.measured_kev_u not in (0, grant.kev_u):
        return Refusal.ENERGY
    if loaded is None or loaded.kev_u != grant.kev_u:
        return Refusal.MAP
    through = grant.intensity_per_s * ring.truth.extraction.off_us * 1e-6 * loaded.counts1_per_ion
    if not low <= grant.intensity_per_s <= high or grant.quantum_counts + 1 < QUANTUM_SHARE * through:
        return Refusal.INTENSITY
    if not inside.all() or int(grant.counts1_max.min()) < 0 or int(grant.counts2_max.min()) < 0:
        return Refusal.FIELD
    return Refusal.NONE


def mismatch(grant: GrantMessage, ring: Synchrotron, magnets: BeamlineMagnets) -> bool:
    """Whether something that stands settled is not what was granted."""
    return (
        ring.measured_kev_u not in (0, grant.kev_u)
        or ring.measured_species not in (0, grant.species)
        or magnets.settled_token not in (0, grant.kev_u)
    )


def holds(ring: Synchrotron, magnets: BeamlineMagnets, gate: bool, controller_gate: bool, paused: bool) -> Hold:
    """What holds beam back now, NONE when nothing does."""
    hold = Hold.NONE
    if not gate:
        hold |= Hold.GATE
    if not controller_gate:
        hold |= Hold.CONTROLLER
    if ring.state not in (RingState.FLATTOP, RingState.STEPPING):
        hold |= Hold.SPILL
    if ring.state is RingState.STEPPING or magnets.settled_token == 0:
        hold |= Hold.ENERGY
    if paused:
        hold |= Hold.PAUSE
    return hold
