"""The checklist tells the age of a self-test, and says so where there never was one."""

from __future__ import annotations

import pytest

from controller.room.proofs import _age_words


@pytest.mark.parametrize(("age_s", "words"), [(2147483647, "never"), (-1, "never"), (0, "0 s old"), (90_000, "90000 s old")])
def test_an_age_that_the_wire_cannot_carry_is_never(age_s, words):
    assert _age_words(age_s) == words
