"""Commissioning: measures one room's rows of the beam library on the plant, through the devices alone.

For every species and node energy: currents by rigidity from the magnets' nameplate with a steering trim that was measured, a
QA pattern of spots with the best map known so far, fits of scanner and monitor map against the reference detector at the
isocentre, counts per ion from what the ring lost, and a second pattern with the result. A row that fails its second pattern is
withdrawn. A rotating gantry then turns through its angles with one beam, for the map of what is left of its sag.

The room must be secured and in service mode, with the reference detector at the isocentre: people do that. Not responsible for
interlocks (permits must come by themselves once the room is armed), nor for signing the result (`library_file`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.beam.fit import (
    Floats,
    Shot,
    carried_over,
    fitted,
    guess_map,
    node_energies_mev_u,
    pattern_mm,
    with_counts,
    with_offset,
)
from controller.beam.library import AngleMap, BeamLibrary, LibraryRow, Qa
from controller.beam.request import route_of, together
from drivers.hal.capabilities import (
    AcceleratorState,
    AcceleratorStatus,
    BeamSource,
    EndReason,
    Grant,
    PowerSupply,
    RoomDevices,
    ScanMode,
    ScannerMap,
)
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommandRejected, DataError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Facility, Room, SpeciesOffer
from drivers.hal.ions import Ion

NODES = 16
INTENSITY_PER_S = 1e8  # assumed: 8 ms a spot, 50 frames of the strips
IONS_PER_SPOT = 8e5
PROBE_IONS_PER_SPOT = 4e5
PATTERN_POINTS = 5
PATTERN_PART = 0.8  # of the half field
COARSE_MM = 20.0
STEER_REL = 2e-3  # test step of the steering dipole
BLIND_GAIN = 0.1  # an unknown orbit is looked at with the position monitor's gain reduced, so that 10 mm do not end the shot
ANGLES_DEG = tuple(float(a) for a in range(-180, 180, 30))
ANGLE_ORDER_DEG = (*(a for a in ANGLES_DEG if a >= 0.0), *(a for a in reversed(ANGLES_DEG) if a < 0.0))
ANGLE_ENERGY_MEV_U = 250.0
PERMIT_TIMEOUT_S = 30.0
PERMIT_LOOK_S = 0.1
MAGNET_SOAK_S = 0.3  # a supply is settled within its tolerance; a map is measured when its last 100 ppm are gone too
SHOT_TRIES = 3
# What a row must show in its second pattern to be released (assumed; the limit of a spot is 1 mm).
ERROR_MEAN_MM, ERROR_MAX_MM, COUNTS_REL = 0.05, 0.3, 0.005
COUNTS_CEILING = 2**40  # a field of commissioning has no patient; each shot is bounded by its grant


class ReferenceDetector(Protocol):
    """Screen and cup at the isocentre; `drivers.devices.reference_detector` is one."""

    async def install(self, installed: bool) -> None:
        """Begin (empty) or end measuring."""
        ...

    async def spots(self, grant_id: int) -> NDArray[np.void]:
        """Pieces of a grant: fields row, x_mm, y_mm, sigma_x_mm, sigma_y_mm, ions."""
        ...


class MeasuredSource(BeamSource, Protocol):
    """A source whose status can be asked for now."""

    async def refresh(self) -> AcceleratorStatus: ...


class NameplateSupply(PowerSupply, Protocol):
    """A supply that knows the design of its magnets."""

    async def read_nameplate(self) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Rigidity in T m, and the dipole and quadrupole currents in A that hold it."""
        ...


@dataclass(frozen=True, slots=True)
class RoomMeasurements:
    """What commissioning a room gave."""

    rows: tuple[LibraryRow, ...]
    angle_map: AngleMap | None


@dataclass(frozen=True, slots=True, eq=False)
class _Design:
    """Currents by rigidity: nameplate with the steering trim of this line."""

    rigidity_tm: float
    dipole_a: Floats
    quadrupole_a: Floats

    def at(self, rigidity_tm: float) -> tuple[Floats, Floats]:
        scale = rigidity_tm / self.rigidity_tm
        return self.dipole_a * scale, self.quadrupole_a * scale

    def steered(self, relative: float) -> _Design:
        """The last dipole, relatively stronger."""
        dipole_a = self.dipole_a.copy()
        dipole_a[-1] *= 1.0 + relative
        return replace(self, dipole_a=dipole_a)


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
        self._facility = facility
        self._room = room
        self._bus = bus
        self._date = date
        self._token = room_token
        self._nodes = nodes
        self._shots = 0
        self._armed: tuple[int, float] | None = None  # species token and angle under which beam is requested

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
                await self._turn_to(angle, offers[0].ion, route_of(self._room, angle))
                best: tuple[ScannerMap, Ion] | None = None
                design: _Design | None = None
                for offer in offers:
                    await self._permit(offer.ion, angle)
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
            await self._withdraw_permit()
            await self._reference.install(False)
            await self._accelerator.switch_off()
        return RoomMeasurements(tuple(rows), angle_map)

    # --- one room's steps ---------------------------------------------------------------------------------------

    async def _find_beam(self, offer: SpeciesOffer, energy_mev_u: float) -> tuple[_Design, tuple[ScannerMap, Ion]]:
        """The first beam of a line: steer the orbit to the centre, then widen the pattern step by step."""
        rigidity, dipole_a, quadrupole_a = await self._magnets.read_nameplate()
        design = _Design(rigidity, dipole_a.copy(), quadrupole_a.copy())
        guess = guess_map(offer.ion, energy_mev_u, self._room.nozzle, self._facility.meterset)
        centre = (np.zeros(5), np.zeros(5))
        await self._tune(offer, energy_mev_u, design)
        first = await self._shoot(offer.ion, guess, *centre, blind=True)
        await self._tune(offer, energy_mev_u, design.steered(STEER_REL))
        second = await self._shoot(offer.ion, guess, *centre, blind=True)
        response = float(np.mean(second.y_mm) - np.mean(first.y_mm)) / STEER_REL
        if abs(response) < 50.0:
            raise DeviceError(
                f"steering by {STEER_REL:.1%} moves the beam by {response * STEER_REL:.3f} mm only",
                code=3311,
                device=self._magnets.name,
                hint="look at the last dipole",
            )
        design = design.steered(-float(np.mean(first.y_mm)) / response)
        await self._tune(offer, energy_mev_u, design)
        shot = await self._shoot(offer.ion, with_counts(guess, first), *centre, blind=True)
        found = with_offset(with_counts(guess, shot), shot)
        coarse, _ = fitted(await self._shoot(offer.ion, found, *pattern_mm(COARSE_MM, COARSE_MM, 3)))
        self._bus.emit(self._source, "commission.beam_found", species=offer.symbol, energy_mev_u=energy_mev_u)
        return design, (coarse, offer.ion)

    async def _measure(
        self,
        offer: SpeciesOffer,
        energy_mev_u: float,
        port_deg: float | None,
        design: _Design,
        best: tuple[ScannerMap, Ion] | None,
    ) -> tuple[LibraryRow, ScannerMap]:
        """One row: pattern, fit, second pattern with the result."""
        if best is None:
            raise DataError("no beam was found to begin with", code=5312)
        ion, nozzle = offer.ion, self._room.nozzle
        dipole_a, quadrupole_a = await self._tune(offer, energy_mev_u, design)
        half = (PATTERN_PART * nozzle.field_x_mm / 2.0, PATTERN_PART * nozzle.field_y_mm / 2.0)
        pattern = pattern_mm(*half, PATTERN_POINTS)
        start = carried_over(best[0], best[1], ion, energy_mev_u, self._facility.meterset)
        if ion is not best[1]:
            # Another ion: how much one of them counts is asked before the dose of a pattern rests on it.
            start = with_counts(start, await self._shoot(ion, start, np.zeros(3), np.zeros(3), blind=True))
        result, rest_mm = fitted(await self._shoot(ion, start, *pattern))
        check = await self._shoot(ion, result, *pattern_mm(half[0] * 0.9, half[1] * 0.9, 3))
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

    async def _measure_angles(self, offer: SpeciesOffer, design: _Design, best: ScannerMap, ion_of_best: Ion) -> AngleMap:
        """Turn the gantry through its angles with one beam; shifts against angle 0, where the rows were measured."""
        energy = min(max(ANGLE_ENERGY_MEV_U, offer.energy_min_mev_u), offer.energy_max_mev_u)
        known = carried_over(best, ion_of_best, offer.ion, energy, self._facility.meterset)
        pattern = pattern_mm(COARSE_MM, COARSE_MM, 3)
        shifts: dict[float, tuple[float, float]] = {}
        for angle in ANGLE_ORDER_DEG:
            await self._turn_to(angle, offer.ion, route_of(self._room, angle))
            await self._permit(offer.ion, angle)
            await self._tune(offer, energy, design)
            if not shifts:
                probe = await self._shoot(offer.ion, known, np.zeros(3), np.zeros(3), blind=True)
                known = with_counts(known, probe)
            error_x, error_y = (await self._shoot(offer.ion, known, *pattern)).error_mm
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

    # --- the machine --------------------------------------------------------------------------------------------

    async def _turn_to(self, angle_deg: float, ion: Ion, route: str) -> None:
        """No permit while anything moves; the route first, because a fixed room's angle follows from it."""
        await self._withdraw_permit()
        await together(self._accelerator.select_route(route), self._accelerator.select_species(ion))
        if self._room.kind == "gantry":
            state = await self._devices.gantry.read_state()
            tolerance = self._room.gantry.in_position_deg if self._room.gantry is not None else 0.0
            if abs(state.angle.value - angle_deg) > tolerance:
                await self._devices.gantry.move_to(angle_deg)

    async def _permit(self, ion: Ion, angle_deg: float) -> None:
        """Select the ion, arm, request, and see the beam enabled."""
        access = self._devices.access
        if self._armed != (ion.token, angle_deg):
            await self._withdraw_permit()
            await self._accelerator.select_species(ion)
            await self._devices.dose_monitor.start_field(COUNTS_CEILING, 2**31 - 1)
            await access.preset(self._token, angle_deg, ion.token, True)
            access.request_beam(True)
            self._armed = (ion.token, angle_deg)
        deadline_ns = now_ns() + round(PERMIT_TIMEOUT_S * NS_PER_S)
        while not (status := await access.refresh()).beam_enabled:
            if now_ns() >= deadline_ns:
                given = {"A": status.permit_a, "B": status.permit_b, "R": status.permit_r}
                withheld = ", ".join(name for name, permit in given.items() if not permit)
                raise CommandRejected(
                    f"room {self._room.name} has no beam permit after {PERMIT_TIMEOUT_S:g} s: {withheld} withheld",
                    code=4321,
                    device=access.name,
                    hint="secure the room, clear the interlocks, then begin again",
                )
            await asyncio.sleep(PERMIT_LOOK_S)

    async def _withdraw_permit(self) -> None:
        """Disarm first: a request that ends while armed is a controller that died."""
        access = self._devices.access
        self._armed = None
        await access.preset(0, 0.0, 0, False)
        access.request_beam(False)

    def _energies(self, offer: SpeciesOffer, chosen: Sequence[float]) -> list[float]:
        if not chosen:
            return node_energies_mev_u(offer, self._nodes)
        return sorted((e for e in chosen if offer.energy_min_mev_u <= e <= offer.energy_max_mev_u), reverse=True)

    async def _tune(self, offer: SpeciesOffer, energy_mev_u: float, design: _Design) -> tuple[Floats, Floats]:
        """Ring and magnets at an energy, with ions enough for a row; returns the currents."""
        currents = design.at(offer.ion.rigidity_tm(energy_mev_u))
        token = round(energy_mev_u * 1000.0)
        await together(self._bring_ring(energy_mev_u, token), self._magnets.set_currents(token, *currents))
        await asyncio.sleep(MAGNET_SOAK_S)
        return currents

    async def _bring_ring(self, energy_mev_u: float, token: int) -> None:
        status = await self._accelerator.refresh()
        need = 2.0 * IONS_PER_SPOT * PATTERN_POINTS**2
        standing = status.state is AcceleratorState.FLATTOP and status.settled and status.ions_left > need
        if standing and status.energy_kev_u == token:
            return
        if standing and status.energy_kev_u > token:
            try:
                await self._accelerator.step_to(energy_mev_u)
                return
            except (CommandRejected, DeviceError):
                if self._accelerator.status.state is AcceleratorState.FAULT:
                    raise
        await self._accelerator.start_cycle(energy_mev_u)

    async def _shoot(self, ion: Ion, best: ScannerMap, x_mm: Floats, y_mm: Floats, *, blind: bool = False) -> Shot:
        """Deliver a pattern in spot mode with a map and measure it; again when a refill fell into it."""
        loaded = best
        if blind:
            loaded = replace(
                best,
                monitor_xgain=best.monitor_xgain * BLIND_GAIN,
                monitor_ygain=best.monitor_ygain * BLIND_GAIN,
                monitor_x0_mm=0.0,
                monitor_y0_mm=0.0,
            )
        await self._devices.unit.load_map(loaded)
        for _ in range(SHOT_TRIES):
            shot = await self._try(ion, loaded, x_mm, y_mm, PROBE_IONS_PER_SPOT if blind else IONS_PER_SPOT)
            if shot is not None:
                return replace(shot, loaded=best) if blind else shot
            await self._bring_ring(loaded.energy_kev_u / 1000.0, loaded.energy_kev_u)
        raise DeviceError(
            f"a pattern of {ion.symbol} {loaded.energy_kev_u / 1000:g} MeV/u was interrupted {SHOT_TRIES} times",
            code=3312,
            device=self._devices.unit.name,
            hint="look at the accelerator",
        )

    async def _try(self, ion: Ion, loaded: ScannerMap, x_mm: Floats, y_mm: Floats, ions_per_spot: float) -> Shot | None:
        unit, n = self._devices.unit, x_mm.size
        before = await self._accelerator.refresh()
        grant = self._grant(ion, loaded, x_mm, y_mm, ions_per_spot)
        crc = await unit.submit(grant)
        await unit.start(grant.grant_id, crc)
        ended = await unit.wait_ended(grant.grant_id)
        after = await self._accelerator.refresh()
        if ended.reason is not EndReason.FINISHED:
            raise DeviceError(
                f"a pattern of {ion.symbol} {loaded.energy_kev_u / 1000:g} MeV/u ended early: {ended.reason.name.lower()}",
                code=3312,
                device=unit.name,
                hint="look at the beam before going on",
            )
        pieces = await unit.results(grant.grant_id)
        seen = await self._reference.spots(grant.grant_id)
        if after.spill != before.spill or not after.settled or pieces.size != n or seen.size != n:
            return None
        return Shot(
            loaded=loaded,
            planned_x_mm=x_mm,
            planned_y_mm=y_mm,
            x_mm=np.asarray(seen["x_mm"], dtype=np.float64),
            y_mm=np.asarray(seen["y_mm"], dtype=np.float64),
            strip_x_mm=(pieces["x_um"] / 1000.0 - loaded.monitor_x0_mm) / loaded.monitor_xgain,
            strip_y_mm=(pieces["y_um"] / 1000.0 - loaded.monitor_y0_mm) / loaded.monitor_ygain,
            sigma_x_mm=float(np.mean(seen["sigma_x_mm"])),
            sigma_y_mm=float(np.mean(seen["sigma_y_mm"])),
            counts1=int(pieces["counts1"].sum()),
            counts2=int(pieces["counts2"].sum()),
            ions=before.ions_left - after.ions_left,
        )

    def _grant(self, ion: Ion, loaded: ScannerMap, x_mm: Floats, y_mm: Floats, ions_per_spot: float) -> Grant:
        status, n = self._devices.unit.status, x_mm.size
        through = INTENSITY_PER_S * self._facility.accelerator.cutoff_us * 1e-6 * loaded.counts1_per_ion
        self._shots += 1
        return Grant(
            unit_boot_id=status.boot_id,
            grant_id=status.last_grant_id + 1,
            plan_hash=0,
            fraction=0,
            beam_number=0,
            layer_index=self._shots,
            painting=0,
            species_token=ion.token,
            energy_kev_u=loaded.energy_kev_u,
            scan_mode=ScanMode.SPOT,
            intensity_per_s=round(INTENSITY_PER_S),
            quantum_counts=math.ceil(3.0 * through) + 10,
            spot_index=np.arange(n, dtype=np.int32),
            x_um=np.round(x_mm * 1000.0).astype(np.int32),
            y_um=np.round(y_mm * 1000.0).astype(np.int32),
            counts1_max=np.full(n, max(1, round(ions_per_spot * loaded.counts1_per_ion)), dtype=np.int32),
            counts2_max=np.full(n, max(1, round(ions_per_spot * loaded.counts2_per_ion)), dtype=np.int32),
        )

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
