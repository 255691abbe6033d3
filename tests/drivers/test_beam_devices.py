"""Accelerator, magnets and dose units: a command returns when its effect was measured; silence and refusals have names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from pv_bench import MINIMAL_FACILITY, Bench, device

from drivers.devices.accelerator import Accelerator
from drivers.devices.dose_monitor import SecondDoseUnit
from drivers.devices.magnets import Magnets
from drivers.hal.capabilities import AcceleratorState, BeamSource, DoseMonitor, PowerSupply
from drivers.hal.errors import CommandRejected, CommunicationError, DataError, DeviceError
from drivers.hal.facility import parse_facility
from drivers.hal.ions import CARBON, HELIUM
from drivers.hal.reading import Quality
from simulators.clock import run

FACILITY = parse_facility(MINIMAL_FACILITY, "bench")
OFF, INJECTING, ACCELERATING, FLATTOP, STEPPING, EMPTY, FAULT = range(7)
ACC = "FAC:ACC:STATUS:RB"
MAG = "FAC:G1:MAG:STATUS:RB"
DU2 = "FAC:G1:DU2:STATUS:RB"


def bench() -> Bench:
    return Bench(
        {
            "FAC:ACC:ID:RB": "a ring",
            "FAC:ACC:SRC:SPECIES:SP": 6012,
            "FAC:ACC:RING:CYCLE:SP": 0,
            "FAC:ACC:RING:STEP:SP": 0,
            "FAC:ACC:RING:OFF:SP": 0,
            "FAC:HEBT:ROUTE:SP": "none",
            "FAC:HEBT:ROUTE:RB": "none",
            ACC: [0, OFF, 0, 0, 6012, 0, 0, 0],
            MAG: [0, 0, 0, 4300, 0, 0],
            "FAC:G1:MAG:CURRENT:SP": [0.0] * 5,
            "FAC:G1:MAG:CURRENT:RB": [0.0] * 5,
            "FAC:G1:DU2:ID:RB": "a dose unit",
            "FAC:G1:DU2:CEILING:SP": [0, 0, 0, 0],
            "FAC:G1:DU2:SELFTEST:SP": 0,
            "FAC:G1:DU2:RESET:SP": 0,
            DU2: [0, 77, 0, 0, 0, 1, 1, 0, 999, -1],
        }
    )


def with_accelerator(body: Callable[[Bench, Accelerator], Awaitable[None]], identity: str = "a ring") -> None:
    async def scenario() -> None:
        b = bench()
        b.status(ACC, b.values[ACC][1:])
        accelerator = Accelerator("accelerator", device("FAC", identity), b.channels, b.bus, FACILITY)
        await accelerator.connect()
        assert isinstance(accelerator, BeamSource)
        await body(b, accelerator)
        await accelerator.close()

    run(scenario())


def answer_cycle(b: Bench, measured_kev_u: int | None = None, final: int = FLATTOP) -> None:
    """A ring that injects, accelerates and settles."""

    def cycle(kev_u: int) -> None:
        spill = b.values[ACC][3] + 1
        b.status(ACC, [INJECTING, 0, spill, 6012, 0, 0, 0])
        measured = kev_u if measured_kev_u is None else measured_kev_u
        settled = final == FLATTOP
        b.later(2.0, lambda: b.status(ACC, [final, measured if settled else 0, spill, 6012, int(settled), 1_000_000, 0]))

    b.on_write["FAC:ACC:RING:CYCLE:SP"] = cycle


def test_a_refill_at_the_same_energy_waits_for_the_new_spill() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        b.status(ACC, [FLATTOP, 200_000, 7, 6012, 1, 3, 0])
        await asyncio.sleep(0.1)
        answer_cycle(b)
        began = asyncio.get_running_loop().time()
        await accelerator.start_cycle(200.0)
        assert asyncio.get_running_loop().time() - began >= 2.0, "the old flattop was taken for the new one"
        assert accelerator.status.spill == 8 and accelerator.status.ions_left == 1e9

    with_accelerator(body)


def test_a_ring_settled_at_another_energy_is_an_error() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        answer_cycle(b, measured_kev_u=201_000)
        with pytest.raises(DeviceError, match="settled at 201 MeV/u instead of 200"):
            await accelerator.start_cycle(200.0)

    with_accelerator(body)


def test_a_ring_that_runs_empty_on_its_way_is_an_error_that_may_be_tried_again() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        answer_cycle(b, final=EMPTY)
        with pytest.raises(DeviceError, match="ran empty") as error:
            await accelerator.start_cycle(200.0)
        assert error.value.retryable

    with_accelerator(body)


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "only step down"), (2, "does not have that species"), (3, "outside the range"), (99, "fault 99")]
)
def test_a_refusal_by_the_accelerator_is_told_in_its_words(code: int, reason: str) -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        b.on_write["FAC:ACC:RING:CYCLE:SP"] = lambda _v: b.status(ACC, [OFF, 0, 0, 6012, 0, 0, code])
        with pytest.raises(CommandRejected, match=reason):
            await accelerator.start_cycle(1000.0)
        answer_cycle(b)
        await accelerator.start_cycle(200.0)
        assert accelerator.status.state is AcceleratorState.FLATTOP, "an old refusal must not refuse a new command"

    with_accelerator(body)


def test_energies_only_step_down_from_a_flattop() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        with pytest.raises(CommandRejected, match="the ring is off"):
            await accelerator.step_to(100.0)
        answer_cycle(b)
        await accelerator.start_cycle(200.0)
        with pytest.raises(CommandRejected, match="no step up from 200 to 210"):
            await accelerator.step_to(210.0)
        await accelerator.step_to(200.0)
        assert not b.written("FAC:ACC:RING:STEP:SP"), "nothing is asked for what is there"

        def step(kev_u: int) -> None:
            b.status(ACC, [STEPPING, 0, 1, 6012, 0, 900_000, 0])
            b.later(0.12, lambda: b.status(ACC, [FLATTOP, kev_u, 1, 6012, 1, 900_000, 0]))

        b.on_write["FAC:ACC:RING:STEP:SP"] = step
        await accelerator.step_to(195.5)
        assert accelerator.status.energy_kev_u == 195_500

    with_accelerator(body)


def test_species_and_route_are_selected_when_they_are_measured() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        def switch(token: int) -> None:
            b.status(ACC, [OFF, 0, 0, 0, 0, 0, 0])
            b.later(40.0, lambda: b.status(ACC, [OFF, 0, 0, token, 0, 0, 0]))

        b.on_write["FAC:ACC:SRC:SPECIES:SP"] = switch
        b.on_write["FAC:HEBT:ROUTE:SP"] = lambda _r: b.post("FAC:HEBT:ROUTE:RB", "moving")
        await accelerator.select_species(CARBON)
        assert not b.written("FAC:ACC:SRC:SPECIES:SP")
        await accelerator.select_species(HELIUM)
        assert accelerator.status.species_token == 2004
        with pytest.raises(CommunicationError, match="no beam path 'G1'"):
            await accelerator.select_route("G1")
        assert accelerator.route == "moving"
        b.on_write["FAC:HEBT:ROUTE:SP"] = lambda r: b.later(1.0, lambda: b.post("FAC:HEBT:ROUTE:RB", r))
        await accelerator.select_route("G1")
        assert accelerator.route == "G1"

    with_accelerator(body)


def test_a_frozen_accelerator_is_noticed_although_it_looks_connected() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        began = asyncio.get_running_loop().time()
        b.on_write["FAC:ACC:RING:CYCLE:SP"] = lambda _v: b.stop()
        with pytest.raises(CommunicationError, match="has not moved for") as error:
            await accelerator.start_cycle(200.0)
        assert error.value.code == 2103 and asyncio.get_running_loop().time() - began < 2.0
        assert all(r.quality is Quality.STALE for r in accelerator.readings())
        assert b.kinds().count("device.down") == 1
        writes = len(b.writes)
        with pytest.raises(CommunicationError):
            await accelerator.step_to(100.0)
        assert len(b.writes) == writes, "nothing is commanded on stale values"
        b.status(ACC, b.values[ACC][1:])
        await asyncio.sleep(0.1)
        assert b.kinds().count("device.up") == 1 and accelerator.readings()[0].good

    with_accelerator(body)


def test_a_value_that_is_only_repeated_is_no_sign_of_life() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        b.stop()
        for _ in range(10):
            await asyncio.sleep(0.3)
            b.post(ACC, b.values[ACC])
        assert accelerator.readings()[0].quality is Quality.STALE

    with_accelerator(body)


def test_a_lost_server_ends_a_wait_at_once_with_its_name() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        b.later(0.5, b.channels.disconnect)
        with pytest.raises(CommunicationError, match="FAC:ACC:STATUS:RB is not connected") as error:
            await accelerator.start_cycle(200.0)
        assert error.value.device == "accelerator"

    with_accelerator(body)


def test_another_device_or_a_dead_one_is_refused_at_connect() -> None:
    with pytest.raises(DeviceError, match="expected 'another ring'"):
        with_accelerator(lambda _b, _a: asyncio.sleep(0), identity="another ring")

    async def dead() -> None:
        b = bench()
        with pytest.raises(CommunicationError, match="has not moved"):
            await Accelerator("accelerator", device("FAC"), b.channels, b.bus, FACILITY).connect()

    run(dead())


def test_words_without_sense_never_become_a_status() -> None:
    async def body(b: Bench, accelerator: Accelerator) -> None:
        b.status(ACC, [42, 0, 0, 6012, 0, 0, 0])  # there is no state 42
        await asyncio.sleep(0.1)
        assert accelerator.status.state is AcceleratorState.OFF
        assert "device.down" in b.kinds()

    with_accelerator(body)


# --- magnets ------------------------------------------------------------------------------------------------------


def with_magnets(body: Callable[[Bench, Magnets], Awaitable[None]], names: tuple[str, ...] = ("BM01", "BM02")) -> None:
    async def scenario() -> None:
        b = bench()
        b.status(MAG, b.values[MAG][1:])
        magnets = Magnets("G1-magnets", device("FAC:G1:MAG", magnets=names), b.channels, b.bus)
        await magnets.connect()
        assert isinstance(magnets, PowerSupply)
        await body(b, magnets)
        await magnets.close()

    run(scenario())


def answer_ramp(b: Bench, seconds: float = 0.2, deviation_ppm: int = 20) -> None:
    def ramp(values: Any) -> None:
        b.status(MAG, [0, 0, 4310, 0, 900_000])
        token = int(values[0])
        b.later(seconds, lambda: b.status(MAG, [token, 0, 4310, 0, deviation_ppm]))

    b.on_write["FAC:G1:MAG:CURRENT:SP"] = ramp


TWO = np.array([100.0, 101.0])


def test_other_currents_for_the_same_token_are_waited_for() -> None:
    async def body(b: Bench, magnets: Magnets) -> None:
        answer_ramp(b)
        loop = asyncio.get_running_loop()
        for currents in (TWO, TWO + 0.1, TWO + 0.1):
            began = loop.time()
            await magnets.set_currents(200_000, currents, currents)
            took = loop.time() - began
        assert took == 0.0 and len(b.written("FAC:G1:MAG:CURRENT:SP")) == 2, "what is set is not set again"
        began = loop.time()
        await magnets.set_currents(200_000, TWO, TWO)
        assert loop.time() - began >= 0.2, "the token of the old currents was taken for the new ones"
        assert list(b.written("FAC:G1:MAG:CURRENT:SP")[-1]) == [200_000.0, 100.0, 101.0, 100.0, 101.0]

    with_magnets(body)


def test_a_status_that_is_late_does_not_pass_for_the_settled_new_currents() -> None:
    async def body(b: Bench, magnets: Magnets) -> None:
        answer_ramp(b)
        await magnets.set_currents(200_000, TWO, TWO)

        def ramp_told_late(values: Any) -> None:
            b.values[MAG] = [b.values[MAG][0] + 1, 0, 0, 4310, 0, 900_000]
            b.later(0.05, lambda: b.post(MAG, b.values[MAG]))
            b.later(0.2, lambda: b.status(MAG, [int(values[0]), 0, 4310, 0, 20]))

        b.on_write["FAC:G1:MAG:CURRENT:SP"] = ramp_told_late
        began = asyncio.get_running_loop().time()
        await magnets.set_currents(200_000, TWO + 1.0, TWO)
        assert asyncio.get_running_loop().time() - began >= 0.2

    with_magnets(body)


def test_a_deviating_supply_and_a_quench_are_errors_by_name() -> None:
    async def body(b: Bench, magnets: Magnets) -> None:
        answer_ramp(b, deviation_ppm=1500)
        with pytest.raises(DeviceError, match="1500 ppm away"):
            await magnets.set_currents(200_000, TWO, TWO)
        b.on_write["FAC:G1:MAG:CURRENT:SP"] = lambda _v: b.status(MAG, [0, 2, 9000, 0, 0])
        with pytest.raises(DeviceError, match="quench of BM02"):
            await magnets.set_currents(190_000, TWO, TWO)

    with_magnets(body)


def test_a_ramp_held_back_by_a_warm_coil_is_told_and_waited_for() -> None:
    async def body(b: Bench, magnets: Magnets) -> None:
        def hold(values: Any) -> None:
            b.status(MAG, [0, 0, 5510, 1, 0])
            b.later(30.0, lambda: b.status(MAG, [int(values[0]), 0, 5400, 0, 10]))

        b.on_write["FAC:G1:MAG:CURRENT:SP"] = hold
        await magnets.set_currents(200_000, TWO, TWO)
        assert b.kinds().count("magnets.warm") == 1

    with_magnets(body)


def test_impossible_currents_never_reach_the_supplies() -> None:
    async def body(b: Bench, magnets: Magnets) -> None:
        for dipoles in (np.array([1.0]), np.array([1.0, np.nan])):
            with pytest.raises(DataError):
                await magnets.set_currents(200_000, dipoles, TWO)
        assert not b.writes

    with_magnets(body)
    with pytest.raises(DeviceError, match="4 currents, expected 6"):
        with_magnets(lambda _b, _m: asyncio.sleep(0), names=("A", "B", "C"))


# --- second dose unit -----------------------------------------------------------------------------------------------


def with_dose_unit(body: Callable[[Bench, SecondDoseUnit], Awaitable[None]]) -> None:
    async def scenario() -> None:
        b = bench()
        b.status(DU2, b.values[DU2][1:])
        unit = SecondDoseUnit("G1-dose-unit-2", device("FAC:G1:DU2", "a dose unit"), b.channels, b.bus)
        await unit.connect()
        assert isinstance(unit, DoseMonitor)
        await body(b, unit)
        await unit.close()

    run(scenario())


def test_a_field_starts_with_its_ceilings_and_a_total_of_zero() -> None:
    async def body(b: Bench, unit: SecondDoseUnit) -> None:
        b.status(DU2, [77, 1, 0, 5000, 1, 1, 0, 999, -1])
        b.on_write["FAC:G1:DU2:CEILING:SP"] = lambda _v: b.later(0.1, lambda: b.status(DU2, [77, 1, 0, 0, 1, 1, 0, 999, -1]))
        await unit.start_field(6_000_000_000, 4000)
        assert unit.status.counts2_total == 0
        boot, high, low, spot = (int(w) for w in b.written("FAC:G1:DU2:CEILING:SP")[0])
        assert (boot, (high << 32) | (low & 0xFFFFFFFF), spot) == (77, 6_000_000_000, 4000)

    with_dose_unit(body)


def test_a_dose_unit_that_is_tripped_or_blind_starts_no_field() -> None:
    async def body(b: Bench, unit: SecondDoseUnit) -> None:
        b.on_write["FAC:G1:DU2:CEILING:SP"] = lambda _v: b.status(DU2, [77, 2, 0, 0, 1, 1, 4, 999, 3])
        with pytest.raises(CommandRejected, match="stays tripped"):
            await unit.start_field(1000, 100)
        b.status(DU2, [77, 0, 0, 0, 0, 0, 0, 999, -1])
        await asyncio.sleep(0.1)
        with pytest.raises(DeviceError, match="no high voltage and no fresh signal"):
            await unit.start_field(1000, 100)
        with pytest.raises(DataError):
            await unit.start_field(0, 100)

    with_dose_unit(body)


def test_a_self_test_counts_only_when_it_is_younger_than_the_question() -> None:
    async def body(b: Bench, unit: SecondDoseUnit) -> None:
        with pytest.raises(CommunicationError, match="self-test"):
            await unit.self_test()
        b.on_write["FAC:G1:DU2:SELFTEST:SP"] = lambda _v: b.later(3.0, lambda: b.status(DU2, [77, 0, 0, 0, 1, 1, 0, 0, -1]))
        await unit.self_test()
        b.on_write["FAC:G1:DU2:SELFTEST:SP"] = lambda _v: b.status(DU2, [77, 2, 0, 0, 1, 1, 5, 0, -1])
        with pytest.raises(DeviceError, match="self-test failed"):
            await unit.self_test()

    with_dose_unit(body)


def test_a_ceiling_trip_is_told_apart_from_a_failed_self_test_and_acknowledged_by_a_person() -> None:
    async def body(b: Bench, unit: SecondDoseUnit) -> None:
        b.status(DU2, [77, 2, 0, 5000, 1, 1, 1, 999, 12])
        b.on_write["FAC:G1:DU2:SELFTEST:SP"] = lambda _v: b.status(DU2, [77, 2, 0, 5000, 1, 1, 1, 0, 12])
        with pytest.raises(DeviceError, match="both channels are sound, but the trip stands: the field's ceiling") as raised:
            await unit.self_test()
        assert raised.value.code == 3133 and "acknowledge" in raised.value.hint
        with pytest.raises(CommandRejected, match="stays tripped") as rejected:
            await unit.start_field(1000, 100)
        assert "acknowledge" in rejected.value.hint
        with pytest.raises(CommandRejected, match="stays tripped"):
            await unit.acknowledge()
        b.on_write["FAC:G1:DU2:RESET:SP"] = lambda _v: b.status(DU2, [77, 0, 0, 5000, 1, 1, 0, 0, -1])
        await unit.acknowledge()
        assert b.written("FAC:G1:DU2:RESET:SP") == [77, 77]
        assert unit.status.state == 0 and "trip.acknowledged" in b.kinds()
        await unit.acknowledge()
        assert len(b.written("FAC:G1:DU2:RESET:SP")) == 2, "nothing to acknowledge, nothing sent"

    with_dose_unit(body)
