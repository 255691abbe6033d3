"""What must be true of the registers: they show the plant as docs/wires.md says, take commands, and refuse the rest."""

import asyncio
import time

import pytest

from drivers.wire.framing import ClientFramer, ServerFramer
from simulators.clock import run
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.room import RoomPlant
from simulators.servers.modbus import answer, motion_nodes, safety_nodes, serve_stream
from simulators.servers.modbus_node import Numbers

NS = 1_000_000_000
MS = 1_000_000
ROOMS = MotionTruth.load("asan").rooms
TOKEN = 14


def signed(words):
    value = words[0] << 16 | words[1]
    return value - (1 << 32) if value >> 31 else value


def pair(value):
    return [value >> 16 & 0xFFFF, value & 0xFFFF]


class Line:
    """A client on one line of a room, without any transport: frames go to the server and back in one call."""

    def __init__(self, name="G1", nodes=motion_nodes, kind="rtu"):
        self.kernel = Kernel(1)
        self.room = RoomPlant(self.kernel, ROOMS[name])
        self.nodes = nodes(self.room)
        self.client = ClientFramer(kind)
        self.server = ServerFramer(kind, tuple(self.nodes))

    def _ask(self, query):
        self.client.expect(query)
        for request in self.server.feed(query.frame):
            return self.client.feed(answer(self.server, self.nodes, request))
        return None

    def read(self, node, register, count):
        return self._ask(self.client.read(node, register, count)).registers

    def write(self, node, register, *values):
        return self._ask(self.client.write(node, register, values)).exception

    def token(self, node):
        """A node's cycles as it shows them now."""
        return self.read(node, 48 if node == 10 else 42, 2)

    def command(self, node, *values, age=0):
        """Registers from 16 on, in one frame with a token of `age` cycles."""
        high, low = self.token(node)
        count = ((high << 16 | low) - age) & 0xFFFF_FFFF
        return self.write(node, 14, count >> 16, count & 0xFFFF, *values)

    def refused(self, node, register, count):
        return self._ask(self.client.read(node, register, count)).exception

    def wait(self, seconds, poll=(1, 2)):
        end = self.kernel.now_ns + round(seconds * NS)
        while self.kernel.now_ns < end:
            self.kernel.advance_to(min(self.kernel.now_ns + 50 * MS, end))
            for node in poll:
                self.read(node, 32, 1)


def secure(room):
    access = room.access
    access.enter("operator")
    for button in access.truth.search_buttons:
        access.press_search(button)
    access.leave("operator")
    access.close_door()
    room.kernel.advance_to(room.kernel.now_ns + 4 * NS)


@pytest.mark.parametrize(
    ("nodes", "node", "product"),
    [
        (motion_nodes, 1, 0xD1),
        (motion_nodes, 2, 0xD1),
        (motion_nodes, 3, 0xE1),
        (motion_nodes, 10, 0xC1),
        (motion_nodes, 20, 0x41),
        (safety_nodes, 1, 0x51),
        (safety_nodes, 2, 0x52),
    ],
)
def test_every_node_says_what_it_is(nodes, node, product):
    identity = Line(nodes=nodes).read(node, 0, 4)
    assert identity[:2] == (0x1009, product)
    assert identity[3] != 0


def test_a_fixed_room_has_couch_and_nozzle_only():
    assert set(Line("F1").nodes) == {10, 20}


def test_the_ring_is_turned_by_registers_alone():
    line = Line()
    secure(line.room)
    assert line.read(1, 32, 1)[0] & 0x6F == 0x40
    for word in (0x06, 0x07, 0x0F):
        for node in (1, 2):
            assert line.command(node, word) == 0
    assert line.read(1, 32, 1)[0] & 0x6F == 0x23  # torque is being proven, brake still closed
    line.wait(0.3)
    assert [line.read(n, 32, 1)[0] & 0x6F for n in (1, 2)] == [0x27, 0x27]
    for node in (1, 2):
        line.command(node, 0x0F, 1, *pair(-12_345))
    line.command(1, 0x1F)
    status = line.read(1, 32, 10)
    assert status[0] & 1 << 12
    line.command(1, 0x0F)
    line.wait(4.0)
    moving = line.read(1, 32, 10)
    assert -3000 <= signed(moving[4:6]) < -1500
    assert signed(moving[2:4]) < -1000
    line.wait(10.0)
    done = line.read(1, 32, 10)
    assert done[0] & 1 << 10
    assert abs(signed(done[2:4]) + 12_345) < 10
    assert abs(signed(line.read(3, 32, 10)[2:4]) + 12_345) < 60
    for word in (0x07, 0x00):
        for node in (1, 2):
            line.command(node, word)
        line.wait(0.3)
    assert line.read(1, 40, 1)[0] & 4  # SBC
    assert line.read(1, 32, 1)[0] & 0x6F == 0x40


def test_a_target_and_its_start_may_come_in_one_frame():
    line = Line()
    secure(line.room)
    for word in (0x06, 0x07, 0x0F):
        for node in (1, 2):
            line.command(node, word)
    line.wait(0.3)
    line.command(2, 0x0F, 1, *pair(5_000))
    line.command(1, 0x1F, 1, *pair(5_000), *pair(1_000), *pair(400))
    line.wait(3.6)
    assert signed(line.read(1, 36, 2)) == 1000


def test_polling_keeps_a_drive_enabled_and_silence_stops_it():
    line = Line()
    secure(line.room)
    for word in (0x06, 0x07, 0x0F):
        for node in (1, 2):
            line.command(node, word)
    line.wait(3.0)
    assert line.read(1, 39, 1) == (0,)
    line.wait(1.0, poll=(1,))
    assert line.read(2, 39, 1) == (0x8700,)
    assert line.read(1, 40, 1)[0] & 4


def test_the_couch_and_the_nozzle_follow_their_registers():
    line = Line()
    for word in (0x06, 0x07, 0x0F):
        line.command(10, word)
    line.wait(0.3, poll=(10,))
    targets = (12_500, -300_000, 1_000, -30_000, 500, -250)
    line.command(10, 0x0F, 0, *(word for x in targets for word in pair(x)))
    line.command(10, 0x1F)
    line.command(20, 0b11, 0, *pair(450_000), 1)
    assert line.read(20, 32, 1)[0] & 2
    line.wait(15.0, poll=(10, 20))
    status = line.read(10, 32, 16)
    assert status[0] & 1 << 10
    assert tuple(signed(status[i : i + 2]) for i in range(2, 14, 2)) == targets
    assert status[14] == 0
    line.command(10, 0x06)
    line.wait(0.3, poll=(10,))
    assert line.read(10, 46, 1) == (1,)
    assert line.read(20, 32, 5) == (1, 0b11, *pair(450_000), 1)


def test_the_safety_line_shows_room_chain_and_angle():
    line = Line(nodes=safety_nodes, kind="tcp")
    room = line.room
    for element in (room.chain.dose1_ok, room.chain.dose2_ok, room.chain.quench_ok):
        element.set(True)
    assert line.read(1, 9, 4) == (8 | 32, 0, 511 - 2, 0)
    secure(room)
    assert line.read(1, 9, 4) == (1 | 2 | 4 | 8 | 16 | 32, 1, 511, 2)
    assert abs(signed(line.read(1, 14, 2))) < 40
    assert abs(signed(line.read(1, 16, 2))) < 10
    line.write(2, 16, 1)
    line.write(1, 128, 1)
    assert line.read(1, 10, 1) == (15,)
    assert line.read(2, 32, 1) == (1,)
    room.access.turn_key(True)
    assert line.read(1, 37, 1) == (1,)


def test_presets_and_arming_reach_the_chain():
    line = Line(nodes=safety_nodes)
    line.write(1, 129, 3, *pair(-90_000), *pair(6012), 1)
    chain = line.room.chain
    assert (chain.room_token, chain.preset_angle_mdeg, chain.preset_species, chain.armed) == (3, -90_000, 6012, True)
    assert line.read(1, 128, 7) == (0, 3, *pair(-90_000), *pair(6012), 1)
    line.write(2, 17, 77, 12, 2)
    assert line.read(2, 16, 4) == (0, 77, 12, 2)


def test_the_liveness_counter_counts_plant_time_and_a_frozen_node_repeats_itself():
    line = Line(nodes=safety_nodes)
    first = line.read(1, 8, 1)[0]
    line.kernel.advance_to(1 * NS)
    assert line.read(1, 8, 1)[0] - first == 100
    line.nodes[1].frozen = True
    before = line.read(1, 8, 30)
    line.room.access.press_estop("console")
    line.kernel.advance_to(2 * NS)
    assert line.read(1, 8, 30) == before
    line.nodes[1].frozen = False
    assert line.read(1, 8, 30) != before


@pytest.mark.parametrize(
    ("nodes", "node", "register", "values", "code"),
    [
        (motion_nodes, 1, 32, [0], 2),  # read only
        (motion_nodes, 1, 24, [0], 2),  # beyond the block
        (motion_nodes, 1, 15, [0], 2),
        (motion_nodes, 1, 18, [0], 2),  # half a number
        (motion_nodes, 1, 19, [0, 0], 2),
        (motion_nodes, 1, 15, [0, 0], 2),  # half a token
        (motion_nodes, 1, TOKEN, [0, 3], 3),  # another mode
        (motion_nodes, 1, TOKEN, [0, 1, 0, 0, 0, 0, 0, 9], 3),  # no speed
        (motion_nodes, 3, 32, [1], 2),
        (motion_nodes, 10, 17, [0], 2),
        (motion_nodes, 20, TOKEN, [4], 3),  # no such slab
        (motion_nodes, 20, TOKEN, [0, 0, *pair(600_000)], 3),  # beyond the travel
        (motion_nodes, 20, TOKEN, [4, 0, *pair(100_000)], 3),  # one of two makes no sense: neither is done
        (motion_nodes, 20, TOKEN, [0, 0, *pair(500_000), 2], 3),
        (safety_nodes, 1, 9, [0], 2),
        (safety_nodes, 1, 134, [2], 3),
        (safety_nodes, 2, 32, [1], 2),
    ],
)
def test_what_the_tables_do_not_allow_is_refused_and_changes_nothing(nodes, node, register, values, code):
    line = Line(nodes=nodes)
    block = {("motion", 1): (16, 8), ("motion", 10): (16, 14), ("motion", 20): (16, 5), ("safety", 1): (127, 11)}.get(
        ("motion" if nodes is motion_nodes else "safety", node), (0, 4)
    )
    before = line.read(node, *block)
    answered = line.command(node, *values) if register == TOKEN else line.write(node, register, *values)
    assert answered == code
    assert line.read(node, *block) == before
    line.kernel.advance_to(60 * NS)
    assert not line.room.nozzle.moving and line.room.nozzle.snout_target_mm == line.room.nozzle.truth.snout_initial_mm


def test_registers_outside_the_tables_cannot_be_read():
    line = Line()
    assert line.refused(1, 4, 1) == 2
    assert line.refused(1, 32, 13) == 2
    assert line.refused(10, 50, 1) == 2
    assert line.refused(3, 16, 1) == 2


def test_a_silent_node_and_an_unknown_one_do_not_answer():
    line = Line()
    line.nodes[1].silent = True
    client = line.client
    query = client.read(1, 32, 1)
    (request,) = line.server.feed(query.frame)
    assert answer(line.server, line.nodes, request) == b""
    assert line.server.feed(client.read(9, 32, 1).frame) == []


class Pipe:
    """The server's end of a connection whose client wrote everything beforehand."""

    def __init__(self, *chunks, cut=False):
        self.chunks = list(chunks)
        self.written = b""
        self.cut = cut

    async def read(self, n=4096):
        await asyncio.sleep(0.001)
        return self.chunks.pop(0) if self.chunks else b""

    async def write(self, data):
        if self.cut:
            raise ConnectionResetError
        self.written += data


def test_a_stream_is_answered_after_the_plant_was_advanced():
    line = Line()
    query = line.client.read(3, 41, 1)
    pipe = Pipe(query.frame[:3], query.frame[3:])

    def before():
        line.kernel.advance_to(5 * NS)

    run(serve_stream(pipe, line.nodes, before))
    line.client.expect(query)
    assert line.client.feed(pipe.written).registers == (500,)


def test_a_client_that_left_does_not_harm_the_server():
    line = Line()
    frame = line.client.write(2, 14, [*line.token(2), 0, 1, *pair(7_000)]).frame
    run(serve_stream(Pipe(frame, cut=True), line.nodes, lambda: None))
    assert line.room.gantry.targets_mdeg == [0, 7000]


# --- old commands ---------------------------------------------------------------------------------------------------------


def enabled(line):
    """The ring and the couch enabled, the room secured."""
    secure(line.room)
    for word in (0x06, 0x07, 0x0F):
        for node in (1, 2, 10):
            assert line.command(node, word) == 0
    line.wait(0.3, poll=(1, 2, 10))


def command_aged(line, node, age_ns, *values):
    """A command whose frame was under way for exactly `age_ns`."""
    token = line.token(node)
    end = line.kernel.now_ns + age_ns
    while line.kernel.now_ns < end:
        line.kernel.advance_to(min(line.kernel.now_ns + 50 * MS, end))
        for other in (1, 2, 10):
            line.read(other, 32, 1)
    return line.write(node, TOKEN, *token, *values)


@pytest.mark.parametrize("phase_ms", [0, 3, 9.999])
def test_a_motion_command_older_than_200_ms_is_dropped_and_changes_nothing(phase_ms):
    for age_ms, code in ((0, 0), (100, 0), (190, 0), (200.000001, 7), (250, 7), (5_000, 7), (655_360, 7), (655_400, 7)):
        line = Line()
        enabled(line)
        for node in (1, 2):
            line.command(node, 0x0F, 1, *pair(20_000))
        line.kernel.advance_to(line.kernel.now_ns // (10 * MS) * 10 * MS + round(phase_ms * MS))
        before = line.room.gantry.angle_deg(line.kernel.now_ns)
        assert command_aged(line, 1, round(age_ms * MS), 0x1F) == code, age_ms
        line.wait(3.0, poll=(1, 2, 10))
        moved = abs(line.room.gantry.angle_deg(line.kernel.now_ns) - before)
        assert (moved > 0.5) is (code == 0), age_ms


@pytest.mark.parametrize("node", [1, 10])
@pytest.mark.parametrize("word", [0x00, 0x02, 0x06, 0x07, 0x10F])
def test_a_stop_is_taken_however_old_it_is(node, word):
    line = Line()
    enabled(line)
    if node == 1:
        for drive in (1, 2):
            line.command(drive, 0x0F, 1, *pair(90_000))
    else:
        line.command(10, 0x0F, 0, *(w for x in (0, 900_000, 0, 0, 0, 0) for w in pair(x)))
    line.command(node, 0x1F)
    line.command(node, 0x0F)
    line.wait(1.5, poll=(1, 2, 10))
    assert line.room.gantry.drive_enabled and line.room.couch.drive_enabled
    assert command_aged(line, node, 1000 * MS, word) == 0
    line.wait(9.0, poll=(1, 2, 10))
    now = line.kernel.now_ns
    speed = line.room.gantry.speed_deg_s(now) if node == 1 else max(abs(line.room.couch.speed(now)))
    assert speed == 0
    if word in (0x00, 0x02):
        assert line.write(node, 16, word) == 0, "and needs no token at all"


@pytest.mark.parametrize("node", [1, 2, 10, 20])
def test_a_command_without_a_token_is_none(node):
    line = Line()
    secure(line.room)
    assert line.write(node, 16, 0x06 if node != 20 else 1) == 7
    assert line.write(node, 18, *pair(1000)) == 7
    assert line.command(node, *((0x06,) if node != 20 else (1,)), age=30) == 7
    assert line.read(node, 32, 1)[0] & 0x6F in ((0x40,) if node != 20 else (1,))


def test_an_old_set_point_does_not_replace_the_target():
    line = Line()
    enabled(line)
    line.command(1, 0x0F, 1, *pair(10_000))
    assert command_aged(line, 1, 300 * MS, 0x0F, 1, *pair(90_000)) == 7
    assert line.room.gantry.targets_mdeg[0] == 10_000
    assert line.read(1, 18, 2) == tuple(pair(10_000))


def test_an_old_fault_reset_leaves_the_fault():
    line = Line()
    enabled(line)
    line.kernel.advance_to(line.kernel.now_ns + 3 * NS)  # nobody polls: supervision
    assert line.read(1, 39, 1) == (0x8700,)
    assert line.write(1, 16, 0) == 0
    assert command_aged(line, 1, 300 * MS, 0x80) == 7
    assert line.read(1, 39, 1) == (0x8700,)
    assert line.command(1, 0x80) == 0
    assert line.read(1, 39, 1) == (0,)


def test_the_count_of_cycles_goes_on_beyond_16_bits():
    line = Line()
    line.kernel.advance_to(655_355 * MS)
    old = line.token(20)
    assert old == (0, 0xFFFF)
    line.kernel.advance_to(655_405 * MS)
    assert line.token(20) == (1, 4)
    assert line.write(20, TOKEN, *old, 1) == 0, "five cycles old, across the end of 16 bits"
    line.kernel.advance_to(655_355 * MS + 655_360 * MS)
    assert line.write(20, TOKEN, *old, 0) == 7, "a whole turn of 16 bits old"


def test_a_request_costs_tens_of_microseconds():
    line = Line(nodes=safety_nodes)
    query = line.client.read(1, 8, 30)
    (request,) = line.server.feed(query.frame)
    best = 1.0
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(200):
            answer(line.server, line.nodes, request)
        best = min(best, (time.perf_counter() - begin) / 200)
    assert best < 200e-6


def test_numbers_packed_at_once_are_those_packed_one_by_one_also_where_they_do_not_fit():
    numbers = Numbers("HiQ")
    assert list(numbers.words(7, -2, 1 << 48)) == [7, 0xFFFF, 0xFFFE, 1, 0, 0, 0]
    assert list(numbers.words(7, 1 << 31, -1)) == [7, 0x7FFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF]
    assert list(numbers.words(7, -1 << 40, 1 << 64)) == [7, 0x8000, 0, 0, 0, 0, 0]
    assert numbers.words(1 << 16, 0, 0)[0] == 1 << 16, "no register: whoever frames it refuses"
