"""What a question says of a beam beside what the room knows of it: whose it is, and what is still to be given of its meterset.

The room's session knows the plan's beam and nothing of earlier sessions. Whoever asks a person, at a terminal or at a console,
asks with these facts. A view of the results as they come in, never a participant. Not responsible for the words
(`controller.console.question_words`), nor for the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from controller.request import Earlier
from drivers.hal.events import Event

if TYPE_CHECKING:
    from controller.intake import Intake
    from controller.room.ports import OperatorPort

About = Callable[[int], Mapping[str, Any]]


class WhatIsLeft:
    """Of the beams of one session of a fraction.

    Args:
        intake: what is treated; its schedules hold what earlier sessions left.
        fraction: its number.
        earlier: what they gave.
    """

    def __init__(self, intake: Intake, fraction: int, earlier: Earlier) -> None:
        self._plan = intake.plan
        self._fraction = fraction
        self._begun = frozenset(earlier.before)
        self._to_give = {
            beam.number: sum(float(p.meterset.sum()) for p in schedule.passes)
            for beam, schedule in zip(intake.beams, intake.schedules, strict=True)
        }
        self._given = dict.fromkeys(self._to_give, 0.0)

    def take(self, event: Event) -> None:
        """Fold one event in: the results of a pass."""
        if event.kind == "pass.ended" and (number := int(event.data["beam_number"])) in self._given:
            self._given[number] += float(event.data["meterset"])

    def about(self, number: int) -> dict[str, Any]:
        """Facts of a beam: `patient_name` and `fraction`; of one that was begun `meterset` (what is left, in the plan's unit)
        and `remainder`, the same in words beside the whole.
        """
        found: dict[str, Any] = {"patient_name": self._plan.patient.name, "fraction": self._fraction}
        beam = next((beam for beam in self._plan.beams if beam.number == number), None)
        given = self._given.get(number, 0.0)
        if beam is None or number not in self._to_give or (number not in self._begun and not given):
            return found
        left = max(0.0, self._to_give[number] - given)
        words = f"what is left of fraction {self._fraction}: {left:.2f} of {beam.meterset:.2f} {beam.meterset_unit}"
        return {**found, "meterset": left, "remainder": words}


class LiveFacts(Mapping[str, Any]):
    """The facts of a question as they stand when they are read: results of a pass that was cut come after the question.

    Args:
        asked: by the room.
        about: what is known of a beam beside; replaces what the room said of the same name.
    """

    def __init__(self, asked: Mapping[str, Any], about: About) -> None:
        self._asked = dict(asked)
        self._about = about

    def now(self) -> dict[str, Any]:
        """All of them, in the order in which they are shown."""
        known = dict(self._about(int(self._asked.get("beam_number", 0))))
        name = known.pop("patient_name", "")
        facts: dict[str, Any] = {}
        for key, value in self._asked.items():
            facts[key] = known.pop(key, value)
            if key == "patient_id":
                facts["patient_name"] = name  # beside the ID: both are compared
        return facts | known

    def __getitem__(self, name: str) -> Any:
        return self.now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.now())

    def __len__(self) -> int:
        return len(self.now())


class Informed:
    """An `OperatorPort` that hands another one every question with what is known of its beam."""

    def __init__(self, operator: OperatorPort, about: About) -> None:
        self._operator = operator
        self._about = about

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Ask there. Raises what that operator raises."""
        return await self._operator.confirm(kind, LiveFacts(facts, self._about))
