"""The interface document against the program: Schemathesis makes requests of every kind from it, and judges the answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import httpx
import pytest
import schemathesis
from console_site import console_site, real_server
from hypothesis import HealthCheck, Phase, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from controller.console.uploads import PACKED, TYPES
from controller.room.states import State

pytestmark = pytest.mark.xdist_group("wires")
ENDS_THE_SIGN_IN = {"/api/logout", "/api/renew"}


class Served:
    """The console on a port, in a thread with a loop of its own: Schemathesis is synchronous."""

    def __init__(self, state):
        self._state = state
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self.site = self.loop = self.end = None
        self.port = 0

    async def _main(self):
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        async with console_site(self._state, inert=True) as site:
            folder = self._state / "treatments" / "t1"
            folder.mkdir(parents=True)
            (folder / "report.html").write_text("<p>report", encoding="utf-8")
            for buckets in (site.hub.by_peer, site.hub.by_person):
                buckets.__init__(1e6, 1e6, self.loop.time)
            async with real_server(site.app) as port:
                self.site, self.port = site, port
                self._up.set()
                await self.end.wait()
                with contextlib.suppress(asyncio.CancelledError):
                    await site.http.aclose()

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(20)
        return self

    def __exit__(self, *_exc):
        self.loop.call_soon_threadsafe(self.end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def headers(self, role, console="fuzz"):
        self.site.hub.failures.succeeded(role, "127.0.0.1")  # the wrong passwords were Schemathesis'
        body = {"name": role, "password": self.site.password(role), "console": f"{console}-{role}"}
        answer = httpx.post(f"{self.url}/api/login", json=body)
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['token']}", "X-Console": f"{console}-{role}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("api")) as server:
        server.signed = {role: server.headers(role) for role in ("operator", "security_admin")}
        yield server


@pytest.fixture(scope="module")
def interface(served):
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


def is_right_after_all(case):
    """What was to be wrong is not sent: headers are ours, and a parameter that is an empty list leaves nothing in a query."""
    known = {parameter.name for parameter in case.operation.query}
    sent = {name for name, value in (case.query or {}).items() if value not in ([], {})}

    def gone(mutation):
        if mutation.parameter_location is not ParameterLocation.QUERY or "required" in mutation.keywords:
            return mutation.parameter_location is ParameterLocation.HEADER
        return sent <= known if "additionalProperties" in mutation.keywords else mutation.parameter not in sent

    mutations = getattr(case.meta.phase.data, "mutations", ())
    return bool(mutations) and all(gone(mutation) for mutation in mutations)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_every_answer_is_one_that_the_document_tells(served, interface, mode, examples):
    """No fault, no status and no shape that is not in the document; what is wrong is refused; nothing without the token."""
    tried = set()
    few = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for found in interface.get_all_operations():
        operation = found.ok()
        parts = [part for part in (operation.query, operation.path_parameters, operation.body) if len(part)]
        if mode is GenerationMode.NEGATIVE and not parts:
            continue  # there is nothing that could be wrong but headers, and those are ours

        @few
        @given(case=operation.as_strategy(generation_mode=mode))
        def judged(case):
            wrong = {part for part, info in case.meta.components.items() if info.mode is GenerationMode.NEGATIVE}
            assume(mode is GenerationMode.POSITIVE or wrong - {ParameterLocation.HEADER})
            served.site.room.state = State.STANDBY
            if case.path in ENDS_THE_SIGN_IN:
                headers = served.headers("operator", "brief")
            else:
                headers = served.signed["security_admin" if "users" in case.path else "operator"]
            tried.add(f"{case.method} {case.path}")
            # No document can say that one time lies before another: the span of a history is judged when it is asked for.
            # Nor with which bytes a file begins: it says in words that what is packed is refused.
            sent = getattr(case.body, "data", case.body)  # Schemathesis wraps bytes
            packed = case.path == "/api/plans" and isinstance(sent, bytes) and sent.startswith(tuple(PACKED))
            apart = [positive_data_acceptance] if packed or case.path == "/api/history" else []
            apart += [negative_data_rejection] if is_right_after_all(case) else []
            answer = case.call_and_validate(headers=headers, excluded_checks=apart)
            assert not packed or answer.status_code >= 400

        judged()
    assert len(tried) > (25 if mode is GenerationMode.POSITIVE else 8)


def test_the_document_tells_everything(served):
    document = httpx.get(f"{served.url}/openapi.json").json()
    assert document["info"]["title"] and len(document["paths"]) > 20
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"] and operation["tags"], where
            if path.startswith("/api/") and path not in {"/api/login", "/api/rooms/{room}/stop"}:
                assert operation["security"], where
                assert "401" in operation["responses"], where
            for status, response in operation["responses"].items():
                assert int(status) < 400 or response["content"]["application/json"]["schema"], where
    stop = document["paths"]["/api/rooms/{room}/stop"]["post"]
    assert "security" not in stop and "requestBody" not in stop and "429" not in stop["responses"]
    plan = document["paths"]["/api/plans"]["post"]
    assert set(plan["requestBody"]["content"]) == set(TYPES) and "415" in plan["responses"]
    assert all(kind in plan["requestBody"]["description"] for kind in PACKED.values())
    assert "RoomView" in document["components"]["schemas"]
