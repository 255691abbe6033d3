"""A ring at rest is read without working out its path again: what is read must be what the path says."""

import numpy as np
import pytest
from test_gantry import MS, NS, Bench


def agrees(bench, seconds):
    """Single readings and readings of many times at once, from now on."""
    times = bench.now + np.arange(0, round(seconds * NS), 7 * MS)
    angles, motors = bench.ring.body.angles_deg(times)
    for t_ns, angle_deg, motor_deg in zip(times.tolist(), angles, motors, strict=True):
        assert bench.ring.angle_deg(t_ns) == pytest.approx(angle_deg, abs=1e-12)
        assert bench.ring.body.motor(t_ns).position == pytest.approx(motor_deg, abs=1e-12)


def test_readings_agree_before_during_and_after_a_move_and_back():
    bench = Bench()
    agrees(bench, 1.0)
    bench.enable()
    for target_deg in (12.0, -3.0):
        assert bench.go(target_deg)
        for _ in range(12):
            bench.advance(1.0)
            agrees(bench, 30.0)
        assert bench.ring.angle_deg(bench.now) == pytest.approx(target_deg, abs=0.1)
        assert bench.ring.speed_deg_s(bench.now) == 0.0


def test_a_ring_whose_axis_was_reversed_at_rest_stands_where_it_stood_and_goes_the_other_way():
    bench = Bench()
    bench.move(10.0)
    before_deg = bench.ring.angle_deg(bench.now)
    bench.ring.body.reverse_axis()
    assert bench.ring.angle_deg(bench.now) == pytest.approx(before_deg)
    agrees(bench, 1.0)


def test_an_encoder_that_is_mirrored_and_repaired_reads_what_it_read():
    bench = Bench()
    bench.move(10.0)
    encoder, angle_deg = bench.ring.encoders.load, bench.ring.angle_deg(bench.now)
    before = encoder.read_mdeg(angle_deg, bench.now)
    encoder.mirror()
    assert encoder.read_mdeg(angle_deg, bench.now) == pytest.approx(-before, abs=300)
    encoder.repair()
    assert encoder.read_mdeg(angle_deg, bench.now) == before
