"""The whole chain, from request and devices over the wire to the plant: a grant arrives where it was sent, or says why not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
import pytest

from controller.beam.library_file import load_library
from controller.beam.request import Approach, BeamPass, BeamRequest, PreparedBeam, TokenMismatch
from drivers.devices.accelerator import Accelerator
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.devices.dose_monitor import SecondDoseUnit
from drivers.devices.magnets import Magnets
from drivers.hal.capabilities import EndReason, Grant, Hold, ScanMode, UnitState, UnitStatus
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected, CommunicationError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility
from drivers.hal.ions import CARBON, HELIUM
from drivers.wire.memory import MemoryChannels
from simulators.clock import run
from simulators.people import ScriptedOperator
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel, TruthEvent
from simulators.servers.process_variables import facility_pvs
from simulators.world import World

FACILITY = load_facility("asan")
LIBRARY = load_library(FACILITY)
ROOM = "G1"


@dataclass(slots=True, eq=False)
class Chain:
    """A secured room with permits, its beam devices connected, a field started."""

    plant: FacilityPlant
    channels: MemoryChannels
    accelerator: Accelerator
    magnets: Magnets
    unit: DeliveryUnitClient
    dose: SecondDoseUnit
    request: BeamRequest
    truth: list[TruthEvent]

    async def deliver(self, prepared: PreparedBeam, x_mm: np.ndarray, y_mm: np.ndarray, counts: int = 600) -> UnitStatus:
        """Grant spots of equal counts and wait for the end."""
        status, n, entry = self.unit.status, x_mm.size, prepared.entry
        intensity = 5e7
        ratio = entry.counts2_per_ion / entry.counts1_per_ion
        grant = Grant(
            unit_boot_id=status.boot_id,
            grant_id=status.last_grant_id + 1,
            plan_hash=77,
            fraction=1,
            beam_number=1,
            layer_index=0,
            painting=0,
            species_token=entry.ion.token,
            energy_kev_u=entry.energy_kev_u,
            scan_mode=ScanMode.RASTER,
            intensity_per_s=round(intensity),
            quantum_counts=int(intensity * 250e-6 * entry.counts1_per_ion) + 5,
            spot_index=np.arange(n, dtype=np.int32),
            x_um=np.round(x_mm * 1000).astype(np.int32),
            y_um=np.round(y_mm * 1000).astype(np.int32),
            counts1_max=np.full(n, counts, dtype=np.int32),
            counts2_max=np.full(n, round(counts * ratio), dtype=np.int32),
        )
        await self.unit.start(grant.grant_id, await self.unit.submit(grant))
        return await self.unit.wait_ended(grant.grant_id)

    def segments(self) -> list[TruthEvent]:
        return [event for event in self.truth if event.kind == "delivery.segment"]


def carbon(energy_mev_u: float, **more: float) -> BeamPass:
    return BeamPass(CARBON, energy_mev_u, ROOM, 0.0, ions=more.get("ions", 1e6), duration_s=1.0)


def with_chain(body: Callable[[Chain], Awaitable[None]], *, losses: bool = False, seed: int = 3) -> None:
    async def scenario() -> None:
        plant = FacilityPlant.shipped(Kernel(seed), "asan")
        world, room = World(plant.kernel), plant.rooms[ROOM]
        truth: list[TruthEvent] = []
        plant.kernel.observe(truth.append)
        rng = random.Random(5) if losses else None
        channels = MemoryChannels(
            facility_pvs(plant),
            world.sync,
            rng=rng,
            drop_probability=0.3 if losses else 0.0,
            jitter_s=0.002 if losses else 0.0,
        )
        world.start()
        pulses = iter(range(10**9))

        def pulse(t_ns: int) -> int:
            value = next(pulses)
            room.chain.pulse_b(value)
            room.chain.pulse_r(value)
            return t_ns + 50_000_000

        bus, devices = EventBus(), FACILITY.devices
        accelerator = Accelerator("accelerator", devices["accelerator"], channels, bus, FACILITY)
        magnets = Magnets("G1-magnets", devices["G1-magnets"], channels, bus)
        unit = DeliveryUnitClient("G1-delivery-unit", devices["G1-delivery-unit"], channels, bus)
        dose = SecondDoseUnit("G1-dose-unit-2", devices["G1-dose-unit-2"], channels, bus)
        request = BeamRequest(accelerator, magnets, unit, LIBRARY, FACILITY.room(ROOM), FACILITY.accelerator, bus)
        everything = (accelerator, magnets, unit, dose)
        try:
            await asyncio.gather(*(device.connect() for device in everything))
            await ScriptedOperator(room, world.sync).secure_room()
            await asyncio.sleep(3.0)
            world.add("pulses", pulse)
            await dose.self_test()
            await dose.start_field(10**9, 10**6)
            await body(Chain(plant, channels, accelerator, magnets, unit, dose, request, truth))
        finally:
            for device in everything:
                await device.close()
            await channels.close()
            world.stop()

    run(scenario())


def grid(half_mm: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.linspace(-half_mm, half_mm, points)
    x, y = np.meshgrid(axis, axis)
    x[1::2] = x[1::2, ::-1]
    return x.ravel(), y.ravel()


@pytest.mark.parametrize("losses", [False, True], ids=["clean wire", "lost and late monitors"])
def test_a_prepared_grant_arrives_where_it_was_sent_and_is_reported_to_the_count(losses: bool) -> None:
    async def body(chain: Chain) -> None:
        prepared = await chain.request.prepare(carbon(267.3))
        assert prepared.approach is Approach.CYCLE
        x, y = grid(30.0, 21)
        ended = await chain.deliver(prepared, x, y)
        assert ended.reason is EndReason.FINISHED and ended.state is UnitState.FINISHED
        pieces = await chain.unit.results(ended.last_grant_id)
        truth = chain.segments()[0].data
        assert pieces.size == 441 == truth["row"].size
        assert np.array_equal(pieces["counts1"], truth["counts1"]) and np.array_equal(pieces["counts2"], truth["counts2"])
        error = np.hypot(truth["x_mm"] - x, truth["y_mm"] - y)
        assert error.max() < 1.0 and abs(np.mean(truth["x_mm"] - x)) < 0.1 and abs(np.mean(truth["y_mm"] - y)) < 0.1
        carried = np.cumsum(pieces["counts1"]) - 600 * np.arange(1, 442)
        assert np.abs(carried).max() <= truth["quantum_counts"] + 2
        # The library's counts per ion are those of the plant: what was paid for in counts came in ions.
        assert truth["ions"].sum() == pytest.approx(441 * 600 / prepared.entry.counts1_per_ion, rel=5e-3)
        await asyncio.sleep(1.1)
        assert chain.dose.status.counts2_total == truth["counts2"].sum()

    with_chain(body, losses=losses)


def test_energies_step_down_within_a_cycle_and_a_filling_is_not_thrown_away() -> None:
    async def body(chain: Chain) -> None:
        approaches, took_s, spills = [], [], []
        for energy in (250.0, 250.0, 246.5, 240.0, 300.0):
            prepared = await chain.request.prepare(carbon(energy))
            approaches.append(prepared.approach)
            took_s.append(prepared.took_ns / 1e9)
            spills.append(prepared.status.spill)
        assert approaches == [Approach.CYCLE, Approach.STAY, Approach.STEP, Approach.STEP, Approach.CYCLE]
        assert took_s[1] == 0.0, "nothing is asked for what stands"
        # Ring and magnets move at the same time: a step takes as long as the slower of them, and a few round trips.
        assert 0.1 < took_s[2] < 0.25
        assert spills == [1, 1, 1, 1, 2]
        assert (await chain.request.prepare(carbon(299.0, ions=5e9))).approach is Approach.STEP, "no fill holds that many"
        chain.plant.synchrotron._stored_ions = 1e5
        await chain.accelerator.refresh()
        assert (await chain.request.prepare(carbon(298.0))).approach is Approach.CYCLE, "too few ions are left"

    with_chain(body)


def test_another_species_is_tuned_before_its_beam() -> None:
    async def body(chain: Chain) -> None:
        await chain.request.prepare(carbon(250.0))
        prepared = await chain.request.prepare(BeamPass(HELIUM, 150.0, ROOM, 0.0, ions=1e6))
        assert prepared.status.species_token == HELIUM.token and prepared.approach is Approach.CYCLE
        ended = await chain.deliver(prepared, *grid(20.0, 5))
        assert ended.reason is EndReason.FINISHED
        assert all(event.data["species"] == HELIUM.token for event in chain.segments())

    with_chain(body)


def test_a_ring_at_another_energy_is_refused_before_any_grant() -> None:
    async def body(chain: Chain) -> None:
        chain.plant.synchrotron.faults.energy_offset_mev_u = 1.0
        with pytest.raises(DeviceError, match=r"settled at 20[01]\.[0-9]+ MeV/u instead of 200"):
            await chain.request.prepare(carbon(200.0))
        assert not [e for e in chain.truth if e.kind == "grant.accepted"]

    with_chain(body)


def test_an_ion_that_is_not_the_one_asked_for_is_never_beam() -> None:
    async def body(chain: Chain) -> None:
        chain.plant.synchrotron.faults.wrong_species_token = HELIUM.token
        chain.plant.synchrotron._tell()
        with pytest.raises(DeviceError, match="carbon was selected, the ring measures helium"):
            await chain.request.prepare(carbon(200.0))
        assert not chain.segments()


def test_tokens_that_disagree_are_named() -> None:
    async def body(chain: Chain) -> None:
        wanted = carbon(200.0)
        with pytest.raises(TokenMismatch, match=r"the ring 0, the magnets 0, the unit's map 0") as mismatch:
            chain.request.verify(wanted)
        assert mismatch.value.code == 3301
        entry = (await chain.request.prepare(wanted)).entry
        chain.request.verify(wanted)
        await chain.magnets.set_currents(199_000, entry.dipole_a, entry.quadrupole_a)
        with pytest.raises(TokenMismatch, match=r"200 MeV/u was asked, but in MeV/u: the magnets 199 "):
            chain.request.verify(wanted)
        await chain.request.prepare(wanted)
        await chain.request.close_route()
        with pytest.raises(TokenMismatch, match="route G1 was asked, the switchyard says none") as mismatch:
            chain.request.verify(wanted)
        assert mismatch.value.code == 3303
        await chain.request.prepare(wanted)
        chain.plant.synchrotron.faults.wrong_species_token = HELIUM.token
        chain.plant.synchrotron._tell()
        await asyncio.sleep(0.1)
        with pytest.raises(TokenMismatch, match="C was asked, the ring measures token 2004") as mismatch:
            chain.request.verify(wanted)
        assert mismatch.value.code == 3302

    with_chain(body)


def test_a_failing_magnet_ends_the_preparation_with_its_own_error() -> None:
    async def body(chain: Chain) -> None:
        asyncio.get_running_loop().call_later(0.05, lambda: chain.plant.rooms[ROOM].magnets.quench(3))
        with pytest.raises(DeviceError, match="quench of BM04") as error:
            await chain.request.prepare(carbon(200.0))
        assert error.value.device == "G1-magnets"

    with_chain(body)

    with_chain(body)


@pytest.mark.parametrize("planted", ["mirrored_x", "swapped"])
def test_a_scanner_other_than_commissioned_ends_the_grant_within_its_first_spots(planted: str) -> None:
    async def body(chain: Chain) -> None:
        prepared = await chain.request.prepare(carbon(200.0))
        setattr(chain.plant.rooms[ROOM].scanner, planted, True)
        x, y = grid(30.0, 5)
        ended = await chain.deliver(prepared, x, y + 3.0)
        assert ended.reason is EndReason.POSITION and ended.latched and ended.rows_finished <= 5
        pieces = await chain.unit.results(ended.last_grant_id)
        assert pieces.size >= 1, "what was delivered is reported all the same"
        latch = await chain.unit.read_latch()
        assert latch.grant_id == ended.last_grant_id and latch.total_counts1 == pieces["counts1"].sum()
        with pytest.raises(CommandRejected, match="latched"):
            await chain.deliver(prepared, x, y)
        await chain.unit.reset()
        assert not chain.unit.status.latched

    with_chain(body)


def test_a_refill_in_the_middle_of_a_grant_needs_nobody() -> None:
    async def body(chain: Chain) -> None:
        prepared = await chain.request.prepare(carbon(200.0))
        chain.plant.synchrotron._stored_ions = chain.plant.synchrotron._filled_ions = 4e6
        ended = await chain.deliver(prepared, *grid(20.0, 11), counts=2000)
        assert ended.reason is EndReason.FINISHED
        pieces = await chain.unit.results(ended.last_grant_id)
        assert pieces.size == 122 and len(set(pieces["spill"])) == 2, "one row in two pieces, one for each spill"

    with_chain(body)


def test_a_closed_gate_holds_and_an_abort_ends() -> None:
    async def body(chain: Chain) -> None:
        prepared = await chain.request.prepare(carbon(200.0))
        await chain.unit.set_gate(False)
        waiting = asyncio.ensure_future(chain.deliver(prepared, *grid(20.0, 11)))
        await asyncio.sleep(1.0)
        assert chain.unit.status.state is UnitState.HELD and Hold.CONTROLLER in chain.unit.status.hold
        assert not chain.segments()
        await chain.unit.set_gate(True)
        await asyncio.sleep(0.02)
        await chain.unit.abort()
        ended = await waiting
        assert ended.reason is EndReason.ABORTED and not ended.latched
        pieces = await chain.unit.results(ended.last_grant_id)
        assert 0 < pieces.size < 121
        assert pieces["counts1"].sum() == sum(int(e.data["counts1"].sum()) for e in chain.segments())

    with_chain(body)


def test_a_frozen_server_ends_every_wait_and_takes_no_grant() -> None:
    async def body(chain: Chain) -> None:
        prepared = await chain.request.prepare(carbon(200.0))
        waiting = asyncio.ensure_future(chain.deliver(prepared, *grid(60.0, 41), counts=3000))
        await asyncio.sleep(0.3)
        chain.channels.freeze()
        began = now_ns()
        with pytest.raises(CommunicationError, match="has not moved"):
            await waiting
        assert now_ns() - began < 2_000_000_000
        with pytest.raises(CommunicationError):
            await chain.request.prepare(carbon(190.0))
        chain.channels.thaw()
        await asyncio.sleep(2.0)
        assert chain.unit.readings()[0].good

    with_chain(body)


def test_a_power_loss_of_the_unit_is_told_and_its_latch_still_speaks() -> None:
    async def body(chain: Chain) -> None:
        prepared = await chain.request.prepare(carbon(200.0))
        waiting = asyncio.ensure_future(chain.deliver(prepared, *grid(60.0, 41), counts=3000))
        await asyncio.sleep(0.3)
        plant = chain.plant.rooms[ROOM].unit
        grant_id, statuses = plant.memory.last_grant_id, []
        chain.channels.monitor(f"ASAN:{ROOM}:DU:STATUS:RB", statuses.append)
        await asyncio.sleep(0.01)
        plant.power_cycle()
        statuses.clear()
        await asyncio.sleep(0.4)
        assert statuses == [] and not plant.powered, "a unit without power says nothing"
        await chain.unit.abort()  # and hears nothing
        with pytest.raises(DeviceError, match=r"restarted \(boot id 411001 is now 411002\)"):
            await waiting
        await asyncio.sleep(1.0)
        with pytest.raises(DeviceError, match="restarted"):
            await chain.unit.results(grant_id)
        latch = await chain.unit.read_latch()
        true_counts = sum(int(e.data["counts1"].sum()) for e in chain.segments())
        assert latch.total_counts1 == true_counts > 0

    with_chain(body)
