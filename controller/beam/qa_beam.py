"""Beam for commissioning and QA: permits, tuning by currents and maps, and patterns of spots that are measured.

What `commission` decides to shoot is shot here. Everything goes through the devices; the reference detector at the isocentre
says where the beam really went, and the ring how many ions it took.

Not responsible for what follows from a measurement (`fit`, `commission`), nor for treatment (`request`, `controller.delivery`).
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.beam.fit import Floats, Shot
from controller.beam.request import together
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
from drivers.hal.errors import CommandRejected, DeviceError
from drivers.hal.facility import Accelerator, Room
from drivers.hal.ions import Ion

INTENSITY_PER_S = 1e8  # assumed: 8 ms a spot, 50 frames of the strips
IONS_PER_SPOT = 8e5
PROBE_IONS_PER_SPOT = 4e5
IONS_RESERVE = 4e7  # a pattern and its check; with fewer left the ring is filled first
BLIND_GAIN = 0.1  # an unknown orbit is looked at with the position monitor's gain reduced, so that 10 mm do not end the shot
PERMIT_TIMEOUT_S = 30.0
PERMIT_LOOK_S = 0.1
MAGNET_SOAK_S = 0.3  # a supply is settled within its tolerance; a map is measured when its last 100 ppm are gone too
SHOT_TRIES = 3
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


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Currents by rigidity: nameplate with the steering trim of this line."""

    rigidity_tm: float
    dipole_a: Floats
    quadrupole_a: Floats

    def at(self, rigidity_tm: float) -> tuple[Floats, Floats]:
        scale = rigidity_tm / self.rigidity_tm
        return self.dipole_a * scale, self.quadrupole_a * scale

    def steered(self, relative: float) -> Design:
        """The last dipole, relatively stronger."""
        dipole_a = self.dipole_a.copy()
        dipole_a[-1] *= 1.0 + relative
        return replace(self, dipole_a=dipole_a)


class QaBeam:
    """The beam of one room, for measurements.

    Args:
        devices: the room's devices, connected.
        accelerator, magnets: the same ones as in `devices`, with what only measurements ask of them.
        reference: the detector at the isocentre, installed.
        room: the room's facts.
        facts: the accelerator's.
        room_token: of the beam lease under which this runs.
    """

    def __init__(
        self,
        devices: RoomDevices,
        accelerator: MeasuredSource,
        magnets: NameplateSupply,
        reference: ReferenceDetector,
        room: Room,
        facts: Accelerator,
        room_token: int,
    ) -> None:
        self._devices = devices
        self._accelerator = accelerator
        self._magnets = magnets
        self._unit = devices.unit
        self._reference = reference
        self._room = room
        self._facts = facts
        self._token = room_token
        self._shots = 0
        self._armed: tuple[int, float] | None = None  # species token and angle under which beam is requested

    async def turn_to(self, angle_deg: float, ion: Ion, route: str) -> None:
        """No permit while anything moves; the route first, because a fixed room's angle follows from it."""
        await self.withdraw_permit()
        await together(self._accelerator.select_route(route), self._accelerator.select_species(ion))
        if self._room.kind == "gantry":
            state = await self._devices.gantry.read_state()
            tolerance = self._room.gantry.in_position_deg if self._room.gantry is not None else 0.0
            if abs(state.angle.value - angle_deg) > tolerance:
                await self._devices.gantry.move_to(angle_deg)

    async def permit(self, ion: Ion, angle_deg: float) -> None:
        """Select the ion, arm, request, and see the beam enabled."""
        access = self._devices.access
        if self._armed != (ion.token, angle_deg):
            await self.withdraw_permit()
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

    async def withdraw_permit(self) -> None:
        """Disarm first: a request that ends while armed is a controller that died."""
        access = self._devices.access
        self._armed = None
        await access.preset(0, 0.0, 0, False)
        access.request_beam(False)

    async def tune(self, ion: Ion, energy_mev_u: float, design: Design) -> tuple[Floats, Floats]:
        """Ring and magnets at an energy, with ions enough for a row; returns the currents."""
        currents = design.at(ion.rigidity_tm(energy_mev_u))
        token = round(energy_mev_u * 1000.0)
        await together(self._bring_ring(energy_mev_u, token), self._magnets.set_currents(token, *currents))
        await asyncio.sleep(MAGNET_SOAK_S)
        return currents

    async def _bring_ring(self, energy_mev_u: float, token: int) -> None:
        status = await self._accelerator.refresh()
        standing = status.state is AcceleratorState.FLATTOP and status.settled and status.ions_left > IONS_RESERVE
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

    async def shoot(self, ion: Ion, best: ScannerMap, x_mm: Floats, y_mm: Floats, *, blind: bool = False) -> Shot:
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
        await self._unit.load_map(loaded)
        for _ in range(SHOT_TRIES):
            shot = await self._try(ion, loaded, x_mm, y_mm, PROBE_IONS_PER_SPOT if blind else IONS_PER_SPOT)
            if shot is not None:
                return replace(shot, loaded=best) if blind else shot
            await self._bring_ring(loaded.energy_kev_u / 1000.0, loaded.energy_kev_u)
        raise DeviceError(
            f"a pattern of {ion.symbol} {loaded.energy_kev_u / 1000:g} MeV/u was interrupted {SHOT_TRIES} times",
            code=3312,
            device=self._unit.name,
            hint="look at the accelerator",
        )

    async def _try(self, ion: Ion, loaded: ScannerMap, x_mm: Floats, y_mm: Floats, ions_per_spot: float) -> Shot | None:
        unit, n = self._unit, x_mm.size
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
        status, n = self._unit.status, x_mm.size
        through = INTENSITY_PER_S * self._facts.cutoff_us * 1e-6 * loaded.counts1_per_ion
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
