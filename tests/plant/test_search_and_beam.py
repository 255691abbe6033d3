"""What the search means for beam, and the E-stop for beam and torque, at the plant's truth: with no program at all."""

import pytest
from beam_bench import MS, US, Bench, S

SEARCHED = ("door", "search", "estop")


@pytest.fixture
def bench():
    """Everything ready for beam but the room itself; the relays are closed by hand."""
    bench = Bench().ready()
    access, chain = bench.room.access, bench.chain
    for name in ("door", "search"):
        chain.elements[name].set(False)
    access.enter("operator")
    bench.run(0.1)
    assert not chain.permit_a.value and access.estop_ok.value
    return bench


def search(bench, *, seconds=3.0, order=None, leave=True, close_after_s=2.0):
    """A walk through the room."""
    access = bench.room.access
    for button in order if order is not None else access.truth.search_buttons:
        bench.run(seconds)
        access.press_search(button)
    bench.run(1.0)
    if leave:
        access.leave("operator")
    bench.run(close_after_s)
    access.close_door()


def secured(bench):
    search(bench)
    bench.ring.start_cycle(300_000)  # the flattop has ended meanwhile
    bench.run(bench.room.access.truth.warning_s + 3.0)
    assert bench.chain.permit_a.value and bench.chain.beam_enable.value


def test_beam_is_possible_after_the_whole_search_and_its_warning_and_not_a_moment_earlier(bench):
    access, chain = bench.room.access, bench.chain
    search(bench)
    lit_ns = bench.now
    assert access.lamp_lit and access.lamp_lit_ns == lit_ns
    bench.run(access.truth.warning_s - 0.001)
    assert not chain.permit_a.value and not chain.beam_enable.value
    bench.run(0.1)
    assert chain.permit_a.value and chain.permit_a.changed_ns - lit_ns >= 3 * S
    assert access.lamp_lit


BUTTONS = Bench().room.access.truth.search_buttons


@pytest.mark.parametrize(
    "walk",
    [
        {"order": BUTTONS[:-1]},
        {"order": ()},
        {"order": BUTTONS[::-1]},
        {"order": (BUTTONS[0], BUTTONS[0], *BUTTONS[1:])},
        {"order": (*BUTTONS, BUTTONS[0])},
        {"seconds": 1000.0},
        {"close_after_s": 1000.0},
    ],
    ids=["one button left out", "no button", "backwards", "one twice", "one more at the end", "too slow", "door too late"],
)
def test_an_unsound_search_gives_no_beam_however_long_one_waits(bench, walk):
    search(bench, **walk)
    bench.run(60.0)
    assert not bench.chain.permit_a.value and not bench.chain.search_ok.value and not bench.room.access.lamp_lit
    bench.unit.submit(bench.words())
    assert not bench.unit.delivering


def test_a_search_from_outside_of_the_closed_door_counts_nothing(bench):
    access = bench.room.access
    access.leave("operator")
    access.close_door()
    for button in BUTTONS:
        access.press_search(button)
    bench.run(60.0)
    assert not bench.chain.permit_a.value


REENTRIES = {
    "door opened": lambda bench: bench.room.access.open_door(),
    "contact bounces": lambda bench: bench.room.access.bounce_door(0.005),
    "door opened and shut at once": lambda bench: (bench.room.access.open_door(), bench.room.access.close_door()),
}


@pytest.mark.parametrize("how", list(REENTRIES))
def test_reentry_takes_the_beam_at_once_and_only_a_new_search_brings_the_permit_back(bench, how):
    secured(bench)
    bench.begin(bench.words(counts=2_000_000, n=20))
    bench.run(0.05)
    assert bench.unit.delivering
    at_ns = bench.now
    REENTRIES[how](bench)
    bench.run(0.001)
    assert not bench.unit.delivering and not bench.chain.permit_a.value
    assert next(e.t_ns - at_ns for e in bench.kind("beam.off") if e.t_ns >= at_ns) <= 500 * US
    access = bench.room.access
    access.close_door()
    bench.run(60.0)  # a door that is closed again is no search
    assert not bench.chain.permit_a.value and not access.lamp_lit
    access.open_door()
    access.enter("operator")
    search(bench)
    bench.run(1.0)
    assert not bench.chain.permit_a.value  # warned anew
    bench.run(access.truth.warning_s)
    assert bench.chain.permit_a.value


def test_someone_who_slips_in_while_the_searcher_leaves_voids_it(bench):
    access = bench.room.access
    for button in BUTTONS:
        bench.run(3.0)
        access.press_search(button)
    access.leave("operator")
    access.enter("visitor")
    access.close_door()
    bench.run(60.0)
    assert not bench.chain.permit_a.value


def test_an_estop_takes_beam_and_the_possibility_of_torque_with_no_program_alive(bench):
    secured(bench)
    bench.chain.pulse_b(1)
    bench.chain.pulse_r(1)  # the last pulses: their programs die now, their relays stay closed for 100 ms
    bench.begin(bench.words(counts=2_000_000, n=20))
    bench.run(0.05)
    at_ns = bench.now
    bench.room.access.press_estop("console")
    assert not bench.room.gantry.sto.value and not bench.room.couch.sto.value
    bench.run(0.0005)
    assert bench.chain.permit_b.value and bench.chain.permit_r.value  # neither of them had a part in it
    assert next(e.t_ns - at_ns for e in bench.kind("beam.off") if e.t_ns >= at_ns) <= 300 * US
    bench.run(0.01)
    assert bench.ring.ions_left == 0
    bench.room.access.release_estop("console")
    bench.run(1.0)
    assert not bench.chain.permit_a.value  # released is not reset
    assert bench.now - at_ns > MS


@pytest.mark.parametrize("trip", ["estop", "collision"])
def test_torque_of_a_turning_ring_is_gone_at_once_and_its_brakes_stop_it(bench, trip):
    ring, room = bench.room.gantry, bench.room
    bench.chain.motion_permit.set(True)
    for drive in ring.drives:
        for word in (0x0006, 0x0007, 0x000F):
            drive.write_controlword(word)
    turn(bench, ring)
    assert abs(ring.speed_deg_s(bench.now)) > 0.1 and ring.drive_enabled
    if trip == "estop":
        room.access.press_estop("console")
    else:
        room.services.collision.set(False)
    assert not ring.drive_enabled and not bench.chain.elements[trip].value
    bench.run(3.0)
    assert ring.speed_deg_s(bench.now) == 0.0 and ring.brake_applied and not ring.drive_enabled


def turn(bench, ring):
    """The ring turns: both drives are spoken to every 50 ms, as on their line."""

    def poll(seconds):
        for _ in range(round(seconds / 0.05)):
            bench.run(0.05)
            ring.polled(0)
            ring.polled(1)

    poll(2.0)
    ring.targets_mdeg[:] = [20_000, 20_000]
    for i in (1, 0):
        ring.drives[i].write_controlword(0x001F)
    poll(2.0)
