"""A set-point that a server carries out late, after it hung, takes beam away; it never delivers at what it asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from beam_bench import Bench

from simulators.plant.unit_terms import UnitState
from simulators.servers.process_variables import facility_pvs

LATE = [
    ("ASAN:ACC:RING:STEP:SP", 150_000),
    ("ASAN:ACC:RING:CYCLE:SP", 150_000),
    ("ASAN:ACC:RING:OFF:SP", 1),
    ("ASAN:HEBT:ROUTE:SP", "G2"),
    ("ASAN:G1:MAG:CURRENT:SP", np.array([150_000.0, *[100.0] * 20])),
    ("ASAN:ACC:SRC:SPECIES:SP", 2004),
]


@pytest.mark.parametrize("begun", [False, True], ids=["before beam", "in beam"])
@pytest.mark.parametrize(("pv", "value"), LATE, ids=[pv for pv, _ in LATE])
def test_beam_of_a_grant_is_of_its_energy_its_ion_and_its_room_whatever_comes_late(pv: str, value: Any, begun: bool) -> None:
    bench = Bench().ready()
    table = facility_pvs(bench.plant)
    words = bench.words(2000, n=100)
    if begun:
        bench.begin(words)
        bench.run(0.2)
        assert bench.unit.state is UnitState.DELIVERING
    else:
        bench.submit(words)
    table.write(pv, value)
    changed_ns = bench.now
    if not begun:
        bench.unit.start(int(words[2]), int(words[-1]))
    bench.run(90.0)
    for segment in bench.kind("delivery.segment"):
        assert abs(segment.data["energy_mev_u"] - 300.0) < 0.5
        assert segment.data["species"] == 6012
    for on in bench.kind("beam.on"):
        assert (on.data["room"] == "G1" and bench.plant.switchyard.route == "G1") or on.t_ns <= changed_ns
    if "SPECIES" not in pv:  # the ring keeps the ions that it has
        assert bench.unit.state is not UnitState.FINISHED
        last_ns = max(
            (int(s.data["t_end_ns"][-1]) for s in bench.kind("delivery.segment") if s.data["t_end_ns"].size), default=0
        )
        assert last_ns <= changed_ns + 1_000_000, "beam went on for more than a millisecond"
