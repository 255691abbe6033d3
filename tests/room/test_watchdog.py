"""The watchdog by itself: who is late, by how much, and who was first."""

import asyncio

import pytest

from controller.room.causes import Severity
from controller.room.watchdog import GRACE_NS, Watchdog
from simulators import clock

MS = 1_000_000


def in_time(body):
    async def main():
        await body(asyncio.get_running_loop())

    clock.run(main())


def test_nobody_is_late_within_period_and_grace_and_then_it_is_named():
    async def body(loop):
        dog = Watchdog()
        beat = dog.watch("room watch", 0.3)
        start = loop.now_ns
        assert dog.judge(start + 300 * MS + GRACE_NS) is None
        cause = dog.judge(start + 300 * MS + GRACE_NS + MS)
        assert cause.name == "watchdog.room_watch" and cause.severity is Severity.FAULT
        assert (cause.value, cause.limit) == ("401 ms without a report", "400 ms")
        beat.beat()
        assert dog.judge(start) is cause, "the first one stays until the watch is renewed"

    in_time(body)


def test_a_report_may_announce_a_longer_step_and_only_that_one():
    async def body(loop):
        dog = Watchdog()
        beat = dog.watch("delivery", 0.1)
        beat.beat(within_s=5.0)
        await asyncio.sleep(5.0)
        assert dog.judge(loop.now_ns) is None
        beat.beat()
        await asyncio.sleep(0.1)
        assert dog.judge(loop.now_ns) is None
        await asyncio.sleep(0.101)
        assert dog.judge(loop.now_ns).name == "watchdog.delivery"

    in_time(body)


def test_who_has_ended_is_not_missed_and_who_died_is():
    async def body(loop):
        dog = Watchdog()
        dog.watch("results", 0.1).end()
        await asyncio.sleep(10.0)
        assert dog.judge(loop.now_ns) is None
        dog = Watchdog()
        dog.watch("results", 0.1)  # raises somewhere, and comes to no end
        await asyncio.sleep(0.3)
        assert dog.judge(loop.now_ns).name == "watchdog.results"

    in_time(body)


def test_of_two_that_are_late_the_later_one_is_named_first():
    async def body(loop):
        dog = Watchdog()
        dog.watch("one", 0.2)
        dog.watch("other", 0.1)
        await asyncio.sleep(0.5)
        assert dog.judge(loop.now_ns).name == "watchdog.other"

    in_time(body)


@pytest.mark.parametrize(("gap_ms", "late"), [(0, False), (50, False), (100, False), (101, True), (10_000, True)])
def test_a_gap_between_two_pulses_longer_than_the_relay_holds_is_a_standstill(gap_ms, late):
    async def body(loop):
        cause = Watchdog().judge(loop.now_ns, gap_ms * MS)
        assert (cause is not None) is late
        if cause is not None:
            assert cause.name == "watchdog.loop" and cause.severity is Severity.PAUSE

    in_time(body)


def test_a_loop_in_which_nobody_asked_stood_still_and_the_tasks_are_not_blamed():
    async def body(loop):
        dog = Watchdog()
        dog.watch("room watch", 0.3)
        assert dog.judge(loop.now_ns) is None
        loop.now_ns += 3_000_000_000
        assert dog.judge(loop.now_ns).name == "watchdog.loop"

    in_time(body)


def test_a_poller_is_known_by_the_age_of_what_it_read():
    async def body(loop):
        dog, seen = Watchdog(), [loop.now_ns]
        dog.follow("room status", lambda: seen[0], 250.0)
        await asyncio.sleep(0.35)
        assert dog.judge(loop.now_ns) is None
        await asyncio.sleep(0.001)
        cause = dog.judge(loop.now_ns)
        assert cause.name == "status.stale" and "room status is 351 ms old (limit 250 ms)" in cause.message

    in_time(body)


def test_renewed_everybody_has_its_whole_step_again():
    async def body(loop):
        dog = Watchdog()
        dog.watch("delivery", 0.5)
        await asyncio.sleep(100.0)  # interrupted: nobody was asked
        assert dog.judge(loop.now_ns).name == "watchdog.delivery"
        dog.renew()
        assert dog.first is None and dog.judge(loop.now_ns) is None
        await asyncio.sleep(0.7)
        assert dog.judge(loop.now_ns) is not None

    in_time(body)
