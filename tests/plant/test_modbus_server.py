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

NS = 1_000_000_000
MS = 1_000_000
ROOMS = MotionTruth.load("asan").rooms


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
            assert line.write(node, 16, word) == 0
    assert line.read(1, 32, 1)[0] & 0x6F == 0x23  # torque is being proven, brake still closed
    line.wait(0.3)
    assert [line.read(n, 32, 1)[0] & 0x6F for n in (1, 2)] == [0x27, 0x27]
    for node in (1, 2):
        line.write(node, 18, *pair(-12_345))
    line.write(1, 16, 0x1F)
    status = line.read(1, 32, 10)
    assert status[0] & 1 << 12
    line.write(1, 16, 0x0F)
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
            line.write(node, 16, word)
        line.wait(0.3)
    assert line.read(1, 40, 1)[0] & 4  # SBC
    assert line.read(1, 32, 1)[0] & 0x6F == 0x40


def test_a_target_and_its_start_may_come_in_one_frame():
    line = Line()
    secure(line.room)
    for word in (0x06, 0x07, 0x0F):
        for node in (1, 2):
            line.write(node, 16, word)
    line.wait(0.3)
    line.write(2, 18, *pair(5_000))
    line.write(1, 16, 0x1F, 1, *pair(5_000), *pair(1_000), *pair(400))
    line.wait(3.6)
    assert signed(line.read(1, 36, 2)) == 1000


def test_polling_keeps_a_drive_enabled_and_silence_stops_it():
    line = Line()
    secure(line.room)
    for word in (0x06, 0x07, 0x0F):
        for node in (1, 2):
            line.write(node, 16, word)
    line.wait(3.0)
    assert line.read(1, 39, 1) == (0,)
    line.wait(1.0, poll=(1,))
    assert line.read(2, 39, 1) == (0x8700,)
    assert line.read(1, 40, 1)[0] & 4


def test_the_couch_and_the_nozzle_follow_their_registers():
    line = Line()
    for word in (0x06, 0x07, 0x0F):
        line.write(10, 16, word)
    line.wait(0.3, poll=(10,))
    targets = (12_500, -300_000, 1_000, -30_000, 500, -250)
    line.write(10, 18, *(word for x in targets for word in pair(x)))
    line.write(10, 16, 0x1F)
    line.write(20, 18, *pair(450_000))
    line.write(20, 16, 0b11)
    line.write(20, 20, 1)
    assert line.read(20, 32, 1)[0] & 2
    line.wait(15.0, poll=(10, 20))
    status = line.read(10, 32, 16)
    assert status[0] & 1 << 10
    assert tuple(signed(status[i : i + 2]) for i in range(2, 14, 2)) == targets
    assert status[14] == 0
    line.write(10, 16, 0x06)
    line.wait(0.3, poll=(10,))
    assert line.read(10, 46, 1) == (1,)
    assert line.read(20, 32, 5) == (1, 0b11, *pair(450_000), 1)


def test_the_safety_line_shows_room_chain_and_angle():
    line = Line(nodes=safety_nodes, kind="tcp")
    room = line.room
    for element in (room.chain.dose1_ok, room.chain.dose2_ok, room.chain.quench_ok):
        element.set(True)
    assert line.read(1, 9, 4) == (8 | 32, 0, 127 - 2, 0)
    secure(room)
    assert line.read(1, 9, 4) == (1 | 2 | 4 | 8 | 16 | 32, 1, 127, 2)
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
        (motion_nodes, 1, 17, [3], 3),  # another mode
        (motion_nodes, 1, 20, [0, 0], 3),  # no speed
        (motion_nodes, 3, 32, [1], 2),
        (motion_nodes, 10, 17, [0], 2),
        (motion_nodes, 20, 16, [4], 3),  # no such slab
        (motion_nodes, 20, 18, pair(600_000), 3),  # beyond the travel
        (motion_nodes, 20, 20, [2], 3),
        (safety_nodes, 1, 9, [0], 2),
        (safety_nodes, 1, 134, [2], 3),
        (safety_nodes, 2, 32, [1], 2),
    ],
)
def test_what_the_tables_do_not_allow_is_refused_and_changes_nothing(nodes, node, register, values, code):
    line = Line(nodes=nodes)
    block = {("motion", 1): (16, 8), ("motion", 10): (16, 14), ("motion", 20): (16, 5), ("safety", 1): (128, 7)}.get(
        ("motion" if nodes is motion_nodes else "safety", node), (0, 4)
    )
    before = line.read(node, *block)
    assert line.write(node, register, *values) == code
    assert line.read(node, *block) == before


def test_registers_outside_the_tables_cannot_be_read():
    line = Line()
    assert line.refused(1, 4, 1) == 2
    assert line.refused(1, 32, 11) == 2
    assert line.refused(10, 48, 1) == 2
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
    run(serve_stream(Pipe(line.client.write(2, 18, pair(7_000)).frame, cut=True), line.nodes, lambda: None))
    assert line.room.gantry.targets_mdeg == [0, 7000]


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
