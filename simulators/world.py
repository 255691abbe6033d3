"""Binds a plant to an event loop and runs the processes around it as nodes that can be killed, stopped, slowed and restarted.

The plant keeps its own time (`simulators.plant.kernel`); this module advances it to the loop's time before anything looks at
it, and wakes it at its next event. It knows nothing of wires or controllers: servers call `World.sync` first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from simulators.clock import VirtualLoop
from simulators.plant.kernel import Kernel

NS_PER_S = 1_000_000_000
StepFunction = Callable[[int], int]


@dataclass(slots=True, eq=False)
class Node:
    """A process of its own in the simulated facility: a step function that names the time of its next step.

    `kill` is SIGKILL, `stop` is SIGSTOP: no step runs until `restart` or `resume`. `slow_ns` delays every wake-up.
    `clock_offset_ns` is the node's own clock error: it is added to the time that the step sees, and never to deadlines.
    """

    name: str
    step: StepFunction
    alive: bool = True
    stopped: bool = False
    slow_ns: int = 0
    clock_offset_ns: int = 0
    _handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """Whether the node takes part."""
        return self.alive and not self.stopped


@dataclass(slots=True, eq=False)
class World:
    """One simulated facility in one event loop.

    Attributes:
        kernel: the plant's time.
        nodes: processes beside the controller, by name.
    """

    kernel: Kernel
    nodes: dict[str, Node] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None
    _timer: asyncio.TimerHandle | None = None
    _armed_ns: int | None = None
    _advancing: bool = False

    def start(self) -> None:
        """Attach to the running loop; the plant lives from now on."""
        self._loop = asyncio.get_running_loop()
        self.kernel.wake = self._arm
        self.sync()
        for node in self.nodes.values():
            self._run(node)

    def stop(self) -> None:
        """Detach from the loop; the plant stands still."""
        self.kernel.wake = None
        if self._timer is not None:
            self._timer.cancel()
        for node in self.nodes.values():
            if node._handle is not None:
                node._handle.cancel()
                node._handle = None
        self._loop = None

    @property
    def now_ns(self) -> int:
        """Loop time in ns."""
        if self._loop is None:
            return self.kernel.now_ns
        return self._loop.now_ns if isinstance(self._loop, VirtualLoop) else round(self._loop.time() * NS_PER_S)

    def sync(self) -> None:
        """Advance the plant to the loop's time. Servers call this before each request."""
        if self._advancing:
            return
        kernel, now_ns = self.kernel, self.now_ns
        if self._armed_ns is not None and now_ns < self._armed_ns:  # nothing is due
            kernel.now_ns = max(kernel.now_ns, now_ns)
            return
        self._advancing = True
        try:
            kernel.advance_to(now_ns)
        finally:
            self._advancing = False
        next_ns = self.kernel.next_ns
        if next_ns is not None:
            self._arm(next_ns)

    def add(self, name: str, step: StepFunction) -> Node:
        """Add a node; `step(now_ns)` returns when it wants to run again."""
        node = Node(name, step)
        self.nodes[name] = node
        if self._loop is not None:
            self._run(node)
        return node

    def kill(self, name: str) -> None:
        """SIGKILL: the node is gone until restarted."""
        self.nodes[name].alive = False

    def suspend(self, name: str) -> None:
        """SIGSTOP."""
        self.nodes[name].stopped = True

    def resume(self, name: str) -> None:
        """SIGCONT."""
        node = self.nodes[name]
        node.stopped = False
        self._run(node)

    def restart(self, name: str, step: StepFunction) -> None:
        """Start a killed node again with a fresh step function (fresh state)."""
        node = self.nodes[name]
        node.step, node.alive, node.stopped = step, True, False
        self._run(node)

    def _arm(self, t_ns: int) -> None:
        if self._loop is None or self._advancing:
            return
        if self._armed_ns is not None and self._armed_ns <= t_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_ns = t_ns
        self._timer = self._loop.call_at(t_ns / NS_PER_S, self._fire)

    def _fire(self) -> None:
        self._armed_ns = None
        self.sync()

    def _run(self, node: Node) -> None:
        if self._loop is None or not node.running:
            return
        if node._handle is not None:
            node._handle.cancel()
        self.sync()
        now_ns = self.now_ns
        wake_ns = node.step(now_ns + node.clock_offset_ns) - node.clock_offset_ns + node.slow_ns
        node._handle = self._loop.call_at(max(wake_ns, now_ns + 1) / NS_PER_S, self._run, node)
