"""The oracle's reckoning against a second, fresh plant that is really fed without delay."""

from __future__ import annotations

import pytest
from beam_bench import Bench

from simulators.plant.oracle import irradiation_s, machine_limited_s

LAYERS = (300_000, 297_000, 290_500, 289_000, 270_000)


def treat(wait_s: float, hold_s: float = 0.0, intensity: int = 20_000_000, counts: int = 2000) -> Bench:
    """Five layers; the controller takes `wait_s` before every command it gives, and holds each grant once for `hold_s`."""
    bench = Bench().ready(LAYERS[0])
    for number, kev_u in enumerate(LAYERS):
        if number:
            bench.run(wait_s)
            bench.ring.step_to(kev_u)
            bench.tune(kev_u)
            while not (bench.ring.measured_kev_u == kev_u and bench.magnets.settled_token == kev_u):
                due = bench.kernel.next_ns
                assert due is not None
                bench.kernel.advance_to(due)
            bench.load_true_map(kev_u)
        words = bench.words(counts, n=150, layer=number, intensity=intensity)
        bench.submit(words)
        bench.run(wait_s)
        bench.unit.start(int(words[2]), int(words[-1]))
        if hold_s:
            bench.run(0.1)
            bench.unit.set_controller_gate(False)
            bench.run(hold_s)
            bench.unit.set_controller_gate(True)
        bench.run_until_ended()
    return bench


def test_a_feed_without_delay_has_no_overhead() -> None:
    bench = treat(0.0)
    least = machine_limited_s(bench.plant.log, "G1", 1)
    assert least > 4.0
    assert irradiation_s(bench.plant.log, "G1", 1) == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("wait_s", [0.004, 0.3])
def test_a_slow_controller_does_not_change_what_the_machine_needs(wait_s: float) -> None:
    ideal, slow = treat(0.0), treat(wait_s)
    assert machine_limited_s(slow.plant.log, "G1", 1) == pytest.approx(irradiation_s(ideal.plant.log, "G1", 1), abs=1e-6)
    assert irradiation_s(slow.plant.log, "G1", 1) > machine_limited_s(slow.plant.log, "G1", 1) + 8 * wait_s * 0.99


def test_refills_within_grants_are_the_machines_own() -> None:
    ideal, slow = treat(0.0, intensity=400_000_000, counts=60_000), treat(0.05, intensity=400_000_000, counts=60_000)
    assert any(operation.kind == "refill" for operation in slow.plant.log.operations)
    assert machine_limited_s(slow.plant.log, "G1", 1) == pytest.approx(irradiation_s(ideal.plant.log, "G1", 1), abs=1e-6)


def test_time_held_by_the_controller_alone_is_not_the_machines() -> None:
    ideal, held = treat(0.0), treat(0.0, hold_s=2.0)
    # A cut and a new start of the beam cost the machine fractions of a millisecond and its own draws.
    assert machine_limited_s(held.plant.log, "G1", 1) == pytest.approx(irradiation_s(ideal.plant.log, "G1", 1), rel=0.005)
    assert irradiation_s(held.plant.log, "G1", 1) > machine_limited_s(held.plant.log, "G1", 1) + 9.9


def test_another_beam_and_another_room_are_left_out() -> None:
    bench = treat(0.0)
    assert machine_limited_s(bench.plant.log, "G2", 1) == 0.0
    assert machine_limited_s(bench.plant.log, "G1", 2) == 0.0
    assert machine_limited_s(bench.plant.log, "G1", 1, since_ns=bench.now) == 0.0
