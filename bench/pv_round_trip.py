"""What our client costs on Channel Access: a put with completion until its read-back is monitored, over bare pyepics.

And how many monitors a second arrive without a loss.

The plant (a table that copies a set-point to its read-back) lives in a process of its own with its IOC, a third process, as a
simulated facility does. Bare pyepics is a `PV` whose callbacks set `threading.Event`s, awaited by a thread that does nothing
else: the least that a program can do. Both take turns on the same variables. Wall time.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.figures import Bench, Figure

if TYPE_CHECKING:
    from drivers.wire.channels import Sample
    from drivers.wire.epics_channels import EpicsChannels

AIM = 1.2
TRIPS = 400  # of each kind per sample
VARIABLES = 200
RATES_HZ = (10, 20, 30, 50, 75, 100, 150, 200)
MONITORED_S = 2.0
SETTLE_S = 1.0
TIMEOUT_S = 10.0
US_PER_S = 1e6


def measure(bench: Bench) -> list[Figure]:
    """Ratio of round trips, and monitors per second."""
    with server() as endpoint:
        return asyncio.run(_measure(bench, endpoint))


async def _measure(bench: Bench, endpoint: str) -> list[Figure]:
    from drivers.wire.epics_channels import EpicsChannels

    channels = EpicsChannels(endpoint)
    try:
        ours, theirs = await _ours(channels), _theirs(endpoint)
        ratios, ours_us, theirs_us = [], [], []
        for _ in range(bench.repeat):
            ours_s = await _median_s(ours)
            theirs_s = await asyncio.to_thread(_median_of, theirs)
            ratios.append(ours_s / theirs_s)
            ours_us.append(ours_s * US_PER_S)
            theirs_us.append(theirs_s * US_PER_S)
        note = f"{statistics.median(ours_us):.0f} us over {statistics.median(theirs_us):.0f} us, medians"
        rates = [await _lossless_per_s(channels) for _ in range(bench.repeat)]
    finally:
        await channels.close()
    return [
        Figure("put to read-back monitor", "x pyepics", tuple(ratios), AIM, False, note),
        Figure(
            "monitors without loss",
            "per s",
            tuple(rates),
            None,
            True,
            f"{VARIABLES} variables, {MONITORED_S:g} s, steps {RATES_HZ} Hz",
        ),
    ]


async def _ours(channels: EpicsChannels) -> Callable[[int], Awaitable[None]]:
    from drivers.wire.channels import as_int

    seen = asyncio.Event()
    shown = [0]

    def take(sample: Sample) -> None:
        shown[0] = as_int("B:RB", sample)
        seen.set()

    channels.monitor("B:RB", take)

    async def trip(value: int) -> None:
        await channels.put("B:SP", value, timeout_s=TIMEOUT_S)
        while shown[0] != value:
            seen.clear()
            async with asyncio.timeout(TIMEOUT_S):
                await seen.wait()

    return trip


def _theirs(endpoint: str) -> Callable[[int], None]:
    import epics

    from drivers.wire import ca_library as ca

    shown, seen, done = [0], threading.Event(), threading.Event()

    def take(value: int = 0, **_: object) -> None:
        shown[0] = value
        seen.set()

    settings = {"EPICS_CA_ADDR_LIST": endpoint.removeprefix("ca://"), "EPICS_CA_AUTO_ADDR_LIST": "NO"}

    def made() -> tuple[object, object]:
        epics.ca.use_initial_context()
        with ca.environment(settings):
            setpoint, readback = epics.PV("B:SP"), epics.PV("B:RB", callback=take, auto_monitor=True)
            for pv in (setpoint, readback):
                if not pv.wait_for_connection(TIMEOUT_S):
                    raise RuntimeError("bare pyepics does not find the server")
        return setpoint, readback

    pvs: list[object] = []

    def trip(value: int) -> None:
        if not pvs:
            pvs.extend(made())
        else:
            epics.ca.use_initial_context()
        done.clear()
        seen.clear()
        pvs[0].put(value, callback=lambda **_: done.set())  # type: ignore[attr-defined]
        while not (done.wait(TIMEOUT_S) and shown[0] == value):
            seen.wait(TIMEOUT_S)
            seen.clear()

    return trip


async def _median_s(trip: Callable[[int], Awaitable[None]]) -> float:
    took = []
    for value in range(1, TRIPS + 1):
        start_s = time.perf_counter()
        await trip(value)
        took.append(time.perf_counter() - start_s)
    return statistics.median(took[TRIPS // 10 :])


def _median_of(trip: Callable[[int], None]) -> float:
    took = []
    for value in range(TRIPS + 1, 2 * TRIPS + 1):
        start_s = time.perf_counter()
        trip(value)
        took.append(time.perf_counter() - start_s)
    return statistics.median(took[TRIPS // 10 :])


async def _lossless_per_s(channels: EpicsChannels) -> float:
    """Monitors per second of the fastest rate at which every counter arrived, each once and in order; 0 when there is none."""
    for rate_hz in sorted(RATES_HZ, reverse=True):
        told: dict[str, list[int]] = {f"B:{n}": [] for n in range(VARIABLES)}
        cancels = [
            channels.monitor(name, lambda sample, to=values: to.append(int(sample.value)))  # type: ignore[misc]
            for name, values in told.items()
        ]
        while not all(told.values()):  # noqa: ASYNC110 - the present values come by themselves
            await asyncio.sleep(0.01)
        posts = round(rate_hz * MONITORED_S)
        await channels.put("B:POSTS", [rate_hz, posts], timeout_s=TIMEOUT_S)
        await asyncio.sleep(MONITORED_S + SETTLE_S)
        for cancel in cancels:
            cancel()
        if all(values == list(range(values[0], values[0] + posts + 1)) for values in told.values()):
            return float(VARIABLES * rate_hz)
    return 0.0


@contextmanager
def server() -> Iterator[str]:
    """The plant's process and its IOC; gives the endpoint."""
    command = [sys.executable, "-m", "bench.pv_round_trip"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("the server has no output")
            yield process.stdout.readline().strip()
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(TIMEOUT_S)


async def _serve() -> None:
    """Copy the set-point to the read-back, and post counters when told to, until the input ends."""
    from simulators.plant.kernel import Kernel
    from simulators.servers.ioc_link import IocServer
    from simulators.servers.process_variables import PvTable, Value

    loop = asyncio.get_running_loop()
    table, values, counters = PvTable(Kernel(0)), [0], [0] * VARIABLES

    def set_point(value: Value) -> None:
        values[0] = int(value)
        table.post("B:RB")

    def start(value: Value) -> None:
        rate_hz, posts = (int(word) for word in value)  # type: ignore[union-attr]
        begin_s = loop.time()

        def post(number: int) -> None:
            for n in range(VARIABLES):
                counters[n] += 1
                table.post(f"B:{n}")
            if number < posts:
                loop.call_at(begin_s + number / rate_hz, post, number + 1)

        loop.call_soon(post, 1)

    import numpy as np

    table.add("B:SP", "int", lambda: values[0], set_point)
    table.add("B:RB", "int", lambda: values[0])
    table.add("B:POSTS", "int[]", lambda: np.zeros(2, dtype=np.int32), start)
    for n in range(VARIABLES):
        table.add(f"B:{n}", "int", lambda n=n: counters[n])  # type: ignore[misc]
    ioc = IocServer(table)
    await ioc.start()
    sys.stdout.write(ioc.endpoint + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await ioc.stop()


if __name__ == "__main__":
    asyncio.run(_serve())
