"""`iongantry serve` in a process of its own, without a console process: a test is the console, on the room's own line."""

import asyncio
import json
import time
from pathlib import Path

from iongantry_process import IongantryProcess

from controller.console.room_link import RoomLink
from controller.roles import Role


class RoomProcess(IongantryProcess):
    """One `serve`."""

    def __init__(self, state: Path, *arguments: str):
        log = state.parent / f"serve-{time.monotonic_ns()}.log"
        super().__init__(log, "serve", "--state", state, "--staff", "quick", *arguments)
        self.state = state


class LineConsole:
    """A console on the room's line."""

    def __init__(self, state: Path, room="G1", name="desk", actor="Olga", role=Role.OPERATOR):
        self.link = RoomLink(room, state / "run" / f"{room}.sock")
        self._who = {"console": name, "actor": actor, "role": role.value}
        self.token = 0
        self._sequence = 0
        self._beat = None

    @property
    def view(self):
        return json.loads(self.link.last_view)

    async def send(self, command, **arguments):
        self._sequence += 1
        about = {"token": self.token, "boot_id": self.link.boot_id, "sequence": self._sequence, "age_ns": 1_000_000}
        return await self.link.submit({"name": command, "arguments": arguments, **self._who, **about})

    async def start(self):
        await self.link.start()
        assert await self.link.wait_connected(20.0)
        await self.until(lambda: self.link.last_view is not None, 5.0)

    async def close(self):
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        await self.link.close()

    async def control(self):
        self.token = await self.do("take_control")
        self._beat = asyncio.create_task(self._live())

    async def _live(self):
        while True:
            self.link.heartbeat(self._who["console"], self.token)
            await asyncio.sleep(0.25)

    async def until(self, true, seconds=60.0):
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not true():
            assert loop.time() < deadline, self.link.last_view
            await asyncio.sleep(0.02)

    async def answer(self, kind):
        await self.until(lambda: (self.view["question"] or {}).get("kind") == kind)
        question = self.view["question"]
        await self.do(question["command"], challenge=question["challenge"])

    async def do(self, command, **arguments):
        answer = await self.send(command, **arguments)
        assert answer.accepted, f"{command}: {answer.reason}"
        return answer.value
