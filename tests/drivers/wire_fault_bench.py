"""Every driver of a room on the simulated plant, its wires led through a `Disturber` and a `Spy`: what the matrix drives."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from controller.assembly import SimulatedWorld
from drivers.devices.reference_detector import ReferenceDetectorClient
from drivers.hal.capabilities import Grant, RoomDevices, ScanMode, ScannerMap
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import load_facility
from drivers.wire.channels import Channels, PutValue
from drivers.wire.stream import Stream, StreamOpener
from drivers.wire.tap import NoTap, TapChain
from drivers.wire.tap.disturb import Disturber
from drivers.wire.tap.words import request_of
from simulators.clock import VirtualLoop

ROOM = "G1"
SET_POINT_BIT = 0x10  # of a CiA 402 controlword: take the target and go
CARBON = 6012
ENERGY_KEV_U = 200_000


class Spy(NoTap):
    """Notes what a driver does, next to the driver: motion writes by node, and puts by variable."""

    def __init__(self) -> None:
        self.targets: Counter[int] = Counter()  # writes of target registers, by node
        self.starts: Counter[int] = Counter()  # rises of the set-point bit, by node
        self.puts: Counter[str] = Counter()
        self.on_command: Callable[[str], None] | None = None  # told "target", "start" or a variable, before it leaves
        self._bit: dict[int, bool] = {}

    def stream(self, name: str, opener: StreamOpener) -> StreamOpener:
        spy = self

        async def opened() -> Stream:
            stream = await opener()
            write = stream.write

            async def noted(data: bytes) -> None:
                spy.note(data)
                await write(data)

            return _Noted(stream, noted)

        return opened

    def channels(self, name: str, channels: Channels) -> Channels:
        put = channels.put

        async def noted(pv: str, value: PutValue, timeout_s: float = 1.0) -> None:
            self.puts[pv] += 1
            self._tell(pv)
            await put(pv, value, timeout_s)

        channels.put = noted  # type: ignore[method-assign]
        return channels

    def note(self, data: bytes) -> None:
        request = request_of(data)
        if request is None or not request.write_values or request.unit not in (1, 2, 10, 20):
            return
        first, last = request.write_address, request.write_address + len(request.write_values) - 1
        if first <= 18 <= last or (request.unit == 20 and first <= 16 <= last):
            self.targets[request.unit] += 1
            self._tell("target")
        if request.unit != 20 and first <= 16 <= last:
            bit = bool(request.write_values[16 - first] & SET_POINT_BIT)
            rises = bit and not self._bit.get(request.unit, False)
            self._bit[request.unit] = bit
            self.starts[request.unit] += rises
            if rises:
                self._tell("start")

    def _tell(self, what: str) -> None:
        if self.on_command is not None:
            self.on_command(what)

    def clear(self) -> None:
        self.targets.clear()
        self.starts.clear()
        self.puts.clear()


class _Noted:
    """A stream whose writes are noted."""

    def __init__(self, stream: Stream, write: Callable[[bytes], Awaitable[None]]) -> None:
        self.write = write
        self.name, self.read, self.discard_input, self.close = stream.name, stream.read, stream.discard_input, stream.close


@dataclass
class Bench:
    """A room that runs.

    Attributes:
        tap: strikes faults.
        spy: what the drivers sent.
        events: what they told.
    """

    world: SimulatedWorld
    devices: RoomDevices
    reference: ReferenceDetectorClient
    tap: Disturber
    spy: Spy
    bus: EventBus
    events: list[Event] = field(default_factory=list)

    def secure(self) -> None:
        """Search the room and close it, so that the ring turns at full speed."""
        access = self.world.plant.rooms[ROOM].access
        for button in access.truth.search_buttons:
            access.press_search(button)
        access.close_door()

    def told(self, kind: str) -> list[Event]:
        """Events of a kind."""
        return [event for event in self.events if event.kind == kind]

    def at_rest(self) -> bool:
        """Whether ring and couch truly stand, braked."""
        self.world.world.sync()
        room = self.world.plant.rooms[ROOM]
        return room.gantry.brake_applied and room.couch.brake_applied

    def scanner_map(self) -> ScannerMap:
        """Some map; the unit holds what it is given."""
        return ScannerMap(ENERGY_KEV_U, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.01, 0.01, 1, 1)

    def grant(self) -> Grant:
        """A grant that the unit takes, or refuses by name."""
        status = self.devices.unit.status
        one = np.array([0], dtype=np.int32)
        counts = np.array([1000], dtype=np.int32)
        return Grant(
            unit_boot_id=status.boot_id,
            grant_id=status.last_grant_id + 1,
            plan_hash=7,
            fraction=1,
            beam_number=1,
            layer_index=0,
            painting=0,
            species_token=CARBON,
            energy_kev_u=ENERGY_KEV_U,
            scan_mode=ScanMode.RASTER,
            intensity_per_s=10_000_000,
            quantum_counts=200,
            spot_index=one,
            x_um=one,
            y_um=one,
            counts1_max=counts,
            counts2_max=counts,
        )


def on_bench(body: Callable[[Bench], Awaitable[None]], connect: tuple[str, ...], seed: int = 1) -> None:
    """Run a test in virtual time with the named devices connected; nothing may be left over or escape."""
    escaped: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: escaped.append(f"{context['message']}: {context.get('exception')!r}"))
        bus, tap, spy = EventBus(), Disturber(), Spy()
        facility = load_facility("asan")
        world = SimulatedWorld(facility, seed, bus, ROOM, tap=TapChain(tap, spy))
        await world.start()
        yard = world.plant.switchyard
        yard.route = yard._target = ROOM
        devices = world.devices()
        reference = ReferenceDetectorClient(f"{ROOM}-reference", "ASAN:G1:QA", world.wires.channels(f"{ROOM}-magnets"))
        bench = Bench(world, devices, reference, tap, spy, bus)
        bus.subscribe(bench.events.append)
        bench.secure()
        await asyncio.sleep(5.0)
        used = [getattr(devices, name) for name in connect]
        try:
            for device in used:
                await device.connect()
            await body(bench)
        finally:
            for device in used:
                await device.close()
            tap.stop()
            await world.stop()
        await asyncio.sleep(0)
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert escaped == []
