"""An interlock moves the room in one synchronous step: nothing is awaited between the trip and the dropped request."""

import asyncio
import inspect

import pytest
from room_fakes import World

from controller.room.causes import Cause, Severity
from controller.room.machine import Room
from controller.room.request_watch import RequestWatch
from controller.room.session import Session
from controller.room.states import IRRADIATING, TRIPS, State


class Line:
    """Remembers in which state of the room the request was dropped."""

    def __init__(self):
        self.room = None
        self.dropped_in = []

    def request_beam(self, on):
        if not on:
            self.dropped_in.append(self.room.state)


@pytest.mark.parametrize("severity", list(Severity))
@pytest.mark.parametrize("state", list(State))
def test_a_trip_from_every_state_drops_the_request_and_is_in_its_state_before_it_returns(state, severity):
    """Without any event loop: there is nothing that could be awaited."""
    line = Line()
    room = line.room = Room("G1", line)
    room._model.state = state.value
    room.trip(Cause("chain.quench", severity, "a test"))
    assert line.dropped_in[0] is state, "the request goes first, the state follows"
    assert room.state is TRIPS[state, severity]
    assert room.state not in IRRADIATING
    assert room.cause.name == "chain.quench"


def test_nothing_between_a_trip_and_the_request_can_be_awaited():
    for function in (
        Room.trip,
        Room.fire,
        Room._store,
        Room._settle,
        Room._drop_line,
        Session._act,
        RequestWatch._bitten,
        RequestWatch._fed,
    ):
        assert not inspect.iscoroutinefunction(function)


def test_what_looks_behind_a_cause_has_dropped_the_request_before_its_first_await():
    world = World()
    session = world.session

    async def main():
        async def away():
            await asyncio.sleep(10.0)

        world.access.r, world.access.refresh = True, away
        looking = session._look_behind()
        looking.send(None)  # up to the first await
        assert world.access.r is False
        looking.close()

    asyncio.run(main())
