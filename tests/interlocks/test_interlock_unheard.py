"""An interlock system that does not answer: an alarm, and known before anything is sent to it; gone when it answers again."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from iongantry_process import until as wait_until
from safety_line import SafetyLine

from controller.bodies import PanelButtons
from controller.console.alarms import AlarmList
from controller.interlock_socket import answers_now
from controller.interlock_standing import MISSED_NS, NO_SOCKET, SILENT, StandingWatch
from controller.surroundings import Unheard
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommandRejected
from drivers.hal.events import EventBus

ROOT = Path(__file__).parents[2]


async def until(true, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.01)


@pytest.mark.xdist_group("wires")
async def test_a_daemon_that_stands_still_is_an_alarm_until_it_goes_on_and_is_known_before_a_press(tmp_path):
    line, buttons = SafetyLine(), tmp_path / "buttons"
    command = [sys.executable, "-S", "-P", "-m", "interlocks.daemon", "--unsigned", "--port", str(line.port)]
    command += ["--buttons", str(buttons), "--journal", str(tmp_path / "journal.jsonl")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})  # noqa: ASYNC220 - it is not waited for
    bus, alarms, told = EventBus(), AlarmList(), []
    bus.subscribe(alarms.take)
    bus.subscribe(lambda event: told.append(event.kind))
    watch = StandingWatch(str(buttons), "G1", bus)
    try:
        await asyncio.to_thread(wait_until, buttons.exists, 20.0, "the socket of the buttons")
        watch.start()
        await until(lambda: not isinstance(watch.standing(), str))
        assert await watch.unheard() == "" and alarms.view(now_ns()) == []

        process.send_signal(signal.SIGSTOP)
        began_ns = now_ns()
        words = await watch.unheard()
        assert words.startswith(SILENT) and "no answer within 1 s" in words
        await until(lambda: alarms.view(now_ns()) != [])
        assert MISSED_NS <= now_ns() - began_ns + NS_PER_S <= MISSED_NS + 4 * NS_PER_S
        (alarm,) = alarms.view(now_ns())
        assert (alarm.severity, alarm.active) == ("high", True) and "the interlock system does not answer" in alarm.text
        assert isinstance(watch.standing(), Unheard)

        process.send_signal(signal.SIGCONT)
        await until(lambda: alarms.view(now_ns())[0].active is False)
        assert await watch.unheard() == ""
        assert [kind for kind in told if kind.startswith("interlock.")] == ["interlock.silent", "interlock.heard"], "once each"
    finally:
        await watch.stop()
        process.kill()
        process.wait()
        line.close()


async def test_an_answer_to_an_earlier_question_is_none_to_this_one(tmp_path):
    path, loop = str(tmp_path / "b"), asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
        teller.bind(path)
        teller.setblocking(False)

        def stale() -> None:
            _question, sender = teller.recvfrom(4096)
            teller.sendto(b"status now-0 {}", sender)

        loop.add_reader(teller, stale)
        assert await answers_now(path, 1.0) == "its answer is not understood"
        loop.remove_reader(teller)
    assert "refused" in (await answers_now(path, 1.0)).lower()


async def test_where_no_socket_is_named_nothing_is_alarmed():
    bus, told = EventBus(), []
    bus.subscribe(told.append)
    watch = StandingWatch("", "G1", bus)
    watch.start()
    assert watch.standing() == NO_SOCKET and not isinstance(watch.standing(), Unheard)
    await asyncio.sleep(0)
    assert told == []
    await watch.stop()


async def test_a_button_that_was_not_taken_is_told_with_the_interlock_systems_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("controller.bodies.BUTTON_S", 0.01)
    monkeypatch.setattr("controller.bodies.ANSWER_S", 0.2)
    path, loop, heard, answers = (
        str(tmp_path / "b"),
        asyncio.get_running_loop(),
        [],
        [b"", b"", b"press key not taken: it waited"],
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
        teller.bind(path)
        teller.setblocking(False)

        def tell() -> None:
            message, sender = teller.recvfrom(4096)
            heard.append(message)
            if answers:
                teller.sendto(answers.pop(0), sender)

        loop.add_reader(teller, tell)
        buttons = PanelButtons(path)
        await buttons.press("operator")
        assert heard == [b"press operator", b"release operator"], "what is answered with nothing was taken"
        with pytest.raises(CommandRejected, match="did not take the button: it waited"):
            await buttons.press("key")
        with pytest.raises(CommandRejected, match="not known whether it was taken"):
            await buttons.press("key")
        loop.remove_reader(teller)
    with pytest.raises(CommandRejected, match="does not take 'press'"):
        await buttons.press("key")
    with pytest.raises(CommandRejected, match="no socket"):
        await PanelButtons("").press("key")
