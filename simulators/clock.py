"""Virtual time: an asyncio loop that jumps to its next timer when nothing is ready.

Code under it uses `asyncio.sleep`, `asyncio.timeout` and `loop.time()` alone and cannot tell the difference. No real file
descriptor is polled: virtual time belongs on the memory twins of the transports. Determinism: time is integer ns, tasks hash
by a sequence number (so sets of tasks iterate in creation order), executors run inline, and callbacks that are ready together
may be shuffled by a seed to search for races (one fixed order finds few of them).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
NS_PER_S = 1_000_000_000


class VirtualDeadlock(RuntimeError):
    """Every task waits and no timer is pending: in real time this program would hang for ever."""


class _JumpingSelector(selectors.BaseSelector):
    """Selects nothing; turns a wait into a jump of the clock. Holds the loop's own self-pipe so that close() works."""

    def __init__(self) -> None:
        self._inner = selectors.SelectSelector()
        self.loop: VirtualLoop | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def get_map(self) -> Any:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return []
        if self.loop is None or timeout is None:
            raise VirtualDeadlock("nothing is ready and no timer is pending")
        self.loop.jump()
        return []


class _OrderedTask(asyncio.Task[T]):
    """A task whose hash is its creation number, so that sets of tasks have one order."""

    _counter = itertools.count(1)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(_OrderedTask._counter)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is simulated.

    Args:
        schedule_seed: None keeps the order of registration; a number shuffles callbacks that are ready together.
        start_ns: time at which the loop starts.
    """

    def __init__(self, schedule_seed: int | None = None, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._shuffle = random.Random(schedule_seed) if schedule_seed is not None else None
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self
        self.set_task_factory(_task_factory)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now_ns / NS_PER_S

    @property
    def now_ns(self) -> int:
        """Simulated time in integer ns."""
        return self._now_ns

    def jump(self) -> None:
        """Move the clock to the next timer (called by the selector when nothing is ready)."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]
        if not scheduled:
            raise VirtualDeadlock("nothing is ready and no timer is pending")
        self._now_ns = max(self._now_ns, round(scheduled[0].when() * NS_PER_S))

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        if self._shuffle is not None and len(ready) > 1:
            items = list(ready)
            self._shuffle.shuffle(items)
            ready.clear()
            ready.extend(items)
        super()._run_once()  # type: ignore[misc]

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run the job inline: a thread would lose against a clock that jumps."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - carried to whoever awaits
            future.set_exception(error)
        return future


def _task_factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], **kwargs: Any) -> asyncio.Task[T]:
    return _OrderedTask(coro, loop=loop, **kwargs)


class PacedLoop(asyncio.SelectorEventLoop):
    """A loop whose time runs `factor` times as fast as the wall clock (1 is real time).

    Timer deadlines are absolute, so pacing does not drift; the select system call has microsecond resolution.
    """

    def __init__(self, factor: float = 1.0) -> None:
        if not factor > 0:
            raise ValueError(f"pace factor {factor} must be above 0")
        self._factor = factor
        super().__init__(_ScaledSelector(factor))
        self._epoch = super().time()

    def time(self) -> float:
        return (super().time() - getattr(self, "_epoch", 0.0)) * self._factor


class _ScaledSelector(selectors.SelectSelector):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._factor)


def run(main: Coroutine[Any, Any, T], *, schedule_seed: int | None = None) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(schedule_seed)) as runner:
        return runner.run(main)
