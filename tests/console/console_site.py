"""A console in front of stand-in rooms, in this process: what the tests of the console share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from argon2 import PasswordHasher
from standin_room import StandinRoom, served

from controller.console.api import make_app
from controller.console.archive import Archive
from controller.console.http_patience import PatientProtocol
from controller.console.hub import Exposure, Hub
from controller.console.process import MESSAGE_BYTES_MAX, listen
from controller.console.room_link import RoomLink
from controller.console.users import Users
from drivers.hal.clock import NS_PER_S
from drivers.hal.facility import load_facility

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
BASE = "http://127.0.0.1"


def _ahead() -> int:
    """Nothing grows old between console and room: on a busy machine it would, and few of these tests are about age."""
    return time.monotonic_ns() + 3600 * NS_PER_S


class Unwritten(Archive):
    """An archive that keeps what comes in memory: few of these tests are about disks."""

    def start(self) -> None:
        pass


class Caller:
    """Somebody at a console, signed in."""

    def __init__(self, site: Site, http: httpx.AsyncClient, told: dict[str, Any]) -> None:
        self.site, self.http, self.told = site, http, told
        self.token, self.console = told["token"], told["console"]
        self.control = 0
        self._key = 0

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "X-Console": self.console}

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(path, headers=self.headers, **more)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers={**self.headers, **headers})

    async def delete(self, path: str) -> httpx.Response:
        return await self.http.delete(path, headers=self.headers)

    async def command(
        self, name: str, arguments: dict[str, Any] | None = None, *, key: str = "", room: str = "G1", **body: Any
    ) -> httpx.Response:
        said = {"name": name, "arguments": arguments or {}, "boot_id": 1, "control_token": self.control, **body}
        for _ in range(10):
            self._key += 1
            answer = await self.post(f"/api/rooms/{room}/commands", said, **{"Idempotency-Key": key or f"key-{self._key}"})
            if answer.status_code != 425 or key or "age_ms" in body:
                break  # what grew too old because the machine is busy is given again, as a person does
        if name == "take_control" and answer.status_code == 200:
            self.control = answer.json()["value"]
        return answer


class Site:
    """Rooms, hub and application; `http` speaks to the application without a socket."""

    def __init__(self, state: Path, rooms: list[StandinRoom], hub: Hub, app: Any) -> None:
        self.state, self.rooms, self.hub, self.app = state, rooms, hub, app
        self.room = rooms[0]
        self.http = self.client()

    def client(self, peer: str = "127.0.0.1") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, client=(peer, 12345))
        return httpx.AsyncClient(transport=transport, base_url=BASE, timeout=10.0)

    def password(self, name: str) -> str:
        lines = (self.state / "first-passwords.txt").read_text(encoding="utf-8").splitlines()
        return dict(line.split(" ", 1) for line in lines[1:])[name]

    async def sign_in(self, role: str, console: str = "", http: httpx.AsyncClient | None = None) -> Caller:
        body = {"name": role, "password": self.password(role), "console": console or f"desk-{role}"}
        answer = await (http or self.http).post("/api/login", json=body)
        assert answer.status_code == 200, answer.text
        return Caller(self, http or self.http, answer.json())


@contextlib.asynccontextmanager
async def console_site(
    state: Path, rooms: tuple[str, ...] = ("G1",), *, exposure: Exposure | None = None, linked: bool = True, inert: bool = False
) -> AsyncIterator[Site]:
    """Everything, ended in order."""
    desks = [StandinRoom(name, inert=inert) for name in rooms]
    async with contextlib.AsyncExitStack() as stack:
        if linked:
            for desk in desks:
                await stack.enter_async_context(served(desk, state))
        users = Users(state, CHEAP)
        users.open()
        links = {name: RoomLink(name, state / "run" / f"{name}.sock", clock_ns=_ahead) for name in rooms}
        hub = Hub(state, load_facility("asan"), links, users, exposure, Unwritten(state / "archive"))
        await hub.start()
        stack.push_async_callback(hub.close)
        site = Site(state, desks, hub, make_app(hub))
        stack.push_async_callback(site.http.aclose)
        if linked:
            for link in links.values():
                assert await link.wait_connected(5.0)
                await until(lambda link=link: link.last_view is not None)
        yield site


@contextlib.asynccontextmanager
async def real_server(app: Any) -> AsyncIterator[int]:
    """The application on a real port of the loopback, as the process serves it."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_max_size=MESSAGE_BYTES_MAX,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # the signals are the tests' own
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await until(lambda: server.started)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listening.close()


async def until(what: Any, limit_s: float = 10.0) -> None:
    """Wait for something to become true."""
    end_s = asyncio.get_running_loop().time() + limit_s
    while not what():
        if asyncio.get_running_loop().time() > end_s:
            raise TimeoutError(f"not within {limit_s:g} s")
        await asyncio.sleep(0.005)


async def until_answer(ask: Any, good: int = 200, limit_s: float = 20.0) -> httpx.Response:
    """Ask again and again until the status is `good`."""
    end_s = asyncio.get_running_loop().time() + limit_s
    while (answer := await ask()).status_code != good:
        if asyncio.get_running_loop().time() > end_s:
            raise TimeoutError(f"{answer.status_code}: {answer.text}")
        await asyncio.sleep(0.02)
    return answer
