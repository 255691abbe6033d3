"""A simulated facility behind a real IOC and the EPICS client onto it, for tests of this folder; and EPICS base's own tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from epics_tool import epics_tool

from drivers.hal.events import Event, EventBus
from drivers.wire.epics_channels import EpicsChannels
from simulators.clock import PacedLoop
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.servers.ioc_link import IocServer
from simulators.servers.process_variables import PvTable, Value, facility_pvs
from simulators.world import World

WITHIN_S = 10.0


class _LaterLoop(PacedLoop):
    """A paced loop whose time begins at `start_s`, where a plant stood that was prepared in virtual time."""

    def __init__(self, factor: float, start_s: float) -> None:
        self._start_s = start_s
        super().__init__(factor)

    def time(self) -> float:
        return super().time() + self._start_s


def in_real_time(main: Coroutine[Any, Any, None], factor: float = 1.0, start_ns: int = 0) -> None:
    """Run a test against the wall clock; the plant and its clients live `factor` times as fast, from `start_ns` on."""
    with asyncio.Runner(loop_factory=lambda: _LaterLoop(factor, start_ns / 1e9)) as runner:
        runner.run(main)


async def until(condition: Callable[[], bool], what: str = "it", within_s: float = WITHIN_S) -> None:
    """Wait until it holds; AssertionError when it does not within `within_s`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline_s, f"{what} did not come true within {within_s} s"
        await asyncio.sleep(0.005)


@dataclass
class Bench:
    """A plant, its table, its IOC and one client.

    Attributes:
        events: what devices told on `bus`.
    """

    plant: FacilityPlant
    world: World
    table: PvTable
    ioc: IocServer
    channels: EpicsChannels
    bus: EventBus = field(default_factory=EventBus)
    events: list[Event] = field(default_factory=list)

    def kinds(self, device: str) -> list[str]:
        """Kinds of the events that a device told, in order."""
        return [event.kind for event in self.events if event.source == device]


@asynccontextmanager
async def facility_bench(plant: FacilityPlant | None = None) -> AsyncIterator[Bench]:
    """The variables of a facility (`asan` as it is when nothing was done), served and reached."""
    plant = plant or FacilityPlant.shipped(Kernel(1), "asan")
    world, table = World(plant.kernel), facility_pvs(plant)
    ioc = IocServer(table, world.sync)
    world.start()
    await ioc.start()
    bench = Bench(plant, world, table, ioc, EpicsChannels(ioc.endpoint))
    bench.bus.subscribe(bench.events.append)
    try:
        yield bench
    finally:
        ioc.resume()
        await bench.channels.close()
        await ioc.stop()
        world.stop()


class SmallTable(PvTable):
    """Variables that a test adds; `post_value` changes one."""

    def __init__(self) -> None:
        super().__init__(Kernel(0))
        self.values: dict[str, Value] = {}
        self.writes: list[tuple[str, Value]] = []

    def have(self, name: str, kind: str, value: Value, *, elements: int = 0, writable: bool = True) -> None:
        """Add a variable."""
        self.values[name] = value

        def put(new: Value) -> None:
            self.values[name] = new
            self.writes.append((name, new))

        self.add(name, kind, lambda: self.values[name], put if writable else None, elements)

    def drop(self, name: str) -> None:
        """The variable is gone at the next start."""
        del self._pvs[name]

    def post_value(self, name: str, value: Value) -> None:
        """The server's own change."""
        self.values[name] = value
        self.post(name)


@asynccontextmanager
async def small_bench(table: SmallTable) -> AsyncIterator[tuple[IocServer, EpicsChannels]]:
    """A table of a test, served and reached."""
    ioc = IocServer(table)
    await ioc.start()
    channels = EpicsChannels(ioc.endpoint)
    try:
        yield ioc, channels
    finally:
        ioc.resume()
        await channels.close()
        await ioc.stop()


class SharedIoc:
    """One IOC for test after test that leave it alive, in one loop: starting one takes a second."""

    def __init__(self, table: SmallTable) -> None:
        self.table = table
        self._initial = dict(self.table.values)
        self._runner = asyncio.Runner(loop_factory=PacedLoop)
        self._ioc = IocServer(self.table)

    def run(self, body: Callable[[SmallTable, IocServer, EpicsChannels], Coroutine[Any, Any, None]]) -> None:
        """Run a test with fresh values and a client of its own."""

        async def main() -> None:
            if not self._ioc.running:
                await self._ioc.start()
            for name, value in self._initial.items():
                self.table.post_value(name, value)
            self.table.writes.clear()
            channels = EpicsChannels(self._ioc.endpoint)
            try:
                await body(self.table, self._ioc, channels)
            finally:
                self._ioc.resume()
                await channels.close()

        self._runner.run(main())

    def close(self) -> None:
        """Stop the process."""
        self._runner.run(self._ioc.stop())
        self._runner.close()


@asynccontextmanager
async def lag_watched() -> AsyncIterator[Callable[[], float]]:
    """The longest time in s for which the loop did not come round; ask while inside or after."""
    loop = asyncio.get_running_loop()
    worst_s = 0.0

    async def watch() -> None:
        nonlocal worst_s
        while True:
            before_s = loop.time()
            await asyncio.sleep(0.002)
            worst_s = max(worst_s, loop.time() - before_s - 0.002)

    task = asyncio.create_task(watch())
    try:
        yield lambda: worst_s
    finally:
        task.cancel()
        await asyncio.wait([task])


async def run_tool(ioc: IocServer, program: str, *arguments: str) -> str:
    """What a program of EPICS base says, run to its end. It exits 0 also when it found nothing."""
    async with epics_tool(ioc.port, program, *arguments) as process:
        assert process.stdout is not None
        async with asyncio.timeout(15.0):
            return (await process.stdout.read()).decode()
