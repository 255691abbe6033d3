"""What comes from the rooms, decoded once and handed to everything that goes out of the console: archive, metrics, variables.

The pages and their streams take the bytes as they came and are not served here. What cannot be read is counted and harms
nobody. Not responsible for the line to a room (`room_link`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from controller.console.archive import Archive
from controller.console.metrics import Metrics

_log = logging.getLogger(__name__)


class Variables(Protocol):
    """Where a room's process variables are shown."""

    def show(self, view: Mapping[str, Any]) -> None:
        """A room's view. Never waits."""

    def gone(self, room: str) -> None:
        """The room's process is lost: nothing that it showed holds any longer."""


class Outward:
    """Fans out.

    Args:
        archive, metrics, variables: what there is.

    Attributes:
        variables: may be given later.
        unreadable: lines that were no view and no event of a room.
    """

    def __init__(
        self, archive: Archive | None = None, metrics: Metrics | None = None, variables: Variables | None = None
    ) -> None:
        self.unreadable = 0
        self.variables = variables
        self._archive, self._metrics = archive, metrics

    def listener(self, room: str) -> Callable[[str, bytes], None]:
        """For `RoomLink.subscribe` of this room."""
        return lambda kind, line: self.take(room, kind, line)

    def take(self, room: str, kind: str, line: bytes) -> None:
        """One line of a room. Never raises, never waits."""
        try:
            if kind == "view":
                self._take_view(json.loads(line)["view"])
            elif kind == "event" and self._metrics is not None:
                self._metrics.take_event(room, json.loads(line)["event"])
            elif kind == "link" and self.variables is not None:
                self.variables.gone(room)
        except Exception as error:  # noqa: BLE001 - what goes out must never be the reason that nothing comes in
            self.unreadable += 1
            if self.unreadable == 1:
                _log.warning("a line of %s could not be read: %r", room, error)

    def _take_view(self, view: Mapping[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.take(view)
        if self.variables is not None:
            self.variables.show(view)
        if self._archive is not None:
            self._archive.take(view)
