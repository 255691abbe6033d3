"""Makes the servers of a simulator process: which there are, what each serves, where it is found, who works in the rooms.

Not responsible for when they start and stop (`site`), nor for what they answer (`servers`).
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from drivers.hal.errors import BeamlineError
from simulators.children import Child
from simulators.clock import SteerableLoop
from simulators.people import ScriptedOperator
from simulators.plant.facility import FacilityPlant
from simulators.servers.process_variables import facility_pvs
from simulators.servers.room_nodes import motion_nodes, safety_nodes
from simulators.site_options import SiteOptions, SiteRefused, broker_address
from simulators.site_servers import ChildServer, LineServer, MessageServer, ProcessServer, SiteServer
from simulators.staff import Staff, pace_of
from simulators.world import World

if TYPE_CHECKING:
    from drivers.wire.mqtt_messages import MqttMessages
    from simulators.servers.modbus_ports import ModbusPort, TcpPort

RELAY_NODE, BOOT_REGISTER = 2, 17
KEEPALIVE_S = 60  # of the plant's client at the broker: a paused plant is silent for so long before it counts as lost
BREATHING_S = 0.04
IOC, BROKER = "ioc", "broker"


class SiteWires:
    """All servers of one site.

    Args:
        options: what the site shall be.
        plant, world, loop: what the servers answer for, and where they live.
        speed: simulated seconds per second that processes of their own shall keep.

    Attributes:
        servers: by name.
        staff: the operator of each served room.
    """

    def __init__(
        self, options: SiteOptions, plant: FacilityPlant, world: World, loop: SteerableLoop, speed: Callable[[], float]
    ) -> None:
        self.servers: dict[str, SiteServer] = {}
        self.staff: dict[str, Staff] = {}
        self._options, self._plant, self._world, self._loop, self._speed = options, plant, world, loop, speed
        self._private = Path()  # of this process alone: sockets need short names
        self._stable = Path()
        self._client: MqttMessages | None = None

    def make(self) -> None:
        """Make them; none is started. Raises SiteRefused when there is no place for their files."""
        from simulators.servers.broker import BrokerServer
        from simulators.servers.ioc_link import IocServer

        options = self._options
        try:
            self._private = Path(tempfile.mkdtemp(prefix="ig-"))
            self._stable = (options.directory or self._private).absolute()
            self._stable.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SiteRefused([f"{error.filename}: {error.strerror or error}"]) from None

        def factor() -> float:
            return self._loop.clock.factor

        if not options.broker:
            self._add(ProcessServer(BROKER, "MQTT broker", BrokerServer(), factor))
        self._add(ProcessServer(IOC, "EPICS IOC", IocServer(facility_pvs(self._plant), self._world.sync), factor))
        for room in options.served:
            self._make_room(room)

    def forget(self) -> None:
        """Remove what nobody needs once all have stopped."""
        if self._private != Path():
            shutil.rmtree(self._private, ignore_errors=True)

    def endpoint(self, wire: str, name: str) -> str:
        """Address of a device on a wire of this kind and name."""
        if wire == "channels":
            return self.servers[IOC].endpoint
        if wire == "messages":
            host, port = self._broker()
            return f"mqtt://{host}:{port}"
        return self.servers[name].endpoint

    def buttons(self, room: str) -> Path:
        """Socket of the reset buttons of a room's interlock system."""
        return self._private / f"{room}.buttons"

    async def connect_messages(self) -> None:
        """Become a client of the broker, for what the rooms say there. Raises SiteRefused."""
        from drivers.wire.mqtt_messages import MqttMessages
        from simulators.servers.room_messages import RoomMessages

        options, (host, port) = self._options, self._broker()
        client = MqttMessages(host, port, f"{options.facility.name}-plant-{secrets.token_hex(4)}", keepalive_s=KEEPALIVE_S)
        try:
            await client.start()
        except BeamlineError as error:
            raise SiteRefused([str(error)]) from None
        self._client = client
        breathing_s = BREATHING_S if options.breathing else None
        for room in options.served:
            plant = self._plant.rooms[room]
            messages = RoomMessages(plant, self._plant.truth.prefix, client, self._world.sync, breathing_s=breathing_s)
            self._add(MessageServer(f"{room}-messages", messages))

    async def disconnect_messages(self) -> None:
        """Leave the broker in good order."""
        client, self._client = self._client, None
        if client is not None:
            for server in self.servers.values():
                if isinstance(server, MessageServer):
                    await server.stop()
            await client.close()

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _make_room(self, room: str) -> None:
        from simulators.servers.modbus_ports import PtyPort, TcpPort

        options, sync, plant = self._options, self._world.sync, self._plant.rooms[room]
        baud = next((d.baud for d in options.facility.devices_of(room).values() if d.room == room and d.baud), None)
        motion: ModbusPort
        if options.serial == "pty":
            motion = PtyPort(motion_nodes(plant), sync, baud=baud or 115200, link=self._stable / f"{room}-motion")
        else:
            framing: Literal["tcp", "rtu"] = "rtu" if baud else "tcp"
            motion = TcpPort(motion_nodes(plant), sync, framing=framing)
        self._add(LineServer(f"{room}-motion", motion))
        nodes = safety_nodes(plant)
        safety = TcpPort(nodes, sync)
        self._add(LineServer(f"{room}-safety", safety))
        self.staff[room] = Staff(ScriptedOperator(plant, sync, pace=pace_of(options.staff)), self._presser(room))
        if options.interlock:
            self._add(self._interlocks(room, safety, lambda: nodes[RELAY_NODE].word(BOOT_REGISTER)))

    def _add(self, server: SiteServer) -> None:
        self.servers[server.name] = server

    def _interlocks(self, room: str, safety: TcpPort, boot_id: Callable[[], int]) -> ChildServer:
        """The interlock system of a room: the same program as at a real facility, on the same wire."""
        name = f"{room}-interlocks"
        journal = self._stable / f"{name}.jsonl"
        journal.unlink(missing_ok=True)  # a fresh plant has no past
        overlay = Path(str(files("interlocks"))) / "limits.d" / f"{self._options.facility.name}.toml"
        figures = ("--overlay", str(overlay)) if overlay.is_file() else ()  # with them it can hold grants against a plan
        before = 0

        def command() -> Sequence[str]:
            nonlocal before
            before = boot_id()
            return [
                *(sys.executable, "-P", "-m", "interlocks.daemon", "--unsigned", "--port", str(safety.port)),
                *("--buttons", str(self.buttons(room)), "--journal", str(journal), "--speed", repr(self._speed())),
                *figures,
            ]

        async def ready() -> None:
            while boot_id() == before and safety.running and not safety.silent:  # a dead line shows nobody's life
                await self._loop.sleep_wall(0.02)

        def died(_name: str, code: int, words: str) -> None:
            self.servers[name].last_words = words or f"exit code {code}"

        return ChildServer(name, "interlock system", Child(name, command, died), ready)

    def _presser(self, room: str) -> Callable[[str, bool], None]:
        """Presses the reset buttons of the interlock system of a room, whoever started it."""

        def press(role: str, down: bool) -> None:
            message = f"{'press' if down else 'release'} {role}".encode()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as button:
                button.setblocking(False)
                with contextlib.suppress(OSError):  # nobody is there: the button moves all the same
                    button.sendto(message, str(self.buttons(room)))

        return press

    def _broker(self) -> tuple[str, int]:
        return broker_address(self._options.broker or self.servers[BROKER].endpoint.removeprefix("mqtt://"))
