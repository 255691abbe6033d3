"""How long from a changed input on the wire to a withheld permit: the interlock system beside bare round trips of its wire.

In-process: one `InterlockNode.step` on a room's registers, from reading the image to the decision written. Across processes:
the node reads and writes a Modbus TCP server in a process of its own, as the daemon does, and so does a bare client that only
asks; both in turn, in the same run. Not in the figures: the wait for the next poll (50 ms at most) and the relay (100 ms). Not
responsible for how regularly the daemon pulses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.figures import Bench, Figure
from interlocks.daemon import SAFETY_NODE, InterlockNode
from interlocks.inputs import IMAGE_BLOCKS, gather
from interlocks.matrix import load
from interlocks.modbus import ModbusTcp
from interlocks.permit import PULSE_REGISTER, PULSES_SPAN, RELAY_NODE

AIM_MS = 20.0
AIM_RATIO = 2.0
CHANGES = 4000  # p99.9 is the fourth worst
WORD = 9  # room bits: the door closes and opens
STEP_NS = 1_000_000
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))
MS = 1000.0
PACE_S = 0.0005
BUSY = "while True:\n    pass\n"


def measure(bench: Bench) -> list[Figure]:
    """Quantiles, idle and with one core loaded."""
    figures = [*_named("in one process", _steps(_Memory()))]
    with served() as port:
        for load_name in ("idle", "one core loaded"):
            with busy(load_name != "idle"):
                ours, bare = _across(port)
            figures += _named(f"across processes, {load_name}", ours)
            figures += _named(f"bare round trips, {load_name}", bare)
            ratio = quantile(ours, 0.999) / quantile(bare, 0.999)
            figures.append(Figure(f"interlock reaction over bare, p99.9, {load_name}", "x bare", (ratio,), AIM_RATIO))
    return figures


def quantile(values: Sequence[float], share: float) -> float:
    """Of a sample: the value below which `share` of it lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _named(name: str, seconds: Sequence[float]) -> list[Figure]:
    aims = {"p99.9": AIM_MS} if "loaded" in name and "across" in name else {}
    return [
        Figure(f"interlock reaction, {name}, {q}", "ms", (quantile(seconds, share) * MS,), aims.get(q))
        for q, share in QUANTILES
    ]


class _Memory:
    """A room's registers in this process."""

    def __init__(self) -> None:
        self.words = [0] * 256
        self.words[:2] = [0x1009, 0x51]
        self.pulse = 0

    def read(self, first: int, count: int) -> Sequence[int]:
        return self.words[first : first + count]


def _node(
    read: Callable[[int, int], Sequence[int]], write: Callable[..., None], pulses: Callable[[], Sequence[int]]
) -> InterlockNode:
    return InterlockNode(lambda: gather(read), write, load(), 1, read_pulses=pulses)


def _steps(room: _Memory) -> list[float]:
    written: list[int] = []
    node = _node(room.read, lambda *words: written.__setitem__(slice(None), words), lambda: [room.pulse] * PULSES_SPAN)
    took = []
    for number in range(CHANGES):
        room.words[8] = number & 0xFFFF
        room.words[WORD] ^= 3
        start_s = time.perf_counter()
        node.step((number + 1) * STEP_NS)
        took.append(time.perf_counter() - start_s)
    return took


def _across(port: int) -> tuple[list[float], list[float]]:
    """Seconds per step, and per as many bare round trips, in turn."""
    link, other = ModbusTcp("127.0.0.1", port, 1.0), ModbusTcp("127.0.0.1", port, 1.0)
    node = _node(
        lambda first, count: link.read(SAFETY_NODE, first, count),
        lambda *words: link.write(RELAY_NODE, PULSE_REGISTER, words),
        lambda: link.read(RELAY_NODE, PULSE_REGISTER, PULSES_SPAN),
    )
    ours, bare = [], []
    for number in range(CHANGES):
        time.sleep(PACE_S)
        start_s = time.perf_counter()
        node.step(time.monotonic_ns())
        ours.append(time.perf_counter() - start_s)
        time.sleep(PACE_S)
        start_s = time.perf_counter()
        for first, count in IMAGE_BLOCKS:
            other.read(SAFETY_NODE, first, count)
        other.write(RELAY_NODE, PULSE_REGISTER, [0] * 9)
        bare.append(time.perf_counter() - start_s)
        if number == 0:
            ours.clear()
            bare.clear()
    link.close()
    other.close()
    return ours, bare


@contextmanager
def busy(on: bool) -> Iterator[None]:
    """One process that only computes, on the core on which this one runs."""
    if not on:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        core = sorted(os.sched_getaffinity(0))[0]
        os.sched_setaffinity(process.pid, {core})
        try:
            yield
        finally:
            process.kill()


@contextmanager
def served() -> Iterator[int]:
    """A room of the plant, served on Modbus TCP by a process of its own; its port."""
    command = [sys.executable, "-m", "bench.interlock_reaction"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("the server says nothing")
            yield int(json.loads(process.stdout.readline()))
        finally:
            process.terminate()


async def _serve() -> None:
    import asyncio

    from simulators.plant.facility import FacilityPlant
    from simulators.plant.kernel import Kernel
    from simulators.servers.modbus_ports import TcpPort
    from simulators.servers.room_nodes import safety_nodes

    kernel, loop = Kernel(0), asyncio.get_running_loop()
    room = FacilityPlant.shipped(kernel, "asan").rooms["G1"]
    start_s = loop.time()

    def sync() -> None:
        """Plant time is wall time; somebody opens and closes the door all the time."""
        kernel.advance_to(round((loop.time() - start_s) * 1e9))
        (room.access.close_door if kernel.now_ns // STEP_NS % 2 else room.access.open_door)()

    port = TcpPort(safety_nodes(room), sync)
    await port.start()
    sys.stdout.write(f"{json.dumps(port.port)}\n")
    sys.stdout.flush()
    await port.until_closed()


if __name__ == "__main__":
    import asyncio

    asyncio.run(_serve())
