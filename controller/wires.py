"""The wires of one room: every device's endpoint becomes a transport, once, through the tap; devices that share one share it.

Memory endpoints lead to the twins handed in, every other one to the real transport of its scheme. Nothing falls back: an
endpoint that cannot be opened is an error when its device connects. Not responsible for drivers (`room_devices`), nor for
what an endpoint map may say (`drivers.hal.endpoints`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drivers.hal.endpoints import Endpoint, parse_endpoint
from drivers.hal.errors import ConfigError
from drivers.hal.facility import Device, Facility
from drivers.wire.channels import Channels
from drivers.wire.messages import Messages, Notice
from drivers.wire.modbus import ModbusClient, ModbusLine
from drivers.wire.routed import RoutedClient
from drivers.wire.stream import StreamOpener
from drivers.wire.tap import NoTap, Tap

if TYPE_CHECKING:
    from drivers.wire.mqtt_messages import MqttMessages

CHANNELS, MESSAGES = "epics", "mqtt"  # names of these wires in a recording
NO_SUCH_WIRE = 1106


@dataclass(frozen=True, slots=True)
class MemoryEnds:
    """The clients' ends of the memory twins, by name of the wire (streams), and one of each other transport."""

    streams: Mapping[str, StreamOpener] = field(default_factory=dict)
    channels: Channels | None = None
    messages: Messages | None = None


class RoomWires:
    """Transports for the drivers of a room.

    Args:
        facility: with its devices where they answer.
        room: whose devices, and the shared ones.
        memory: the twins, where endpoints are in memory.
        tap: what every wire goes through.
        client_id: name of this program at a broker.
        will: what the broker says of this program when it is lost.

    Attributes:
        broker: the client of a real broker, untapped, for what is told to the world outside; None without one.
    """

    def __init__(
        self,
        facility: Facility,
        room: str,
        memory: MemoryEnds | None = None,
        tap: Tap | None = None,
        client_id: str = "",
        will: Notice | None = None,
    ) -> None:
        self.broker: MqttMessages | None = None
        self._will = will
        self._room = room
        self._devices = facility.devices_of(room)
        self._memory = memory or MemoryEnds()
        self._tap: Tap = tap or NoTap()
        self._client_id = client_id or f"iongantry-{facility.name}-{room}-{os.getpid()}"  # a broker lets go of the older of two
        self._lines: dict[str, ModbusClient] = {}
        self._channels: Channels | None = None
        self._messages: Messages | None = None
        self._opened: list[Channels | Messages] = []  # what this object opened and has to close

    async def open(self) -> None:
        """Start the clients of process variables and broker; serial and TCP lines open when their devices connect.

        Raises:
            ConfigError: an endpoint that cannot be.
            CommunicationError: a client that cannot start.
        """
        channels = self._endpoints("channels")
        if any(endpoint.scheme == "ca" for endpoint in channels):
            from drivers.wire.epics_channels import EpicsChannels

            found = EpicsChannels([endpoint.address for endpoint in channels if endpoint.scheme == "ca"])
            self._opened.append(found)
            self._channels = self._tap.channels(CHANNELS, found)
        elif self._memory.channels is not None:
            self._channels = self._tap.channels(CHANNELS, self._memory.channels)
        brokers = self._endpoints("messages")
        if any(endpoint.scheme == "mqtt" for endpoint in brokers):
            from drivers.wire.mqtt_messages import MqttMessages

            broker, *others = {endpoint.address: endpoint for endpoint in brokers}.values()
            if others:
                raise ConfigError(
                    f"room {self._room}: its devices name {len(others) + 1} brokers; one is expected",
                    code=NO_SUCH_WIRE,
                    hint="let one broker bridge to the other",
                )
            client = MqttMessages(broker.host, broker.port, self._client_id, will=self._will)
            await client.start(required=False)  # a broker that is away holds nothing but images
            self._opened.append(client)
            self.broker = client
            self._messages = self._tap.messages(MESSAGES, client)
        elif self._memory.messages is not None:
            self._messages = self._tap.messages(MESSAGES, self._memory.messages)

    async def close(self) -> None:
        """Let go of everything."""
        for line in self._lines.values():
            await line.close()
        for client in reversed(self._opened):
            await client.close()
        self._opened.clear()

    def line(self, device: str) -> ModbusLine:
        """The Modbus line of a device; of several lines where one of its nodes answers elsewhere."""
        config = self._devices[device]
        own = self._client(config.endpoint, config.wire_name, config)
        if not config.part_endpoints:
            return own
        names = dict(zip(config.unit_ids, config.parts, strict=True))
        elsewhere = {
            unit: self._client(endpoint, names[unit], config) for unit, endpoint in sorted(config.part_endpoints.items())
        }
        return RoutedClient(f"{device}-lines", {unit: elsewhere.get(unit, own) for unit in config.unit_ids})

    def channels(self, device: str) -> Channels:
        """The process variables of a device."""
        if self._channels is None:
            raise self._missing(device)
        return self._channels

    def messages(self, device: str) -> Messages:
        """The broker's client of a device."""
        if self._messages is None:
            raise self._missing(device)
        return self._messages

    def _client(self, endpoint: str, name: str, config: Device) -> ModbusClient:
        if endpoint not in self._lines:
            parsed = parse_endpoint(endpoint, name)
            framing = config.framing
            if parsed.scheme == "serial":
                framing = "rtu"
            elif parsed.scheme == "tcp":
                framing = "rtu" if parsed.options.get("framing") == "rtu" else "tcp"
            opener = self._tap.stream(name, self._opener(parsed, config))
            self._lines[endpoint] = ModbusClient(name, opener, framing=framing)
        return self._lines[endpoint]

    def _opener(self, endpoint: Endpoint, config: Device) -> StreamOpener:
        if endpoint.scheme == "memory":
            if endpoint.path not in self._memory.streams:
                raise ConfigError(
                    f"there is no memory wire {endpoint.path}",
                    code=NO_SUCH_WIRE,
                    hint="memory wires exist in the process that simulates; give --endpoints for any other",
                )
            return self._memory.streams[endpoint.path]
        if endpoint.scheme == "serial":
            from drivers.wire.serial_stream import serial_opener

            return serial_opener(
                endpoint.path,
                baudrate=int(endpoint.options.get("baudrate", config.baud or 115200)),
                parity=endpoint.options.get("parity", "E"),
                stopbits=int(endpoint.options.get("stopbits", "1")),
            )
        from drivers.wire.tcp_stream import tcp_opener

        return tcp_opener(endpoint.host, endpoint.port)

    def _endpoints(self, wire: str) -> list[Endpoint]:
        """Distinct endpoints of the room's devices on one kind of wire."""
        texts = dict.fromkeys(d.endpoint for d in self._devices.values() if d.wire == wire)
        found = [parse_endpoint(text) for text in texts]
        if len({endpoint.scheme for endpoint in found}) > 1:
            raise ConfigError(
                f"room {self._room}: {', '.join(texts)} mix a simulated world in this process with real wires",
                code=NO_SUCH_WIRE,
                hint="give every device of this kind an endpoint",
            )
        return found

    def _missing(self, device: str) -> ConfigError:
        return ConfigError(
            f"{self._devices[device].endpoint} leads nowhere",
            code=NO_SUCH_WIRE,
            device=device,
            hint="open the wires first; memory wires exist in the process that simulates",
        )
