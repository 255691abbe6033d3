"""The stream of a room on a real port: bounded for the slow, closed for the deaf and the strange."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time

import pytest
from console_site import console_site, real_server, until
from standin_room import StandinRoom, served
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from controller.console import http_patience
from controller.console import stream as stream_module
from controller.console.room_link import ROOM_GONE, ROOM_QUIET

pytestmark = pytest.mark.xdist_group("wires")


@contextlib.asynccontextmanager
async def listening(port, caller, *, room="G1", hello=None, **more):
    async with connect(f"ws://127.0.0.1:{port}/api/rooms/{room}/stream", compression=None, max_size=None, **more) as socket_:
        said = hello if hello is not None else {"kind": "hello", "token": caller.token, "console": caller.console}
        with contextlib.suppress(ConnectionClosed):
            await socket_.send(json.dumps(said))
        yield socket_


async def next_of(socket_, kind, limit_s=5.0):
    async with asyncio.timeout(limit_s):
        while True:
            message = json.loads(await socket_.recv())
            if message["kind"] == kind:
                return message


async def closed(socket_, limit_s=5.0):
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(limit_s):
            while True:
                await socket_.recv()
    return socket_.close_code, socket_.close_reason


@pytest.fixture
async def port(site):
    async with real_server(site.app) as number:
        yield number


async def test_a_client_is_welcomed_and_shown_what_the_room_shows(site, port):
    ann = await site.sign_in("observer")
    async with listening(port, ann) as socket_:
        welcome = await next_of(socket_, "welcome")
        assert (welcome["name"], welcome["role"], welcome["console"]) == ("observer", "observer", "desk-observer")
        assert (await next_of(socket_, "hello"))["boot_id"] == 1
        first, second = await next_of(socket_, "view"), await next_of(socket_, "view")
        assert second["view"]["seq"] > first["view"]["seq"] and first["view"]["room"] == "G1"
        site.room.event("something", answer=42)
        assert (await next_of(socket_, "event"))["event"]["data"] == {"answer": 42}


async def test_a_stream_without_a_good_hello_ends(site, port, monkeypatch):
    monkeypatch.setattr(stream_module, "HELLO_S", 0.2)
    ann = await site.sign_in("operator")
    good = {"kind": "hello", "token": ann.token, "console": ann.console}
    for hello, code in (
        ({**good, "token": "forged"}, 4401),
        ({**good, "console": "another"}, 4401),
        ({**good, "role": "physicist"}, 4400),
        ({"kind": "heartbeat"}, 4400),
        ([], 4400),
    ):
        async with listening(port, ann, hello=hello) as socket_:
            assert (await closed(socket_))[0] == code, hello
    async with connect(f"ws://127.0.0.1:{port}/api/rooms/G1/stream", compression=None) as silent:
        assert (await closed(silent))[0] == 4408
    async with listening(port, ann, room="G9") as socket_:
        assert (await closed(socket_))[0] == 4404
    async with connect(f"ws://127.0.0.1:{port}/api/rooms/G1/stream", compression=None) as socket_:
        await socket_.send(b"\0binary")
        assert (await closed(socket_))[0] == 4400
    assert site.hub.streams.total() == 0


async def test_a_page_of_another_site_may_not_listen(site, port):
    from websockets.exceptions import InvalidStatus

    ann = await site.sign_in("operator")
    with pytest.raises(InvalidStatus) as refused:
        async with listening(port, ann, origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://evil.example:{port}/api/rooms/G1/stream", host="127.0.0.1", port=port):
            pass
    assert refused.value.response.status_code == 403
    async with listening(port, ann, origin=f"http://127.0.0.1:{port}") as socket_:
        await next_of(socket_, "view")


async def test_a_stream_ends_with_its_sign_in(site, port):
    ann = await site.sign_in("operator")
    async with listening(port, ann) as socket_:
        await next_of(socket_, "view")
        await ann.post("/api/logout")
        assert await closed(socket_) == (4401, "signed out")


async def test_heartbeats_keep_control_and_without_them_it_is_lost(site, port):
    ann = await site.sign_in("operator")
    async with listening(port, ann) as socket_:
        await ann.command("take_control")
        heard = site.room.desk._heard_ns
        await socket_.send(json.dumps({"kind": "heartbeat"}))  # the console knows the control token
        await until(lambda: site.room.desk._heard_ns > heard)
        heard = site.room.desk._heard_ns
        await socket_.send(json.dumps({"kind": "heartbeat", "control_token": ann.control + 5}))
        await socket_.send(json.dumps({"kind": "heartbeat", "control_token": ann.control}))
        await until(lambda: site.room.desk._heard_ns > heard)
    bob = await site.sign_in("physicist")
    async with listening(port, bob) as other:
        await other.send(json.dumps({"kind": "heartbeat", "control_token": ann.control}))
        heard = site.room.desk._heard_ns
        await next_of(other, "view")
        assert site.room.desk._heard_ns == heard, "another console keeps nobody's control"
    await until(lambda: not site.room.desk.console_alive())


async def test_a_client_that_chatters_is_closed(site, port):
    ann = await site.sign_in("operator")
    async with listening(port, ann) as socket_:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(300):
                await socket_.send('{"kind":"heartbeat"}')
        assert (await closed(socket_))[0] == 4429
    for said in ('{"kind":"command","name":"beam_on"}', "not json", "[" * 4000, '{"kind":"heartbeat","control_token":"x"}'):
        async with listening(port, ann) as socket_:
            await socket_.send(said)
            assert (await closed(socket_))[0] == 4400, said
    async with listening(port, ann) as socket_:
        await socket_.send("x" * 100_000)  # more than the server takes in one message
        assert (await closed(socket_))[0] in (1009, 4400)


async def test_a_room_that_is_lost_is_said_to_be_and_comes_back(tmp_path):
    async with console_site(tmp_path, linked=False) as site, real_server(site.app) as port:
        ann = await site.sign_in("operator")
        async with listening(port, ann) as socket_:
            assert (await next_of(socket_, "link"))["connected"] is False
            assert (await next_of(socket_, "trouble"))["reason"] == ROOM_GONE
            async with served(StandinRoom(boot_id=5), tmp_path):
                assert (await next_of(socket_, "hello"))["boot_id"] == 5
                await next_of(socket_, "view")
            assert (await next_of(socket_, "link"))["connected"] is False
            assert (await next_of(socket_, "trouble"))["reason"] == ROOM_GONE


async def test_a_room_that_falls_silent_is_said_to_be_while_the_console_is_there(tmp_path):
    """As a stopped process is: its line stands, nothing comes."""
    silent = asyncio.Event()

    async def speak(_reader, writer):
        writer.write(b'{"kind":"hello","boot_id":7,"room":"G1"}\n')
        await silent.wait()
        writer.transport.abort()

    (tmp_path / "run").mkdir(exist_ok=True)
    async with (
        await asyncio.start_unix_server(speak, tmp_path / "run" / "G1.sock"),
        console_site(tmp_path, linked=False) as site,
        real_server(site.app) as port,
    ):
        ann = await site.sign_in("operator")
        async with listening(port, ann) as socket_:
            assert (await next_of(socket_, "hello"))["boot_id"] == 7
            assert (await next_of(socket_, "trouble"))["reason"] == ROOM_QUIET
            silent.set()
            assert (await next_of(socket_, "link"))["connected"] is False
            assert (await next_of(socket_, "trouble"))["reason"] == ROOM_GONE


async def test_a_client_that_never_reads_is_closed_and_delays_nobody(site, port, monkeypatch):
    monkeypatch.setattr(stream_module, "STUCK_S", 0.6)
    site.room.channels = 600  # 75 kB a view: the system's buffers are full soon
    ann, bob = await site.sign_in("observer", "desk-1"), await site.sign_in("observer", "desk-2")
    deaf = socket.create_connection(("127.0.0.1", port))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    key = "GET /api/rooms/G1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    key += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    hello = json.dumps({"kind": "hello", "token": bob.token, "console": bob.console}).encode()
    frame = bytes([0x81, 0x80 | len(hello)]) if len(hello) < 126 else bytes([0x81, 0xFE]) + len(hello).to_bytes(2, "big")
    deaf.sendall(key.encode() + frame + bytes(4) + hello)
    with deaf:
        async with listening(port, ann) as socket_:
            await until(lambda: site.hub.streams["G1"] == 2)
            gaps, last_s = [], time.perf_counter()
            while site.hub.streams["G1"] == 2:
                await next_of(socket_, "view")
                gaps.append(time.perf_counter() - last_s)
                last_s = time.perf_counter()
            gaps.sort()
            assert gaps[len(gaps) // 2] < 0.3, "the other one goes on at its pace"


async def test_streams_are_counted_and_bounded(site, port, monkeypatch):
    monkeypatch.setattr(stream_module, "STREAMS_OF_ONE_MAX", 2)
    ann = await site.sign_in("observer")
    async with listening(port, ann) as one, listening(port, ann) as two:
        await next_of(one, "view")
        await next_of(two, "view")
        async with listening(port, ann) as three:
            assert (await closed(three))[0] == 4429
        assert (await ann.get("/health")).json()["streams"] == 2
        metrics = (await ann.get("/metrics")).text
        assert "iongantry" in metrics
    await until(lambda: site.hub.streams["G1"] == 0)


async def test_who_connects_and_says_nothing_whole_is_hung_up(site, port, monkeypatch):
    monkeypatch.setattr(http_patience, "HEAD_S", 0.3)
    ann = await site.sign_in("observer")
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with listening(port, ann) as socket_:
        for first, then in ((b"", b""), (b"", whole[:20]), (whole, whole[:20])):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(3.0):
                with contextlib.suppress(ConnectionError):
                    if first:
                        writer.write(first)
                        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                        await reader.readuntil(b"signed_in")  # the rest of the answer
                    writer.write(then)
                    while await reader.read(1000):
                        pass
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await next_of(socket_, "view")
        await next_of(socket_, "view")


async def _flood(port, until_s, latencies, path="/health"):
    """One client that asks as fast as it is answered, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer forged\r\n\r\n".encode()
    codes = []
    while time.perf_counter() < until_s:
        began_s = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - began_s)
        codes.append(int(head.split(b" ", 2)[1]))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return codes


async def test_in_a_flood_stop_is_taken_and_the_signed_in_go_on(tmp_path):
    """A flood of strangers is refused after its share; stop and those who signed in are not."""
    async with console_site(tmp_path, inert=True) as site, real_server(site.app) as port:
        ann = await site.sign_in("operator")
        latencies, stops, own = [], [], []
        site.hub.by_peer.__init__(20.0, 50.0, asyncio.get_running_loop().time)  # of strangers, so that few make a flood here
        async with listening(port, ann) as socket_:
            flood = [asyncio.create_task(_flood(port, time.perf_counter() + 1.5, latencies, "/api/me")) for _ in range(8)]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            seqs = []
            while not all(task.done() for task in flood):
                began_s = time.perf_counter()
                writer.write(b"POST /api/rooms/G1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                stops.append(time.perf_counter() - began_s)
                assert head.startswith(b"HTTP/1.1 200"), head
                own.append((await ann.get("/api/me")).status_code)
                seqs.append((await next_of(socket_, "view"))["view"]["seq"])
            writer.close()
            codes = [code for task in flood for code in task.result()]
        assert set(codes) == {401, 429} and codes.count(401) < 100, "strangers are refused after their share"
        assert set(own) == {200} and len(site.room.taken) >= len(stops)
        assert seqs == sorted(seqs) and len(seqs) >= 3
        ordinary_s, stop_s = sorted(latencies)[len(latencies) // 2], sorted(stops)[len(stops) // 2]
        assert stop_s < 20 * ordinary_s, f"stop {stop_s * 1e3:.1f} ms, a request of the flood {ordinary_s * 1e3:.1f} ms"
