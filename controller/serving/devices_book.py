"""Keeps every device of a room connected, and knows which are: what is lost and found is told once.

Once a device was connected its driver keeps it by itself. Not responsible for opening wires, nor for what a device says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from drivers.hal.capabilities import Connectable
from drivers.hal.errors import BeamlineError
from drivers.hal.events import Event
from drivers.hal.reading import Quality

RETRY_S = 2.0  # between tries to connect a device that never answered; assumed
BREATHING = "breathing", "displacement"  # device and signal, as `drivers.devices.motion_sensor`


class DevicesBook:
    """Of one room.

    Args:
        devices: to keep.
        say: told in words what does not answer, once each.
        connected: told each device that has answered for the first time.
    """

    def __init__(
        self,
        devices: Sequence[Connectable],
        say: Callable[[str], None],
        connected: Callable[[Connectable], None] = lambda _device: None,
    ) -> None:
        self._devices = devices
        self._say = say
        self._connected = connected
        self._state: dict[str, tuple[bool, str]] = {device.name: (False, "not connected yet") for device in devices}
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to connect."""
        self._keepers = [asyncio.create_task(self._keep(device), name=f"{device.name}-keeper") for device in self._devices]

    async def close(self) -> None:
        """Let go of every device."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for device in self._devices:
            try:
                await device.close()
            except BeamlineError as error:
                self._say(str(error))

    def take(self, event: Event) -> None:
        """Fold one event in."""
        if event.source in self._state:
            if event.kind == "device.up":
                self._state[event.source] = True, ""
            elif event.kind in ("device.down", "device.fault", "device.refused"):
                why = str(event.data.get("error") or event.data.get("reason") or event.kind)
                self._state[event.source] = event.kind == "device.refused" and self._state[event.source][0], why

    def state_of(self, name: str) -> tuple[bool, str]:
        """Whether a device is connected, and why not."""
        return self._state.get(name, (False, "unknown"))

    def missing(self) -> list[str]:
        """Devices that are not connected, with the reason."""
        return [f"{name} is not connected: {why}" for name, (up, why) in self._state.items() if not up]

    def breathing(self) -> tuple[float | None, str]:
        """Amplitude of the surrogate and its unit, where the room has a motion sensor that reads."""
        for device in self._devices:
            if device.name.endswith(f"-{BREATHING[0]}"):
                for reading in device.readings():
                    if reading.name.endswith(f".{BREATHING[1]}") and isinstance(reading.value, float):
                        return (reading.value if reading.quality is Quality.GOOD else None), reading.unit
        return None, ""

    async def _keep(self, device: Connectable) -> None:
        told = ""
        while True:
            try:
                await device.connect()
            except BeamlineError as error:
                self._state[device.name] = False, str(error)
                if str(error) != told:
                    told = str(error)
                    self._say(f"{device.name}: {error}")
                await asyncio.sleep(RETRY_S)
            else:
                self._state[device.name] = True, ""
                self._connected(device)
                return
