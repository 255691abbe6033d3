"""A steered clock never jumps, never goes back, and keeps its timers, whatever becomes of factor and computer."""

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.clock import SLICE_S, STRIDE_S, SteerableLoop, SteeredClock


class Wall:
    """A wall clock that goes only when somebody waits or stalls."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def wait(self, seconds):
        self.now_s += seconds
        return []


@pytest.fixture
def wall():
    return Wall()


def steered(wall, factor=1.0):
    return SteerableLoop(clock=SteeredClock(factor, wall), select=wall.wait)


def run(loop, main):
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)


@pytest.mark.parametrize("factor", [0.25, 1.0, 2.0, 10.0])
def test_a_timer_takes_its_time_divided_by_the_factor(wall, factor):
    loop = steered(wall, factor)

    async def main():
        begun = wall.now_s
        await asyncio.sleep(3.0)
        return wall.now_s - begun

    assert run(loop, main()) == pytest.approx(3.0 / factor, abs=2e-6)
    assert loop.clock.slip_s == 0.0


def test_a_stall_becomes_slip_and_not_simulated_time(wall):
    loop = steered(wall, 2.0)

    async def main():
        before = loop.time()
        wall.now_s += 0.3  # one callback that runs long
        seen = loop.time() - before
        await asyncio.sleep(0)
        return seen, loop.time() - before

    during, after = run(loop, main())
    assert during == pytest.approx(STRIDE_S * 2.0, abs=1e-6)
    assert after == pytest.approx(STRIDE_S * 2.0, abs=1e-6)
    assert loop.clock.slip_s == pytest.approx(0.3 - STRIDE_S, abs=1e-6)
    assert (loop.clock.stalls, loop.clock.longest_stall_s) == (1, pytest.approx(0.3, abs=1e-6))


def test_the_operating_systems_stalls_in_a_wait_are_slip_too(wall):
    stalls = []

    def late(seconds):
        wall.now_s += seconds + (stalls.pop() if stalls else 0.0)
        return []

    loop = SteerableLoop(clock=SteeredClock(1.0, wall), select=late)

    async def main():
        before, begun = wall.now_s, loop.time()
        stalls.extend((0.5, 0.25))
        await asyncio.sleep(0.1)
        return wall.now_s - before - (loop.time() - begun)

    assert run(loop, main()) == pytest.approx(loop.clock.slip_s, abs=1e-6)
    assert loop.clock.slip_s > 0.7
    assert loop.clock.stalls == 2


def test_timers_stay_right_after_a_change_of_factor(wall):
    loop = steered(wall, 1.0)

    async def main():
        fired = {}
        for name, at_s in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
            loop.call_at(at_s, lambda name=name: fired.setdefault(name, (loop.time(), wall.now_s)))
        start = wall.now_s - loop.time()
        await asyncio.sleep(1.5)
        loop.clock.steer(4.0)
        await asyncio.sleep(1.0)
        loop.clock.steer(0.5)
        await asyncio.sleep(1.0)
        return {name: (t, wall_s - start) for name, (t, wall_s) in fired.items()}

    fired = run(loop, main())
    assert fired["a"] == (pytest.approx(1.0, abs=1e-5), pytest.approx(1.0, abs=1e-5))
    assert fired["b"] == (pytest.approx(2.0, abs=1e-5), pytest.approx(1.5 + 0.5 / 4.0, abs=1e-5))
    assert fired["c"] == (pytest.approx(3.0, abs=1e-5), pytest.approx(1.5 + 1.0 / 4.0 + 0.5 / 0.5, abs=1e-5))


def test_paused_time_stands_still_and_is_no_slip(wall):
    loop = steered(wall, 1.0)
    late = []

    def wait(seconds):
        wall.now_s += seconds
        if wall.now_s > 110.0 and not late:
            late.append(loop.time())
            loop.clock.steer(1.0)
        return []

    loop._selector._wait = wait

    async def main():
        loop.clock.steer(0.0)
        before = loop.time()
        await asyncio.sleep(1.0)
        return before

    before = run(loop, main())
    assert late == [before]
    assert loop.clock.slip_s == 0.0
    assert wall.now_s == pytest.approx(111.0, abs=2 * SLICE_S)


def test_a_paused_loop_still_answers_other_threads():
    loop = SteerableLoop(0.0)

    async def main():
        done = asyncio.Event()
        threading.Timer(0.05, loop.call_soon_threadsafe, [done.set]).start()
        await done.wait()
        return loop.time()

    begun = time.monotonic()
    assert run(loop, main()) == 0.0
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_factor_that_is_none_is_refused(wall, factor):
    with pytest.raises(ValueError, match="factor"):
        SteeredClock(factor, wall)
    clock = SteeredClock(1.0, wall)
    with pytest.raises(ValueError, match="factor"):
        clock.steer(factor)
    assert clock.factor == 1.0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("wall"), st.floats(-0.5, 5.0)),
            st.tuples(st.just("turn"), st.just(0.0)),
            st.tuples(st.just("steer"), st.sampled_from([0.0, 0.5, 1.0, 7.0])),
        ),
        max_size=40,
    )
)
def test_time_never_goes_back_and_never_jumps(deeds):
    wall = Wall()
    clock = SteeredClock(1.0, wall)
    before = clock.now_s()
    for deed, number in deeds:
        limit = STRIDE_S * clock.factor
        if deed == "wall":
            wall.now_s += number
        elif deed == "turn":
            clock.turn()
        else:
            clock.steer(number)
        now = clock.now_s()
        assert before <= now + 1e-12 or (deed == "wall" and number < 0), "within a turn only a wall clock that goes back"
        assert now - before <= limit + 1e-9
        before = max(before, now)


def test_the_clock_runs_at_the_wall_clocks_rate():
    loop = SteerableLoop(2.0)

    async def main():
        wall_s, begun = time.monotonic(), loop.time()
        await asyncio.sleep(0.6)
        return (loop.time() - begun) / (time.monotonic() - wall_s)

    assert run(loop, main()) == pytest.approx(2.0, rel=0.25), "a stall of the computer may slow it, never hasten it"
