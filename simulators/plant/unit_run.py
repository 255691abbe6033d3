"""One stretch of beam of a delivery unit, prepared: what the plant will do from this instant on, and when the unit will
object.

Brings the loaded map, the magnets' beam, the scanner, the chambers and the ring's spill together and hands them to
`timeline` and `unit_checks`. Not responsible for states and bookkeeping (`delivery_unit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulators.physics.rigidity import nucleus
from simulators.plant import timeline, unit_checks
from simulators.plant.chambers import Monitor, StripMonitor
from simulators.plant.grants import PIECE, GrantMessage, ScanMode
from simulators.plant.kernel import Kernel
from simulators.plant.magnets import BeamAtIsocentre, BeamlineMagnets
from simulators.plant.scanner import Scanner
from simulators.plant.synchrotron import Synchrotron
from simulators.plant.truth import RoomTruth
from simulators.plant.unit_map import LoadedMap
from simulators.plant.unit_terms import Flag

SIGMA_NOISE_REL = 0.02  # strips' measurement of the width; assumed


@dataclass(frozen=True, slots=True)
class Beamline:
    """The parts of a room's line that a stretch of beam meets."""

    kernel: Kernel
    name: str  # of the unit, for its random streams
    truth: RoomTruth
    ring: Synchrotron
    magnets: BeamlineMagnets
    scanner: Scanner
    monitor1: Monitor
    monitor2: Monitor
    strips: StripMonitor
    angle_deg: Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an open grant has come."""

    next_row: int
    done1: int
    done2: int
    stretch: int  # number of this stretch within the grant, from 1
    scan_mm: tuple[float, float]  # where the scanner stands


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A prepared stretch.

    Attributes:
        running: the stretch, for readings while it lasts.
        through: the unscanned beam at the isocentre.
        finding: what the unit will object to, if it comes to that.
        signal_permille: charge per ion in monitor 1 over what the map leads to expect.
    """

    grant: GrantMessage
    stretch: timeline.Stretch
    running: timeline.Running
    expected: unit_checks.Expectation
    finding: unit_checks.Finding | None
    signal_permille: int
    through: BeamAtIsocentre
    energy_mev_u: float
    species: int
    spill: int
    keys: tuple[int, ...]


def prepare(line: Beamline, grant: GrantMessage, loaded: LoadedMap, progress: Progress, in_flight: Callable[[], float]) -> Run:
    """Compute a stretch that begins now."""
    ring, now = line.ring, line.kernel.now_ns
    keys = (grant.fraction, grant.beam, grant.layer, grant.painting, grant.grant_id, progress.stretch)
    left = slice(progress.next_row, None)
    x_mm, y_mm = grant.x_mm[left], grant.y_mm[left]
    goal1 = np.cumsum(grant.counts1_max)[left] - progress.done1
    goal2 = np.cumsum(grant.counts2_max)[left] - progress.done2
    token, energy = ring.true_species, ring.true_energy_mev_u
    through = line.magnets.beam_at_isocentre(token, energy)
    mean, ripple = ring.begin_extraction(grant.intensity_per_s, keys, in_flight)
    beam = timeline.Beam(
        rate_per_s=mean if through.arrives else 0.0,
        ripple=ripple,
        ions_available=ring.available_ions,
        counts1_per_ion=line.monitor1.counts_per_ion(token, energy),
        counts2_per_ion=line.monitor2.counts_per_ion(token, energy),
        spread=line.truth.chambers.ionisation_spread,
    )
    dx, dy = line.scanner.displacement_mm(*loaded.currents_a(x_mm, y_mm), nucleus(token).rigidity_tm(energy))
    sag_x, sag_y = line.scanner.sag_mm(line.angle_deg(now))
    seen_x, seen_y = dx + through.x_mm, dy + through.y_mm
    place = timeline.Place(seen_x + sag_x, seen_y + sag_y, seen_x, seen_y, loaded.monitor_x, loaded.monitor_y)
    numbers = np.arange(progress.next_row, grant.rows, dtype=np.int64)
    rows = timeline.Rows(numbers, grant.spot_index[left].astype(np.int64), x_mm, y_mm, goal1)
    rng = line.kernel.rng(line.name, "beam", *keys)
    stretch = timeline.compute(rows, place, _rules(line, grant, loaded, progress), beam, line.strips, now, rng)
    expected = unit_checks.Expectation(
        x_mm,
        y_mm,
        goal1,
        goal2,
        progress.done2,
        loaded.counts1_per_ion,
        loaded.counts2_per_ion,
        grant.intensity_per_s,
        grant.quantum_counts,
    )
    finding = unit_checks.first_finding(stretch, expected, beam)
    if finding is not None and finding.t_ns > stretch.end_ns:
        finding = None
    signal = round(1000.0 * beam.counts1_per_ion / loaded.counts1_per_ion)
    error = unit_checks.position_error_mm(stretch, expected)
    running = timeline.Running(stretch, np.where(stretch.t_end_ns > stretch.t_start_ns, error, 0.0))
    return Run(grant, stretch, running, expected, finding, signal, through, energy, token, ring.spill, keys)


def _rules(line: Beamline, grant: GrantMessage, loaded: LoadedMap, progress: Progress) -> timeline.Rules:
    extraction, scanner, unit = line.ring.truth.extraction, line.truth.scanner, line.truth.unit
    spot_mode = grant.scan_mode is ScanMode.SPOT
    off_us, longest_us = line.ring.row_off_us()
    # What usually comes after the count is reached: half a sampling interval, the cut-off, and half a count of rounding.
    late_s = (extraction.off_us + 0.5 * unit.sample_us) * 1e-6
    return timeline.Rules(
        spot_mode=spot_mode,
        sample_s=unit.sample_us * 1e-6,
        speed_x_mm_s=scanner.speed_x_mm_ms * 1e3,
        speed_y_mm_s=scanner.speed_y_mm_ms * 1e3,
        settle_s=scanner.settle_us * 1e-6,
        beam_on_distance_max_mm=unit.beam_on_distance_max_mm,
        lead_counts=grant.intensity_per_s * late_s * loaded.counts1_per_ion + 0.5,
        on_s=extraction.on_us * 1e-6,
        off_s=off_us * 1e-6,
        off_jitter_s=extraction.off_jitter_us * 1e-6,
        off_max_s=longest_us * 1e-6,
        x_mm=progress.scan_mm[0],
        y_mm=progress.scan_mm[1],
    )


def pieces_of(line: Beamline, run: Run, done: timeline.Stretch, cut: Flag) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Result pieces of what was delivered; `cut` is the flag of a row that did not end."""
    pieces = np.zeros(done.size, dtype=PIECE)
    noise = line.kernel.rng(line.name, "sigma", *run.keys).standard_normal((2, run.stretch.size))[:, : done.size]
    pieces["row"] = done.row
    pieces["spot_index"] = done.spot_index
    pieces["spill"] = run.spill
    pieces["x_um"] = np.round(done.x_seen_mm * 1e3)
    pieces["y_um"] = np.round(done.y_seen_mm * 1e3)
    pieces["sigma_x_um"] = np.round(run.through.sigma_x_mm * (1.0 + SIGMA_NOISE_REL * noise[0]) * 1e3)
    pieces["sigma_y_um"] = np.round(run.through.sigma_y_mm * (1.0 + SIGMA_NOISE_REL * noise[1]) * 1e3)
    pieces["counts1"] = done.counts1
    pieces["counts2"] = done.counts2
    pieces["t_start_ns"] = done.t_start_ns
    pieces["t_end_ns"] = done.t_end_ns
    pieces["flags"] = np.where(done.ended, int(Flag.ROW_ENDED), int(cut)) | int(Flag.GATE_OPEN)
    return pieces


def accepted_data(grant: GrantMessage, room: str) -> dict[str, Any]:
    """What the truth event `grant.accepted` carries."""
    return {
        "room": room,
        "grant_id": grant.grant_id,
        "boot_id": grant.boot_id,
        "plan_hash": grant.plan_hash,
        "fraction": grant.fraction,
        "beam": grant.beam,
        "layer": grant.layer,
        "painting": grant.painting,
        "species": grant.species,
        "kev_u": grant.kev_u,
        "rows": grant.rows,
        "spot_index": grant.spot_index,
        "planned_x_mm": grant.x_mm,
        "planned_y_mm": grant.y_mm,
        "counts1_max": grant.counts1_max,
        "counts2_max": grant.counts2_max,
        "quantum_counts": grant.quantum_counts,
        "crc": grant.crc,
    }


def segment_data(run: Run, done: timeline.Stretch, room: str) -> dict[str, Any]:
    """What the truth event `delivery.segment` carries; arrays of shape (rows begun,), positions at the isocentre plane."""
    grant, row = run.grant, done.row
    return {
        "room": room,
        "grant_id": grant.grant_id,
        "boot_id": grant.boot_id,
        "row": row,
        "spot_index": done.spot_index,
        "x_mm": done.x_mm,
        "y_mm": done.y_mm,
        "x_seen_mm": done.x_seen_mm,
        "y_seen_mm": done.y_seen_mm,
        "ions": done.ions,
        "counts1": done.counts1,
        "counts2": done.counts2,
        "ended": done.ended,
        "planned_x_mm": grant.x_mm[row],
        "planned_y_mm": grant.y_mm[row],
        "counts1_max": grant.counts1_max[row],
        "counts2_max": grant.counts2_max[row],
        "t_start_ns": done.t_start_ns,
        "t_end_ns": done.t_end_ns,
        "sigma_x_mm": run.through.sigma_x_mm,
        "sigma_y_mm": run.through.sigma_y_mm,
        "energy_mev_u": run.energy_mev_u,
        "kev_u": grant.kev_u,
        "species": run.species,
        "fraction": grant.fraction,
        "beam": grant.beam,
        "layer": grant.layer,
        "painting": grant.painting,
        "plan_hash": grant.plan_hash,
        "scan_mode": int(grant.scan_mode),
        "intensity_per_s": grant.intensity_per_s,
        "quantum_counts": grant.quantum_counts,
        "counts1_per_ion": run.expected.counts1_per_ion,
        "counts2_per_ion": run.expected.counts2_per_ion,
        "spill": run.spill,
    }
