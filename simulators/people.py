"""The scripted operator of simulated worlds: presses the plant's buttons, walks, lays patients down, answers prompts.

It acts on the plant as a person does and takes the time a person takes; it knows nothing of controller or wires. Never used
where anything is real (a real room has real people). Not responsible for what a button does (`plant.access`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from simulators.plant.access import SearchState
from simulators.plant.room import RoomPlant

Hook = Callable[["ScriptedOperator"], Awaitable[None]]


class OperatorFailed(RuntimeError):
    """The operator could not do what was asked; says why."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long people take, s; all assumed.

    Attributes:
        button_s: walk to a search button and press it (three of them: 30 s).
        walk_out_s: from the last button to outside the door.
        door_s: open or close the door.
        walk_in_s: from outside to the couch.
        patient_s: lay a patient down and immobilise.
        prompt_s: read a prompt and answer.
        estop_s: reach an E-stop button.
    """

    button_s: float = 10.0
    walk_out_s: float = 6.0
    door_s: float = 4.0
    walk_in_s: float = 8.0
    patient_s: float = 120.0
    prompt_s: float = 2.0
    estop_s: float = 0.8


class ScriptedOperator:
    """One member of staff in one room.

    Args:
        room: the room of the plant.
        sync: advances the plant to now; called before each deed, and after it so that what it set going is seen.
        name: of the person.
        pace: how long things take.
        answers: answer to each kind of prompt; any other prompt is answered yes.

    Attributes:
        overlooks: people who are not seen in a search; everybody else who is found is sent out.

    Hooks (`hook`) run at the moments ``"before search"``, ``"searched"``, ``"secured"``, ``"entered"``: a scenario may forget
    a person inside, press an E-stop, or come back through the door.
    """

    def __init__(
        self,
        room: RoomPlant,
        sync: Callable[[], None],
        *,
        name: str = "operator",
        pace: Pace | None = None,
        answers: Mapping[str, bool] | None = None,
    ) -> None:
        self.room = room
        self.name = name
        self.pace = pace or Pace()
        self.overlooks: set[str] = set()
        self._sync = sync
        self._answers = dict(answers or {})
        self._hooks: dict[str, list[Hook]] = {}

    @property
    def inside(self) -> bool:
        """Whether this person is in the room."""
        return self.name in self.room.access.people_inside

    @property
    def secured(self) -> bool:
        """Whether the room is secured."""
        return self.room.access.state is SearchState.SECURED

    def hook(self, moment: str, action: Hook) -> None:
        """Do something at a moment."""
        self._hooks.setdefault(moment, []).append(action)

    async def enter_room(self) -> None:
        """Open the door and walk in; a search is void from the moment the door opens."""
        if self.inside:
            return
        await self._after(self.pace.door_s, self.room.access.open_door)
        await self._after(self.pace.walk_in_s, lambda: self.room.access.enter(self.name))
        await self._moment("entered")

    async def secure_room(self) -> None:
        """Search, send out whoever is found, leave, close the door and wait for the warning to end.

        Raises:
            OperatorFailed: the room is not secured afterwards (a contact, an E-stop, someone came in).
        """
        if self.secured:
            return
        access = self.room.access
        await self.enter_room()
        await self._moment("before search")
        for button in access.truth.search_buttons:
            await self._after(self.pace.button_s, partial(access.press_search, button))
        found = [person for person in access.people_inside if person not in self.overlooks and person != self.name]
        await self._moment("searched")
        await self._after(self.pace.walk_out_s, partial(self._leave, found))
        await self._after(self.pace.door_s, access.close_door)
        # The warning, and a moment for the second door contact.
        await self._after(access.truth.warning_s + access.truth.door_contact_b_delay_s + 0.1, lambda: None)
        if not self.secured:
            raise OperatorFailed(
                f"{self.room.name} is not secured after the search: door contacts {access.contact_a}/{access.contact_b}, "
                f"inside {', '.join(access.people_inside) or 'nobody'}, search {access.state.name.lower()}"
            )
        await self._moment("secured")

    async def lay_patient(self, planned_couch: Sequence[float] | None = None) -> None:
        """Bring the patient in and immobilise, indexed for the planned couch position (six values, mm and deg) if known."""
        await self.enter_room()
        await self._after(self.pace.patient_s, lambda: self.room.patient.lie_down(planned_couch))

    async def fetch_patient(self) -> None:
        """Go in and help the patient up."""
        await self.enter_room()
        await self._after(self.pace.patient_s / 2.0, self.room.patient.get_up)

    async def press_estop(self, button: str | None = None) -> None:
        """Press an E-stop (default: the one at the console)."""
        which = button or self.room.access.truth.estop_buttons[0]
        await self._after(self.pace.estop_s, lambda: self.room.access.press_estop(which))

    async def reset_estop(self) -> None:
        """Pull every button out and turn the local reset."""
        access = self.room.access

        def reset() -> None:
            for button in access.truth.estop_buttons:
                access.release_estop(button)
            access.reset_estop()

        await self._after(self.pace.walk_out_s, reset)

    async def turn_key(self, service: bool) -> None:
        """Turn the mode key."""
        await self._after(self.pace.prompt_s, lambda: self.room.access.turn_key(service))

    async def answer(self, prompt: str) -> bool:
        """Answer a prompt of this kind."""
        await asyncio.sleep(self.pace.prompt_s)
        return self._answers.get(prompt, True)

    def _leave(self, found: Sequence[str]) -> None:
        """Walk out, and send those out first who were found in the search."""
        access = self.room.access
        for person in (*found, self.name):
            if person in access.people_inside:
                access.leave(person)

    async def _after(self, delay_s: float, deed: Callable[[], None]) -> None:
        await asyncio.sleep(delay_s)
        self._sync()
        deed()
        self._sync()

    async def _moment(self, moment: str) -> None:
        for action in tuple(self._hooks.get(moment, ())):
            await action(self)
