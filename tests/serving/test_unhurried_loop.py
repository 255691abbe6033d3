"""Simulated time with company: it keeps the pace, stands still while the program computes, and never jumps with the clock."""

import asyncio
import itertools
import socket

import pytest

from simulators.unhurried import CATCH_UP_S, UnhurriedLoop


class Wall:
    """A wall clock that the test turns; waiting for files turns it too."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def made(factor, wall):
    loop = UnhurriedLoop(factor, wall)
    look = loop._files.look

    def waiting(timeout_s):
        ready = look(0)
        if not ready:
            wall.now_s += timeout_s
        return ready

    loop._files.look = waiting
    return loop


def run(loop, main):
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("factor", [0.5, 1.0, 20.0])
def test_it_keeps_the_pace_of_the_wall_clock(factor):
    wall = Wall()

    async def main():
        loop = asyncio.get_running_loop()
        begun_s, at_s = wall.now_s, loop.time()
        for _ in range(100):
            await asyncio.sleep(0.1)
        return (loop.time() - at_s) / (wall.now_s - begun_s)

    assert abs(run(made(factor, wall), main) / factor - 1.0) < 0.01


def test_time_stands_still_while_the_program_computes_and_is_made_up_for_within_bounds():
    wall = Wall()
    loop = made(1.0, wall)

    async def main():
        await asyncio.sleep(1.0)
        at_s = loop.time()
        wall.now_s += 0.08  # a computation
        assert loop.time() == at_s
        await asyncio.sleep(1.0)
        assert abs(loop.time() - at_s - 1.0) < 1e-6
        assert loop.slip_s == 0.0
        early_s = wall.now_s
        wall.now_s += 5.0  # a computer that stood still
        at_s = loop.time()
        done = [loop.time()]
        for _ in range(20):
            await asyncio.sleep(0.05)
            done.append(loop.time())
        assert all(abs(b - a - 0.05) < 1e-6 for a, b in itertools.pairwise(done)), "no timer was late in simulated time"
        assert abs(wall.now_s - early_s - 5.0 - (1.0 - CATCH_UP_S)) < 0.06, "only a tenth of a second was made up for"
        return loop.slip_s

    assert 4.8 < run(loop, main) < 5.0


def test_files_are_answered_before_the_next_timer_and_time_goes_no_further_than_the_clock():
    wall = Wall()
    loop = made(10.0, wall)

    async def main():
        here, there = socket.socketpair()
        here.setblocking(False)
        there.setblocking(False)
        loop.call_later(5.0, there.send, b"x")
        at_s = loop.time()
        assert await loop.sock_recv(here, 10) == b"x"
        assert 5.0 <= loop.time() - at_s < 5.6
        here.close()
        there.close()
        woken = asyncio.Event()
        await asyncio.gather(asyncio.to_thread(lambda: loop.call_soon_threadsafe(woken.set)), woken.wait())

    run(loop, main)
