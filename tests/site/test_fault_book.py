"""Faults of a running plant: each strikes once, at its time, where it was asked for; what cannot strike ends no plant."""

import dataclasses

import pytest

from simulators.faults import CATALOGUE, parse_fault
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.refusal import Refusal
from simulators.site_faults import FaultBook, tried

S = 1_000_000_000


@pytest.fixture
def plant():
    return FacilityPlant.shipped(Kernel(2), "asan")


@pytest.fixture
def told():
    return []


@pytest.fixture
def book(plant, told):
    return FaultBook(plant, lambda: None, told.append)


def test_the_same_fault_may_act_in_two_rooms_and_is_cleared_in_one(plant, book):
    for room in ("G1", "G2"):
        assert book.plant(parse_fault("mu1-dead"), room)["state"] == "acting"
    assert book.clear("mu1-dead", "G1")["state"] == "over"
    assert (plant.rooms["G1"].unit.monitor.dead, plant.rooms["G2"].unit.monitor.dead) == (False, True)
    assert [(view["name"], view["room"]) for view in book.views()] == [("mu1-dead", "G2")]


def test_a_fault_cleared_while_it_waits_never_strikes(plant, book, told):
    book.plant(parse_fault("mu1-dead@t=5"), "G1")
    plant.kernel.advance_to(4 * S)
    book.clear("mu1-dead", "G1")
    plant.kernel.advance_to(10 * S)
    assert not plant.rooms["G1"].unit.monitor.dead
    assert told == ["fault mu1-dead in G1: cleared"]
    book.plant(parse_fault("mu1-dead@t=12"), "G1")
    plant.kernel.advance_to(13 * S)
    assert plant.rooms["G1"].unit.monitor.dead
    assert book.views()[0]["struck_ns"] == 12 * S


def test_what_was_one_event_may_happen_again(book, plant):
    for _ in range(2):
        book.plant(parse_fault("stray-counts:5"), "G1")
    assert plant.rooms["G1"].unit.memory.total1 == 10
    assert [view["state"] for view in book.views()] == ["over", "over"]


def test_a_fault_that_cannot_strike_when_its_time_comes_is_told_and_ends_nothing(plant, book, told):
    def refuses(_plant, _room, _value):
        raise ValueError("the drive is in bits")

    timed = parse_fault("mu1-dead@t=1")
    book.plant(dataclasses.replace(timed, fault=dataclasses.replace(timed.fault, plant=refuses)), "G1")
    plant.kernel.advance_to(2 * S)
    assert "cannot be planted now: the drive is in bits" in told[0]
    assert book.views()[0]["state"] == "over"
    assert plant.kernel.now_ns == 2 * S


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_fault_of_the_catalogue_is_tried_on_a_spare_plant(plant, name):
    assert tried("asan", "G1", name).fault.name == name
    assert not plant.rooms["G1"].unit.monitor.dead


@pytest.mark.parametrize("name", ["brake-slow", "load-encoder-frozen", "gantry-creeps"])
def test_a_fixed_room_has_no_ring_to_break(name):
    with pytest.raises(Refusal, match="no ring"):
        tried("asan", "F1", name)


def test_nothing_is_cleared_that_was_not_planted(book):
    for name, words, status in (("nonsense", "unknown", 404), ("mu1-dead", "not planted", 404), ("estop", "not planted", 404)):
        with pytest.raises(Refusal, match=words) as refused:
            book.clear(name, "G1")
        assert refused.value.status == status
    with pytest.raises(Refusal, match="cannot be cleared") as refused:
        book.clear("drive-fault", "G1")
    assert refused.value.status == 409
