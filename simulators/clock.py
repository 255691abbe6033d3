"""Virtual time: an asyncio loop that jumps to its next timer when nothing is ready.

Code under it uses `asyncio.sleep`, `asyncio.timeout` and `loop.time()` alone and cannot tell the difference. No file descriptor
is polled: virtual time belongs on the memory twins of the transports. Determinism: time is integer ns, timers of one instant
run in the order in which they were asked for, tasks hash by a sequence number (so sets of tasks iterate in creation order),
executors run inline, and callbacks that are ready together may be shuffled by a seed to search for races (one fixed order
finds few of them).

Real wires need real time: `PacedLoop` runs at a fixed multiple of the wall clock, `SteerableLoop` at one that can be changed,
and does not jump when the computer stalls.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import Any, TypeVar

T = TypeVar("T")
NS_PER_S = 1_000_000_000
STRIDE_S = 0.02  # wall time that a steered clock follows without a look at the wires; a stall beyond it is slip
SLICE_S = 0.01  # longest wait of a steered loop: half of the above, so that a wait that ends on time is never slip
LATE_S = 0.002  # by which a wait may end late without slip, after callbacks that took their time
Ready = list[tuple[selectors.SelectorKey, int]]


class VirtualDeadlock(RuntimeError):
    """Every task waits and no timer is pending: in real time this program would hang for ever."""


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


class _Handle(asyncio.Handle):
    """asyncio's handle without its debug mode: a run makes hundreds of thousands of them."""

    __slots__ = ()
    _repr = _source_traceback = None  # what debug mode would keep

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: asyncio.AbstractEventLoop, context: Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]


class _Timer(asyncio.TimerHandle):
    """A timer. Cancelling marks it; the loop drops it when its time has come."""

    __slots__ = ()
    _repr = _source_traceback = None
    _scheduled = True

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when_s

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is simulated.

    It keeps asyncio's rules (what is ready runs in order, once per turn, each callback in its context; what a callback raises
    goes to the exception handler) with its own turn: no selector is asked, and timers are ordered by integer ns.

    Args:
        schedule_seed: None keeps the order of registration; a number shuffles callbacks that are ready together.
        start_ns: time at which the loop starts.

    Attributes:
        now_ns: simulated time in integer ns; nobody else sets it.
    """

    def __init__(self, schedule_seed: int | None = None, start_ns: int = 0) -> None:
        self.now_ns = start_ns
        self._shuffle = random.Random(schedule_seed) if schedule_seed is not None else None
        self._timers: list[tuple[int, int, _Timer]] = []
        self._timer_number = 0
        super().__init__(selectors.SelectSelector())
        self.set_task_factory(_task_factory)  # type: ignore[arg-type]

    def time(self) -> float:
        return self.now_ns / NS_PER_S

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        timer = _Timer(when, callback, args, self, context)
        self._timer_number = number = self._timer_number + 1
        heappush(self._timers, (round(when * NS_PER_S), number, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_ns / NS_PER_S + delay, callback, *args, context=context)

    def close(self) -> None:
        super().close()
        self._timers.clear()

    def _run_once(self) -> None:
        """Turns until the loop is stopped (asyncio's own `run_forever` asks for one at a time, and then whether to go on)."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        timers, shuffle = self._timers, self._shuffle
        while True:
            if not ready and not self._stopping:  # type: ignore[attr-defined]
                while timers and timers[0][2]._cancelled:
                    heappop(timers)
                if not timers:
                    raise VirtualDeadlock("nothing is ready and no timer is pending")
                self.now_ns = max(self.now_ns, timers[0][0])
            now_ns = self.now_ns
            while timers and timers[0][0] <= now_ns:
                timer = heappop(timers)[2]
                if not timer._cancelled:
                    ready.append(timer)
            if shuffle is not None and len(ready) > 1:
                items = list(ready)
                shuffle.shuffle(items)
                ready.clear()
                ready.extend(items)
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - as asyncio's own loop does
                    self.call_exception_handler(
                        {"message": f"Exception in callback {handle!r}", "exception": error, "handle": handle}
                    )
            handle = None  # a loop that waits must keep nothing alive
            if self._stopping:  # type: ignore[attr-defined]
                return

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

    def select(self, timeout: float | None = None) -> Ready:
        return super().select(None if timeout is None else timeout / self._factor)


class SteeredClock:
    """Simulated time as a multiple of wall time that can be changed, stopped, and that never jumps.

    Simulated time follows the wall clock for at most `STRIDE_S` after each `turn`; what the wall clock runs beyond is slip.
    A simulator that was stalled therefore finds what its clients wrote meanwhile before time goes on, and no relay of the plant
    falls because of the simulator's own computer.

    Args:
        factor: simulated seconds per second; 0 stands still.
        wall: wall clock in s, monotonic.

    Attributes:
        slip_s: wall time by which simulated time was held back since `forgive`; pauses are not slip.
        stalls: how often that happened.
        longest_stall_s: wall time that the longest of them took.
    """

    def __init__(self, factor: float = 1.0, wall: Callable[[], float] = time.monotonic) -> None:
        self.slip_s = 0.0
        self.stalls = 0
        self.longest_stall_s = 0.0
        self._wall = wall
        self._factor = 0.0
        self._now_s = 0.0  # simulated time at the last turn
        self._turn_s = wall()  # wall time of it
        self.steer(factor)

    @property
    def factor(self) -> float:
        """Simulated seconds per second now."""
        return self._factor

    def wall_s(self) -> float:
        """Wall time, s, from an arbitrary origin."""
        return self._wall()

    def now_s(self) -> float:
        """Simulated time, s."""
        elapsed_s = min(max(0.0, self._wall() - self._turn_s), STRIDE_S)
        return self._now_s + elapsed_s * self._factor

    def turn(self) -> None:
        """Let time go on: the wires have been looked at."""
        wall_s = self._wall()
        elapsed_s = max(0.0, wall_s - self._turn_s)
        self._now_s += min(elapsed_s, STRIDE_S) * self._factor
        self._turn_s = wall_s
        if elapsed_s > STRIDE_S and self._factor:
            self.slip_s += elapsed_s - STRIDE_S
            self.stalls += 1
            self.longest_stall_s = max(self.longest_stall_s, elapsed_s)

    def forgive(self) -> None:
        """Forget the slip so far: of a start, for example."""
        self.slip_s, self.stalls, self.longest_stall_s = 0.0, 0, 0.0

    def steer(self, factor: float) -> None:
        """Go on at another factor from now on. Raises ValueError when it is negative or no number."""
        if not 0.0 <= factor < float("inf"):
            raise ValueError(f"factor {factor} must be 0 (standing still) or more")
        self.turn()
        self._factor = factor

    def wait_s(self, simulated_s: float | None) -> float:
        """Wall time to wait for a stretch of simulated time (None: for ever), at most until the next look at the wires."""
        if not self._factor and simulated_s != 0:
            return SLICE_S
        left_s = STRIDE_S - LATE_S - (self._wall() - self._turn_s)
        wanted_s = SLICE_S if simulated_s is None else simulated_s / self._factor if simulated_s > 0 else 0.0
        return max(0.0, min(SLICE_S, left_s, wanted_s))


class SteerableLoop(asyncio.SelectorEventLoop):
    """A loop for a process that simulates: its time is `clock`, which may be steered, and does not jump.

    Timers are kept in simulated time, so they stay right whatever becomes of the factor; at factor 0 none comes due, and files,
    signals and calls from other threads are answered all the same.

    Args:
        factor: simulated seconds per second at the start.
        clock: another clock, for tests.
        select: what waits instead of the system, for tests.
    """

    def __init__(
        self, factor: float = 1.0, clock: SteeredClock | None = None, select: Callable[[float], Ready] | None = None
    ) -> None:
        self.clock = clock or SteeredClock(factor)
        self._wall_timers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._wall_number = 0
        super().__init__(_SteeredSelector(self.clock, select, self._wake))

    def time(self) -> float:
        return self.clock.now_s()

    async def sleep_wall(self, seconds: float) -> None:
        """Wait by the wall clock, also while simulated time stands still: for what is not simulated (processes, files)."""
        woken = self.create_future()
        self._wall_number += 1
        heappush(self._wall_timers, (self.clock.wall_s() + seconds, self._wall_number, woken))
        await woken

    def _wake(self) -> None:
        timers, now_s = self._wall_timers, self.clock.wall_s()
        while timers and (timers[0][0] <= now_s or timers[0][2].done()):
            woken = heappop(timers)[2]
            if not woken.done():
                woken.set_result(None)


async def wall_limit(work: Awaitable[T], seconds: float) -> T:
    """Await `work`, at most so long by the wall clock; under any loop.

    Raises:
        TimeoutError: it did not end in time, and was cancelled.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, SteerableLoop):
        return await asyncio.wait_for(work, seconds)
    job = asyncio.ensure_future(work)
    alarm = asyncio.ensure_future(loop.sleep_wall(seconds))
    try:
        await asyncio.wait({job, alarm}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
    finally:
        alarm.cancel()
        job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    raise TimeoutError(f"took longer than {seconds:g} s")


class _SteeredSelector(selectors.SelectSelector):
    def __init__(self, clock: SteeredClock, wait: Callable[[float], Ready] | None, wake: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._wait = wait or super().select
        self._wake = wake

    def select(self, timeout: float | None = None) -> Ready:
        ready = self._wait(self._clock.wait_s(timeout))
        self._clock.turn()
        self._wake()
        return ready


def run(main: Coroutine[Any, Any, T], *, schedule_seed: int | None = None) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(schedule_seed)) as runner:
        return runner.run(main)
