"""What the interlock matrix costs: time per change with evidence, for three rooms, each with all of its rows.

A change is one new register image of each room with one input that differs: decoding, judging, deciding, and keeping the change
in the ring buffer. The heartbeat of the controller changes with every image. CPU time. Not responsible for links, which are
`interlock_reaction`'s affair.
"""

from __future__ import annotations

import time

from bench.figures import Bench, Figure
from interlocks.engine import Engine
from interlocks.inputs import IMAGE_SIZE, PRODUCT, SIGNALS, VENDOR, ImageReader
from interlocks.matrix import load

AIM_US = 50.0
ROOMS = 3
CHANGES = 5000
POLL_NS = 50_000_000
US_PER_NS = 1e-3


def measure(bench: Bench) -> list[Figure]:
    """Time per change of one room among three, us."""
    samples = tuple(_sample() for _ in range(bench.repeat))
    rows = len(load().software)
    note = f"{ROOMS} rooms of {rows} rows, {len(SIGNALS)} inputs each"
    return [Figure("interlock matrix, one change of a room with evidence", "us", samples, AIM_US, note=note)]


def _sample() -> float:
    rooms = [(Engine(load()), ImageReader()) for _ in range(ROOMS)]
    image = [0] * IMAGE_SIZE
    image[:2] = [VENDOR, PRODUCT]
    counts, beat = SIGNALS["counts1"].register + 3, SIGNALS["heartbeat"].register
    spent_ns = 0
    for number in range(CHANGES):
        image[8] = image[beat] = number & 0xFFFF
        image[counts] = number * 7 & 0xFFFF
        now_ns = (number + 1) * POLL_NS
        start_ns = time.process_time_ns()
        for engine, reader in rooms:
            engine.step(now_ns, reader.decode(image, now_ns))
        if number > CHANGES // 10:
            spent_ns += time.process_time_ns() - start_ns
    return spent_ns * US_PER_NS / (CHANGES * 0.9 * ROOMS)
