"""A reset that clears a part of what stands: what is gone, what stays, why, and who can reset that; told and kept."""

import asyncio

from served import serving

from controller.standby import _tell


def test_a_reset_that_leaves_rows_says_what_and_why(state, virtually):
    async def main():
        async with serving(state) as room:
            printed = []
            room.bus.subscribe(lambda event: _tell(event, printed.append))
            operator = room.console()
            await operator.control()
            script = room.world.simulated.operator.script
            await script.press_estop()
            await room.until(lambda: len(room.room.view().interlocks.trips) >= 2, 10, "emergency stop beside what stood before")
            before = {trip.id for trip in room.room.view().interlocks.trips}
            value = await operator.do("reset_interlock")
            left = {trip.id for trip in room.room.view().interlocks.trips}
            assert "ESTOP" in left and before - left, "a part of it"

            told = value["told"]
            gone = told.partition(";")[0].removeprefix("cleared ").split(", ")
            assert set(gone) == before - left
            assert "still there: " in told
            assert "ESTOP (its cause is still there; reset by: the key switch)" in told
            await asyncio.sleep(0.5)  # outcomes are written together, a moment later
            entries = await room.room.ask("audit", {"name": "reset_interlock"})
            assert [entry["reason"] for entry in entries if entry["kind"] == "command.done"] == [told]

            assert not room.said_of("listener.removed"), "whoever prints goes on printing"
            line = next(line for line in printed if "interlock.reset" in line)
            assert all(name in line for name in gone)
            assert "still there: ESTOP (its cause is still there)" in line
            await script.reset_estop()
            value = await operator.do("reset_interlock")
            assert value["told"].startswith("cleared ESTOP"), value["told"]
            assert "ESTOP" in [line for line in printed if "interlock.reset" in line][-1]

    virtually(main())
