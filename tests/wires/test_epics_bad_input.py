"""What goes wrong on Channel Access: every one ends in an error with a name or a quality that is not GOOD, never in a hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from epics_bench import SharedIoc, SmallTable, facility_bench, in_real_time, lag_watched, run_tool, small_bench, until

from drivers.devices.magnets import Magnets
from drivers.hal.errors import BeamlineError, CommunicationError, ConfigError, DataError, DeviceError
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality
from drivers.wire.channels import Sample, Severity, as_float, as_int
from drivers.wire.epics_channels import PENDING_MONITOR, EpicsChannels
from simulators.servers.ioc_link import IocServer, free_port

pytestmark = pytest.mark.xdist_group("wires")

MAGNETS = load_facility("asan").devices["G1-magnets"]
LAG_S = 0.5  # a machine with other work on it; blocking calls of the library take 2 s
STATUS = f"{MAGNETS.prefix}:STATUS:RB"
SETPOINT = f"{MAGNETS.prefix}:CURRENT:SP"


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedIoc]:
    table = SmallTable()
    table.have("T:INT", "int", 0)
    table.have("T:DOUBLE", "double", 0.0)
    table.have("T:INTS", "int[]", np.array([1, 2], dtype=np.int32), elements=4)
    table.have("T:LONG", "int[]", np.zeros(20_000, dtype=np.int32))
    shared = SharedIoc(table)
    yield shared
    shared.close()


def quality(magnets: Magnets) -> Quality:
    return magnets.readings()[0].quality


def test_a_frozen_ioc_is_stale_within_its_limit_and_never_holds_the_loop() -> None:
    async def main() -> None:
        async with facility_bench() as bench:
            loop = asyncio.get_running_loop()
            magnets = Magnets("G1-magnets", MAGNETS, bench.channels, bench.bus)
            await magnets.connect()
            await bench.channels.get(SETPOINT)
            assert quality(magnets) is Quality.GOOD
            async with lag_watched() as lag_s:
                bench.ioc.suspend()
                frozen_s = loop.time()
                with pytest.raises(CommunicationError, match=f"{SETPOINT}: no answer within 0.5 s"):
                    await bench.channels.put(SETPOINT, np.zeros(21), timeout_s=0.5)
                assert loop.time() - frozen_s < 0.5 + LAG_S
                assert bench.channels.connected(STATUS), "a frozen server looks connected"
                await until(lambda: quality(magnets) is Quality.STALE)
                assert loop.time() - frozen_s < MAGNETS.deadline_ms / 1000 + LAG_S
                with pytest.raises(CommunicationError, match="has not moved"):
                    _ = magnets.settled_kev_u
                bench.ioc.resume()
                await until(lambda: quality(magnets) is Quality.GOOD, "the return of the server")
                await until(lambda: bench.kinds("G1-magnets").count("device.up") == 1)
            assert [kind for kind in bench.kinds("G1-magnets") if kind.startswith("device.")] == ["device.down", "device.up"]
            assert lag_s() < LAG_S
            await magnets.close()

    in_real_time(main())


@pytest.mark.slow
def test_a_frozen_ioc_is_given_up_after_a_while_and_taken_up_when_it_thaws(shared: SharedIoc) -> None:
    async def body(table: SmallTable, ioc: IocServer, ca: EpicsChannels) -> None:
        told: list[Sample] = []
        ca.monitor("T:INT", told.append)
        await until(lambda: bool(told))
        async with lag_watched() as lag_s:
            ioc.suspend()
            waiting = asyncio.ensure_future(ca.get("T:INT", timeout_s=30.0))
            await until(lambda: not ca.connected("T:INT"), "giving up the server", within_s=12.0)
            with pytest.raises(CommunicationError, match="lost the server"):
                await waiting
            table.post_value("T:INT", 5)
            await asyncio.sleep(3.0)  # it is searched anew meanwhile
            ioc.resume()
            await until(lambda: told[-1].value == 5, "the return of the server")
            await ca.put("T:INT", 6)
            assert lag_s() < LAG_S

    shared.run(body)


def test_an_ioc_killed_in_a_put_fails_it_and_a_new_one_is_taken_up_once() -> None:
    async def main() -> None:
        async with facility_bench() as bench:
            magnets = Magnets("G1-magnets", MAGNETS, bench.channels, bench.bus)
            await magnets.connect()
            told: list[Sample] = []
            bench.channels.monitor("ASAN:HEBT:ROUTE:RB", told.append)
            await until(lambda: bool(told))
            await bench.channels.get(SETPOINT)
            bench.ioc.suspend()
            put = asyncio.ensure_future(bench.channels.put(SETPOINT, np.zeros(21), timeout_s=30.0))
            await asyncio.sleep(0.05)
            bench.ioc.kill()
            with pytest.raises(CommunicationError, match="lost the server"):
                await put
            with pytest.raises(CommunicationError, match="not connected"):
                await bench.channels.put(SETPOINT, np.zeros(21))
            await until(lambda: quality(magnets) is Quality.DISCONNECTED)
            await until(lambda: "device.down" in bench.kinds("G1-magnets"))
            bench.plant.switchyard.select("G2")
            async with lag_watched() as lag_s:
                restart = asyncio.create_task(bench.ioc.start())
                await restart
                await until(lambda: quality(magnets) is Quality.GOOD, "the return of the server")
                await until(lambda: told[-1].value == "moving")
            assert lag_s() < LAG_S
            await asyncio.sleep(1.5)
            assert [kind for kind in bench.kinds("G1-magnets") if kind.startswith("device.")] == ["device.down", "device.up"]
            await magnets.close()

    in_real_time(main())


def test_a_variable_that_vanishes_and_one_that_becomes_text_are_named() -> None:
    async def main() -> None:
        table = SmallTable()
        table.have("T:GOES", "int", 1)
        table.have("T:TURNS", "int", 2)
        table.have("T:STAYS", "int", 3)
        async with small_bench(table) as (ioc, ca):
            told: dict[str, list[Sample]] = {name: [] for name in table.names()}
            for name in table.names():
                ca.monitor(name, told[name].append)
            await until(lambda: all(told.values()))
            ioc.kill()
            table.drop("T:GOES")
            table.drop("T:TURNS")
            table.have("T:TURNS", "string", "two")
            await ioc.start()
            await until(lambda: ca.connected("T:STAYS") and ca.connected("T:TURNS"))
            await until(lambda: told["T:TURNS"][-1].value == "two")
            assert not ca.connected("T:GOES")
            with pytest.raises(CommunicationError, match="T:GOES: not connected"):
                await ca.get("T:GOES")
            with pytest.raises(DataError, match="not an integer"):
                as_int("T:TURNS", told["T:TURNS"][-1])
            with pytest.raises(DataError, match="where text belongs"):
                await ca.put("T:TURNS", 5)
            await ca.put("T:STAYS", 5)
            assert table.writes == [("T:STAYS", 5)]

    in_real_time(main())


def test_a_flood_of_posts_costs_bounded_memory_and_its_last_value_arrives(shared: SharedIoc) -> None:
    async def body(table: SmallTable, ioc: IocServer, ca: EpicsChannels) -> None:
        told: list[int] = []
        ca.monitor("T:INT", lambda sample: told.append(as_int("T:INT", sample)))
        await until(lambda: told == [0])
        for value in range(1, 20_001):
            table.post_value("T:INT", value)
            if value % 4 == 0:
                await asyncio.sleep(0)
        await until(lambda: told[-1] == 20_000, "the last value")
        assert told == sorted(set(told))

        longs: list[Sample] = []
        ca.monitor("T:LONG", longs.append)
        await until(lambda: bool(longs))
        ioc.suspend()
        most = 0
        for value in range(500):  # 40 MB
            table.post_value("T:LONG", np.full(20_000, value, dtype=np.int32))
            await asyncio.sleep(0)
            most = max(most, ioc.unsent_bytes)
        assert most < 1_000_000
        ioc.resume()
        await until(lambda: longs[-1].value[0] == 499, "the last array")

        monitor = next(m for m in ca._monitors.values() if m.channel.name == "T:INT")
        counts = []
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: threading.Event().wait(0.3))  # the loop is busy while updates come
        for value in range(20_001, 20_201):
            table.post_value("T:INT", value)
            ioc._flush()
        loop.call_soon(lambda: counts.append(len(monitor.pending)))
        await until(lambda: told[-1] == 20_200, "the last value of a busy loop")
        assert counts[0] <= PENDING_MONITOR

    shared.run(body)


def test_a_full_wire_refuses_at_once_instead_of_holding_the_loop(shared: SharedIoc) -> None:
    async def body(table: SmallTable, ioc: IocServer, ca: EpicsChannels) -> None:
        await ca.get("T:LONG")
        async with lag_watched() as lag_s:
            ioc.suspend()
            arrays = [np.full(20_000, n, dtype=np.int32) for n in range(30)]
            puts = (ca.put("T:LONG", array, timeout_s=0.5) for array in arrays)
            errors = await asyncio.gather(*puts, return_exceptions=True)
            codes = [error.code for error in errors if isinstance(error, CommunicationError)]
            assert codes == [2001, 2001, 2001] + [2007] * 27
            ioc.resume()
            await until(lambda: len(table.writes) == 3, "what had been sent")
            await ca.put("T:LONG", [7])
            assert lag_s() < LAG_S

    shared.run(body)


def test_an_array_longer_than_expected_is_shown_by_nobody(shared: SharedIoc) -> None:
    async def body(table: SmallTable, ioc: IocServer, ca: EpicsChannels) -> None:
        told: list[Sample] = []
        ca.monitor("T:INTS", told.append)
        await until(lambda: bool(told))
        table.post_value("T:INTS", np.arange(6, dtype=np.int32))
        await until(lambda: told[-1].severity is Severity.INVALID)
        assert told[-1].value.tolist() == [1, 2]
        table.post_value("T:INTS", np.array([3], dtype=np.int32))
        await until(lambda: told[-1].severity is Severity.NO_ALARM)
        assert told[-1].value.tolist() == [3]
        with pytest.raises(DataError, match="5 elements, the variable takes 1 to 4"):
            await ca.put("T:INTS", [1, 2, 3, 4, 5])
        with pytest.raises(DataError, match="0 elements"):
            await ca.put("T:INTS", np.array([], dtype=np.int32))
        assert table.writes == []

    shared.run(body)


def test_what_its_server_calls_invalid_is_never_good() -> None:
    async def main() -> None:
        async with facility_bench() as bench:
            magnets = Magnets("G1-magnets", MAGNETS, bench.channels, bench.bus)
            await magnets.connect()
            bench.ioc.alarm(STATUS, Severity.INVALID)
            await until(lambda: quality(magnets) is not Quality.GOOD)
            assert quality(magnets) is Quality.ALARM
            with pytest.raises(DeviceError, match="severity INVALID"):
                _ = magnets.settled_kev_u
            await until(lambda: quality(magnets) is Quality.GOOD, "the next beat")
            await until(lambda: "device.up" in bench.kinds("G1-magnets"))
            bench.ioc.alarm(STATUS, Severity.MINOR)
            assert (await bench.channels.get(STATUS)).severity in (Severity.NO_ALARM, Severity.MINOR)
            assert quality(magnets) is Quality.GOOD
            await magnets.close()

    in_real_time(main())


def test_a_number_that_is_none_reaches_the_client_and_decides_nothing(shared: SharedIoc) -> None:
    async def body(table: SmallTable, ioc: IocServer, ca: EpicsChannels) -> None:
        assert as_float("T:DOUBLE", await ca.get("T:DOUBLE")) == 0.0
        await run_tool(ioc, "caput", "-c", "T:DOUBLE", "nan")
        with pytest.raises(DataError, match="not a finite number"):
            as_float("T:DOUBLE", await ca.get("T:DOUBLE"))

    shared.run(body)


def test_clients_of_different_servers_live_in_one_process_and_do_not_see_each_other() -> None:
    async def main() -> None:
        tables = [SmallTable(), SmallTable()]
        for number, table in enumerate(tables):
            table.have("T:SAME", "int", number)
            table.have(f"T:OWN{number}", "int", 10 + number)
        async with small_bench(tables[0]) as (first, ca0), small_bench(tables[1]) as (second, ca1):
            for number, ca in enumerate((ca0, ca1)):
                assert as_int("T:SAME", await ca.get("T:SAME")) == number
                await ca.put("T:SAME", 5 + number)
                with pytest.raises(CommunicationError, match="knows such a variable"):
                    await ca.get(f"T:OWN{1 - number}", timeout_s=0.3)
            assert [table.values["T:SAME"] for table in tables] == [5, 6]
            both = EpicsChannels([first.endpoint, second.endpoint])
            assert [as_int("T", await both.get(f"T:OWN{n}")) for n in (0, 1)] == [10, 11]
            await both.close()
            await ca0.put("T:SAME", 7)  # what was closed took nothing with it
            assert tables[0].values["T:SAME"] == 7

    in_real_time(main())


@pytest.mark.parametrize("addresses", ["", "ca://127.0.0.1", "tcp://127.0.0.1:5064", "127.0.0.1:notaport", "ca://:5064"])
def test_what_is_no_address_is_refused_by_name(addresses: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        EpicsChannels(addresses)


def test_a_server_that_is_not_there_is_an_error_after_a_while_and_found_when_it_comes() -> None:
    async def main() -> None:
        table = SmallTable()
        table.have("T:INT", "int", 4)
        ioc = IocServer(table, port=free_port())
        ca = EpicsChannels(ioc.endpoint)
        told: list[Sample] = []
        ca.monitor("T:INT", told.append)
        async with lag_watched() as lag_s:
            with pytest.raises(CommunicationError, match="no server at 127") as caught:
                await ca.get("T:INT", timeout_s=5.0)
            assert isinstance(caught.value, BeamlineError) and caught.value.retryable
            assert lag_s() < LAG_S
        await ioc.start()
        await until(lambda: bool(told))
        assert as_int("T:INT", told[0]) == 4
        await ca.close()
        await ca.close()
        with pytest.raises(CommunicationError, match="closed"):
            await ca.get("T:INT")
        await ioc.stop()

    in_real_time(main())


CARELESS = """
import asyncio, sys
from drivers.wire.epics_channels import EpicsChannels

async def main():
    channels = EpicsChannels(sys.argv[1])
    channels.monitor("T:INT", lambda sample: None)
    print((await channels.get("T:INT")).value)
    if "close" in sys.argv:
        await channels.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("manner", ["close", "leave"])
def test_a_process_ends_cleanly_whether_or_not_it_closes_its_channels(shared: SharedIoc, manner: str) -> None:
    async def body(table: SmallTable, ioc: IocServer, _: EpicsChannels) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore::ResourceWarning", "-c", CARELESS, ioc.endpoint, manner),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for value in range(4, 20_000):
            table.post_value("T:INT", value)
            await asyncio.sleep(0.0005)
            if process.returncode is not None:
                break
        async with asyncio.timeout(15.0):
            out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        assert int(out) >= 4

    shared.run(body)


def test_channels_may_be_closed_at_any_moment(shared: SharedIoc) -> None:
    async def body(_table: SmallTable, ioc: IocServer, _: EpicsChannels) -> None:
        for pause_s in (0.0, 0.001, 0.01, 0.02, 0.025, 0.03, 0.04, 0.08):
            ca = EpicsChannels(ioc.endpoint)
            told: list[Sample] = []
            names = ("T:INT", "T:DOUBLE", "T:INTS", "T:LONG", "T:NONE")
            cancels = [ca.monitor(name, told.append) for name in names]
            asked = [asyncio.ensure_future(ca.get(name)) for name in names]
            written = asyncio.ensure_future(ca.put("T:INT", 3))
            await asyncio.sleep(pause_s)
            await ca.close()
            count = len(told)
            ends = await asyncio.gather(*asked, written, return_exceptions=True)
            assert all(end is None or isinstance(end, Sample | CommunicationError) for end in ends)
            for cancel in cancels:
                cancel()
            ca.monitor("T:INT", told.append)()
            assert len(told) == count and not ca.connected("T:INT")

    shared.run(body)
