"""A system that stood still wakes up: what it decided before is not sent, and what fell stays open until its reset."""

import pytest
from safety_room import LIMITS, MS, SafetyRoom, _Node, armed

from interlocks.permit import RELAY_MS

STOPS_MS = (101, 120, 149, 151, 300, 5000)  # below and above what the engine calls a late step


class Standing:
    """An armed room with beam; its interlock system lives on the room's clock and can be suspended at any place in its work."""

    def __init__(self):
        self.bench = armed()
        room = self.room = self.bench.room
        old, self.bench.node = self.bench.node, None
        self.node = self.bench.node = _Clocked(room, old)
        self.bench.step()
        self.bench.run(300)
        self.bench.press("key")
        self.bench.set(permit_r=1)
        self.run(100)
        self.bench.set(beam_present=1)
        self.run(300)
        assert self.room.relay_closed() and self.room.motion_possible() and not self.bench.tripped
        self.rises = []
        write = room.write_permit

        def noted(pulse, *more):
            if pulse != room.pulse and not room.relay_closed():
                self.rises.append(room.now_ns)
            write(pulse, *more)

        self.node._write_permit = noted

    def run(self, ms):
        """As the process does it: a pulse every 20 ms, a step when it is due."""
        end_ns = self.room.now_ns + round(ms * MS)
        while self.room.now_ns < end_ns:
            self.room.now_ns = min(end_ns, self.room.now_ns + 20 * MS)
            if self.room.now_ns >= self.bench.wake_ns:
                self.bench.step()
            else:
                self.node.pulse()

    def stop(self, ms):
        self.room.now_ns += round(ms * MS)


class _Clocked(_Node):
    """Works out by itself how long it gave no pulse, and has a clock."""

    def __init__(self, room, old):
        super().__init__(
            room,
            room.read_image,
            room.write_permit,
            LIMITS,
            boot_id=7,
            read_pulses=room.read_pulses,
            journal=old._journal,
            clock=lambda: room.now_ns,
        )

    def own_registers(self, image, now_ns):
        return [*super().own_registers(image, now_ns)[:-1], self.gap_ms(now_ns)]


def check_open_until_reset(standing, seen=True):
    """No pulse raised the relay; the operator's reset, and nothing else, gives it back."""
    standing.run(1500)
    assert standing.rises == [], "the relay had fallen"
    assert "LOOP_STALL" in standing.bench.tripped
    assert standing.node.decision.first_out.id == "LOOP_STALL"
    assert any(record.get("id") == "LOOP_STALL" for record in standing.bench.records), "and it is told"
    assert standing.room.motion_possible() == seen, "an inhibition ends with its cause"
    standing.bench.set(permit_r=0, beam_present=0)
    assert "LOOP_STALL" not in standing.bench.press("physicist")
    assert not standing.room.relay_closed()
    assert "LOOP_STALL" in standing.bench.press("operator")
    standing.run(100)
    assert standing.room.relay_closed()


@pytest.mark.parametrize("ms", STOPS_MS)
@pytest.mark.parametrize("at_ms", [0, 20, 40])
def test_a_stop_between_two_pulses_raises_nothing(ms, at_ms):
    standing = Standing()
    standing.bench.step()
    standing.run(at_ms)
    standing.stop(ms)
    standing.node.pulse()  # woken up in the middle of the loop, behind its look at the clock
    check_open_until_reset(standing)


@pytest.mark.parametrize("ms", STOPS_MS)
def test_a_stop_while_it_waits_for_an_answer_raises_nothing(ms):
    standing = Standing()
    read = standing.node._read_image

    def suspended():
        image = read()
        standing.node._read_image = read
        standing.stop(ms)
        return image

    standing.node._read_image = suspended
    standing.bench.step()
    check_open_until_reset(standing)


@pytest.mark.parametrize("ms", STOPS_MS)
def test_a_stop_before_the_pulses_are_read_back_raises_nothing(ms):
    standing = Standing()
    read = standing.node._read_pulses

    def suspended():
        held = read()
        standing.node._read_pulses = read
        standing.stop(ms)
        return held

    standing.node._read_pulses, standing.node._pulses_known = suspended, False
    standing.node.pulse()
    assert not standing.room.relay_closed()
    check_open_until_reset(standing)


@pytest.mark.parametrize("ms", STOPS_MS)
def test_a_question_that_fails_after_the_stop_excuses_nothing(ms):
    standing = Standing()
    standing.stop(ms)
    standing.room.link_up = False
    standing.bench.step()  # an answer that was late for our own sake counts as none
    standing.room.link_up = True
    check_open_until_reset(standing, seen=ms <= LIMITS.stale_ms)


@pytest.mark.parametrize("ms", [10, 40, 75])
def test_a_short_lag_costs_no_permit(ms):
    standing = Standing()
    for _ in range(10):
        standing.stop(ms)
        standing.run(100)
    assert standing.room.relay_closed() and not standing.bench.tripped


def test_motion_is_not_given_by_what_was_decided_before_the_stop():
    standing = Standing()
    standing.stop(RELAY_MS + 1)
    standing.room.values.update(door_a_closed=0, door_b_closed=0)
    assert not standing.room.motion_possible()
    for _ in range(3):
        standing.node.pulse()
        assert not standing.room.motion_possible()
    standing.run(500)
    assert not standing.room.motion_possible(), "DOOR inhibits it"
    assert "DOOR" in standing.bench.tripped


def test_an_answer_is_as_old_as_its_question():
    standing = Standing()
    read = standing.node._read_image

    def slow():
        image = read()
        standing.stop(LIMITS.stale_ms + 1)
        return image

    standing.node._read_image = slow
    standing.bench.step()
    assert "PLANT_STALE" in standing.bench.tripped
    assert standing.node.decision.first_out.id == "LOOP_STALL"


def test_who_withholds_has_no_gap():
    """A disk that is slow while a trip is written down is no stall of a permit that was withheld anyway."""
    standing = Standing()
    standing.bench.set(flow_a_permille=0, flow_b_permille=0)
    standing.stop(130)
    standing.bench.step()
    standing.run(300)
    assert "LOOP_STALL" not in standing.bench.tripped


def test_without_a_clock_of_its_own_it_lives_by_what_it_is_told():
    room = SafetyRoom()
    assert room.now_ns == 0
    bench = armed()
    bench.room.now_ns += 20 * MS
    bench.node.pulse()
    assert bench.room.relay_closed()
