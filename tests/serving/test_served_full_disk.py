"""A disk that is full when beam is asked for: nothing is given, the room names the disk, and goes on when a write succeeds."""

import asyncio
import errno

import pytest
from served import serving

from controller.record.store import DiskStore


@pytest.fixture
def disk(monkeypatch):
    """Switches of the disk: what is written, and whether it takes it."""
    full = {"on": False}
    opened = DiskStore.open

    def opening(self, path, *, empty=False):
        file = opened(self, path, empty=empty)

        class Checked:
            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                if full["on"] and path.name != "audit.bin":  # the command fits into the last page that was there
                    raise OSError(errno.ENOSPC, "No space left on device")
                return file.write(data)

        return Checked()

    monkeypatch.setattr(DiskStore, "open", opening)
    return full


def alarms_of(room, kind):
    return [alarm for alarm in room.room.view().alarms if alarm.id.startswith(kind)]


def test_nothing_is_given_the_disk_is_named_and_the_next_session_is_recorded_before_it_begins(made, state, virtually, disk):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made())
            await room.to_armed(operator, plan)
            disk["on"] = True
            await operator.answer()
            ended = await room.ended()
            assert ended.status == "partial" and "No space left on device" in ended.reason
            await asyncio.sleep(5.0)
            view = room.room.view()
            assert view.state == "standby" and "No space left" in view.why, view.why
            said = " ".join([view.why, *(alarm.text for alarm in view.alarms)])
            assert "restarted" not in said, "it need not be"
            assert "this session gets no more beam" in said and "the next begins only when recorded" in said
            (alarm,) = alarms_of(room, "disk.refuses")
            assert (alarm.severity, alarm.active) == ("high", True) and "free space" in alarm.text

            words = await operator.refused("load_plan", plan_id=plan, fraction=1)
            assert "the disk refuses what has to be durable" in words and "No space left" in words
            assert words.count("free space") == 1, words

            disk["on"] = False
            await room.until(lambda: not alarms_of(room, "disk.refuses")[0].active, 10.0, "a write that succeeds")
            await room.physicist().do("acknowledge_alarm", id=alarm.id)
            assert not alarms_of(room, "disk.refuses"), "returned and acknowledged"
            await room.treat(operator, plan)
            assert room.room.treating.loaded.status == "complete"
            assert not list(state.rglob(".disk-probe"))

    virtually(main())


def test_a_command_that_the_disk_refuses_is_an_alarm_too(state, virtually, disk, monkeypatch):
    async def main():
        async with serving(state) as room:
            operator = room.console()

            def refuse(_kind, _data):
                raise OSError(errno.ENOSPC, "No space left on device")

            journal = room.room.audit._journal
            monkeypatch.setattr(journal._log._file, "write", lambda _data: refuse(0, 0))
            assert "could not be journalled" in await operator.refused("take_control")
            assert alarms_of(room, "disk.refuses")[0].active
            await room.until(lambda: not alarms_of(room, "disk.refuses")[0].active, 10.0, "a write that succeeds")

    virtually(main())
