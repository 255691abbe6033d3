"""A whole grant over Channel Access to the plant's delivery unit: accepted, delivered, pulled; and of 4,000 rows, aborted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from epics_bench import facility_bench, in_real_time, lag_watched

from controller.beam.library_file import load_library
from controller.beam.request import BeamPass, BeamRequest, PreparedBeam
from drivers.devices.accelerator import Accelerator
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.devices.dose_monitor import SecondDoseUnit
from drivers.devices.magnets import Magnets
from drivers.hal.capabilities import EndReason, Grant, ScanMode
from drivers.hal.errors import CommandRejected
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility
from drivers.hal.ions import CARBON
from drivers.wire.channels import Channels
from drivers.wire.memory import MemoryChannels
from simulators import clock
from simulators.people import ScriptedOperator
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel, TruthEvent
from simulators.servers.process_variables import facility_pvs
from simulators.world import World

pytestmark = pytest.mark.xdist_group("wires")

FACILITY = load_facility("asan")
LIBRARY = load_library(FACILITY)
ROOM = "G1"
ENERGY_MEV_U = 200.0
LAG_S = 0.5  # a machine with other work on it
PULSE_NS = 30_000_000  # the relays fall after 100 ms, and a busy machine is late


@dataclass
class Beam:
    """Beam devices of a room."""

    accelerator: Accelerator
    magnets: Magnets
    unit: DeliveryUnitClient
    dose: SecondDoseUnit

    @classmethod
    @asynccontextmanager
    async def connected(cls, channels: Channels, bus: EventBus) -> AsyncIterator[Beam]:
        """Connected over a wire."""
        devices = FACILITY.devices
        beam = cls(
            Accelerator("accelerator", devices["accelerator"], channels, bus, FACILITY),
            Magnets("G1-magnets", devices["G1-magnets"], channels, bus),
            DeliveryUnitClient("G1-delivery-unit", devices["G1-delivery-unit"], channels, bus),
            SecondDoseUnit("G1-dose-unit-2", devices["G1-dose-unit-2"], channels, bus),
        )
        everything = (beam.accelerator, beam.magnets, beam.unit, beam.dose)
        try:
            await asyncio.gather(*(device.connect() for device in everything))
            yield beam
        finally:
            for device in everything:
                await device.close()


def pulses(plant: FacilityPlant) -> Callable[[int], int]:
    """The step of a node that permits beam."""
    chain, count = plant.rooms[ROOM].chain, itertools.count()

    def pulse(t_ns: int) -> int:
        value = next(count)
        chain.pulse_b(value)
        chain.pulse_r(value)
        return t_ns + PULSE_NS

    return pulse


def prepare() -> tuple[FacilityPlant, PreparedBeam]:
    """A plant with a secured room, beam at 200 MeV/u settled, a field started: a minute of its time, made without the wire."""
    plant = FacilityPlant.shipped(Kernel(3), "asan")

    async def main() -> PreparedBeam:
        world, bus = World(plant.kernel), EventBus()
        channels = MemoryChannels(facility_pvs(plant), world.sync)
        world.start()
        async with Beam.connected(channels, bus) as beam:
            await ScriptedOperator(plant.rooms[ROOM], world.sync).secure_room()
            await asyncio.sleep(3.0)
            world.add("pulses", pulses(plant))
            await beam.dose.self_test()
            await beam.dose.start_field(10**9, 10**6)
            request = BeamRequest(
                beam.accelerator, beam.magnets, beam.unit, LIBRARY, FACILITY.room(ROOM), FACILITY.accelerator, bus
            )
            prepared = await request.prepare(BeamPass(CARBON, ENERGY_MEV_U, ROOM, 0.0, ions=1e6, duration_s=1.0))
        await channels.close()
        world.stop()
        return prepared

    return plant, clock.run(main())


def grant_of(unit: DeliveryUnitClient, prepared: PreparedBeam, x_mm: np.ndarray, y_mm: np.ndarray, counts: int) -> Grant:
    entry, intensity = prepared.entry, 5e7
    ratio = entry.counts2_per_ion / entry.counts1_per_ion
    status, n = unit.status, x_mm.size
    return Grant(
        unit_boot_id=status.boot_id,
        grant_id=status.last_grant_id + 1,
        plan_hash=77,
        fraction=1,
        beam_number=1,
        layer_index=0,
        painting=0,
        species_token=CARBON.token,
        energy_kev_u=round(1000 * ENERGY_MEV_U),
        scan_mode=ScanMode.RASTER,
        intensity_per_s=int(intensity),
        quantum_counts=max(1, round(intensity * 200e-6 * entry.counts1_per_ion)),
        spot_index=np.arange(n, dtype=np.int32),
        x_um=np.round(1000 * x_mm).astype(np.int32),
        y_um=np.round(1000 * y_mm).astype(np.int32),
        counts1_max=np.full(n, counts, dtype=np.int32),
        counts2_max=np.full(n, round(counts * ratio * 1.5) + 10, dtype=np.int32),
    )


def grid(half_mm: float, columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.linspace(-half_mm, half_mm, columns), np.linspace(-half_mm, half_mm, rows))
    x[1::2] = x[1::2, ::-1]
    return x.ravel(), y.ravel()


def test_grants_small_and_whole_travel_over_channel_access_and_every_count_comes_back() -> None:
    plant, prepared = prepare()
    truth: list[TruthEvent] = []
    plant.kernel.observe(truth.append)

    def delivered(grant_id: int) -> list[int]:
        """Counts of monitor 1 by piece, as the plant knows them."""
        segments = [e.data for e in truth if e.kind == "delivery.segment" and e.data["grant_id"] == grant_id]
        return np.concatenate([segment["counts1"] for segment in segments]).tolist() if segments else []

    async def main() -> None:
        async with facility_bench(plant) as bench, Beam.connected(bench.channels, bench.bus) as beam, lag_watched() as lag_s:
            unit = beam.unit
            bench.world.add("pulses", pulses(plant))

            small = grant_of(unit, prepared, *grid(10.0, 6, 5), counts=600)
            await unit.start(small.grant_id, await unit.submit(small))
            ended = await unit.wait_ended(small.grant_id)
            assert ended.reason is EndReason.FINISHED
            pieces = await unit.results(small.grant_id)
            assert pieces["counts1"].tolist() == delivered(small.grant_id)
            assert pieces["row"].max() == 29

            whole = grant_of(unit, prepared, *grid(60.0, 80, 50), counts=600)
            assert whole.rows == 4000
            crc = await unit.submit(whole)
            with pytest.raises(CommandRejected, match="a grant is open already"):
                await unit.submit(grant_of(unit, prepared, *grid(10.0, 3, 3), counts=600))
            await unit.start(whole.grant_id, crc)
            await unit.abort()
            ended = await unit.wait_ended(whole.grant_id)
            assert ended.reason is EndReason.ABORTED and not ended.latched
            pieces = await unit.results(whole.grant_id)
            assert pieces["counts1"].tolist() == delivered(whole.grant_id)
            assert pieces.size < 4000

            longer = grant_of(unit, prepared, *grid(30.0, 40, 20), counts=600)
            await unit.start(longer.grant_id, await unit.submit(longer))
            assert (await unit.wait_ended(longer.grant_id)).reason is EndReason.FINISHED
            pieces = await unit.results(longer.grant_id)  # more than one answer of 256 pieces
            assert pieces.size >= 800
            assert pieces["counts1"].tolist() == delivered(longer.grant_id)
        assert lag_s() < LAG_S

    in_real_time(main(), start_ns=plant.kernel.now_ns)
