"""A room that is served in virtual time, with its plant, its staff and consoles that command it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

from controller.commands import Actor, Command
from controller.roles import Role
from controller.room.states import State
from controller.serving.desk import ServedRoom, ground_of
from controller.serving.plan_inspection import inspect
from controller.surroundings import served_surroundings
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility


async def inspected(path, facility, library=None, keys=None):
    """In this process: virtual time waits for no other."""
    return inspect(path, facility, library, keys)


class Console:
    """Somebody at a console: commands with the boot id, token and sequence that a console process would send."""

    def __init__(self, served, name):
        self.served = served
        self.name = name
        self.actor = Actor("Olga", Role.OPERATOR)
        self.token = 0
        self._numbers = itertools.count(1)
        self._beat: asyncio.Task | None = None

    async def send(self, command, **more):
        fields = {
            "arguments": {},
            "actor": self.actor,
            "console": self.name,
            "token": self.token,
            "boot_id": self.served.room.ground.boot_id,
            "sequence": next(self._numbers),
            "age_ns": 1_000_000,
        }
        arguments = {key: value for key, value in more.items() if key not in fields}
        fields |= {key: value for key, value in more.items() if key in fields}
        return await self.served.room.submit(Command(command, **{**fields, "arguments": arguments or fields["arguments"]}))

    async def do(self, command, **arguments):
        """A command that has to be accepted; its value."""
        answer = await self.send(command, **arguments)
        assert answer.accepted, f"{command}: {answer.rejection}"
        return answer.value

    async def refused(self, command, **arguments):
        """A command that has to be refused; its words."""
        answer = await self.send(command, **arguments)
        assert not answer.accepted, f"{command} was accepted: {answer.value}"
        return str(answer.rejection)

    async def control(self):
        """Take control, and stay alive."""
        self.token = await self.do("take_control")
        self.beat()

    def beat(self):
        """Heartbeats, as a console process sends them."""
        self._beat = asyncio.create_task(self._live())

    async def fall_silent(self):
        """The console is lost."""
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
            self._beat = None

    async def _live(self):
        while True:
            self.served.room.heartbeat(self.name, self.token)
            await asyncio.sleep(0.3)

    async def answer(self, yes=True, **more):
        """Answer the question that stands."""
        question = self.served.room.questions.view()
        assert question is not None, "nothing is asked"
        return await self.do(question.command if yes else "decline", challenge=question.challenge, **more)


class Served:
    """One room, while it is served."""

    def __init__(self, state: Path, room="G1", facility="asan", seed=3, staff="quick", virtual=True):
        self.bus = EventBus()
        self.events = []
        self.bus.subscribe(self.events.append)
        self.said = []
        self.world = served_surroundings(load_facility(facility), None, seed, self.bus, room, staff)
        self._more = (facility, room, state, virtual)
        self.room: ServedRoom | None = None
        self.spots = []
        self.consoles = {}

    async def start(self, store=None):
        await self.world.start()
        called, room, state, virtual = self._more
        yard = self.world.plant.switchyard
        yard.route = yard._target = room
        ground = ground_of(self.world, called, load_facility(called), room, self.bus, state, seed=3, virtual=virtual)
        self.room = ServedRoom(ground, inspected, self.said.append, store)
        self.room.publish_spots = self.spots.append
        self.room.open()
        self.room.start()
        await self.until(lambda: not self.room.devices.missing(), 30.0, "devices are connected")

    async def stop(self):
        for console in self.consoles.values():
            await console.fall_silent()
        await self.room.close()
        await self.world.stop()

    def console(self, name="console-1", actor="Olga", role=Role.OPERATOR):
        """One of a name, whoever sits there."""
        console = self.consoles.setdefault(name, Console(self, name))
        console.actor = Actor(actor, role)
        return console

    def physicist(self, name="console-2"):
        return self.console(name, "Petra", Role.PHYSICIST)

    def service(self, name="console-3"):
        return self.console(name, "Sven", Role.SERVICE)

    @property
    def state(self):
        return self.room.ground.machine.state

    async def until(self, true, seconds=900.0, what="it"):
        """Wait, in loop time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not true():
            assert loop.time() < deadline, (
                f"{what} did not come within {seconds} s; state {self.room and self.state}: {self.last()}"
            )
            await asyncio.sleep(0.05)

    async def asked(self, kind, seconds=900.0):
        questions = self.room.questions
        await self.until(lambda: (q := questions.view()) is not None and q.kind == kind, seconds, f"question {kind}")
        return questions.view()

    async def in_state(self, state, seconds=900.0):
        await self.until(lambda: self.state is state, seconds, str(state))

    def last(self):
        return [f"{e.t_ns / 1e9:.1f} {e.source} {e.kind} {dict(e.data)}"[:300] for e in self.events[-12:]]

    def said_of(self, kind):
        return [event for event in self.events if event.kind == kind]

    async def file(self, data, name="plan.dcm", approved=True):
        """Put a plan into the store as a console process would, and have it approved; its id."""
        (self.room.plans.incoming / "received-1").write_bytes(data)
        view = await self.console("upload").do("import_plan", file="received-1", name=name)
        if approved and not view["approved_by"]:
            await self.physicist("approval").do("approve_plan", plan_id=view["id"])
        return view["id"]

    async def to_armed(self, console, plan_id, fraction=1, **more):
        """From standby to the question for beam; fraction None: the one that comes next."""
        named = {} if fraction is None else {"fraction": fraction}
        value = await console.do("load_plan", plan_id=plan_id, **named, **more)
        await self.asked("identify")
        await console.answer()
        await self.asked("positioned")
        await console.answer()
        await self.until(lambda: self.world.plant.rooms["G1"].access.state.name == "SECURED", 900, "the room is closed")
        if self.room.interlocks.roles():
            await console.do("reset_interlock")
        await self.asked("beam_on")
        return value["treatment"]

    async def ended(self, seconds=3000.0):
        await self.until(lambda: not self.room.treating.under_way, seconds, "the end of the treatment")
        return self.room.treating.loaded

    async def treat(self, console, plan_id, **more):
        treatment = await self.to_armed(console, plan_id, **more)
        await console.answer()
        await self.ended()
        return treatment


@contextlib.asynccontextmanager
async def serving(state: Path, store=None, **more: Any):
    served = Served(state, **more)
    await served.start(store)
    try:
        yield served
    finally:
        await served.stop()


__all__ = ["Console", "Served", "State", "serving"]
