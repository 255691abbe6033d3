"""Stop: taken from anybody, at any time, in front of everything that could refuse, parse or queue.

Each stop goes to the room at once. In a flood, those that follow many others go together with their neighbours, at most 50 ms
later, so that a flood of stops cannot keep the room's process from its work; none is refused, and each is executed after it
came. Not responsible for what a stop does (the room).
"""

from __future__ import annotations

import asyncio
from typing import Any

from controller.console.limits import Buckets
from controller.console.room_link import RoomLink
from controller.console.views import AnswerView
from controller.roles import Role
from drivers.hal.errors import CommunicationError

PER_S, BURST = 20.0, 10.0
TOGETHER_S = 1.0 / PER_S


class StopLane:
    """One per room. Made inside the running loop."""

    def __init__(self, link: RoomLink) -> None:
        self._link = link
        self._at_once = Buckets(PER_S, BURST, asyncio.get_running_loop().time)
        self._together: asyncio.Task[AnswerView] | None = None

    async def stop(self, actor: str, role: Role, console: str) -> AnswerView:
        """What the room says. A line that is down is an answer, not an error."""
        command = {
            "name": "stop",
            "arguments": {},
            "actor": actor,
            "role": role.value,
            "console": console,
            "token": 0,
            "boot_id": self._link.boot_id,
            "sequence": 0,
            "age_ns": 0,
        }
        if self._at_once.take("") == 0.0:
            return await self._send(command)
        if self._together is None:
            self._together = asyncio.create_task(self._soon(command), name="stop-together")
        return await asyncio.shield(self._together)

    async def _soon(self, command: dict[str, Any]) -> AnswerView:
        await asyncio.sleep(TOGETHER_S)
        self._together = None  # whoever comes from now on is not covered by this one
        return await self._send(command)

    async def _send(self, command: dict[str, Any]) -> AnswerView:
        try:
            return await self._link.stop(command)
        except CommunicationError as error:
            return AnswerView(accepted=False, code=error.code, reason=error.message, hint=error.hint)
