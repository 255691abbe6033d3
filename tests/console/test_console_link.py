"""The line between a room and its consoles: nobody makes the room wait, nothing is obeyed late, half or twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import stat
import time

import pytest
from console_site import until
from standin_room import StandinRoom, served

from controller.commands import Answer
from controller.console import link as link_module
from controller.console.link import LINE_BYTES_MAX, LinkServer
from controller.console.outbox import Outbox
from controller.console.room_link import RoomLink
from drivers.hal.errors import CommunicationError, ConfigError, DataError


def command(name="take_control", sequence=1, **more):
    said = {"arguments": {}, "actor": "ann", "role": "operator", "console": "desk", "token": 0, "boot_id": 1, "age_ns": 0}
    return {**said, "name": name, "sequence": sequence, **more}


def line(message):
    return json.dumps({"sent_ns": time.monotonic_ns(), **message}).encode() + b"\n"


@contextlib.asynccontextmanager
async def linked(room, state, **more):
    link = RoomLink(room.room, state / "run" / f"{room.room}.sock", **more)
    await link.start()
    try:
        assert await link.wait_connected(5.0)
        yield link
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def raw(state):
    reader, writer = await asyncio.open_unix_connection(state / "run" / "G1.sock", limit=LINE_BYTES_MAX)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.fixture
async def room(tmp_path):
    desk = StandinRoom(inert=True)
    async with served(desk, tmp_path):
        yield desk


async def test_a_view_is_encoded_once_for_everybody(room, tmp_path):
    made = []
    view = room.view
    room.view = lambda: made.append(1) or view()
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(linked(room, tmp_path)) for _ in range(5)]
        seen = [[] for _ in links]
        for link, lines in zip(links, seen, strict=True):
            link.subscribe(lambda kind, line, lines=lines: lines.append(line) if kind == "view" else None)
        made.clear()
        await until(lambda: min(map(len, seen)) >= 6)
        assert len(made) <= max(map(len, seen)) + 1
        common = set.intersection(*map(set, seen))
        assert len(common) >= 4, "all get the same bytes"
        assert json.loads(links[0].last_view)["room"] == "G1"


async def test_a_console_that_does_not_read_delays_nobody_and_is_hung_up(room, tmp_path, monkeypatch):
    monkeypatch.setattr(link_module, "PATIENCE_S", 0.5)
    room.channels = 600  # views of 75 kB soon fill the buffers of the system
    async with linked(room, tmp_path) as good, contextlib.AsyncExitStack() as stack:
        deaf = stack.enter_context(socket.socket(socket.AF_UNIX))  # nobody ever reads from it
        deaf.connect(str(tmp_path / "run" / "G1.sock"))
        await until(lambda: room.server.consoles == 2)
        views = []
        good.subscribe(lambda kind, line: views.append(line) if kind == "view" else None)
        for number in range(20):
            room.event("something", number=number)
            answer = await good.submit(command(sequence=number + 1))
            assert answer.accepted
        await until(lambda: room.server.consoles == 1)  # the one that did not read
        before = len(views)
        await until(lambda: len(views) > before + 2)


async def test_a_room_that_comes_back_is_found_again_and_its_boot_is_seen(tmp_path):
    heard = []
    first = StandinRoom(boot_id=1)
    async with contextlib.AsyncExitStack() as stack:
        link = RoomLink("G1", tmp_path / "run" / "G1.sock")
        link.subscribe(lambda kind, line: heard.append((kind, line)) if kind in {"hello", "link"} else None)
        async with served(first, tmp_path):
            await link.start()
            stack.push_async_callback(link.close)
            assert await link.wait_connected(5.0)
            await until(lambda: link.last_view is not None)
        await until(lambda: not link.connected)
        with pytest.raises(CommunicationError) as nothing_sent:
            await link.submit(command("beam_on"))
        assert nothing_sent.value.retryable
        second = StandinRoom(boot_id=2, inert=True)
        await stack.enter_async_context(served(second, tmp_path))
        assert await link.wait_connected(10.0)
        assert [kind for kind, _ in heard] == ["hello", "link", "hello"]
        assert (link.boots_seen, link.boot_id) == (2, 2)
        answer = await link.submit(command(boot_id=1))
        assert answer.code == 4411, "what was meant for the room before it died is refused"
        assert second.taken == [], "nothing that was said to a dead line is obeyed later"


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xfe\x00garbage\n",
        b"[]\n",
        b"{}\n",
        b'{"kind":"command","sent_ns":0,"id":1}\n',
        b'{"kind":"sudo","sent_ns":0}\n',
        b"[" * 5000 + b"]" * 5000 + b"\n",
        b'{"kind":"command","sent_ns":0,"id":1,"command":{"name":"stop","more":1}}\n',
    ],
)
async def test_what_is_no_line_of_ours_ends_that_line_and_no_other(room, tmp_path, said):
    async with linked(room, tmp_path) as good, raw(tmp_path) as (_reader, writer):
        await until(lambda: room.server.consoles == 2)
        writer.write(said + line({"kind": "command", "id": 1, "command": command("stop")}))
        await until(lambda: room.server.consoles == 1)
        assert room.taken == [], "nothing is believed after garbage"
        assert (await good.submit(command())).accepted


async def test_an_endless_line_is_cut_off(room, tmp_path):
    async with linked(room, tmp_path) as good, raw(tmp_path) as (_reader, writer):
        await until(lambda: room.server.consoles == 2)
        with contextlib.suppress(OSError):
            for _ in range(6):
                writer.write(b"x" * 1024 * 1024)
                await writer.drain()
        await until(lambda: room.server.consoles == 1)
        assert (await good.submit(command())).accepted


async def test_half_a_command_is_not_obeyed(room, tmp_path):
    whole = line({"kind": "command", "id": 1, "command": command("stop")})
    async with raw(tmp_path) as (_reader, writer):
        writer.write(whole[:-1])  # everything but the end
        await writer.drain()
        writer.write_eof()
        await until(lambda: room.server.consoles == 0)
    assert room.taken == []


@pytest.mark.parametrize("said", [b"no hello\n", b'{"kind":"view"}\n', b'{"kind":"hello"}\n', b"x" * (LINE_BYTES_MAX + 9)])
async def test_a_room_that_talks_nonsense_is_left_and_tried_again(tmp_path, said):
    came = []

    async def talk(_reader, writer):
        came.append(1)
        with contextlib.suppress(OSError):
            writer.write(said)
            await writer.drain()
        writer.close()

    (tmp_path / "run").mkdir()
    server = await asyncio.start_unix_server(talk, tmp_path / "run" / "G1.sock")
    link = RoomLink("G1", tmp_path / "run" / "G1.sock")
    await link.start()
    await until(lambda: len(came) >= 3)
    assert not link.connected
    await link.close()
    server.close()


async def test_what_another_boot_showed_is_not_shown_as_this_ones(tmp_path):
    boots, writers = iter([1, 1, 2]), []

    async def talk(_reader, writer):
        writers.append(writer)
        boot_id = next(boots, 3)
        writer.write(b'{"kind":"hello","room":"G1","boot_id":%d}\n' % boot_id)
        if boot_id == 1:
            writer.write(b'{"kind":"view","view":{"seq":1}}\n')
            writer.write_eof()
        await asyncio.sleep(0)

    (tmp_path / "run").mkdir()
    server = await asyncio.start_unix_server(talk, tmp_path / "run" / "G1.sock")
    link, shown = RoomLink("G1", tmp_path / "run" / "G1.sock"), []
    link.subscribe(
        lambda kind, _line: shown.append((kind, link.boot_id, link.last_view)) if kind in {"hello", "view"} else None
    )
    await link.start()
    await until(lambda: link.boot_id == 2)
    await link.close()
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)
    view = b'{"seq":1}'
    assert shown[:3] == [("hello", 1, None), ("view", 1, view), ("hello", 1, view)], "the same boot shows what it showed"
    assert shown[-1] == ("hello", 2, None)


async def test_a_command_grows_old_on_its_way(room, tmp_path):
    async with linked(room, tmp_path, clock_ns=lambda: time.monotonic_ns() - 300_000_000) as link:
        answer = await link.submit(command("beam_on"))
        assert answer.code == 4412
        stopped = await link.submit(command("stop"))
        assert stopped.accepted, "stop has no age"


async def test_a_sign_of_life_that_is_old_is_none(room, tmp_path):
    heard = []
    room.heartbeat = lambda console, token: heard.append((console, token)) or True
    async with linked(room, tmp_path) as link, linked(room, tmp_path, clock_ns=lambda: time.monotonic_ns() - 10**9) as late:
        late.heartbeat("late", 1)
        await late.submit(command("stop"))
        link.heartbeat("desk", 7)
        await until(lambda: heard)
        assert heard == [("desk", 7)]


async def test_the_outcome_of_a_command_whose_line_died_is_said_to_be_unknown(tmp_path):
    desk = StandinRoom(inert=True)
    entered = asyncio.Event()

    async def never(_command):
        entered.set()
        await asyncio.Event().wait()

    desk.submit = never
    async with served(desk, tmp_path), linked(desk, tmp_path) as link:
        asked = asyncio.create_task(link.submit(command()))
        await entered.wait()
        for client in desk.server._clients:
            client._writer.transport.abort()
        with pytest.raises(CommunicationError, match="lost before it answered") as error:
            await asked
        assert "not known" in error.value.hint and not error.value.retryable
        with pytest.raises(CommunicationError, match="did not answer within"):
            assert await link.wait_connected(5.0)
            await link.submit(command(), limit_s=0.05)


async def test_stop_has_a_line_of_its_own_when_the_line_is_down(room, tmp_path):
    link = RoomLink("G1", tmp_path / "run" / "G1.sock")  # never started
    assert (await link.stop(command("stop"))).accepted
    assert [one.name for one in room.taken] == ["stop"]
    nobody = RoomLink("G1", tmp_path / "run" / "gone.sock")
    with pytest.raises(CommunicationError) as error:
        await nobody.stop(command("stop"))
    assert "button" in error.value.hint


async def test_stop_is_taken_while_everything_else_waits(tmp_path):
    desk = StandinRoom(inert=True)
    submit, release = desk.submit, asyncio.Event()

    async def slow(one):
        if one.name != "stop":
            await release.wait()
            return Answer(True)
        return await submit(one)

    desk.submit = slow
    async with served(desk, tmp_path), linked(desk, tmp_path) as link:
        waiting = [asyncio.create_task(link.submit(command(sequence=number))) for number in range(link_module.WAITING_MAX)]
        await until(lambda: sum(len(client._under_way) for client in desk.server._clients) == link_module.WAITING_MAX)
        assert (await link.submit(command(sequence=99))).code == 4491
        assert (await link.stop(command("stop"))).accepted
        release.set()
        assert all(answer.accepted for answer in await asyncio.gather(*waiting))


async def test_what_the_room_could_not_read_is_not_sent_to_it(room, tmp_path):
    deep = []
    for _ in range(300):
        deep = [deep]
    async with linked(room, tmp_path) as link:
        for argument in ("\ud800", deep):
            with pytest.raises(DataError):
                await link.submit(command(arguments={"value": argument}))
        assert link.losses == 0
        assert (await link.submit(command())).accepted


async def test_a_view_that_cannot_be_made_is_told_and_the_line_goes_on(room, tmp_path):
    heard, view = [], room.view
    async with linked(room, tmp_path) as link:
        link.subscribe(lambda kind, line: heard.append((kind, line)))

        def broken():
            raise KeyError("sensor")

        room.view = broken
        await until(lambda: any(kind == "trouble" and b"sensor" in line for kind, line in heard))
        room.view = view
        heard.clear()
        await until(lambda: any(kind == "view" for kind, _ in heard))


async def test_the_socket_is_the_owners_alone_and_there_is_one_room(room, tmp_path):
    path = tmp_path / "run" / "G1.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="another process serves"):
        await LinkServer(path, StandinRoom()).start()
    with pytest.raises(ConfigError, match="bytes"):
        await LinkServer(tmp_path / ("x" * 120), StandinRoom()).start()


async def test_the_socket_of_a_room_that_was_killed_is_replaced(tmp_path):
    path = tmp_path / "run" / "G1.sock"
    path.parent.mkdir()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()  # as the system leaves it when a process dies
    async with served(StandinRoom(), tmp_path) as server:
        assert server.path.exists()
    assert not path.exists()
    path.write_text("not a socket")
    with pytest.raises(ConfigError, match="no socket"):
        await LinkServer(path, StandinRoom()).start()


async def test_a_slow_reader_loses_views_then_events_and_never_answers():
    outbox = Outbox(lines_max=4, bytes_max=1000)
    for number in range(10):
        outbox.put(b"event %d" % number)
        outbox.put_view(b"view %d" % number)
    assert outbox.put_answer(b"answer")
    told, *rest = outbox.take()
    assert json.loads(told) == {"kind": "lost", "lines": 7}
    assert rest == [b"event 7", b"event 8", b"event 9", b"answer", b"view 9"]
    assert all(outbox.put_answer(b"answer") for _ in range(4))
    assert not outbox.put_answer(b"one too many")
