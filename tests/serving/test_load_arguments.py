"""What is asked for when a plan is loaded is looked at before a directory is named after it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from controller.serving.arguments import EDITS, LOADS, checked, objections
from drivers.hal.errors import CommandRejected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fraction": 10**400}, "from 1 to 99"),
        ({"fraction": 0}, "from 1 to 99"),
        ({"fraction": True}, "from 1 to 99"),
        ({"fraction": "1"}, "from 1 to 99"),
        ({"beams": []}, "empty list"),
        ({"beams": [1, 1]}, "twice"),
        ({"beams": [True]}, "a list of beam numbers"),
        ({"beams": 3}, "a list of beam numbers"),
        ({"remainder": 1}, "remainder: true or false"),
        ({"remainder": None}, "remainder: true or false"),
        ({"fraction": None}, "from 1 to 99"),
        ({"fractoin": 2}, "unknown: fractoin"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(arguments, words):
    called = []
    with pytest.raises(CommandRejected, match=words) as refused:
        checked("G1", LOADS, called.append)(SimpleNamespace(arguments={"plan_id": "a", **arguments}))
    assert refused.value.code == 4454
    assert not called


@pytest.mark.parametrize("arguments", [{}, {"fraction": 99}, {"beams": [2, 1]}, {"beams": None}, {"remainder": True}])
def test_what_can_be_meant_goes_on(arguments):
    assert objections({"plan_id": "a", **arguments}, LOADS) == []


def test_an_edit_names_what_it_edits_and_stays_within_the_same_bounds():
    assert objections({"what": "beams", "beams": [1]}, EDITS) == []
    assert objections({"what": "setup", "text": "another cushion"}, EDITS) == []
    assert objections({"what": "fraction", "fraction": 10**400}, EDITS)
