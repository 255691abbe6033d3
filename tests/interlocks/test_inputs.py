"""What is read is what docs/wires.md says, and what cannot be believed says so."""

import pytest
from safety_room import BITS, MS, NUMBERS, SAFE, image_of

from interlocks.inputs import IMAGE_SIZE, SIGNALS, WIRE_SIZE, ImageReader, gather
from interlocks.permit import PermitPulse


def test_every_signal_is_decoded_from_its_own_registers():
    assert SIGNALS.keys() == BITS.keys() | NUMBERS.keys()
    for name in SAFE:
        other = {**SAFE, name: 1 - SAFE[name] if name in BITS else SAFE[name] + 1}
        before = ImageReader().decode(image_of(SAFE, 1), 0)
        after = ImageReader().decode(image_of(other, 1), 0)
        assert {n for n in SAFE if before[n].value != after[n].value} == {name}
        assert before[name].value == SAFE[name]
        assert after[name].value == other[name]
        assert after[name].good


@pytest.mark.parametrize("value", [0, -1, 1, -180_000, 180_000, -(1 << 31), (1 << 31) - 1])
def test_signed_numbers_of_two_words(value):
    sample = ImageReader().decode(image_of({**SAFE, "ring_angle_mdeg": value}, 1), 0)
    assert sample["ring_angle_mdeg"].value == value


def test_counts_have_64_bits():
    count = 0xFEDC_BA98_7654_3210
    assert ImageReader().decode(image_of({**SAFE, "counts2": count}, 1), 0)["counts2"].value == count


def test_age_is_that_of_the_counter():
    reader = ImageReader()
    reader.decode(image_of(SAFE, 5), 100)
    assert reader.decode(image_of(SAFE, 5), 200)["armed"].t_ns == 100
    assert reader.decode(image_of({**SAFE, "armed": 1}, 5), 300)["armed"] == (1, True, 100, 5)
    assert reader.decode(image_of(SAFE, 6), 400)["armed"].t_ns == 400


def test_the_counter_may_wrap_but_not_fall():
    reader = ImageReader()
    reader.decode(image_of(SAFE, 65_530), 0)
    assert reader.decode(image_of(SAFE, 3), 90 * MS)["armed"].good
    assert not reader.decode(image_of(SAFE, 2), 100 * MS)["armed"].good
    assert reader.decode(image_of(SAFE, 3), 110 * MS)["armed"].good


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: [],
        lambda image: image[:-1],
        lambda image: [*image, 0],
        lambda image: [0x1009, 0x52, *image[2:]],
        lambda image: [0, *image[1:]],
        lambda image: [*image[:20], 70_000, *image[21:]],
        lambda image: [*image[:20], -1, *image[21:]],
        lambda image: [*image[:20], None, *image[21:]],
    ],
)
def test_an_image_that_is_not_whole_or_not_of_this_node_is_of_bad_quality(spoil):
    reader = ImageReader()
    reader.decode(image_of(SAFE, 1), 100)
    samples = reader.decode(spoil(image_of(SAFE, 2)), 200)
    assert samples.keys() == SIGNALS.keys()
    assert not any(sample.good for sample in samples.values())
    assert not any(sample.good for sample in ImageReader().decode(spoil(image_of(SAFE, 2)), 200).values())


def test_the_image_is_gathered_block_by_block_and_a_short_answer_spoils_it():
    image, asked = image_of(SAFE, 9), []

    def read(first: int, count: int) -> list[int]:
        asked.append((first, count))
        return image[first : first + count]

    assert gather(read) == image[:WIRE_SIZE]
    assert len(image) == IMAGE_SIZE
    assert max(count for _, count in asked) <= 125
    assert gather(lambda first, count: read(first, count)[1:]) == []


def test_a_withheld_permit_repeats_the_number_and_a_given_one_changes_it_over_the_wrap():
    pulse = PermitPulse()
    pulse.follow(65_534)
    assert [pulse.next(permit) for permit in (False, True, True, False, True)] == [65_534, 65_535, 0, 0, 1]
