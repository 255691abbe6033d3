"""The motion permit is asked before each motion: refused with the row in words; what stopped without a row asks a person."""

from dataclasses import dataclass, field

import pytest

from controller.room.motion_permit import AGAIN, MOTION_WITHHELD, move_permitted, require_motion_permit
from drivers.hal.capabilities import InterlockStatus
from drivers.hal.errors import CommandRejected, DeviceError

STOPPED = DeviceError("stopped on the way", code=3313, device="G1-gantry")


@dataclass
class View:
    """The status line; each look takes the next of `then`, the last one stays."""

    then: list = field(default_factory=lambda: [(True, 0)])

    async def refresh(self):
        permitted, code = self.then.pop(0) if len(self.then) > 1 else self.then[0]
        known = ("COLLISION: the contact is open", "See that nobody is caught.") if code == 65 else ("", "")
        return InterlockStatus(1, False, 1, code, 1, 0, 0, 0xFFFF, permitted, code, *known)


@dataclass
class Motion:
    outcomes: list
    begun: int = 0

    async def __call__(self):
        self.begun += 1
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome


@pytest.mark.parametrize(
    ("code", "words", "hint"),
    [
        (65, "by COLLISION: the contact is open", "See that nobody is caught."),
        (999, "the row of first-out code 999", "iongantry explain-trip 999"),
        (0, "does not run, hangs, or is cut off", "see that the interlock system of this room runs"),
    ],
)
async def test_a_withheld_motion_is_refused_with_row_and_advice_and_nothing_is_asked_to_move(code, words, hint):
    motion = Motion([None])
    with pytest.raises(CommandRejected, match=words) as refused:
        await move_permitted(View([(False, code)]), "G1", motion)
    assert refused.value.code == MOTION_WITHHELD
    assert refused.value.device == "G1-interlock"
    assert hint in refused.value.hint
    assert motion.begun == 0


@pytest.mark.parametrize("view", [None, View([(None, 0)]), View()])
async def test_a_room_without_a_motion_relay_and_one_with_a_permit_move(view):
    motion = Motion([None])
    await move_permitted(view, "G1", motion)
    await require_motion_permit(view, "G1")
    assert motion.begun == 1


async def test_a_row_that_stopped_a_motion_is_named_and_it_is_not_begun_again():
    motion = Motion([STOPPED])
    with pytest.raises(DeviceError, match="stopped on the way; the motion permit is withheld by COLLISION") as stopped:
        await move_permitted(View([(True, 0), (False, 65)]), "G1", motion, Person(True))
    assert (stopped.value.code, stopped.value.device) == (3313, "G1-gantry")
    assert stopped.value.hint == "See that nobody is caught."
    assert motion.begun == 1


class Person:
    """Answers yes or no, and remembers what was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def __call__(self, facts):
        self.asked.append(facts)
        return self.answers.pop(0)


async def test_a_motion_that_stopped_without_a_row_goes_on_only_when_a_person_says_so():
    motion, person = Motion([STOPPED, None]), Person(True)
    await move_permitted(View(), "G1", motion, person)
    assert motion.begun == 2
    assert person.asked == [{"device": "G1-gantry", "stopped": "stopped on the way"}]
    for person in (Person(False), None):
        motion = Motion([STOPPED, None])
        with pytest.raises(DeviceError, match="stopped on the way"):
            await move_permitted(View(), "G1", motion, person)
        assert motion.begun == 1


async def test_what_stops_again_and_again_ends_the_motion_whatever_a_person_says():
    motion, person = Motion([STOPPED] * (AGAIN + 1)), Person(*[True] * (AGAIN + 1))
    with pytest.raises(DeviceError, match="stopped on the way"):
        await move_permitted(View(), "G1", motion, person)
    assert motion.begun == AGAIN + 1


@pytest.mark.parametrize("view", [View(), None])
async def test_any_other_fault_is_none_to_begin_again_after(view):
    motion = Motion([DeviceError("a drive is in fault", code=3301, device="G1-gantry")])
    with pytest.raises(DeviceError, match="in fault"):
        await move_permitted(view, "G1", motion, Person(True))
    assert motion.begun == 1


class Stalled:
    """A stall was first; the relay's own row followed and withholds motion."""

    def __init__(self, *words):
        self.words = words

    async def refresh(self):
        row = "RELAY_WELDED: the relay does not follow"
        return InterlockStatus(1, False, 2, 21, 1, 0, 0, 0xFFFF, False, 65, row, "Replace the relay.", *self.words)


async def test_where_several_rows_stand_the_first_out_is_the_reason_and_its_advice_the_hint():
    with pytest.raises(CommandRejected) as refused:
        await require_motion_permit(Stalled("PLANT_STALE: the plant stood still", "Look for the stall."), "G1")
    assert refused.value.message.startswith("PLANT_STALE: the plant stood still tripped first; ")
    assert "withheld by RELAY_WELDED" in refused.value.message
    assert refused.value.hint == "Look for the stall."


async def test_a_first_out_without_words_is_told_by_its_code():
    with pytest.raises(CommandRejected, match="the row of first-out code 21 tripped first; ") as refused:
        await require_motion_permit(Stalled(), "G1")
    assert "explain-trip 21" in refused.value.hint
