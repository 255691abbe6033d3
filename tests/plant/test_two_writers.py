"""A relay is held by what one source changes: two interlock systems on one room hold no relay, whatever they write."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel, Line
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.safety_chain import PulseRelay, SafetyChain
from simulators.plant.truth import load_truth
from simulators.servers.room_nodes import safety_nodes
from simulators.site_state import room_state

MS = 1_000_000
CHAIN = MotionTruth.load("asan").rooms["G1"].chain


class Bench:
    """A room's relays, written as by its interlock systems: frames of registers 16 to 26."""

    def __init__(self) -> None:
        self.kernel = Kernel(1)
        self.room = FacilityPlant(self.kernel, load_truth("asan")).rooms["G1"]
        self.node = safety_nodes(self.room)[2]
        self.events: list[dict] = []
        self.kernel.observe(lambda event: self.events.append(event.data) if event.kind == "relay.contested" else None)
        self.closed_ms = 0

    def write(self, boot_id: int, pulse: int, motion: int) -> None:
        self.node.write(16, [pulse, boot_id, 0, 0, 0, 0, 0, 0, 0xFFFF, motion, 0])

    def wait(self, ms: int) -> None:
        for _ in range(ms):
            self.kernel.advance_to(self.kernel.now_ns + MS)
            self.closed_ms += any(self.relays)

    @property
    def relays(self) -> tuple[int, int]:
        beam, motion = self.node.read(32, 2)
        return beam, motion


def test_two_that_withhold_hold_no_relay_with_their_two_constant_numbers():
    bench = Bench()
    for turn in range(200):
        boot_id = (7, 9)[turn % 2]
        bench.write(boot_id, boot_id * 100, boot_id * 200)
        bench.wait(20)
    assert bench.closed_ms == 0
    assert bench.node.read(27, 1) == [3]
    assert room_state(bench.room)["relays_contested"] == {"B": True, "motion": True}
    assert [data["which"] for data in bench.events] == ["B", "motion"], "told once for each relay, not with every write"
    assert bench.events[0]["sources"] == (7, 9)


def test_a_second_system_opens_the_relay_of_a_permit_at_once_and_until_it_has_gone():
    bench = Bench()
    number = 0
    for _ in range(10):
        number += 1
        bench.write(7, number, number)
        bench.wait(20)
    assert bench.relays == (1, 1)
    bench.write(9, number, number)
    assert bench.relays == (0, 0), "at once, though it wrote the very same numbers"
    last_ns = bench.kernel.now_ns
    closed_ns = None
    for _ in range(40):
        bench.wait(20)
        number += 1
        bench.write(7, number, number)
        if closed_ns is None and any(bench.relays):
            closed_ns = bench.kernel.now_ns
    assert closed_ns is not None and 300 * MS <= closed_ns - last_ns <= 340 * MS
    assert bench.relays == (1, 1) and bench.node.read(27, 1) == [0]


@pytest.mark.parametrize("gap_ms", [1, 50, 99])
def test_one_that_gives_beside_one_that_withholds_gives_nothing(gap_ms):
    bench = Bench()
    for number in range(60):
        bench.write(7, number + 1, number + 1)
        bench.wait(20)
        if number % max(1, gap_ms // 20) == 0:
            bench.write(9, 4711, 4711)
    assert bench.closed_ms <= 25, "nothing after the other one's first write"


def test_a_restart_after_the_relay_fell_comes_back_with_its_first_pulse():
    bench = Bench()
    for number in range(1, 5):
        bench.write(7, number, number)
        bench.wait(20)
    bench.wait(400)
    bench.write(9, 4, 4)
    assert bench.relays == (0, 0), "the first write of a source is no pulse, whatever stood there"
    bench.wait(20)
    bench.write(9, 5, 5)
    assert bench.relays == (1, 1) and bench.events == []


def test_a_restart_within_the_hold_of_the_relay_opens_it():
    bench = Bench()
    bench.write(7, 1, 1)
    bench.wait(20)
    bench.write(9, 2, 2)
    assert bench.relays == (0, 0)


def test_a_frame_without_a_boot_id_is_of_nobody_whom_the_relay_knows():
    bench = Bench()
    for number in range(1, 20):
        bench.write(7, 0, number)
        bench.wait(20)
        bench.node.write(16, [number])
        bench.wait(20)
        assert not bench.relays[0]
    assert bench.node.read(27, 1) == [1], "the pulse of motion had one writer"
    assert bench.node.read(32, 2) == [0, 1]


def test_the_request_of_the_controller_knows_no_source():
    chain = SafetyChain(Kernel(1), "G1", CHAIN)
    for number in (1, 2, 3):
        chain.pulse_r(number)
        assert chain.permit_r.value


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([7, 7, 7, 9, 0]), st.integers(0, 3), st.integers(0, 250)), max_size=60))
def test_no_history_of_writes_closes_it_within_300_ms_of_another_source(writes):
    """Held against the whole history of writes, not against what the relay remembers of it."""
    kernel = Kernel(1)
    line = Line(kernel, "line")
    relay = PulseRelay(kernel, line, 100.0)
    history: list[tuple[int, int, int]] = [(-1000 * MS, 0, 0)]  # as at power-up: nobody, nothing
    for source, value, wait_ms in writes:
        relay.pulse(value, source)
        history.append((kernel.now_ns, source, value))
        for _ in range(2):
            now_ns = kernel.now_ns
            rivals = [t for t, who, _ in history if who != source and now_ns - t < 300 * MS]
            alone_since = max((i for i, h in enumerate(history) if h[1] != source), default=-1)
            run = history[alone_since + 1 :]
            pulses = [after[0] for before, after in itertools.pairwise(run) if before[2] != after[2]]
            held = [t for t in pulses if now_ns - t < 100 * MS and not any(t - r < 300 * MS for r in rivals)]
            assert not (line.value and rivals), "beside another source"
            assert not line.value or held, "without a pulse of its own"
            kernel.advance_to(now_ns + wait_ms * MS)
