"""Commissioning: measures one room's rows of the beam library on the plant, through the devices alone.

For every species and node energy: currents by rigidity from the magnets' nameplate with a steering trim that was measured, a
QA pattern of spots with the best map known so far, fits of scanner and monitor map against the reference detector at the
isocentre, counts per ion from what the ring lost, and a second pattern with the result. A row that fails its second pattern is
withdrawn. A rotating gantry then turns through its angles with one beam, for the map of what is left of its sag.

The room must be secured and in service mode, with the reference detector at the isocentre: people do that. Not responsible for
interlocks (permits must come by themselves once the room is armed), nor for signing the result (`library_file`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from controller.beam.fit import (
    carried_over,
    fitted,
    guess_map,
    node_energies_mev_u,
    pattern_mm,
    with_counts,
    with_offset,
)
from controller.beam.library import AngleMap, BeamLibrary, LibraryRow, Qa
from controller.beam.qa_beam import Design, MeasuredSource, NameplateSupply, QaBeam, ReferenceDetector
from controller.beam.request import route_of
from drivers.hal.capabilities import RoomDevices, ScannerMap
from drivers.hal.errors import DataError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Facility, Room, SpeciesOffer
from drivers.hal.ions import Ion

NODES = 16
PATTERN_POINTS = 5
PATTERN_PART = 0.8  # of the half field
COARSE_MM = 20.0
STEER_REL = 2e-3  # test step of the steering dipole
STEER_MM_MIN = 50.0  # per unit of relative field; less means that the dipole does not follow
ANGLES_DEG = tuple(float(a) for a in range(-180, 180, 30))
ANGLE_ORDER_DEG = (*(a for a in ANGLES_DEG if a >= 0.0), *(a for a in reversed(ANGLES_DEG) if a < 0.0))
ANGLE_ENERGY_MEV_U = 250.0
# What a row must show in its second pattern to be released (assumed; the limit of a spot is 1 mm).
ERROR_MEAN_MM, ERROR_MAX_MM, COUNTS_REL = 0.05, 0.3, 0.005


@dataclass(frozen=True, slots=True)
class RoomMeasurements:
    """What commissioning a room gave."""

    rows: tuple[LibraryRow, ...]
    angle_map: AngleMap | None


class RoomCommissioning:
    """Commissions one room.

    Args:
        devices: the room's devices, connected.
        accelerator, magnets: the same ones as in `devices`, with what only commissioning asks of them.
        reference: the detector at the isocentre.
        facility, room: facts.
        bus: event ``commission.row`` from ``commission.<room>`` for every row.
        date: ISO 8601 day for the rows.
        room_token: of the beam lease under which this runs.
        nodes: energies per species.
    """

    def __init__(
        self,
        devices: RoomDevices,
        accelerator: MeasuredSource,
        magnets: NameplateSupply,
        reference: ReferenceDetector,
        facility: Facility,
        room: Room,
        bus: EventBus,
        *,
        date: str,
        room_token: int = 1,
        nodes: int = NODES,
    ) -> None:
        self._devices = devices
        self._accelerator = accelerator
        self._magnets = magnets
        self._reference = reference
        self._beam = QaBeam(devices, accelerator, magnets, reference, room, facility.accelerator, room_token)
        self._facility = facility
        self._room = room
        self._bus = bus
        self._date = date
        self._nodes = nodes

    async def run(self, species: Iterable[str] = (), energies_mev_u: Sequence[float] = ()) -> RoomMeasurements:
        """Measure everything that the accelerator offers, or only some species, or only some energies.

        Raises:
            CommandRejected: no beam permit (4321).
            DeviceError: beam or detectors do not behave (3311, 3312).
        """
        wanted = set(species)
        offers = [o for o in self._facility.accelerator.species if not wanted or o.symbol in wanted]
        # Carbon first: the best-known design, and the map of every other ion follows from it.
        offers.sort(key=lambda o: o.symbol != "C")
        if not offers:
            raise DataError(f"the accelerator offers none of {', '.join(sorted(wanted))}", code=5311)
        rows: list[LibraryRow] = []
        angle_map: AngleMap | None = None
        await self._reference.install(True)
        try:
            await self._devices.dose_monitor.self_test()
            for port in self._room.ports_deg if self._room.kind == "fixed" else (None,):
                angle = 0.0 if port is None else port
                await self._beam.turn_to(angle, offers[0].ion, route_of(self._room, angle))
                best: tuple[ScannerMap, Ion] | None = None
                design: Design | None = None
                for offer in offers:
                    await self._beam.permit(offer.ion, angle)
                    energies = self._energies(offer, energies_mev_u)
                    if design is None:
                        design, best = await self._find_beam(offer, energies[0])
                    for energy in energies:
                        row, measured = await self._measure(offer, energy, port, design, best)
                        rows.append(row)
                        best = (measured, offer.ion)
                if port is None and design is not None and best is not None:
                    angle_map = await self._measure_angles(offers[0], design, *best)
        finally:
            await self._beam.withdraw_permit()
            await self._reference.install(False)
            await self._accelerator.switch_off()
        return RoomMeasurements(tuple(rows), angle_map)

    # --- one room's steps ---------------------------------------------------------------------------------------

    async def _find_beam(self, offer: SpeciesOffer, energy_mev_u: float) -> tuple[Design, tuple[ScannerMap, Ion]]:
        """The first beam of a line: steer the orbit to the centre, then widen the pattern step by step."""
        rigidity, dipole_a, quadrupole_a = await self._magnets.read_nameplate()
        design = Design(rigidity, dipole_a.copy(), quadrupole_a.copy())
        guess = guess_map(offer.ion, energy_mev_u, self._room.nozzle, self._facility.meterset)
        centre = (np.zeros(5), np.zeros(5))
        await self._beam.tune(offer.ion, energy_mev_u, design)
        first = await self._beam.shoot(offer.ion, guess, *centre, blind=True)
        await self._beam.tune(offer.ion, energy_mev_u, design.steered(STEER_REL))
        second = await self._beam.shoot(offer.ion, guess, *centre, blind=True)
        response = float(np.mean(second.y_mm) - np.mean(first.y_mm)) / STEER_REL
        if abs(response) < STEER_MM_MIN:
            raise DeviceError(
                f"steering by {STEER_REL:.1%} moves the beam by {response * STEER_REL:.3f} mm only",
                code=3311,
                device=self._magnets.name,
                hint="look at the last dipole",
            )
        design = design.steered(-float(np.mean(first.y_mm)) / response)
        await self._beam.tune(offer.ion, energy_mev_u, design)
        shot = await self._beam.shoot(offer.ion, with_counts(guess, first), *centre, blind=True)
        found = with_offset(with_counts(guess, shot), shot)
        coarse, _ = fitted(await self._beam.shoot(offer.ion, found, *pattern_mm(COARSE_MM, COARSE_MM, 3)))
        self._bus.emit(self._source, "commission.beam_found", species=offer.symbol, energy_mev_u=energy_mev_u)
        return design, (coarse, offer.ion)

    async def _measure(
        self,
        offer: SpeciesOffer,
        energy_mev_u: float,
        port_deg: float | None,
        design: Design,
        best: tuple[ScannerMap, Ion] | None,
    ) -> tuple[LibraryRow, ScannerMap]:
        """One row: pattern, fit, second pattern with the result."""
        if best is None:
            raise DataError("no beam was found to begin with", code=5312)
        ion, nozzle = offer.ion, self._room.nozzle
        dipole_a, quadrupole_a = await self._beam.tune(offer.ion, energy_mev_u, design)
        half = (PATTERN_PART * nozzle.field_x_mm / 2.0, PATTERN_PART * nozzle.field_y_mm / 2.0)
        pattern = pattern_mm(*half, PATTERN_POINTS)
        start = carried_over(best[0], best[1], ion, energy_mev_u, self._facility.meterset)
        if ion is not best[1]:
            # Another ion: how much one of them counts is asked before the dose of a pattern rests on it.
            start = with_counts(start, await self._beam.shoot(ion, start, np.zeros(3), np.zeros(3), blind=True))
        result, rest_mm = fitted(await self._beam.shoot(ion, start, *pattern))
        check = await self._beam.shoot(ion, result, *pattern_mm(half[0] * 0.9, half[1] * 0.9, 3))
        error_x, error_y = check.error_mm
        mean_mm = math.hypot(float(np.mean(error_x)), float(np.mean(error_y)))
        max_mm = float(np.max(np.hypot(error_x, error_y)))
        counts_rel = abs(check.counts1 / check.ions / result.counts1_per_ion - 1.0)
        good = mean_mm <= ERROR_MEAN_MM and max_mm <= ERROR_MAX_MM and counts_rel <= COUNTS_REL
        self._bus.emit(
            self._source,
            "commission.row",
            species=ion.symbol,
            energy_mev_u=energy_mev_u,
            port_deg=port_deg,
            released=good,
            fit_rest_mm=rest_mm,
            error_mean_mm=mean_mm,
            error_max_mm=max_mm,
            counts_rel=counts_rel,
        )
        row = LibraryRow(
            species=ion.symbol,
            room=self._room.name,
            port_deg=port_deg,
            focus=1,
            energy_kev_u=result.energy_kev_u,
            qa=Qa.RELEASED if good else Qa.WITHDRAWN,
            date=self._date,
            dipole_a=tuple(float(a) for a in dipole_a),
            quadrupole_a=tuple(float(a) for a in quadrupole_a),
            scanner_a=(result.x0_a, result.xx_a_mm, result.xy_a_mm, result.y0_a, result.yx_a_mm, result.yy_a_mm),
            monitor=(result.monitor_x0_mm, result.monitor_xgain, result.monitor_y0_mm, result.monitor_ygain),
            counts1_per_ion=result.counts1_per_ion,
            counts2_per_ion=result.counts2_per_ion,
            sigma_x_mm=check.sigma_x_mm,
            sigma_y_mm=check.sigma_y_mm,
        )
        return row, result

    async def _measure_angles(self, offer: SpeciesOffer, design: Design, best: ScannerMap, ion_of_best: Ion) -> AngleMap:
        """Turn the gantry through its angles with one beam; shifts against angle 0, where the rows were measured."""
        energy = min(max(ANGLE_ENERGY_MEV_U, offer.energy_min_mev_u), offer.energy_max_mev_u)
        known = carried_over(best, ion_of_best, offer.ion, energy, self._facility.meterset)
        pattern = pattern_mm(COARSE_MM, COARSE_MM, 3)
        shifts: dict[float, tuple[float, float]] = {}
        for angle in ANGLE_ORDER_DEG:
            await self._beam.turn_to(angle, offer.ion, route_of(self._room, angle))
            await self._beam.permit(offer.ion, angle)
            await self._beam.tune(offer.ion, energy, design)
            if not shifts:
                probe = await self._beam.shoot(offer.ion, known, np.zeros(3), np.zeros(3), blind=True)
                known = with_counts(known, probe)
            error_x, error_y = (await self._beam.shoot(offer.ion, known, *pattern)).error_mm
            shifts[angle] = (float(np.mean(error_x)), float(np.mean(error_y)))
        zero = shifts[0.0]
        return AngleMap(
            room=self._room.name,
            qa=Qa.RELEASED,
            date=self._date,
            angle_deg=ANGLES_DEG,
            dx_mm=tuple(shifts[a][0] - zero[0] for a in ANGLES_DEG),
            dy_mm=tuple(shifts[a][1] - zero[1] for a in ANGLES_DEG),
        )

    def _energies(self, offer: SpeciesOffer, chosen: Sequence[float]) -> list[float]:
        if not chosen:
            return node_energies_mev_u(offer, self._nodes)
        return sorted((e for e in chosen if offer.energy_min_mev_u <= e <= offer.energy_max_mev_u), reverse=True)

    @property
    def _source(self) -> str:
        return f"commission.{self._room.name}"


def library_of(
    facility: Facility, measured: Iterable[RoomMeasurements], *, version: int, date: str, origin: str
) -> BeamLibrary:
    """A library from what was measured in all rooms."""
    rooms = list(measured)
    return BeamLibrary(
        facility=facility.name,
        version=version,
        date=date,
        origin=origin,
        meterset=facility.meterset,
        rows=tuple(row for room in rooms for row in room.rows),
        angle_maps=tuple(room.angle_map for room in rooms if room.angle_map is not None),
    )
