"""What the parts of the console process share: rooms by their links, people, limits, what goes out, the state directory.

Not responsible for HTTP (`api`) nor for starting (`process`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.console.archive import Archive
from controller.console.limits import (
    PEER_BURST,
    PEER_PER_S,
    SIGNED_BURST,
    SIGNED_PER_S,
    Buckets,
    Failures,
)
from controller.console.metrics import Metrics
from controller.console.outward import Outward
from controller.console.people_log import PeopleLog
from controller.console.refused import Refused
from controller.console.room_link import RoomLink
from controller.console.tokens import Tokens
from controller.console.users import Users
from controller.console.views import AnswerView
from drivers.hal.errors import CommunicationError
from drivers.hal.facility import Facility

NOT_THERE = frozenset({4404, 4443, 4482})  # a plan, a treatment that the room does not know


@dataclass(frozen=True, slots=True)
class Exposure:
    """How far the console can be reached.

    Attributes:
        remote: from other computers, so with TLS.
        host: it listens at.
    """

    remote: bool = False
    host: str = "127.0.0.1"


class Hub:
    """Made inside the running loop, one per process.

    Args:
        state: directory of the facility's state.
        facility: as its file says.
        links: by room, one for each room that is treated in.
        users: opened.
        exposure: how far this can be reached.
        archive: of readings; default: of the state directory.
    """

    def __init__(
        self,
        state: Path,
        facility: Facility,
        links: Mapping[str, RoomLink],
        users: Users,
        exposure: Exposure | None = None,
        archive: Archive | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.state = state
        self.facility = facility
        self.links = dict(links)
        self.users = users
        self.exposure = exposure or Exposure()
        self._forget: list[Callable[[], None]] = []
        self.people = PeopleLog(state)
        self.tokens = Tokens(loop.time)
        self.failures = Failures(loop.time)
        self.by_peer = Buckets(PEER_PER_S, PEER_BURST, loop.time)
        self.by_person = Buckets(SIGNED_PER_S, SIGNED_BURST, loop.time)
        self.archive = archive or Archive(state / "archive")
        self.streams: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.metrics = Metrics(
            self.archive,
            lambda: {room: self.streams[room] for room in self.links},
            lambda: {room: link.connected for room, link in self.links.items()},
        )
        self.outward = Outward(self.archive, self.metrics)

    async def start(self) -> None:
        """Open the log, look for the rooms. Raises BeamlineError."""
        self.people.open()
        self.archive.start()
        for room, link in self.links.items():
            self._forget.append(link.subscribe(self.outward.listener(room)))
            await link.start()

    async def close(self) -> None:
        """Everything ends."""
        for link in self.links.values():
            await link.close()
        for forget in self._forget:
            forget()
        self._forget.clear()
        self.people.close()
        await self.archive.close()

    def link(self, room: str) -> RoomLink:
        """Raises Refused 404."""
        found = self.links.get(room)
        if found is None:
            raise Refused(404, f"no room {room!r} is treated in here", f"rooms: {', '.join(self.links)}")
        return found

    def any_link(self) -> RoomLink:
        """One that is up, for what all rooms of a facility share. Raises Refused 503."""
        for link in self.links.values():
            if link.connected:
                return link
        raise Refused(503, "no room's process is reached", "it may be starting; try again", headers={"Retry-After": "2"})

    def shown(self, room: str) -> bytes:
        """The last view of a room, JSON. Raises Refused 404, 503."""
        link = self.link(room)
        view = link.last_view if link.connected else None
        if view is None:
            why = f"the process of room {room} is not reached: what it would show is not known"
            raise Refused(503, why, "it may be starting; try again", headers={"Retry-After": "2"})
        return view

    async def ask(self, link: RoomLink, what: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """A question to a room's process. Raises Refused 503, 504, or with the room's own words."""
        try:
            answer: AnswerView = await link.ask(what, arguments)
        except CommunicationError as error:
            status = 503 if error.retryable else 504
            raise Refused(status, error.message, error.hint, code=error.code) from None
        if not answer.accepted:
            status = 404 if answer.code in NOT_THERE else 409
            raise Refused(status, answer.reason, answer.hint, code=answer.code)
        return answer.value

    def count(self, what: str) -> None:
        """For the metrics."""
        self.counts[what] += 1
