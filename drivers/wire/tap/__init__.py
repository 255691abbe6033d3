"""A tap on the wires: what stands between the drivers and their transports without either noticing.

`record` writes down what travels, `disturb` spoils it, `replay` serves it again. This module holds the one contract that the
assembly knows: whoever builds the drivers of a room hands every transport through a `Tap` and uses what comes back. Taps may
be put in a row. Not responsible for transports, drivers or what anything means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from drivers.wire.channels import Channels
from drivers.wire.messages import Messages
from drivers.wire.stream import StreamOpener


class Answers(Protocol):
    """Whoever is asked for a decision: the operator, or a script in simulated worlds."""

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Ask; False declines."""
        ...


class Tap(Protocol):
    """Wraps the wires of a room. `name` is the wire's own: ``G1-motion``, ``G1-safety``, ``epics``, ``mqtt``."""

    def stream(self, name: str, opener: StreamOpener) -> StreamOpener:
        """A serial line or TCP connection, before a client opens it."""
        ...

    def channels(self, name: str, channels: Channels) -> Channels:
        """Process variables."""
        ...

    def messages(self, name: str, messages: Messages) -> Messages:
        """A client of a broker."""
        ...

    def operator(self, port: Answers) -> Answers:
        """The operator, whose answers steer a treatment as any device's do."""
        ...


class NoTap:
    """Hands everything through untouched."""

    def stream(self, name: str, opener: StreamOpener) -> StreamOpener:
        """The same stream."""
        return opener

    def channels(self, name: str, channels: Channels) -> Channels:
        """The same variables."""
        return channels

    def messages(self, name: str, messages: Messages) -> Messages:
        """The same client."""
        return messages

    def operator(self, port: Answers) -> Answers:
        """The same person."""
        return port


class TapChain:
    """Several taps in a row: the first is next to the wire, the last next to the drivers."""

    def __init__(self, *taps: Tap) -> None:
        self._taps = taps

    def stream(self, name: str, opener: StreamOpener) -> StreamOpener:
        """The stream through all taps."""
        for tap in self._taps:
            opener = tap.stream(name, opener)
        return opener

    def channels(self, name: str, channels: Channels) -> Channels:
        """The variables through all taps."""
        for tap in self._taps:
            channels = tap.channels(name, channels)
        return channels

    def messages(self, name: str, messages: Messages) -> Messages:
        """The client through all taps."""
        for tap in self._taps:
            messages = tap.messages(name, messages)
        return messages

    def operator(self, port: Answers) -> Answers:
        """The operator through all taps."""
        for tap in self._taps:
            port = tap.operator(port)
        return port
