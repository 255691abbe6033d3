"""The gantry driver on a small ring: what it commands, what it refuses, and that everything bad ends at rest."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from fake_nodes import FakeRing, serve

from drivers.devices.fixed_port import FixedPort
from drivers.devices.gantry import RotatingGantry
from drivers.hal.capabilities import Axis
from drivers.hal.errors import BeamlineError, CommandRejected, CommunicationError, DeviceError
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality
from drivers.wire.memory import MemoryLine
from drivers.wire.modbus import ModbusClient
from simulators import clock

ASAN = load_facility("asan")


@dataclass
class Stand:
    """A ring, its line, its driver."""

    ring: FakeRing
    line: MemoryLine
    gantry: RotatingGantry
    client: ModbusClient
    events: list[Event]

    def commands(self, node: int) -> list[int]:
        """Controlwords that a drive was sent, beside the one inside a set-point."""
        writes = self.ring.nodes[node].writes
        return [values[0] for _, register, values in writes if register == 16 and len(values) == 1]

    def resting(self) -> bool:
        """Truth: stands, and no drive is enabled."""
        return not self.ring.moving and all(drive.state in ("disabled", "fault", "quick") for drive in self.ring.drives)


Body = Callable[[Stand], Awaitable[None]]


def on_a_ring(body: Body, ring: FakeRing | None = None, *, connect: bool = True) -> None:
    """Run a test with a connected driver."""
    ring = ring or FakeRing()

    async def main() -> None:
        line = MemoryLine("G1-motion", baud=115200)
        server = asyncio.ensure_future(serve(line, ring.nodes))
        bus = EventBus()
        events: list[Event] = []
        bus.subscribe(events.append)
        client = ModbusClient("G1-motion", line.connect)
        config = ASAN.devices["G1-gantry"]
        gantry = RotatingGantry("G1-gantry", config, ASAN.room("G1"), client, ASAN.registers, bus)
        if connect:
            await gantry.connect()
        await body(Stand(ring, line, gantry, client, events))
        await gantry.close()
        server.cancel()
        await asyncio.wait([server])

    clock.run(main(), schedule_seed=5)


def test_the_driver_is_an_axis() -> None:
    async def body(stand: Stand) -> None:
        assert isinstance(stand.gantry, Axis)

    on_a_ring(body)


@pytest.mark.parametrize(("wanted", "place"), [(30.0, 30.0), (-90.0, -90.0), (270.0, -90.0), (-180.0, -180.0), (360.0, 0.0)])
def test_a_move_ends_at_the_angle_braked_and_without_torque(wanted: float, place: float) -> None:
    async def body(stand: Stand) -> None:
        state = await stand.gantry.move_to(wanted)
        assert stand.ring.angle_deg == pytest.approx(place, abs=0.001)
        assert state.angle.value == pytest.approx(place, abs=0.001)
        assert state.angle.quality is Quality.GOOD
        assert (state.brake_applied, state.standstill, state.enabled) == (True, True, False)
        assert stand.resting()

    on_a_ring(body)


def test_the_words_follow_the_profile_on_both_drives() -> None:
    async def body(stand: Stand) -> None:
        await stand.gantry.move_to(10.0)
        assert stand.commands(1) == [0x06, 0x07, 0x0F, 0x1F, 0x0F, 0x07, 0x00]
        assert stand.commands(2) == [0x06, 0x07, 0x0F, 0x07, 0x00]

    on_a_ring(body)


def test_drives_are_polled_well_within_their_supervision_while_moving() -> None:
    async def body(stand: Stand) -> None:
        times: dict[int, list[float]] = {1: [], 2: []}
        for node, polls in times.items():
            drive = stand.ring.nodes[node]

            def read(register: int, count: int, of: list[float] = polls, node_read: object = drive.read) -> list[int]:
                of.append(asyncio.get_running_loop().time())
                return node_read(register, count)  # type: ignore[operator,no-any-return]

            drive.read = read  # type: ignore[method-assign]
        await stand.gantry.move_to(45.0)
        for polls in times.values():
            gaps = [b - a for a, b in itertools.pairwise(polls)]
            assert max(gaps) < 0.1

    on_a_ring(body)


def test_a_ring_at_rest_is_polled_at_least_once_a_second_and_rarely_more() -> None:
    async def body(stand: Stand) -> None:
        before = stand.ring.nodes[3].reads
        await asyncio.sleep(20.0)
        assert 19 <= stand.ring.nodes[3].reads - before <= 22
        (angle, *_) = stand.gantry.readings()
        assert angle.quality is Quality.GOOD

    on_a_ring(body)


def test_already_there_nothing_is_commanded() -> None:
    async def body(stand: Stand) -> None:
        state = await stand.gantry.move_to(0.02)
        assert state.brake_applied
        assert stand.commands(1) == stand.commands(2) == []

    on_a_ring(body)


@pytest.mark.parametrize("angle", [float("nan"), float("inf"), 1e9])
def test_angles_that_are_none_are_refused(angle: float) -> None:
    async def body(stand: Stand) -> None:
        with pytest.raises(CommandRejected, match=r"outside the limits -180 to 180 deg"):
            await stand.gantry.move_to(angle)
        assert stand.commands(1) == []

    on_a_ring(body)


def limited(ring: FakeRing) -> None:
    ring.angle_deg = 5.0


def offset(ring: FakeRing) -> None:
    ring.load_offset_deg = 0.25


def invalid(ring: FakeRing) -> None:
    ring.encoder.valid = False


def faulted(ring: FakeRing) -> None:
    ring.drives[1].state, ring.drives[1].error = "fault", 0x7305


def torque_off(ring: FakeRing) -> None:
    ring.drives[0].sto = True


def turning(ring: FakeRing) -> None:
    ring.start(90.0, asyncio.get_running_loop().time())


def still_enabled(ring: FakeRing) -> None:
    ring.drives[0].state = "enabled"


@pytest.mark.parametrize(
    ("plant", "error", "words"),
    [
        (offset, DeviceError, r"encoders differ by 0\.250 deg, limit 0\.2 deg: load 0\.250, drive A 0\.000"),
        (invalid, DeviceError, "not valid"),
        (faulted, DeviceError, r"drive B \(node 2\) is in fault 0x7305 \(encoder\)"),
        (torque_off, CommandRejected, "STO"),
        (turning, CommandRejected, "not at standstill"),
        (still_enabled, CommandRejected, "not at standstill"),
    ],
)
def test_what_must_not_begin_is_refused_in_words(
    plant: Callable[[FakeRing], None], error: type[BeamlineError], words: str
) -> None:
    async def body(stand: Stand) -> None:
        plant(stand.ring)
        with pytest.raises(error, match=words):
            await stand.gantry.move_to(60.0)
        assert 0x1F not in stand.commands(1)
        assert 0x0F not in stand.commands(1)

    on_a_ring(body)


def test_a_second_move_is_refused_while_one_is_under_way() -> None:
    async def body(stand: Stand) -> None:
        first = asyncio.ensure_future(stand.gantry.move_to(30.0))
        await asyncio.sleep(2.0)
        with pytest.raises(CommandRejected, match="under way"):
            await stand.gantry.move_to(-30.0)
        assert (await first).angle.value == pytest.approx(30.0, abs=0.001)

    on_a_ring(body)


def test_stop_ends_a_move_at_once_on_both_drives() -> None:
    async def body(stand: Stand) -> None:
        move = asyncio.ensure_future(stand.gantry.move_to(90.0))
        await asyncio.sleep(10.0)
        assert stand.ring.moving
        await asyncio.gather(asyncio.sleep(0.02), stand.gantry.stop())
        assert stand.resting()
        with pytest.raises(CommandRejected, match="stopped by command"):
            await move
        assert stand.ring.angle_deg < 40.0
        for node in (1, 2):
            assert 0x02 in stand.commands(node)
        state = await stand.gantry.read_state()
        assert (state.brake_applied, state.enabled) == (True, False)

    on_a_ring(body)


def test_stop_leaves_within_one_transaction() -> None:
    async def body(stand: Stand) -> None:
        move = asyncio.ensure_future(stand.gantry.move_to(90.0))
        for moment in range(20):
            await asyncio.sleep(2.0 + 0.0037 * moment)
            if not stand.ring.moving:
                continue
            asked = asyncio.get_running_loop().time()
            await stand.gantry.stop()
            heard = min(
                t for t, register, values in stand.ring.nodes[1].writes if register == 16 and values == (2,) and t >= asked
            )
            # At most the answer to the question under way (5 ms) and its own way there.
            assert heard - asked < 0.012
            break
        with pytest.raises(CommandRejected):
            await move

    on_a_ring(body)


def test_a_cancelled_move_stops_the_ring() -> None:
    async def body(stand: Stand) -> None:
        move = asyncio.ensure_future(stand.gantry.move_to(90.0))
        await asyncio.sleep(10.0)
        move.cancel()
        with pytest.raises(asyncio.CancelledError):
            await move
        assert not stand.ring.moving
        assert 0x02 in stand.commands(1)

    on_a_ring(body)


def mirrored_load(ring: FakeRing) -> None:
    ring.load_sign = -1.0


def mirrored_axis(ring: FakeRing) -> None:
    ring.axis_sign = -1.0


def stops_short(ring: FakeRing) -> None:
    ring.stops_short_deg = 1.0


def slips(ring: FakeRing) -> None:
    ring.slips_when_braked_deg = 0.4


def no_brake(ring: FakeRing) -> None:
    ring.brake_works = False


def target_lost(ring: FakeRing) -> None:
    ring.drives[1].keeps_target = True


def never_enables(ring: FakeRing) -> None:
    ring.drives[1].deaf_to = {0x0F}


def no_set_point(ring: FakeRing) -> None:
    ring.drives[0].deaf_to = {0x1F}


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (mirrored_load, "encoders differ"),
        (mirrored_axis, "turns away from the target"),
        (stops_short, "not arrived in time"),
        (slips, "from the target"),
        (no_brake, "not ready after"),
        (target_lost, r"node 2 holds target 0\.000 deg"),
        (never_enables, "not enabled within 3 s: drive B: switched on"),
        (no_set_point, "set-point was not acknowledged"),
    ],
)
def test_a_machine_that_does_not_do_as_told_is_noticed_and_stopped(plant: Callable[[FakeRing], None], words: str) -> None:
    async def body(stand: Stand) -> None:
        plant(stand.ring)
        with pytest.raises(DeviceError, match=words):
            await stand.gantry.move_to(45.0)
        assert not stand.ring.moving
        assert stand.commands(1)[-1] == 0x02
        assert [event.kind for event in stand.events][-1] == "motion.failed"

    on_a_ring(body)


def test_a_mirrored_axis_is_noticed_within_a_degree() -> None:
    async def body(stand: Stand) -> None:
        mirrored_axis(stand.ring)
        with pytest.raises(DeviceError):
            await stand.gantry.move_to(45.0)
        assert abs(stand.ring.angle_deg) < 1.0

    on_a_ring(body)


def test_a_fault_in_the_middle_stops_both_drives() -> None:
    async def body(stand: Stand) -> None:
        move = asyncio.ensure_future(stand.gantry.move_to(90.0))
        await asyncio.sleep(5.0)
        stand.ring.drives[1].state, stand.ring.drives[1].error = "fault", 0x8611
        with pytest.raises(DeviceError, match=r"0x8611 \(following error\)"):
            await move
        assert not stand.ring.moving

    on_a_ring(body)


def test_a_frozen_encoder_is_noticed_although_it_answers() -> None:
    async def body(stand: Stand) -> None:
        move = asyncio.ensure_future(stand.gantry.move_to(90.0))
        await asyncio.sleep(5.0)
        stand.ring.encoder.frozen = True
        with pytest.raises(DeviceError, match=r"encoders differ|stands still"):
            await move
        assert not stand.ring.moving

    on_a_ring(body)


def test_a_line_that_repeats_itself_is_noticed_before_the_move_could_end() -> None:
    async def body(stand: Stand) -> None:
        move = asyncio.ensure_future(stand.gantry.move_to(90.0))
        await asyncio.sleep(5.0)
        for node in stand.ring.nodes.values():
            node.frozen = True  # they agree with each other, and with nothing else
        with pytest.raises(DeviceError, match="stands still"):
            await asyncio.wait_for(move, 0.6)
        assert not stand.ring.moving

    on_a_ring(body)


def test_a_stop_passes_the_traffic_of_other_devices_on_the_line() -> None:
    async def body(stand: Stand) -> None:
        loop = asyncio.get_running_loop()
        move = asyncio.ensure_future(stand.gantry.move_to(90.0))
        await asyncio.sleep(5.0)
        others = [asyncio.ensure_future(stand.client.read(3, 0, 100)) for _ in range(20)]
        await asyncio.sleep(0.001)
        asked = loop.time()
        await stand.gantry.stop()
        heard = min(t for t, register, values in stand.ring.nodes[2].writes if register == 16 and values == (2,) and t >= asked)
        assert heard - asked < 0.03  # twenty such reads take 0.4 s
        await asyncio.wait([move, *others])
        assert isinstance(move.exception(), CommandRejected)

    on_a_ring(body)


def test_values_go_stale_with_the_counter_and_not_with_the_connection() -> None:
    async def body(stand: Stand) -> None:
        stand.ring.encoder.frozen = True
        await asyncio.sleep(2.0)
        assert stand.gantry.readings()[0].quality is Quality.GOOD
        await asyncio.sleep(3.0)
        assert stand.gantry.readings()[0].quality is Quality.STALE
        with pytest.raises(DeviceError, match="counter stands still"):
            await stand.gantry.move_to(10.0)

    on_a_ring(body)


def test_a_lost_frame_does_not_disturb_a_move() -> None:
    async def body(stand: Stand) -> None:
        count = 0

        def lose_some(data: bytes, to_server: bool) -> bytes:
            nonlocal count
            count += data[1] == 3
            return b"" if data[1] == 3 and count % 23 == 0 else data

        stand.line.disturb = lose_some
        state = await stand.gantry.move_to(45.0)
        assert state.angle.value == pytest.approx(45.0, abs=0.001)

    on_a_ring(body)


def test_a_lost_line_is_told_once_and_comes_back_with_its_identity_checked() -> None:
    async def body(stand: Stand) -> None:
        stand.line.cut()
        await asyncio.sleep(30.0)
        assert stand.gantry.readings()[0].quality is Quality.DISCONNECTED
        with pytest.raises(CommunicationError, match="not connected"):
            await stand.gantry.move_to(10.0)
        stand.line.restore()
        await asyncio.sleep(10.0)
        assert stand.gantry.readings()[0].quality is Quality.GOOD
        kinds = [event.kind for event in stand.events if event.kind.startswith("device.")]
        assert kinds == ["device.up", "device.down", "device.up"]
        stand.line.cut()
        await asyncio.sleep(3.0)
        stand.ring.drives[0].registers[1] = 0xD2  # another device was put in its place
        stand.line.restore()
        await asyncio.sleep(20.0)
        assert stand.gantry.readings()[0].quality is Quality.DISCONNECTED

    on_a_ring(body)


def test_a_wrong_device_is_refused_by_name() -> None:
    ring = FakeRing()
    ring.encoder.registers[1] = 0xD1

    async def body(stand: Stand) -> None:
        with pytest.raises(
            DeviceError, match=r"node 3 says vendor 0x1009, product 0xD1 .*expected vendor 0x1009, product 0xE1"
        ):
            await stand.gantry.connect()

    on_a_ring(body, ring, connect=False)


def test_a_device_that_is_frozen_at_connect_is_refused() -> None:
    ring = FakeRing()
    ring.drives[1].frozen = True

    async def body(stand: Stand) -> None:
        with pytest.raises(DeviceError, match="counter stands still"):
            await stand.gantry.connect()

    on_a_ring(body, ring, connect=False)


def test_an_acknowledged_fault_lets_the_ring_move_again_and_starts_nothing() -> None:
    async def body(stand: Stand) -> None:
        faulted(stand.ring)
        state = await stand.gantry.acknowledge()
        assert state.error_code == 0
        assert not state.enabled
        assert stand.ring.angle_deg == 0.0
        assert (await stand.gantry.move_to(10.0)).angle.value == pytest.approx(10.0, abs=0.001)

    on_a_ring(body)


def test_a_fixed_port_takes_its_ports_and_nothing_else() -> None:
    async def main() -> None:
        port = FixedPort("F1-port", ASAN.room("F1"))
        assert isinstance(port, Axis)
        assert (await port.move_to(450.0)).angle.value == 90.0
        assert port.route == "F1:90"
        assert (await port.move_to(0.05)).angle.value == 0.0
        for angle in (45.0, 0.5, -90.0, float("nan")):
            with pytest.raises(CommandRejected, match="ports: 0, 90 deg"):
                await port.move_to(angle)
        state = await port.read_state()
        assert (state.angle.value, state.brake_applied, state.enabled, port.route) == (0.0, True, False, "F1:0")

    clock.run(main())
