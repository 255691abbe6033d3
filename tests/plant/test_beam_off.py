"""What must be true when beam has to go: every element proves its work, and who does not is stood in for, by hardware alone."""

import pytest
from beam_bench import MS, US, Bench

from simulators.plant.beam_off import Element, Level

FAST = Element.RFKO | Element.CHOPPER
LONG = dict(counts=2_000_000, n=20)  # minutes of beam, if nobody ends it


def beam(seconds=0.05, **faults):
    """A bench in the midst of a long stretch of beam; what breaks breaks before it."""
    bench = Bench().ready()
    for name, value in faults.items():
        if name == "stopper_stuck":
            bench.chain.beam_off.stopper.stuck = value
        else:
            setattr(bench.ring.faults, name, value)
    bench.begin(bench.words(**LONG))
    bench.run(seconds)
    assert bench.unit.delivering and bench.chain.beam_off.asked == 0
    return bench


def off_after_ns(bench, since_ns):
    """When the last ion came, after an instant."""
    ends = [event.t_ns - since_ns for event in bench.kind("beam.off") if event.t_ns >= since_ns]
    assert ends, "beam goes on"
    return ends[0]


def open_(bench, element):
    bench.chain.elements[element].set(False)
    return bench.now


def test_healthy_elements_take_the_beam_away_and_prove_it():
    bench = beam()
    at_ns = open_(bench, "dose2")
    bench.run(0.002)
    elements = bench.chain.beam_off
    assert off_after_ns(bench, at_ns) <= 300 * US
    assert elements.level is Level.NONE and elements.confirmed & FAST == FAST
    assert bench.chain.beam_off_ok.value and elements.residual_counts == 0
    assert not elements.stopper.inside  # it needs its time
    bench.run(0.7)
    assert elements.stopper.inside and elements.confirmed == FAST | Element.STOPPER
    assert not bench.kind("beam_off.escalated") and bench.ring.fault == 0


@pytest.mark.parametrize("relay", ["permit_b", "permit_r"])
def test_a_relay_alone_leaves_the_stopper_out_and_the_ring_full(relay):
    bench = beam()
    at_ns = bench.now
    getattr(bench.chain, relay).set(False)
    bench.run(1.5)
    assert off_after_ns(bench, at_ns) <= 200 * US
    assert bench.chain.beam_off.confirmed == FAST and not bench.chain.beam_off.stopper.asked_in
    assert bench.ring.ions_left > 0 and bench.chain.beam_off.level is Level.NONE


def test_rf_ko_that_stays_on_leaves_it_to_the_chopper():
    bench = beam(rfko_stuck_on=True)
    at_ns = open_(bench, "dose2")
    bench.run(0.002)
    elements = bench.chain.beam_off
    assert off_after_ns(bench, at_ns) <= 300 * US
    assert elements.level is Level.CHOPPER and elements.confirmed & FAST == Element.CHOPPER
    assert elements.residual_counts == 0 and bench.ring.fault == 0


def test_a_chopper_that_does_not_fire_dumps_the_ring_although_rf_ko_worked():
    bench = beam(chopper_stuck=True)
    at_ns = open_(bench, "dose2")
    bench.run(0.002)
    elements = bench.chain.beam_off
    assert off_after_ns(bench, at_ns) <= 300 * US
    assert elements.level is Level.DUMP and not bench.chain.beam_off_ok.value
    assert Element.DUMP in elements.confirmed and bench.ring.ions_left == 0
    assert elements.residual_counts == 0


@pytest.mark.parametrize("element", ["dose1", "dose2", "quench", "standstill"])
@pytest.mark.parametrize(("lies", "limit_us", "counts"), [(False, 850, 0), (True, 1350, 2_000)])
def test_beam_that_goes_on_is_ended_by_the_dump(element, lies, limit_us, counts):
    """After 500 us by what the elements say of themselves; what they say is not believed when beam is measured after 1 ms."""
    bench = beam(rfko_stuck_on=True, chopper_stuck=True, chopper_reading_lies=lies)
    at_ns = open_(bench, element)
    bench.run(1.5)
    elements = bench.chain.beam_off
    assert (limit_us - 300) * US < off_after_ns(bench, at_ns) <= (limit_us + 100) * US
    assert elements.level is Level.DUMP and bench.ring.ions_left == 0
    assert (0 < elements.residual_counts < counts) if counts else elements.residual_counts == 0
    assert elements.stopper.inside
    seen = elements.residual_counts
    bench.run(1.0)
    assert elements.residual_counts == seen and not bench.unit.delivering


def test_with_no_dump_the_stopper_ends_the_beam():
    """A dump that does nothing: what is left is the block in the beam, within a second."""
    bench = beam(rfko_stuck_on=True, chopper_stuck=True)
    bench.chain.beam_off.accelerator = None
    at_ns = open_(bench, "dose2")
    bench.run(1.5)
    assert 600 * MS <= off_after_ns(bench, at_ns) <= 1000 * MS
    assert bench.chain.beam_off.residual_counts > 10_000


def test_a_stopper_that_does_not_come_in_dumps_the_ring_and_stops_the_source():
    bench = beam(stopper_stuck=True)
    open_(bench, "dose2")
    bench.run(0.9)
    assert bench.chain.beam_off.level is Level.NONE
    bench.run(0.2)
    elements = bench.chain.beam_off
    assert elements.level is Level.SOURCE and not elements.stopper.inside and not bench.chain.beam_off_ok.value
    assert bench.ring.ions_left == 0
    bench.ring.off()
    bench.ring.start_cycle(300_000)
    bench.run(10.0)
    assert bench.ring.ions_left == 0 and bench.ring.fault != 0  # no new fill until it was repaired and reset


def test_a_stuck_stopper_of_a_room_without_the_path_leaves_the_ring_to_the_others():
    bench = beam()
    other = bench.plant.rooms["G2"].chain
    for line in other.elements.values():
        line.set(True)
    bench.run(0.02)
    other.beam_off.stopper.stuck = True
    other.elements["door"].set(False)
    bench.run(1.2)
    assert other.beam_off.level is Level.SOURCE and not other.beam_off_ok.value
    assert bench.unit.delivering and bench.chain.beam_off.level is Level.NONE


@pytest.mark.parametrize("element", ["estop", "door", "search"])
def test_a_person_in_danger_dumps_the_ring(element):
    bench = beam()
    at_ns = open_(bench, element)
    bench.run(0.01)
    assert off_after_ns(bench, at_ns) <= 300 * US
    assert bench.ring.ions_left == 0 and bench.ring.fault == 0 and bench.chain.beam_off.level is Level.NONE


def test_a_unit_whose_beam_does_not_end_is_helped_by_the_chain():
    """Nothing of the chain has fallen: the unit wants its beam to end, for a hold, and it goes on."""
    bench = beam(rfko_stuck_on=True, chopper_stuck=True)
    at_ns = bench.now
    bench.unit.set_controller_gate(False)
    bench.run(0.01)
    assert 500 * US < off_after_ns(bench, at_ns) <= 850 * US
    assert bench.chain.beam_off.level is Level.DUMP and not bench.chain.permit_a.value


@pytest.mark.parametrize("fault", ["chopper_stuck", "stopper_stuck"])
def test_the_chain_stays_open_until_it_is_repaired_and_reset_at_the_cabinet(fault):
    bench = beam(**{fault: True})
    open_(bench, "standstill")
    bench.run(1.2)
    elements = bench.chain.beam_off
    bench.chain.standstill_ok.set(True)
    bench.run(0.1)
    assert not bench.chain.permit_a.value and not elements.reset()
    bench.ring.faults.chopper_stuck = False
    elements.stopper.repair()
    bench.run(0.7)
    assert not bench.chain.permit_a.value  # repaired is not reset
    assert elements.reset()
    bench.run(0.1)
    assert bench.chain.permit_a.value and elements.level is Level.NONE and not elements.stopper.asked_in
    bench.ring.off()
    bench.ring.start_cycle(300_000)
    bench.run(5.0)
    assert bench.ring.ions_left > 0
