"""Virtual time keeps asyncio's rules: order, cancellation, contexts, errors; and adds its own: jumps, seeds, deadlock."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from simulators.clock import VirtualDeadlock, VirtualLoop, run


def test_an_hour_passes_at_once_and_exactly():
    async def main() -> int:
        for _ in range(3_600_000 // 700):
            await asyncio.sleep(0.7)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.now_ns

    assert run(main()) == 3_600_000 // 700 * 700_000_000


def test_timers_of_one_instant_run_in_the_order_in_which_they_were_asked_for():
    async def main() -> list[int]:
        loop, seen = asyncio.get_running_loop(), []
        for i in range(50):
            loop.call_at(1.0 if i % 2 else 0.9999999999, seen.append, i)  # 0.1 ns apart: one instant
        loop.call_at(0.5, seen.append, -1)
        await asyncio.sleep(1.0)
        return seen

    assert run(main()) == [-1, *range(50)]


def test_what_a_callback_makes_ready_runs_in_the_next_turn_after_timers_that_are_due():
    async def main() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []

        def first() -> None:
            seen.append("first")
            loop.call_soon(seen.append, "its child")
            loop.call_at(loop.time(), seen.append, "its timer")

        loop.call_soon(first)
        loop.call_soon(seen.append, "second")
        await asyncio.sleep(0.001)
        return seen

    assert run(main()) == ["first", "second", "its child", "its timer"]


def test_a_cancelled_callback_does_not_run_not_even_when_it_is_ready():
    async def main() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []
        victim = loop.call_at(1.0, seen.append, "victim")
        loop.call_at(1.0, seen.append, "same instant")
        late = loop.call_later(2.0, seen.append, "late")
        loop.call_later(0.5, late.cancel)
        ready: list[asyncio.Handle] = []
        loop.call_soon(lambda: [handle.cancel() for handle in ready])
        ready.append(loop.call_soon(seen.append, "ready"))
        loop.call_at(0.9, victim.cancel)
        await asyncio.sleep(3.0)
        assert late.cancelled() and victim.cancelled()
        assert "cancel" in repr(late)
        return seen

    assert run(main()) == ["same instant"]


def test_a_timeout_cancels_at_its_time_and_a_task_that_ends_before_is_left_alone():
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.25):
                await asyncio.sleep(9.0)
        times.append(loop.time())
        async with asyncio.timeout(5.0):
            await asyncio.sleep(1.0)
        times.append(loop.time())
        await asyncio.sleep(10.0)
        return times

    assert run(main()) == [0.25, 1.25]


def test_what_a_callback_raises_goes_to_the_exception_handler_and_the_loop_goes_on():
    async def main() -> list[Any]:
        loop, told = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda _loop, context: told.append((context["exception"], context["message"])))
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1.0)
        return told

    ((error, message),) = run(main())
    assert isinstance(error, ZeroDivisionError)
    assert "lambda" in message


def test_an_interrupt_from_the_keyboard_is_not_swallowed():
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await asyncio.sleep(1.0)

    with pytest.raises(KeyboardInterrupt):
        run(main())


def test_each_callback_runs_in_the_context_in_which_it_was_asked_for():
    name = contextvars.ContextVar("name", default="nobody")

    async def main() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []
        name.set("soon")
        loop.call_soon(lambda: seen.append(name.get()))
        name.set("later")
        loop.call_later(1.0, lambda: seen.append(name.get()))
        name.set("main")
        await asyncio.sleep(2.0)
        return [*seen, name.get()]

    assert run(main()) == ["soon", "later", "main"]


def test_waiting_for_nothing_is_a_deadlock_even_when_cancelled_timers_are_left():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, print).cancel()
        await loop.create_future()

    with pytest.raises(VirtualDeadlock):
        run(main())


def test_time_never_falls_for_a_timer_of_the_past():
    async def main() -> list[float]:
        loop, seen = asyncio.get_running_loop(), []
        await asyncio.sleep(1.0)
        loop.call_at(0.2, lambda: seen.append(loop.time()))
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        return seen

    assert run(main()) == [1.0]


def _order(seed: int | None) -> list[int]:
    async def main() -> list[int]:
        loop, seen = asyncio.get_running_loop(), []
        for i in range(8):
            loop.call_later(1.0, seen.append, i)
        await asyncio.sleep(2.0)
        for i in range(8):
            loop.call_soon(seen.append, i)
        await asyncio.sleep(1.0)
        return seen

    return run(main(), schedule_seed=seed)


def test_a_schedule_seed_shuffles_what_is_ready_together_and_always_alike():
    assert _order(None) == [*range(8), *range(8)]
    orders = {seed: _order(seed) for seed in range(5)}
    assert orders == {seed: _order(seed) for seed in range(5)}
    assert len({tuple(order[:8]) for order in orders.values()}) > 1, "timers of one instant"
    assert len({tuple(order[8:]) for order in orders.values()}) > 1, "callbacks that are ready"
    assert all(sorted(order[:8]) == [*range(8)] for order in orders.values())


def test_a_closed_loop_takes_nothing_more():
    loop = VirtualLoop()
    loop.close()
    for ask in (lambda: loop.call_soon(print), lambda: loop.call_at(1.0, print), lambda: loop.call_later(1.0, print)):
        with pytest.raises(RuntimeError, match="closed"):
            ask()
