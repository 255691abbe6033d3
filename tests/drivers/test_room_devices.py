"""Couch, nozzle, safety I/O and interlock view on small nodes: read back, refuse, and never pulse after a drop."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest
from fake_nodes import FakeCouch, FakeNode, FakeNozzle, FakeRelay, FakeSafetyIO, serve, words32
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.devices.couch import SixAxisCouch
from drivers.devices.interlock_view import InterlockStatusLine
from drivers.devices.nozzle import Nozzle
from drivers.devices.room_access import RoomAccessIO
from drivers.hal.capabilities import AxisGroup, InterlockView, RoomAccess, Snout
from drivers.hal.errors import BeamlineError, CommandRejected, CommunicationError, DataError, DeviceError
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality
from drivers.wire.memory import MemoryLine
from drivers.wire.modbus import ModbusClient
from simulators import clock

ASAN = load_facility("asan")
RESEARCH = load_facility("research")


@dataclass
class Room:
    """Nodes, lines and drivers of one room."""

    couch_node: FakeCouch
    nozzle_node: FakeNozzle
    io: FakeSafetyIO
    relay: FakeRelay
    motion: MemoryLine
    safety: MemoryLine
    couch: SixAxisCouch
    nozzle: Nozzle
    access: RoomAccessIO
    interlock: InterlockStatusLine
    events: list[Event]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def in_a_room(body: Callable[[Room], Awaitable[None]], *, research: bool = False, seed: int = 4) -> None:
    """Run a test in a room whose devices are connected."""
    facility, name = (RESEARCH, "R1") if research else (ASAN, "G1")

    async def main() -> None:
        couch_node, nozzle_node, io, relay = FakeCouch(), FakeNozzle(), FakeSafetyIO(), FakeRelay()
        motion, safety = MemoryLine(f"{name}-motion", baud=115200), MemoryLine(f"{name}-safety")
        motion_nodes: dict[int, FakeNode] = {10: couch_node, 20: nozzle_node}
        safety_nodes: dict[int, FakeNode] = {1: io, 2: relay}
        servers = [
            asyncio.ensure_future(serve(motion, motion_nodes)),
            asyncio.ensure_future(serve(safety, safety_nodes, "tcp")),
        ]
        bus, events = EventBus(), list[Event]()
        bus.subscribe(events.append)
        rtu = ModbusClient("motion", motion.connect)
        tcp = ModbusClient("safety", safety.connect, framing="tcp")
        devices, registers, room = facility.devices, facility.registers, facility.room(name)
        couch = SixAxisCouch(f"{name}-couch", devices[f"{name}-couch"], room, rtu, registers, bus)
        nozzle = Nozzle(f"{name}-nozzle", devices[f"{name}-nozzle"], room, rtu, registers, bus)
        access = RoomAccessIO(f"{name}-safety", devices[f"{name}-safety"], tcp, registers, bus)
        interlock = InterlockStatusLine(f"{name}-interlock", devices[f"{name}-interlock"], tcp, registers, bus)
        all_devices = (couch, nozzle, access, interlock)
        for device in all_devices:
            await device.connect()
        await body(Room(couch_node, nozzle_node, io, relay, motion, safety, couch, nozzle, access, interlock, events))
        for device in all_devices:
            await device.close()
        for server in servers:
            server.cancel()
        await asyncio.wait(servers)

    clock.run(main(), schedule_seed=seed)


def test_the_drivers_are_the_capabilities() -> None:
    async def body(room: Room) -> None:
        assert isinstance(room.couch, AxisGroup)
        assert isinstance(room.nozzle, Snout)
        assert isinstance(room.access, RoomAccess)
        assert isinstance(room.interlock, InterlockView)

    in_a_room(body)


# --- couch --------------------------------------------------------------------------------------------------------------


def test_named_axes_move_together_and_the_others_stay() -> None:
    async def body(room: Room) -> None:
        room.couch_node.actuals[1] = 250_000.0
        axes = await room.couch.move_to({"lateral_mm": -12.5, "pitch_deg": 1.25})
        assert room.couch_node.actuals == [-12_500.0, 250_000.0, 0.0, 0.0, 1250.0, 0.0]
        assert {axis: reading.value for axis, reading in axes.items()} == {
            "lateral_mm": -12.5,
            "longitudinal_mm": 250.0,
            "vertical_mm": 0.0,
            "angle_deg": 0.0,
            "pitch_deg": 1.25,
            "roll_deg": 0.0,
        }
        assert (axes["lateral_mm"].unit, axes["pitch_deg"].unit) == ("mm", "deg")
        assert room.couch_node.state == "disabled"

    in_a_room(body)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"lateral_mm": 251.0}, r"lateral_mm 251 mm is outside -250 to 250 mm"),
        ({"vertical_mm": 10.0, "roll_deg": -3.1}, r"roll_deg -3\.1 deg is outside -3 to 3 deg"),
        ({"angle_deg": math.nan}, "nan"),
        ({"yaw_deg": 1.0}, "no axis 'yaw_deg'"),
    ],
)
def test_the_couch_refuses_what_is_out_of_its_limits(targets: dict[str, float], words: str) -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CommandRejected, match=words):
            await room.couch.move_to(targets)
        assert room.couch_node.writes == []

    in_a_room(body)


def stuck(couch: FakeCouch) -> None:
    couch.stuck_axis = 2


def sagging(couch: FakeCouch) -> None:
    couch.sags_um = 900


def without_brake(couch: FakeCouch) -> None:
    couch.brake_works = False


@pytest.mark.parametrize(
    ("plant", "error", "words"),
    [
        (stuck, DeviceError, r"stands and has not arrived: vertical_mm 0\.000, target 100\.000"),
        (sagging, DeviceError, "left its place while the brake was set"),
        (without_brake, CommandRejected, "not at standstill with brakes applied"),
    ],
)
def test_a_couch_that_does_not_do_as_told_is_noticed(
    plant: Callable[[FakeCouch], None], error: type[BeamlineError], words: str
) -> None:
    async def body(room: Room) -> None:
        plant(room.couch_node)
        with pytest.raises(error, match=words):
            await room.couch.move_to({"vertical_mm": 100.0, "lateral_mm": 5.0})
        assert not room.couch_node.moving

    in_a_room(body)


def test_a_frozen_couch_is_noticed_while_it_moves() -> None:
    async def body(room: Room) -> None:
        move = asyncio.ensure_future(room.couch.move_to({"vertical_mm": 100.0}))
        await asyncio.sleep(1.5)
        room.couch_node.frozen = True
        with pytest.raises(DeviceError, match="stands still"):
            await move
        assert not room.couch_node.moving

    in_a_room(body)


def test_targets_that_arrive_changed_never_start_a_motion() -> None:
    async def body(room: Room) -> None:
        write = room.couch_node.write

        def changed(register: int, values: Sequence[int]) -> None:
            write(register, [*values[:4], values[4] ^ 1, *values[5:]] if len(values) > 12 else values)

        room.couch_node.write = changed  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="holds other targets"):
            await room.couch.move_to({"lateral_mm": 5.0})
        assert not room.couch_node.moving

    in_a_room(body)


def test_stop_and_cancel_leave_the_couch_standing() -> None:
    async def body(room: Room) -> None:
        move = asyncio.ensure_future(room.couch.move_to({"vertical_mm": 100.0}))
        await asyncio.sleep(1.5)
        with pytest.raises(CommandRejected, match="under way"):
            await room.couch.move_to({"vertical_mm": 0.0})
        await room.couch.stop()
        with pytest.raises(CommandRejected, match="stopped by command"):
            await move
        assert (room.couch_node.moving, room.couch_node.state) == (False, "disabled")
        assert room.couch_node.actuals[2] < 60_000
        move = asyncio.ensure_future(room.couch.move_to({"vertical_mm": 100.0}))
        await asyncio.sleep(1.5)
        move.cancel()
        await asyncio.wait([move])
        assert not room.couch_node.moving

    in_a_room(body)


def test_a_couch_fault_is_named_and_can_be_acknowledged() -> None:
    async def body(room: Room) -> None:
        room.couch_node.state, room.couch_node.registers[33] = "fault", 0x8700
        with pytest.raises(DeviceError, match="polling was lost"):
            await room.couch.move_to({"vertical_mm": 10.0})
        await room.couch.acknowledge()
        assert (await room.couch.move_to({"vertical_mm": 10.0}))["vertical_mm"].value == 10.0

    in_a_room(body)


# --- nozzle -------------------------------------------------------------------------------------------------------------


def test_snout_and_exactly_the_wanted_range_shifters_are_set() -> None:
    async def body(room: Room) -> None:
        await room.nozzle.set_up(120.0, ["RS60"])
        assert (room.nozzle_node.snout_um, room.nozzle_node.mask) == (120_000, 2)
        snout, inserted = await room.nozzle.read_set_up()
        assert (snout.value, inserted) == (120.0, ("RS60",))
        await room.nozzle.set_up(None, ["RS30"])
        assert (room.nozzle_node.snout_um, room.nozzle_node.mask) == (120_000, 1)
        await room.nozzle.set_up(None, [])
        assert room.nozzle_node.mask == 0
        writes = len(room.nozzle_node.writes)
        await room.nozzle.set_up(120.0, [])
        assert len(room.nozzle_node.writes) == writes  # nothing to do, nothing sent

    in_a_room(body)


def test_a_switch_that_lies_about_a_range_shifter_is_not_believed() -> None:
    async def body(room: Room) -> None:
        room.nozzle_node.barriers = 0
        with pytest.raises(DeviceError, match=r"switches show range shifters 0x2 in the beam, light barriers 0x0") as raised:
            await room.nozzle.set_up(120.0, ["RS60"])
        assert raised.value.code == 3308
        with pytest.raises(DeviceError):
            await room.nozzle.read_set_up()

    in_a_room(body)


def test_the_nozzle_refuses_what_it_does_not_have() -> None:
    async def body(room: Room) -> None:
        with pytest.raises(CommandRejected, match=r"snout 40 mm is outside 50 to 500 mm"):
            await room.nozzle.set_up(40.0, [])
        with pytest.raises(CommandRejected, match=r"no range shifter 'RS=2cm'.*installed: RS30, RS60"):
            await room.nozzle.set_up(None, ["RS=2cm"])
        assert room.nozzle_node.writes == []

    in_a_room(body)


def test_a_research_room_declares_what_was_mounted_by_hand() -> None:
    async def body(room: Room) -> None:
        await room.nozzle.set_up(None, ["RS=2cm", "RS30"])
        _, inserted = await room.nozzle.read_set_up()
        assert inserted == ("RS30", "RS=2cm")
        (declared,) = [event for event in room.events if event.kind == "accessory.declared"]
        assert declared.data["range_shifters"] == ["RS=2cm"]

    in_a_room(body, research=True)


def test_a_nozzle_that_does_not_arrive_is_noticed() -> None:
    async def body(room: Room) -> None:
        room.nozzle_node.stuck = True
        with pytest.raises(DeviceError, match=r"not set up within 60 s: snout 500\.00 mm, wanted 100\.0"):
            await room.nozzle.set_up(100.0, [])
        room.nozzle_node.fault = True
        with pytest.raises(DeviceError, match=r"fault: status 0x0006; it reads snout 500\.00 mm, wanted 200\.0 mm"):
            await room.nozzle.set_up(200.0, [])

    in_a_room(body)


# --- safety I/O ---------------------------------------------------------------------------------------------------------


def test_a_room_status_says_what_the_registers_say() -> None:
    async def body(room: Room) -> None:
        room.io.room_bits, room.io.contributions = 1 | 2 | 4 | 8 | 16 | 32 | 64, 1 | 4
        room.io.registers[37] = 1
        status = await room.access.refresh()
        assert (status.door_closed, status.search_complete, status.estop_healthy, status.lamp_lit) == (True,) * 4
        assert (status.stopper_closed, status.beam_present, status.service_mode, status.secured) == (True,) * 4
        assert (status.permit_a, status.permit_b, status.permit_r, status.beam_enabled) == (True, False, True, False)
        assert (status.search_state, status.chain_a_bits) == (2, 127)
        readings = {reading.name: reading.value for reading in room.access.readings()}
        assert readings["G1-safety.ring_angle"] == -90.0
        assert readings["G1-safety.counts1"] == 2**32 + 5

    in_a_room(body)


@pytest.mark.parametrize("bits", [0b1110, 0b1101, 0b1011, 0b0111])
def test_one_open_contact_is_enough_for_an_unsecured_room(bits: int) -> None:
    async def body(room: Room) -> None:
        room.io.room_bits = bits
        assert not (await room.access.refresh()).secured

    in_a_room(body)


def test_before_the_first_answer_nothing_is_safe() -> None:
    async def main() -> None:
        client = ModbusClient("nowhere", MemoryLine("nowhere").connect)
        access = RoomAccessIO("G1-safety", ASAN.devices["G1-safety"], client, ASAN.registers, EventBus())
        status = access.status
        assert not any((status.secured, status.permit_a, status.permit_b, status.permit_r, status.beam_enabled))
        with pytest.raises(CommunicationError):
            access.request_beam(True)

    clock.run(main())


def test_the_request_pulses_every_50_ms_with_values_that_change() -> None:
    async def body(room: Room) -> None:
        room.access.request_beam(True)
        await asyncio.sleep(3.0)
        room.access.request_beam(False)
        times = [t for t, _ in room.io.pulses]
        values = [v for _, v in room.io.pulses]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert 58 <= len(times) <= 62
        assert max(gaps) < 0.06
        assert all(a != b for a, b in itertools.pairwise(values))

    in_a_room(body)


def test_while_armed_a_heartbeat_leaves_every_50_ms_and_touches_no_pulse() -> None:
    async def body(room: Room) -> None:
        await asyncio.sleep(2.0)
        assert room.io.beats == [], "nobody has to live while nothing is armed"
        await room.access.preset(7, -90.0, 6012, True)
        await asyncio.sleep(3.0)
        beats = list(room.io.beats)
        assert room.io.pulses == []
        room.access.request_beam(True)
        await asyncio.sleep(3.0)
        room.access.request_beam(False)
        await room.access.preset(0, 0.0, 0, False)
        both, pulses = list(room.io.beats), list(room.io.pulses)
        await asyncio.sleep(2.0)
        assert room.io.beats == both and room.io.pulses == pulses
        times, values = zip(*both, strict=True)
        assert 58 <= len(beats) <= 62 and 116 <= len(both) <= 126
        assert max(b - a for a, b in itertools.pairwise(times)) < 0.06
        assert all(a != b for a, b in itertools.pairwise(values))

    in_a_room(body)


def test_a_pulse_that_comes_after_its_relay_has_fallen_does_not_close_it_again() -> None:
    async def body(room: Room) -> None:
        loop = asyncio.get_running_loop()
        room.access.request_beam(True)
        await asyncio.sleep(1.0)
        loop.now_ns += 40_000_000  # the program stands still for so long: the relay still holds
        await asyncio.sleep(1.0)
        assert room.access.requested
        pulses = len(room.io.pulses)
        loop.now_ns += 300_000_000
        await asyncio.sleep(1.0)
        assert not room.access.requested and len(room.io.pulses) == pulses
        assert [event.data["gap_ms"] > 100 for event in room.events if event.kind == "request.withheld"] == [True]

    in_a_room(body)


def test_a_gate_is_asked_before_each_pulse_and_its_no_ends_the_request() -> None:
    async def body(room: Room) -> None:
        asked: list[int] = []
        room.access.gate(lambda gap_ns: asked.append(gap_ns) or len(asked) < 5)
        room.access.request_beam(True)
        await asyncio.sleep(1.0)
        assert len(asked) == 5 and len(room.io.pulses) == 4 and not room.access.requested
        assert asked[0] == 0 and all(49e6 < gap < 60e6 for gap in asked[1:])
        room.access.gate(None)
        room.access.request_beam(True)
        await asyncio.sleep(1.0)
        assert room.access.requested

    in_a_room(body)


@settings(max_examples=40, deadline=None)
@given(on_s=st.floats(0.0, 0.4), seed=st.integers(0, 5))
def test_no_pulse_leaves_after_the_request_was_dropped(on_s: float, seed: int) -> None:
    async def body(room: Room) -> None:
        loop = asyncio.get_running_loop()
        left: list[float] = []

        def watch(data: bytes, to_server: bool) -> bytes:
            if to_server and data[7] == 23:
                left.append(loop.time())
            return data

        room.safety.disturb = watch
        room.access.request_beam(True)
        busy = [asyncio.ensure_future(room.access.refresh()) for _ in range(5)]
        await asyncio.sleep(on_s)
        room.access.request_beam(False)
        dropped = loop.time()
        count = len(left)
        await asyncio.gather(*busy)
        await asyncio.sleep(0.5)
        assert len(left) == count
        assert all(t <= dropped for t in left)

    in_a_room(body, seed=seed)


def test_a_request_does_not_survive_a_lost_line() -> None:
    async def body(room: Room) -> None:
        room.access.request_beam(True)
        await asyncio.sleep(1.0)
        room.safety.cut()
        await asyncio.sleep(0.2)
        assert not room.access.requested
        room.safety.restore()
        pulses = len(room.io.pulses)
        await asyncio.sleep(10.0)
        assert len(room.io.pulses) == pulses
        assert room.access.status.door_closed
        assert "request.dropped" in room.kinds()
        room.access.request_beam(True)
        await asyncio.sleep(0.5)
        assert len(room.io.pulses) > pulses

    in_a_room(body)


def test_one_lost_pulse_is_no_reason_to_drop_the_request() -> None:
    async def body(room: Room) -> None:
        room.access.request_beam(True)
        await asyncio.sleep(1.0)
        room.io.silent = True
        await asyncio.sleep(0.04)
        room.io.silent = False
        await asyncio.sleep(1.0)
        assert room.access.requested

    in_a_room(body)


def test_a_frozen_safety_io_shows_in_the_age_of_its_status() -> None:
    async def body(room: Room) -> None:
        await asyncio.sleep(1.0)
        room.io.frozen = True
        at = asyncio.get_running_loop().time()
        await asyncio.sleep(5.0)
        assert room.access.status.t_ns <= (at + 0.6) * 1e9
        assert room.access.readings()[0].quality is Quality.STALE

    in_a_room(body)


def test_news_from_a_device_whose_counter_stands_is_old_news() -> None:
    async def body(room: Room) -> None:
        await asyncio.sleep(1.0)
        room.io.counter_stands = True
        at_ns = asyncio.get_running_loop().time() * 1e9
        await asyncio.sleep(3.0)
        room.io.room_bits = 0
        status = await room.access.refresh()
        assert not status.door_closed
        assert status.t_ns <= at_ns

    in_a_room(body)


def test_a_watcher_hears_of_an_opened_door_within_one_poll() -> None:
    async def body(room: Room) -> None:
        loop = asyncio.get_running_loop()
        heard: list[float] = []
        cancel = room.access.watch(lambda status: heard.append(loop.time()) if not status.door_closed else None)
        room.access.request_beam(True)
        await asyncio.sleep(1.0)
        room.io.room_bits = 1 | 4 | 8
        opened = loop.time()
        await asyncio.sleep(0.06)
        assert len(heard) == 1
        assert heard[0] - opened < 0.06
        cancel()

    in_a_room(body)


def test_presets_are_read_back() -> None:
    async def body(room: Room) -> None:
        await room.access.preset(7, -90.0, 6012, True)
        assert room.io.registers[129:135] == [7, 0xFFFE, 0xA070, 0, 6012, 1]
        write = room.io.write
        room.io.write = lambda register, values: write(register, [8, *values[1:]])  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="reads back"):
            await room.access.preset(7, -90.0, 6012, True)
        with pytest.raises(DataError):
            await room.access.preset(70_000, 0.0, 6012, True)

    in_a_room(body)


# --- interlock view -----------------------------------------------------------------------------------------------------


def test_the_interlock_view_shows_relay_trips_and_first_out() -> None:
    async def body(room: Room) -> None:
        status = await room.interlock.refresh()
        assert (status.relay_closed, status.active_trips, status.first_out_code, status.boot_id) == (True, 0, 0, 4711)
        room.relay.closed, room.relay.trips, room.relay.first_out = False, 2, 31
        room.relay.evidence = [*words32(-2100), *words32(2000), 1]
        await asyncio.sleep(0.6)
        status = room.interlock.status
        assert (status.relay_closed, status.active_trips, status.first_out_code) == (False, 2, 31)
        assert (status.first_out_value, status.first_out_limit, status.first_out_input) == (-2100, 2000, 1)
        assert all(register != 16 for _, register, _ in room.relay.writes)  # it only looks

    in_a_room(body)


def test_a_dead_interlock_daemon_is_never_shown_as_fresh() -> None:
    async def body(room: Room) -> None:
        await asyncio.sleep(1.0)
        room.relay.pulsing = False  # and its relay welded closed
        at_ns = asyncio.get_running_loop().time() * 1e9
        await asyncio.sleep(5.0)
        assert room.interlock.status.t_ns <= at_ns + 0.6e9
        assert room.interlock.readings()[0].quality is Quality.STALE
        room.relay.closed = False
        await asyncio.sleep(0.6)
        assert room.interlock.readings()[0].quality is Quality.GOOD  # an open relay is the truth, whoever opened it

    in_a_room(body)


def test_the_motion_relay_and_the_row_that_opens_it_are_shown() -> None:
    async def body(room: Room) -> None:
        room.relay.registers[26], room.relay.registers[33] = 20, 0
        status = await room.interlock.refresh()
        assert (status.motion_permitted, status.motion_code, status.motion_row) == (False, 20, "")
        room.relay.registers[26], room.relay.registers[33] = 0, 1
        status = await room.interlock.refresh()
        assert (status.motion_permitted, status.motion_code) == (True, 0)
        told = [event.data for event in room.events if event.kind == "interlock.status"]
        assert told[-1]["motion_permitted"] is True
        assert told[-2]["motion_code"] == 20
        assert any(reading.name == "G1-interlock.motion_permitted" for reading in room.interlock.readings())

    in_a_room(body)
