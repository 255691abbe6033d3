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
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drivers.hal.endpoints import DeviceEndpoint, EndpointMap
from drivers.hal.errors import BeamlineError
from simulators.backdoor import Backdoor
from simulators.children import Child
from simulators.clock import SteerableLoop, wall_limit
from simulators.endpoint_file import remove_if_ours, write_endpoints
from simulators.invariants import CATALOGUE, InvariantMonitor, Prescription, Violation
from simulators.people import ScriptedOperator
from simulators.plant import oracle
from simulators.refusal import NOT_NOW, UNKNOWN, WRONG, Refusal
from simulators.servers.process_variables import facility_pvs
from simulators.servers.room_nodes import motion_nodes, safety_nodes
from simulators.shadow import Shadow
from simulators.site_faults import FaultBook
from simulators.site_options import SPEED_MAX, SiteOptions, SiteRefused, broker_address, make_plant, objections
from simulators.site_servers import (
    ACTIONS,
    SERVING,
    STOPPED,
    ChildServer,
    LineServer,
    MessageServer,
    ProcessServer,
    SiteServer,
)
from simulators.site_state import plant_state
from simulators.staff import Staff, pace_of
from simulators.world import World

if TYPE_CHECKING:
    from drivers.wire.mqtt_messages import MqttMessages

LOOK_S = 0.2  # wall time between two looks at the child processes
START_S = 30.0  # wall time for one server to start by the backdoor
NOTES_KEPT = 1000
RELAY_NODE, BOOT_REGISTER = 2, 17
KEEPALIVE_S = 60  # of the plant's client at the broker: a paused plant is silent for so long before it counts as lost
IOC, BROKER = "ioc", "broker"


class Site:
    """One simulator process, in the running `SteerableLoop`.

    Args:
        options: what it shall be.
        tell: told in words what happens (a server dies, a fault strikes, an invariant breaks).

    Attributes:
        plant, world: the plant, and what binds it to the loop.
        servers: everything that answers, by name.
        staff: the operator of each served room.
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
        self.world = World(self.plant.kernel)
        self.servers: dict[str, SiteServer] = {}
        self.token = secrets.token_urlsafe(24)
        self.following = Shadow(self.plant)
        self.violations: list[Violation] = []
        self.staff: dict[str, Staff] = {}
        self.notes: deque[dict[str, Any]] = deque(maxlen=NOTES_KEPT)
        self._tell_people = tell
        self.fault_book = FaultBook(self.plant, self.world.sync, self.tell)
        self._monitor = InvariantMonitor(self.plant, self._violated, CATALOGUE)
        self._private = Path()  # of this process alone: sockets need short names
        self._stable = Path()
        self._told: dict[str, str] = {}  # state of each server as it was meant to be
        self._watcher: asyncio.Task[None] | None = None
        self._client: MqttMessages | None = None
        self._door: Backdoor | None = None
        self._session_ns: dict[str, int] = {}  # when the session of a room began

    # --- life -------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; returns when all of it answers and the endpoint file is written.

        Raises:
            SiteRefused: something could not be started; nothing is left behind.
        """
        loop = self.loop
        loop.clock.steer(1.0)  # processes take wall time, whatever the speed
        try:
            self._make_directories()
            self.options.endpoints_file.unlink(missing_ok=True)  # of a simulator that was killed: nobody may read it now
            self._make_servers()
            for name in (BROKER, IOC):
                if name in self.servers:
                    await self._begin(self.servers[name])
            await self._connect_messages()
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
                await self._disconnect_messages()
            with contextlib.suppress(OSError, TimeoutError):
                await server.stop()
        await self._disconnect_messages()
        self.world.stop()
        gc.unfreeze()
        if self._private != Path():
            shutil.rmtree(self._private, ignore_errors=True)

    def endpoints(self) -> EndpointMap:
        """Where everything answers now."""
        devices = {}
        for name, device in self.options.facility.devices.items():
            if device.room in ("", *self.options.served):
                where = self._endpoint_of(device.wire, device.wire_name)
                devices[name] = DeviceEndpoint(endpoint=where, simulated=True)
        return EndpointMap(
            facility=self.options.facility.name,
            speed=self.speed,
            backdoor=self._door.url if self._door is not None else "",
            token=self.token,
            interlock_buttons={room: str(self._buttons(room)) for room in self.options.served},
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

    def _make_directories(self) -> None:
        self._private = Path(tempfile.mkdtemp(prefix="ig-"))
        self._stable = self.options.directory or self._private
        try:
            self._stable.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SiteRefused([f"{self._stable}: {error.strerror or error}"]) from None

    def _make_servers(self) -> None:
        from simulators.servers.broker import BrokerServer
        from simulators.servers.ioc_link import IocServer
        from simulators.servers.modbus_ports import PtyPort, TcpPort

        options, sync = self.options, self.world.sync

        def factor() -> float:
            return self.loop.clock.factor

        if not options.broker:
            self._add(ProcessServer(BROKER, "MQTT broker", BrokerServer(), factor))
        self._add(ProcessServer(IOC, "EPICS IOC", IocServer(facility_pvs(self.plant), sync), factor))
        for room in options.served:
            plant = self.plant.rooms[room]
            baud = next((d.baud for d in options.facility.devices_of(room).values() if d.room == room and d.baud), None)
            motion: Any
            if options.serial == "pty":
                motion = PtyPort(
                    motion_nodes(plant), sync, baud=baud or 115200, link=self._stable.absolute() / f"{room}-motion"
                )
            else:
                framing: Literal["tcp", "rtu"] = "rtu" if baud else "tcp"
                motion = TcpPort(motion_nodes(plant), sync, framing=framing)
            self._add(LineServer(f"{room}-motion", motion))
            nodes = safety_nodes(plant)
            safety = TcpPort(nodes, sync)
            self._add(LineServer(f"{room}-safety", safety))
            script = ScriptedOperator(plant, sync, pace=pace_of(options.staff))
            self.staff[room] = Staff(script, self._presser(room))
            if options.interlock:
                self._add(self._interlocks(room, safety, lambda nodes=nodes: nodes[RELAY_NODE].word(BOOT_REGISTER)))  # type: ignore[misc]

    def _add(self, server: SiteServer) -> None:
        self.servers[server.name] = server

    def _interlocks(self, room: str, safety: Any, boot_id: Callable[[], int]) -> ChildServer:
        """The interlock system of a room: the same program as at a real facility, on the same wire."""
        name = f"{room}-interlocks"
        journal = self._stable / f"{name}.jsonl"
        journal.unlink(missing_ok=True)  # a fresh plant has no past
        before = [0]

        def command() -> Sequence[str]:
            before[0] = boot_id()
            return [
                *(sys.executable, "-P", "-m", "interlocks.daemon", "--port", str(safety.port)),
                *("--buttons", str(self._buttons(room)), "--journal", str(journal), "--speed", repr(self.speed)),
            ]

        async def ready() -> None:
            while boot_id() == before[0] and safety.running and not safety.silent:  # a dead line shows nobody's life
                await self.loop.sleep_wall(0.02)

        child = Child(name, command, lambda _name, code, words: self._ended(name, code, words))
        return ChildServer(name, "interlock system", child, ready)

    def _buttons(self, room: str) -> Path:
        return self._private / f"{room}.buttons"

    def _presser(self, room: str) -> Callable[[str, bool], None]:
        """Presses the reset buttons of the interlock system of a room, whoever started it."""

        def press(role: str, down: bool) -> None:
            message = f"{'press' if down else 'release'} {role}".encode()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as button:
                button.setblocking(False)
                with contextlib.suppress(OSError):  # nobody is there: the button moves all the same
                    button.sendto(message, str(self._buttons(room)))

        return press

    async def _connect_messages(self) -> None:
        from drivers.wire.mqtt_messages import MqttMessages
        from simulators.servers.room_messages import RoomMessages

        host, port = self._broker()
        identity = f"{self.options.facility.name}-plant-{secrets.token_hex(4)}"
        client = MqttMessages(host, port, identity, keepalive_s=KEEPALIVE_S)
        try:
            await client.start()
        except BeamlineError as error:
            raise SiteRefused([f"broker {host}:{port}: {error}"]) from None
        self._client = client
        for room in self.options.served:
            messages = RoomMessages(
                self.plant.rooms[room],
                self.plant.truth.prefix,
                client,
                self.world.sync,
                breathing_s=0.04 if self.options.breathing else None,
            )
            self._add(MessageServer(f"{room}-messages", messages))

    async def _disconnect_messages(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            for server in self.servers.values():
                if isinstance(server, MessageServer):
                    await server.stop()
            await client.close()

    def _broker(self) -> tuple[str, int]:
        text = self.options.broker or self.servers[BROKER].endpoint.removeprefix("mqtt://")
        return broker_address(text)

    def _endpoint_of(self, wire: str, name: str) -> str:
        if wire == "channels":
            return self.servers[IOC].endpoint
        if wire == "messages":
            host, port = self._broker()
            return f"mqtt://{host}:{port}"
        return self.servers[name].endpoint

    async def _begin(self, server: SiteServer) -> None:
        try:
            await wall_limit(server.start(), START_S)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise SiteRefused([f"{server.name} ({server.kind}) does not start: {error}"]) from None

    def _violated(self, violation: Violation) -> None:
        self.violations.append(violation)
        self.tell(f"INVARIANT BROKEN: {violation}")

    def _ended(self, name: str, code: int, words: str) -> None:
        self.servers[name].last_words = words or f"exit code {code}"

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
