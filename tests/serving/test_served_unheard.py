"""A room whose interlock system stands still: nothing is pressed that would be obeyed later, and the room says so itself."""

import asyncio

from served import serving

from controller.interlock_standing import SILENT
from controller.surroundings import Hearing


def test_nothing_is_pressed_where_nobody_hears_it(state, virtually):
    async def main():
        async with serving(state) as room:
            assert not isinstance(room.world, Hearing), "in a world of one process nobody has to be asked"
            operator, pressed = room.console(), []
            await operator.control()
            press, book = room.world.bodies.press, room.room.interlocks
            standing = book._told
            assert room.room.view().interlocks.trips, "it starts tripped"

            async def noted(role):
                pressed.append(role)
                await press(role)

            async def silent():
                return f"{SILENT}: no answer within 1 s"

            room.world.bodies.press, room.world.unheard = noted, silent
            book._told = lambda: SILENT
            words = await operator.refused("reset_interlock")
            assert "does not answer" in words and "nothing was pressed" in words and "ask again" in words
            assert pressed == [], "and nothing waits to be obeyed"

            view = room.room.view()
            line = next(item for item in view.checklist if item.name == "permit_b")
            assert not line.done and line.detail == SILENT
            assert view.interlocks.silent and view.interlocks.rest_unknown == SILENT

            async def heard():
                return ""

            room.world.unheard, book._told = heard, standing
            assert not room.room.view().interlocks.silent
            await operator.do("reset_interlock")
            assert pressed

    virtually(main())


def test_no_bypass_is_handed_to_who_does_not_hear_it(state, virtually):
    async def main():
        async with serving(state) as room:
            sven, petra = room.service(), room.physicist()
            sven.token = (await sven.do("enter_service", mode="physics"))["token"]
            sven.beat()
            await asyncio.sleep(0.2)  # the interlock system has seen the key
            await sven.do("request_bypass", interlock="VACUUM", reason="probe is exchanged", duration_s=60)

            async def silent():
                return SILENT

            room.world.unheard = silent
            words = await petra.refused("approve_bypass", interlock="VACUUM")
            assert "does not answer" in words and "the bypass was not begun" in words
            del room.world.unheard
            await petra.do("approve_bypass", interlock="VACUUM")

    virtually(main())
