"""The simulator process: one plant, its time, and everything that answers for it on real wires.

A site serves the rooms of a facility: motion lines on ptys or TCP, safety lines on Modbus TCP, one IOC for all variables, a
broker, imaging and environment, an interlock system per room, people who press the plant's buttons. It writes where it all
answers (`endpoints.toml`), and takes it all down again. What it shows of itself and lets others do is the backdoor.

Not responsible for what any server serves, nor for what the plant does; it starts nothing again that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from drivers.hal.endpoints import DeviceEndpoint, EndpointMap
from simulators.backdoor import Backdoor
from simulators.clock import SteerableLoop, wall_limit
from simulators.endpoint_file import remove_if_ours, write_endpoints
from simulators.invariants import CATALOGUE, InvariantMonitor, Prescription, Violation
from simulators.plant import oracle
from simulators.refusal import NOT_NOW, UNKNOWN, WRONG, Refusal
from simulators.shadow import Shadow
from simulators.site_faults import FaultBook
from simulators.site_options import SPEED_MAX, SiteOptions, SiteRefused, make_plant, objections
from simulators.site_servers import ACTIONS, SERVING, STOPPED, ChildServer, SiteServer
from simulators.site_state import plant_state
from simulators.site_wires import BROKER, IOC, SiteWires
from simulators.staff import Staff
from simulators.world import World

LOOK_S = 0.2  # wall time between two looks at the child processes
START_S = 30.0  # wall time for one server to start by the backdoor
LIVES = 2**29  # boot ids are 31 bits on the wire
NOTES_KEPT = 1000


class Site:
    """One simulator process, in the running `SteerableLoop`.

    Args:
        options: what it shall be.
        tell: told in words what happens (a server dies, a fault strikes, an invariant breaks).

    Attributes:
        plant, world: the plant, and what binds it to the loop.
        wires: all servers.
        notes: what was told, with its time.
        token: what the backdoor wants to see.
        following: the real devices of a rig that the model follows; none until one is heard.
        violations: invariants that broke, oldest first, since the last prescription.
    """

    def __init__(self, options: SiteOptions, tell: Callable[[str], None] = lambda _line: None) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, SteerableLoop):
            raise RuntimeError("a site needs a loop whose time can be steered")
        if reasons := objections(options):
            raise SiteRefused(reasons)
        self.options = options
        self.loop = loop
        self.speed = options.speed
        self.plant = make_plant(options)
        self.plant.begin_life(1 + secrets.randbelow(LIVES))
        self.world = World(self.plant.kernel)
        self.token = secrets.token_urlsafe(24)
        self.following = Shadow(self.plant)
        self.violations: list[Violation] = []
        self.notes: deque[dict[str, Any]] = deque(maxlen=NOTES_KEPT)
        self._tell_people = tell
        self.fault_book = FaultBook(self.plant, self.world.sync, self.tell)
        self._monitor = InvariantMonitor(self.plant, self._violated, CATALOGUE)
        self.wires = SiteWires(options, self.plant, self.world, loop, lambda: self.speed)
        self._told: dict[str, str] = {}  # state of each server as it was meant to be
        self._watcher: asyncio.Task[None] | None = None
        self._door: Backdoor | None = None
        self._session_ns: dict[str, int] = {}  # when the session of a room began

    @property
    def servers(self) -> dict[str, SiteServer]:
        """Everything that answers, by name."""
        return self.wires.servers

    @property
    def staff(self) -> dict[str, Staff]:
        """The operator of each served room."""
        return self.wires.staff

    # --- life -------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; returns when all of it answers and the endpoint file is written.

        Raises:
            SiteRefused: something could not be started; nothing is left behind.
        """
        loop = self.loop
        loop.clock.steer(1.0)  # processes take wall time, whatever the speed
        try:
            self.wires.make()
            self.options.endpoints_file.unlink(missing_ok=True)  # of a simulator that was killed: nobody may read it now
            for name in (BROKER, IOC):
                if name in self.servers:
                    await self._begin(self.servers[name])
            await self.wires.connect_messages()
            self.world.start()
            for server in self.servers.values():
                if server.state == STOPPED and not isinstance(server, ChildServer):
                    await self._begin(server)
            loop.clock.steer(self.speed)
            for server in self.servers.values():
                if isinstance(server, ChildServer):  # they read the lines
                    await self._begin(server)
            self._door = Backdoor(self, loop)
            await self._door.start()
            gc.collect()
            gc.freeze()  # what stands now stands until the end: no need to look at it again and again
            self._told = {name: server.state for name, server in self.servers.items()}
            self._watcher = asyncio.create_task(self._watch(), name="watch over the servers")
            write_endpoints(self.endpoints(), self.options.endpoints_file)
            loop.clock.forgive()
        except OSError as error:
            await self.stop()
            raise SiteRefused([f"{error.filename or 'the simulators'}: {error.strerror or error}"]) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Take everything down: no child process, pty, socket or endpoint file is left."""
        self.loop.clock.steer(max(1.0, self.speed))  # what ends in good order needs time that runs
        remove_if_ours(self.options.endpoints_file, self.token)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._door is not None:
            await self._door.stop()
        for staff in self.staff.values():
            await staff.stop()
        order = sorted(self.servers.values(), key=lambda s: (not isinstance(s, ChildServer), s.name in (IOC, BROKER)))
        for server in order:
            if server.name == BROKER:
                await self.wires.disconnect_messages()
            with contextlib.suppress(OSError, TimeoutError):
                await server.stop()
        await self.wires.disconnect_messages()
        self.world.stop()
        gc.unfreeze()
        self.wires.forget()

    def endpoints(self) -> EndpointMap:
        """Where everything answers now."""
        devices = {}
        for name, device in self.options.facility.devices.items():
            if device.room in ("", *self.options.served):
                where = self.wires.endpoint(device.wire, device.wire_name)
                devices[name] = DeviceEndpoint(endpoint=where, simulated=True)
        return EndpointMap(
            facility=self.options.facility.name,
            speed=self.speed,
            backdoor=self._door.url if self._door is not None else "",
            token=self.token,
            interlock_buttons={room: str(self.wires.buttons(room)) for room in self.options.served},
            devices=devices,
        )

    def tell(self, text: str) -> None:
        """Say what happened, to people and to whoever asks for the state."""
        self.notes.append({"t_s": round(self.loop.time(), 6), "text": text})
        self._tell_people(text)

    # --- what the backdoor lets others do ---------------------------------------------------------------------------------

    def clock(self) -> dict[str, Any]:
        """Simulated clock, speed and slip."""
        clock = self.loop.clock
        return {
            "t_s": self.loop.time(),
            "speed": self.speed,
            "paused": clock.factor == 0.0,
            "slip_s": clock.slip_s,
            "stalls": clock.stalls,
            "longest_stall_s": clock.longest_stall_s,
        }

    def state(self) -> dict[str, Any]:
        """Everything: clock, plant, servers, faults, violations, the latest notes."""
        self.world.sync()
        return {
            "facility": self.options.facility.name,
            "seed": self.options.seed,
            "served": list(self.options.served),
            "simulated": True,
            "clock": self.clock(),
            **plant_state(self.plant),
            "servers": {name: server.view() for name, server in self.servers.items()},
            "faults": self.fault_book.views(),
            "violations": [str(violation) for violation in self.violations],
            "notes": list(self.notes)[-50:],
        }

    def pause(self) -> dict[str, Any]:
        """Let simulated time stand still. Whoever watches a counter takes the equipment for frozen, and is right."""
        self.world.sync()
        self.loop.clock.steer(0.0)
        self.tell("paused")
        return self.clock()

    def run(self) -> dict[str, Any]:
        """Let simulated time go on."""
        if self.loop.clock.factor == 0.0:
            self.loop.clock.steer(self.speed)
            self.tell(f"running at speed {self.speed:g}")
        return self.clock()

    async def set_speed(self, factor: float) -> dict[str, Any]:
        """Run at another speed. Interlock systems keep the plant's time and start anew, tripped; endpoints are rewritten."""
        if not 0 < factor <= SPEED_MAX:
            raise Refusal(f"speed {factor:g}: expected a factor above 0, at most {SPEED_MAX:g}", WRONG)
        if factor == self.speed:
            return {**self.clock(), "restarted": []}
        if on := [room for room in self.options.served if self.plant.rooms[room].beam_present]:
            raise Refusal(f"beam is on in {', '.join(on)}: the speed is not changed in beam", NOT_NOW)
        self.world.sync()
        self.speed = factor
        if self.loop.clock.factor:
            self.loop.clock.steer(factor)
        write_endpoints(self.endpoints(), self.options.endpoints_file)
        self.tell(f"speed {factor:g}")
        restarted = [s.name for s in self.servers.values() if isinstance(s, ChildServer) and s.state == SERVING]
        for name in restarted:
            await self.server(name, "stop")
            await self.server(name, "start")
        return {**self.clock(), "restarted": restarted}

    async def server(self, name: str, action: str) -> dict[str, object]:
        """Do something to a server. Raises Refusal when there is none of that name, or it could not be done."""
        server = self.servers.get(name)
        if server is None:
            raise Refusal(f"there is no server {name!r}; there are {', '.join(self.servers)}", UNKNOWN)
        if action not in ACTIONS:
            raise Refusal(f"server {name}: no action {action!r}; there are {', '.join(ACTIONS)}", UNKNOWN)
        try:
            await wall_limit(server.act(action), START_S)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise Refusal(f"server {name}: {action} failed: {error}", NOT_NOW) from None
        finally:
            self._told[name] = server.state
        self.tell(f"server {name}: {action}, now {server.state}")
        return server.view()

    def person(self, room: str) -> Staff:
        """The operator of a room. Raises Refusal."""
        staff = self.staff.get(room)
        if staff is None:
            raise Refusal(f"nobody works in room {room!r}; served are {', '.join(self.staff)}", UNKNOWN)
        return staff

    def room_of(self, room: str | None) -> str:
        """A served room by name, or the only one. Raises Refusal."""
        served = self.options.served
        if room is None and len(served) == 1:
            return served[0]
        if room not in served:
            raise Refusal(f"room {room!r}: say which one, of {', '.join(served)}", UNKNOWN)
        return room

    def machine_limited_s(self, room: str, beam: int) -> float:
        """What an oracle would have needed for a beam of this session, s."""
        return oracle.machine_limited_s(self.plant.log, room, beam, self._session_ns.get(room, 0))

    def prescribe(self, prescription: Prescription) -> None:
        """A session begins: the invariants judge by this prescription from now on. Raises Refusal."""
        room = self.room_of(prescription.room)
        self.world.sync()
        try:
            self._monitor.begin(prescription)
        except ValueError as error:
            raise Refusal(f"prescription: {error}", NOT_NOW) from None
        self._session_ns[room] = self.plant.kernel.now_ns
        self.violations = [violation for violation in self.violations if violation.room != room]
        self.tell(f"session in {room}: plan {prescription.plan_hash}, {len(prescription.layers)} layers")

    def shadow(self, payload: Mapping[str, Any]) -> None:
        """Take what real devices read; the model follows them. Raises Refusal."""
        self.world.sync()
        try:
            self.following.take(payload)
        except (AttributeError, TypeError, ValueError) as error:
            raise Refusal(f"shadow: {error}", WRONG) from None

    # --- inside -----------------------------------------------------------------------------------------------------------

    async def _begin(self, server: SiteServer) -> None:
        try:
            await wall_limit(server.start(), START_S)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise SiteRefused([f"{server.name} ({server.kind}) does not start: {error}"]) from None

    def _violated(self, violation: Violation) -> None:
        self.violations.append(violation)
        self.tell(f"INVARIANT BROKEN: {violation}")

    async def _watch(self) -> None:
        """Tell when a server has ended that nobody asked to."""
        while True:
            await self.loop.sleep_wall(LOOK_S)
            for name, server in self.servers.items():
                state = server.state
                if state == STOPPED and self._told.get(name) not in (STOPPED, None):
                    words = f"; it said: {server.last_words}" if server.last_words else ""
                    self.tell(f"server {name} has ended by itself{words}; it stays down until it is started")
                self._told[name] = state
