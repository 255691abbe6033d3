"""The backdoor of a simulator process: HTTP and JSON on the loopback, for people, test rigs and controllers of simulated rooms.

It looks at the truth and does what no wire can: pause, speed, faults, killed servers, people. Served from a thread with a loop
of its own, so that a paused plant answers; what is asked is done in the plant's loop, between two of its turns. Nothing is
done, and nothing shown, without the token that stands in the endpoint file.

Not responsible for what is done (`site`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from simulators.clock import wall_limit
from simulators.people import OperatorFailed
from simulators.prescription_json import prescription_from_json, violation_to_json
from simulators.refusal import NOT_NOW, UNKNOWN, WRONG, Refusal
from simulators.site_faults import tried

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp

    from simulators.site import Site

HOST = "127.0.0.1"
BODY_BYTES = 64 * 1024
PRESCRIPTION_BYTES = 32 * 1024 * 1024  # 30,000 spots take 1 MB
START_S = 20.0
UNAUTHORIZED, TOO_LARGE, GONE = 401, 413, 503

Answer = dict[str, Any] | list[Any]
Handler = Callable[["Request"], Awaitable[Answer]]


class Backdoor:
    """The door of one site.

    Args:
        site: what it leads to.
        loop: the plant's.
    """

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self._site = site
        self._loop = loop
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._server: Any = None
        self._started = asyncio.Event()
        self._closed = False

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``; empty before the start."""
        return f"http://{HOST}:{self._socket.getsockname()[1]}" if self._socket is not None else ""

    async def start(self) -> None:
        """Serve. Raises OSError or TimeoutError."""
        self._socket = socket.create_server((HOST, 0))
        self._thread = threading.Thread(target=self._serve, name="backdoor", daemon=True)
        self._thread.start()
        await wall_limit(self._started.wait(), START_S)

    async def stop(self) -> None:
        """Close the door; requests under way end unanswered."""
        self._closed = True
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._socket is not None:
            self._socket.close()

    # --- the thread -------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        import uvicorn

        config = uvicorn.Config(
            self._app(),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        server = self._server = uvicorn.Server(config)

        async def serve(listening: socket.socket) -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # what clients do to sockets
            self._loop.call_soon_threadsafe(self._started.set)  # who comes from now on waits in the socket's queue
            await server.serve(sockets=[listening])

        if self._socket is not None:
            asyncio.run(serve(self._socket))

    def _app(self) -> ASGIApp:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        async def not_there(_request: Request, error: Exception) -> JSONResponse:
            status = error.status_code if isinstance(error, HTTPException) else 500
            return _reply(
                {"reason": {404: "there is nothing here", 405: "not with this method"}.get(status, str(error))}, status
            )

        routes = [
            Route(path, self._guarded(handler), methods=[method])
            for method, path, handler in (
                ("GET", "/state", self._do(self._site.state)),
                ("GET", "/clock", self._do(self._site.clock)),
                ("POST", "/pause", self._do(self._site.pause)),
                ("POST", "/run", self._do(self._site.run)),
                ("POST", "/speed", self._speed),
                ("GET", "/faults", self._do(self._site.fault_book.views)),
                ("POST", "/faults", self._plant_fault),
                ("DELETE", "/faults/{name}", self._clear_fault),
                ("POST", "/servers/{name}/{action}", self._server_action),
                ("POST", "/people/{room}/{deed}", self._person),
                ("GET", "/measures/machine-limited", self._machine_limited),
                ("POST", "/prescription", self._prescribe),
                ("GET", "/violations", self._do(self._violations)),
                ("POST", "/shadow", self._shadow),
            )
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: not_there})

    def _guarded(self, handler: Handler) -> Callable[[Request], Awaitable[JSONResponse]]:
        """Nothing without the token; a refusal in words, and never a traceback."""

        async def answer(request: Request) -> JSONResponse:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode("utf-8", "replace"), self._site.token.encode()):
                return _reply({"reason": "the token of the endpoint file is needed"}, UNAUTHORIZED)
            try:
                return _reply(await handler(request), 200)
            except Refusal as refusal:
                return _reply({"reason": refusal.reason}, refusal.status)
            except asyncio.CancelledError:
                if not self._closed:
                    raise
                return _reply({"reason": "the simulator is ending"}, GONE)
            except Exception as error:  # noqa: BLE001 - named; the plant goes on
                return _reply({"reason": f"fault of the program: {type(error).__name__}: {error}"}, 500)

        return answer

    async def _in_plant(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Done in the plant's loop."""
        if self._closed or self._loop.is_closed():
            raise Refusal("the simulator is ending", GONE)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))

    def _do(self, act: Callable[[], Answer]) -> Handler:
        async def handler(_request: Request) -> Answer:
            async def work() -> Answer:
                return act()

            answer: Answer = await self._in_plant(work)
            return answer

        return handler

    # --- routes that take arguments ---------------------------------------------------------------------------------------

    async def _speed(self, request: Request) -> Answer:
        factor = (await _body(request)).get("factor")
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise Refusal('expected {"factor": NUMBER}', WRONG)
        return dict(await self._in_plant(lambda: self._site.set_speed(float(factor))))

    async def _plant_fault(self, request: Request) -> Answer:
        body = await _body(request)
        spec = body.get("spec")
        if not isinstance(spec, str):
            raise Refusal('expected {"spec": "NAME[:VALUE][@WHEN]", "room": ROOM}', WRONG)
        room = self._site.room_of(body.get("room"))
        timed = tried(self._site.options.facility.name, room, spec)

        async def work() -> Answer:
            return self._site.fault_book.plant(timed, room)

        return dict(await self._in_plant(work))

    async def _clear_fault(self, request: Request) -> Answer:
        room = self._site.room_of(request.query_params.get("room"))

        async def work() -> Answer:
            return self._site.fault_book.clear(request.path_params["name"], room)

        return dict(await self._in_plant(work))

    async def _server_action(self, request: Request) -> Answer:
        name, action = request.path_params["name"], request.path_params["action"]
        return dict(await self._in_plant(lambda: self._site.server(name, action)))

    async def _person(self, request: Request) -> Answer:
        staff = self._site.person(request.path_params["room"])
        deed, body = request.path_params["deed"], await _body(request)

        async def work() -> Answer:
            if deed == "confirm":
                answer, why = await staff.confirm(_word(body, "kind"))
                return {"answer": answer, "why": why}
            if deed == "answer":
                return {"answer": await staff.script.answer(_word(body, "kind"))}
            if deed == "press":
                await staff.press(_word(body, "role"))
            elif deed == "stop":
                await staff.stop()
            elif deed == "lay-patient":
                await staff.lay_patient()
            elif deed == "secure-room":
                await staff.secure_room()
            elif deed == "attend":
                await staff.attend(_word(body, "kind"))
            elif deed == "turn-key":
                await staff.turn_key(_word(body, "mode") == "service")
            else:
                known = "confirm, answer, press, stop, lay-patient, secure-room, attend or turn-key"
                raise Refusal(f"expected {known}", UNKNOWN)
            return {"done": True}

        try:
            return dict(await self._in_plant(work))
        except (OperatorFailed, ValueError) as error:
            raise Refusal(str(error), NOT_NOW) from None

    async def _machine_limited(self, request: Request) -> Answer:
        room = self._site.room_of(request.query_params.get("room"))
        try:
            beam = int(request.query_params.get("beam", ""))
        except ValueError:
            raise Refusal("expected ?room=ROOM&beam=NUMBER", WRONG) from None

        async def work() -> Answer:
            return {"machine_limited_s": self._site.machine_limited_s(room, beam)}

        return dict(await self._in_plant(work))

    async def _prescribe(self, request: Request) -> Answer:
        try:
            prescription = prescription_from_json(await _body(request, PRESCRIPTION_BYTES))
        except ValueError as error:
            raise Refusal(str(error), WRONG) from None

        async def work() -> Answer:
            self._site.prescribe(prescription)
            return {"layers": len(prescription.layers)}

        return dict(await self._in_plant(work))

    async def _shadow(self, request: Request) -> Answer:
        body = await _body(request)

        async def work() -> Answer:
            self._site.shadow(body)
            return {"taken": True}

        return dict(await self._in_plant(work))

    def _violations(self) -> Answer:
        return [violation_to_json(violation) for violation in self._site.violations]


async def _body(request: Request, limit: int = BODY_BYTES) -> dict[str, Any]:
    """The JSON object of a request; empty when it has none. Raises Refusal: too large, or something else."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise Refusal(f"the body has more than {limit} bytes", TOO_LARGE)
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Refusal("the body is not JSON", WRONG) from None
    if not isinstance(value, dict):
        raise Refusal("the body is not a JSON object", WRONG)
    return value


def _word(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise Refusal(f'expected {{"{key}": TEXT}}', WRONG)
    return value


def _reply(content: Answer, status: int) -> JSONResponse:
    from starlette.responses import JSONResponse

    return JSONResponse(content, status)
