"""Resets from a console that does not command the room: only for a role that is not there, and never unseen by who commands."""

import asyncio

from served import serving

from controller.roles import Role


def test_only_another_role_that_is_needed_presses_beside_who_commands_and_is_named_to_him(state, virtually):
    async def main():
        async with serving(state) as room:
            operator, beside, physicist = room.console(), room.console("console-7", "Omar"), room.physicist()
            await operator.control()
            pressed, press = [], room.world.bodies.press

            async def noted(role):
                pressed.append(role)
                await press(role)

            room.world.bodies.press = noted
            assert room.room.interlocks.roles() == {"key": ["POWER_UP"]}, "it starts tripped"
            words = await beside.refused("reset_interlock")
            assert "Olga (operator) commands this room from console-1" in words and "have it reset from console-1" in words
            words = await physicist.refused("reset_interlock")
            assert pressed == [] and not room.said_of("interlock.pressed")
            await operator.do("reset_interlock")
            assert pressed == ["key"] and not room.said_of("interlock.pressed"), "nobody is told of his own hand"

            book = room.room.interlocks
            book.roles = lambda: {"operator": ["DOOR"]}
            assert "Olga (operator) commands this room" in await beside.refused("reset_interlock"), "that role is there"
            del book.roles
            assert pressed == ["key"]

            plant = room.world.plant.rooms["G1"]
            plant.services.area_extra_usv_h = 100.0
            await room.until(lambda: "physicist" in room.room.interlocks.roles(), 10, "a row of the physicist's")
            plant.services.area_extra_usv_h = 0.0
            await asyncio.sleep(2.0)
            assert "AREA_MONITOR is reset by the role physicist" in await beside.refused("reset_interlock")
            del pressed[:]
            await physicist.do("reset_interlock")
            assert pressed == ["physicist"]
            (event,) = room.said_of("interlock.pressed")
            assert event.data == {
                "by": "Petra",
                "role": "physicist",
                "console": "console-2",
                "ids": ["AREA_MONITOR"],
                "commander": "Olga",
                "commands_from": "console-1",
            }
            assert event.seq < room.said_of("interlock.reset")[-1].seq, "told before anything changed"

    virtually(main())


def test_when_the_commanding_console_is_not_heard_anybody_of_the_role_resets(state, virtually):
    async def main():
        async with serving(state) as room:
            operator, beside = room.console(), room.console("console-7", "Omar")
            await operator.control()
            await operator.fall_silent()
            await asyncio.sleep(63.0)
            assert room.room.view().control.heard_ms > 62_000
            await beside.do("reset_interlock")
            await beside.control()
            assert room.room.view().control.actor == "Omar"

    virtually(main())


def test_a_refused_reset_is_said_in_grammatical_words(state, virtually):
    async def main():
        async with serving(state) as room:
            await room.until(room.room.interlocks.roles, 10, "it starts tripped")
            book, words = room.room.interlocks, []
            for ids in (["DOOR"], ["DOOR", "SEARCH", "PERMIT_A"]):
                book.roles = lambda ids=ids: {"operator": ids}
                words.append(await room.console("console-2", "physicist", Role.PHYSICIST).refused("reset_interlock"))
            assert "DOOR is reset by the role operator; who asks is signed in as physicist" in words[0]
            assert "DOOR, SEARCH and PERMIT_A are reset by the role operator; who asks" in words[1]

    virtually(main())
