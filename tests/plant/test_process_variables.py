"""The plant's variables, at the table and through the drivers' own clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from beam_bench import Bench

from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.hal.capabilities import EndReason, Grant, ScanMode, UnitState
from drivers.hal.errors import CommandRejected
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility
from drivers.wire.memory.channels import MemoryChannels
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.servers.process_variables import PvTable, Value, coerce, facility_pvs
from simulators.world import World


def table_of(name: str = "asan") -> tuple[FacilityPlant, PvTable]:
    plant = FacilityPlant.shipped(Kernel(seed=1), name)
    return plant, facility_pvs(plant)


@pytest.mark.parametrize(("name", "rooms"), [("asan", ["G1", "G2", "F1"]), ("qst", ["G1", "F1", "F2"]), ("research", ["R1"])])
def test_every_variable_of_the_interface_document_is_there(name: str, rooms: list[str]) -> None:
    plant, table = table_of(name)
    fac = plant.truth.prefix
    wanted = {f"{fac}:ACC:{v}" for v in ("ID:RB", "SRC:SPECIES:SP", "SRC:SPECIES:RB", "STATUS:RB")}
    wanted |= {f"{fac}:ACC:RING:{v}:SP" for v in ("CYCLE", "STEP", "OFF")} | {f"{fac}:HEBT:ROUTE:SP", f"{fac}:HEBT:ROUTE:RB"}
    for room in rooms:
        wanted |= {f"{fac}:{room}:MAG:{v}" for v in ("ID:RB", "CURRENT:SP", "CURRENT:RB", "STATUS:RB")}
        wanted |= {f"{fac}:{room}:DU:{v}:RB" for v in ("ID", "STATUS", "ECHO", "RESULT", "LATCH")}
        wanted |= {f"{fac}:{room}:DU:{v}:SP" for v in ("MAP", "GRANT", "START", "GATE", "ABORT", "RESET", "RESULT")}
        wanted |= {f"{fac}:{room}:DU2:{v}" for v in ("ID:RB", "CEILING:SP", "STATUS:RB", "SELFTEST:SP", "RESET:SP")}
        wanted |= {f"{fac}:{room}:QA:{v}" for v in ("ID:RB", "INSTALL:SP", "SPOTS:RB")}
    assert wanted <= set(table.names())


def test_every_read_has_the_type_the_table_says_and_every_read_back_is_read_only() -> None:
    _plant, table = table_of()
    for name in table.names():
        value = table.read(name)
        assert coerce(name, table.kind(name), value) is not None
        if name.endswith(":RB"):
            assert not table.writable(name)
            with pytest.raises(PermissionError):
                table.write(name, value)
    assert table.read("ASAN:ACC:STATUS:RB").shape == (8,)  # type: ignore[union-attr]
    assert table.read("ASAN:G1:MAG:CURRENT:RB").shape == (21,)  # type: ignore[union-attr]
    assert table.read("ASAN:G1:MAG:STATUS:RB").shape == (6,)  # type: ignore[union-attr]
    assert table.read("ASAN:G1:DU:STATUS:RB").shape == (16,)  # type: ignore[union-attr]
    assert table.read("ASAN:G1:DU:LATCH:RB").shape == (12,)  # type: ignore[union-attr]
    assert table.read("ASAN:G1:DU2:STATUS:RB").shape == (10,)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ASAN:HEBT:ROUTE:SP", "G9"),
        ("ASAN:HEBT:ROUTE:SP", 3),
        ("ASAN:ACC:RING:CYCLE:SP", 300_000.5),
        ("ASAN:ACC:RING:CYCLE:SP", float("nan")),
        ("ASAN:ACC:RING:CYCLE:SP", np.array([1, 2])),
        ("ASAN:G1:MAG:CURRENT:SP", np.zeros(5)),
        ("ASAN:G1:MAG:CURRENT:SP", np.full(21, np.nan)),
        ("ASAN:G1:DU:MAP:SP", np.full(16, np.nan)),
        ("ASAN:G1:DU:MAP:SP", np.zeros(16)),
        ("ASAN:G1:DU:START:SP", np.array([1])),
        ("ASAN:G1:DU2:CEILING:SP", np.array([1, 0, 5, 5])),
    ],
)
def test_a_put_that_makes_no_sense_is_refused(name: str, value: Value) -> None:
    _plant, table = table_of()
    with pytest.raises(ValueError, match=r".+"):
        table.write(name, value)


def test_counters_move_at_least_once_a_second_while_somebody_listens_and_not_otherwise() -> None:
    plant, table = table_of()
    kernel = plant.kernel
    kernel.advance_to(10_000_000_000)
    assert kernel.next_ns is None or kernel.next_ns > 10**10
    times: list[int] = []
    cancel = table.subscribe(lambda name, _value: times.append(kernel.now_ns) if name == "ASAN:G2:DU:STATUS:RB" else None)
    kernel.advance_to(25_000_000_000)
    assert max(np.diff([10_000_000_000, *times])) <= 1_000_000_000
    count = len(times)
    assert 14 <= count <= 20
    cancel()
    kernel.advance_to(60_000_000_000)
    assert len(times) == count


def test_a_status_is_posted_at_each_change_with_a_new_counter() -> None:
    plant, table = table_of()
    seen: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    table.subscribe(lambda name, value: seen.append(np.asarray(value)) if name == "ASAN:ACC:STATUS:RB" else None)
    table.write("ASAN:ACC:RING:CYCLE:SP", 300_000)
    plant.kernel.advance_to(3_000_000_000)
    states = [int(words[1]) for words in seen]
    assert [state for i, state in enumerate(states) if i == 0 or states[i - 1] != state] == [1, 2, 3]
    assert np.all(np.diff([int(words[0]) for words in seen]) == 1)
    assert int(seen[-1][2]) == 300_000


def test_a_delivering_unit_posts_ten_times_a_second() -> None:
    bench = Bench().ready()
    table = facility_pvs(bench.plant)
    seen: list[int] = []
    table.subscribe(lambda name, value: seen.append(int(np.asarray(value)[9])) if name.endswith("G1:DU:STATUS:RB") else None)
    bench.begin(bench.words(3000, n=100))
    bench.run(1.0)
    assert 9 <= len(seen) <= 14
    assert seen == sorted(seen)
    assert seen[-1] > 50_000


def test_shown_totals_can_wrap_like_a_short_counter() -> None:
    bench = Bench().ready()
    table = facility_pvs(bench.plant)
    bench.deliver(bench.words(3000, n=100))
    whole = np.asarray(table.read("ASAN:G1:DU:STATUS:RB"))[9]
    bench.unit.wrap_bits = 16
    assert np.asarray(table.read("ASAN:G1:DU:STATUS:RB"))[9] == int(whole) & 0xFFFF


def test_the_reference_detector_shows_true_positions_only_while_installed() -> None:
    bench = Bench().ready()
    table = facility_pvs(bench.plant)
    bench.deliver(bench.words(n=10))
    assert np.asarray(table.read("ASAN:G1:QA:SPOTS:RB")).size == 0
    table.write("ASAN:G1:QA:INSTALL:SP", 1)
    bench.deliver(bench.words(n=10))
    rows = np.asarray(table.read("ASAN:G1:QA:SPOTS:RB")).reshape(-1, 7)
    truth = bench.kind("delivery.segment")[-1].data
    assert rows.shape == (10, 7)
    assert rows[:, 2] == pytest.approx(truth["x_mm"], abs=0.1)
    assert rows[:, 6] == pytest.approx(truth["ions"], rel=0.01)


# --- through the drivers' client ----------------------------------------------------------------------------------


def with_client(
    bench: Bench, story: Callable[[DeliveryUnitClient], Coroutine[Any, Any, None]], run_virtual: Callable[[Any], Any]
) -> None:
    """Run a story against the unit of G1 through the memory twin of Channel Access, in virtual time."""

    async def main() -> None:
        await asyncio.sleep(bench.kernel.now_ns / 1e9)
        world = World(bench.kernel)
        world.start()
        try:
            channels = MemoryChannels(facility_pvs(bench.plant), world.sync)
            device = load_facility("asan").devices["G1-delivery-unit"]
            client = DeliveryUnitClient("G1-delivery-unit", device, channels, EventBus())
            await client.connect()
            try:
                await story(client)
            finally:
                await client.close()
                await channels.close()
        finally:
            world.stop()

    run_virtual(main())


def grant_for(bench: Bench, grant_id: int, **change: Any) -> Grant:
    n = 300
    row, column = np.divmod(np.arange(n), 20)
    c1, c2 = bench.true_map(300_000)[11:13]
    values: dict[str, Any] = {
        "unit_boot_id": bench.unit.boot_id,
        "grant_id": grant_id,
        "plan_hash": 77,
        "fraction": 1,
        "beam_number": 1,
        "layer_index": 0,
        "painting": 0,
        "species_token": 6012,
        "energy_kev_u": 300_000,
        "scan_mode": ScanMode.RASTER,
        "intensity_per_s": 5_000_000,
        "quantum_counts": bench.quantum(5_000_000),
        "spot_index": np.arange(n, dtype=np.int32),
        "x_um": ((column - 10) * 3000).astype(np.int32),
        "y_um": ((row - 7) * 3000).astype(np.int32),
        "counts1_max": np.full(n, 900, dtype=np.int32),
        "counts2_max": np.full(n, round(900 * c2 / c1), dtype=np.int32),
    }
    values.update(change)
    return Grant(**values)


def test_the_drivers_client_grants_starts_and_pulls_results(run_virtual: Callable[[Any], Any]) -> None:
    bench = Bench().ready()

    async def story(client: DeliveryUnitClient) -> None:
        grant = grant_for(bench, 1)
        crc = await client.submit(grant)
        await client.start(1, crc)
        assert client.status.state is UnitState.DELIVERING
        status = await client.wait_ended(1)
        assert status.reason is EndReason.FINISHED
        pieces = await client.results(1)
        assert pieces.size == 300
        assert int(pieces["counts1"].sum()) == status.counts1_total == bench.unit.counts()[0]
        assert np.array_equal(pieces["spot_index"], grant.spot_index)
        latch = await client.read_latch()
        assert (latch.grant_id, latch.last_finished_row, latch.total_counts1) == (1, 299, status.counts1_total)

    with_client(bench, story, run_virtual)


def test_the_drivers_client_hears_refusals_trips_and_resets(run_virtual: Callable[[Any], Any]) -> None:
    bench = Bench().ready()

    async def story(client: DeliveryUnitClient) -> None:
        with pytest.raises(CommandRejected, match="species"):
            await client.submit(grant_for(bench, 1, species_token=2004))
        crc = await client.submit(grant_for(bench, 1))
        bench.chain.permit_r.set(False)
        with pytest.raises(CommandRejected, match="not permitted"):
            await client.start(1, crc)
        bench.chain.permit_r.set(True)
        await client.start(1, crc)
        bench.room.scanner.mirrored_x = True
        bench.unit.gate.set(False)
        await asyncio.sleep(0.1)
        bench.unit.gate.set(True)
        status = await client.wait_ended(1)
        assert (status.state, status.reason, status.latched) == (UnitState.LATCHED, EndReason.POSITION, True)
        bench.room.scanner.mirrored_x = False
        await client.reset()
        assert not client.status.latched

    with_client(bench, story, run_virtual)


@pytest.mark.parametrize(("unit", "device", "command", "value"), [("unit", "DU", "GATE", 0), ("unit2", "DU2", "SELFTEST", 1)])
def test_a_unit_without_power_posts_nothing_counts_nothing_and_hears_nothing(
    unit: str, device: str, command: str, value: int
) -> None:
    plant, table = table_of()
    told: list[str] = []
    table.subscribe(lambda name, _value: told.append(name))
    prefix = f"ASAN:G1:{device}"
    plant.kernel.advance_to(5_000_000_000)
    assert f"{prefix}:STATUS:RB" in told
    power = getattr(plant.rooms["G1"], unit)
    boot_id, seen = power.boot_id, np.array(table.read(f"{prefix}:STATUS:RB"))
    power.power_cycle(3.0)
    told.clear()
    table.write(f"{prefix}:{command}:SP", value)
    plant.kernel.advance_to(7_900_000_000)
    assert not [name for name in told if name.startswith(f"{prefix}:")]
    assert [name for name in told if name.startswith("ASAN:G1:MAG:")], "its neighbours live"
    assert np.array_equal(table.read(f"{prefix}:STATUS:RB"), seen)
    assert plant.rooms["G1"].unit.controller_gate and plant.rooms["G1"].unit2.self_test_age_s == 2**31 - 1
    plant.kernel.advance_to(8_100_000_000)
    assert f"{prefix}:STATUS:RB" in told
    assert int(table.read(f"{prefix}:STATUS:RB")[1]) == boot_id + 1  # type: ignore[index]
