"""A hand-driven table of process variables for device tests: posts what a test says, and beats like a live server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from typing import Any

from drivers.hal.events import Event, EventBus
from drivers.hal.facility import Device
from drivers.wire.memory.channels import MemoryChannels

MINIMAL_FACILITY = """
name = "bench"
title = "a bench"
purpose = "research"
[accelerator]
cycle_s = 2
flattop_max_s = 60
energy_step_s = 0.1
species_switch_s = 45
cutoff_us = 200
[[accelerator.species]]
symbol = "C"
energy_min_mev_u = 56
energy_max_mev_u = 430
intensity_min_per_s = 1e6
intensity_max_per_s = 1e9
ions_per_cycle = 1e9
[meterset]
[rooms]
[devices]
"""

Writer = Callable[[Any], None]


class Bench:
    """Variables, their writers, and the client onto them.

    Attributes:
        values: present values by name.
        writes: what clients wrote, in order.
        on_write: what a write does, by name.
        events: everything that the devices told.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.writes: list[tuple[str, Any]] = []
        self.on_write: dict[str, Writer] = {}
        self._listeners: list[Callable[[str, Any], None]] = []
        self._beats: dict[str, asyncio.TimerHandle] = {}
        self.bus = EventBus()
        self.events: list[Event] = []
        self.bus.subscribe(self.events.append)
        self.channels = MemoryChannels(self)

    def names(self) -> list[str]:
        return list(self.values)

    def read(self, name: str) -> Any:
        return self.values[name]

    def write(self, name: str, value: Any) -> None:
        self.writes.append((name, value))
        self.values[name] = value
        if name in self.on_write:
            self.on_write[name](value)

    def subscribe(self, listener: Callable[[str, Any], None], _names: Container[str] = ()) -> None:
        self._listeners.append(listener)

    def post(self, name: str, value: Any) -> None:
        """Change a value and tell the clients."""
        self.values[name] = value
        for listener in self._listeners:
            listener(name, value)

    def status(self, name: str, words: Sequence[int]) -> None:
        """Post a status (without its counter), and again every second."""
        self.post(name, [int(self.values[name][0]) + 1, *words])
        if name in self._beats:
            self._beats[name].cancel()
        self._beats[name] = asyncio.get_running_loop().call_later(1.0, lambda: self.status(name, self.values[name][1:]))

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, action)

    def stop(self) -> None:
        """No heartbeat any more."""
        for beat in self._beats.values():
            beat.cancel()
        self._beats.clear()

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def written(self, name: str) -> list[Any]:
        return [value for written, value in self.writes if written == name]


def device(prefix: str, identity: str = "", **more: Any) -> Device:
    """A row of a facility file on the memory wire; values may get 500 ms old beyond the heartbeat."""
    return Device(
        driver="x", wire="channels", endpoint="memory:channels", prefix=prefix, identity=identity, deadline_ms=500.0, **more
    )
