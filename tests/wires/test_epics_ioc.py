"""The IOC of a simulated facility, seen by EPICS base's own programs: what they read is the plant's, what they write
reaches it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from epics_bench import SharedIoc, SmallTable, facility_bench, in_real_time, run_tool, until
from epics_tool import epics_tool

from drivers.wire.channels import Severity, as_int_array
from drivers.wire.epics_channels import EpicsChannels
from simulators.servers.ioc_link import HOST, IocServer, free_port

pytestmark = pytest.mark.xdist_group("wires")


def fail(value: object) -> None:
    raise ZeroDivisionError(f"{value}")


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedIoc]:
    table = SmallTable()
    table.have("T:INT", "int", -(2**31))
    table.have("T:DOUBLE", "double", float("nan"))
    table.have("T:TEXT", "string", "x" * 39)
    table.have("T:INTS", "int[]", np.array([2**31 - 1], dtype=np.int32), elements=4)
    table.have("T:DOUBLES", "double[]", np.array([]), elements=4)
    table.have("T:DEV:GAIN:SP", "int", 1)
    table.add("T:DEV:SIGNAL:RB", "int[]", lambda: np.array([7 * int(table.values["T:DEV:GAIN:SP"])], dtype=np.int32))
    table.add("T:BAD", "int", lambda: 4, fail)
    shared = SharedIoc(table)
    yield shared
    shared.close()


def words(answer: str, name: str) -> list[str]:
    """What caget says of an array: its name, the count, the elements."""
    line = next(line for line in answer.splitlines() if line.startswith(name))
    return line.split()[2:]


def test_foreign_clients_read_and_write_the_plant() -> None:
    async def main() -> None:
        async with facility_bench() as bench:
            plant, ioc, read = bench.plant, bench.ioc, bench.table.read
            unit = plant.rooms["G1"].unit

            answer = await run_tool(ioc, "caget", "ASAN:ACC:ID:RB", "ASAN:G1:DU:ID:RB", "ASAN:HEBT:ROUTE:RB")
            assert [line.split(maxsplit=1)[1] for line in answer.splitlines()] == [
                plant.truth.accelerator.identity,
                unit.identity,
                plant.switchyard.readback,
            ]
            answer = await run_tool(ioc, "caget", "ASAN:G1:DU:STATUS:RB", "ASAN:ACC:STATUS:RB")
            assert [int(w) for w in words(answer, "ASAN:G1:DU:STATUS")[1:]] == read("ASAN:G1:DU:STATUS:RB").tolist()[1:]
            assert [int(w) for w in words(answer, "ASAN:ACC:STATUS")[1:]] == read("ASAN:ACC:STATUS:RB").tolist()[1:]
            answer = await run_tool(ioc, "caget", "-g", "17", "ASAN:G1:MAG:NAMEPLATE:RB")
            assert [float(w) for w in words(answer, "ASAN:G1:MAG")] == read("ASAN:G1:MAG:NAMEPLATE:RB").tolist()

            assert unit.controller_gate
            await run_tool(ioc, "caput", "-c", "ASAN:G1:DU:GATE:SP", "0")
            assert not unit.controller_gate
            answer = await run_tool(ioc, "caput", "-c", "ASAN:HEBT:ROUTE:SP", "G2")
            assert plant.switchyard.readback == "moving" and "New" in answer
            answer = await run_tool(ioc, "caput", "-c", "-a", "ASAN:G1:DU:GRANT:SP", "3", "1", "2", "3")
            assert unit.echo == (3, 3, 0, 1)  # id, checksum, refused, for its checksum

            before = read("ASAN:HEBT:ROUTE:RB")
            answer = await run_tool(ioc, "caput", "-c", "ASAN:HEBT:ROUTE:RB", "G1")
            assert "access denied" in answer and read("ASAN:HEBT:ROUTE:RB") == before
            assert "no write" in await run_tool(ioc, "cainfo", "ASAN:G1:DU:STATUS:RB")

            for nonsense in ("abc", "nan"):
                await run_tool(ioc, "caput", "-c", "ASAN:G1:DU:GATE:SP", nonsense)
            assert "INVALID" not in await run_tool(ioc, "caget", "-a", "ASAN:HEBT:ROUTE:SP")
            await run_tool(ioc, "caput", "-c", "ASAN:HEBT:ROUTE:SP", "nowhere")
            answer = await run_tool(ioc, "caget", "-a", "ASAN:HEBT:ROUTE:SP")
            assert "G2" in answer and "INVALID" in answer and bench.ioc.refused >= 1
            assert "not found" in await run_tool(ioc, "caget", "-w", "0.3", "ASAN:NO:SUCH:RB")

            async with epics_tool(ioc.port, "camonitor", "ASAN:G1:DU2:STATUS:RB") as monitor:
                assert monitor.stdout is not None
                counters = [int((await monitor.stdout.readline()).split()[4]) for _ in range(4)]
            assert counters == list(range(counters[0], counters[0] + 4))

    in_real_time(main(), factor=2.0)


def test_a_client_of_another_make_sees_every_type_and_no_server_dies_of_nonsense(shared: SharedIoc) -> None:
    async def body(table: SmallTable, ioc: IocServer, _: EpicsChannels) -> None:
        answer = await run_tool(ioc, "caget", "-g", "17", "T:INT", "T:DOUBLE", "T:TEXT", "T:INTS", "T:DOUBLES")
        shown = {line.split()[0]: line.split()[1:] for line in answer.splitlines()}
        assert shown == {
            "T:INT": [str(-(2**31))],
            "T:DOUBLE": ["nan"],
            "T:TEXT": ["x" * 39],
            "T:INTS": ["4", str(2**31 - 1), "0", "0", "0"],
            "T:DOUBLES": ["4", "0", "0", "0", "0"],
        }
        for name, value in (("T:INT", "nan"), ("T:INT", "1e99"), ("T:INT", "x"), ("T:DOUBLE", "inf"), ("T:TEXT", "")):
            await run_tool(ioc, "caput", "-c", name, value)
        await run_tool(ioc, "caput", "-c", "-a", "T:INTS", "9", *"123456789")
        await run_tool(ioc, "caput", "-c", "T:DOUBLE", "0.5")
        assert table.values["T:DOUBLE"] == 0.5
        assert ioc.running and np.size(table.values["T:INTS"]) <= 4

    shared.run(body)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


PARENT = """
import asyncio, sys
from simulators.plant.kernel import Kernel
from simulators.servers.ioc_link import IocServer
from simulators.servers.process_variables import PvTable

async def main():
    table = PvTable(Kernel(0))
    table.add("T:INT", "int", lambda: 1)
    server = IocServer(table)
    await server.start()
    if "frozen" in sys.argv:
        server.suspend()
    print(server.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["serving", "frozen"])
def test_the_ioc_dies_with_its_parent(state: str) -> None:
    async def main() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, state, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        try:
            assert not gone(pid)
            parent.kill()
            await parent.communicate()
            await until(lambda: gone(pid), "the end of the IOC")
        finally:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)

    in_real_time(main())


def test_an_ioc_that_cannot_start_says_why_and_leaves_nothing() -> None:
    async def main() -> None:
        table = SmallTable()
        table.have("T:BAD NAME", "int", 1)
        ioc = IocServer(table)
        with pytest.raises((RuntimeError, TimeoutError)):
            await ioc.start()
        assert not ioc.running and ioc.pid is None

    in_real_time(main())


def test_an_ioc_that_dies_is_told_once() -> None:
    async def main() -> None:
        table, told = SmallTable(), []
        table.have("T:INT", "int", 1)
        lost: Callable[[], None] = lambda: told.append("lost")  # noqa: E731
        ioc = IocServer(table, port=free_port(), lost=lost)
        await ioc.start()
        assert ioc.endpoint == f"ca://{HOST}:{ioc.port}" and ioc.pid is not None
        os.kill(ioc.pid, signal.SIGKILL)
        await until(lambda: bool(told))
        assert not ioc.running and ioc.pid is None
        table.post_value("T:INT", 2)  # nobody is there: nothing happens
        await ioc.start()
        await ioc.stop()
        assert told == ["lost"]

    in_real_time(main())


def test_what_a_put_changed_is_shown_before_it_completes_also_when_nobody_posted_it(shared: SharedIoc) -> None:
    async def body(_table: SmallTable, _ioc: IocServer, ca: EpicsChannels) -> None:
        for gain in range(2, 30):
            await ca.put("T:DEV:GAIN:SP", gain)
            assert as_int_array("T:DEV:SIGNAL:RB", await ca.get("T:DEV:SIGNAL:RB")).tolist() == [7 * gain]

    shared.run(body)


def test_an_error_in_the_plant_is_told_and_the_server_goes_on(shared: SharedIoc) -> None:
    async def body(table: SmallTable, ioc: IocServer, ca: EpicsChannels) -> None:
        errors: list[BaseException] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
        before = ioc.refused
        await ca.put("T:BAD", 9)
        shown = await ca.get("T:BAD")
        assert (shown.value, shown.severity) == (4, Severity.INVALID)
        assert [type(error) for error in errors] == [ZeroDivisionError]
        table.post_value("T:INT", 2**40)  # no client can be told: it is said in the log, and the rest goes on
        await ca.put("T:INT", 5)
        assert (await ca.get("T:INT")).value == 5
        assert ioc.running and ioc.refused == before + 1
        loop.set_exception_handler(None)

    shared.run(body)


def listening(port: int) -> set[str]:
    """Local addresses (as the kernel writes them) that listen on a port, TCP or UDP."""
    found = set()
    for kind in ("tcp", "udp"):
        for line in Path(f"/proc/net/{kind}").read_text(encoding="ascii").splitlines()[1:]:
            local, remote = line.split()[1:3]
            if local.endswith(f":{port:04X}") and remote.endswith(":0000"):
                found.add(local.split(":")[0])
    return found


def test_the_ioc_listens_on_the_loopback_alone(shared: SharedIoc) -> None:
    async def body(_table: SmallTable, ioc: IocServer, _: EpicsChannels) -> None:
        assert listening(ioc.port) == {"0100007F"}

    shared.run(body)
