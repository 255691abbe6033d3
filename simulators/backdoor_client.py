"""A client of a simulator process's backdoor: asynchronous for controllers and tests, and plain for the command line.

What the other side refuses is CommandRejected with its reason; where nobody answers, CommunicationError. Not responsible for
what the backdoor does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from drivers.hal.errors import BeamlineError, CommandRejected, CommunicationError, DeviceError
from simulators.invariants import Prescription, Violation
from simulators.prescription_json import prescription_to_json, violation_from_json

NOBODY = 2301
NO_ANSWER = 2302
REFUSED = 4301
FAULT = 3301
DEVICE = "backdoor"
ANSWER_S = 5.0  # of a door that lives; assumed
START_S = 30.0  # starting a server takes seconds on a loaded computer
LONG = None  # as long as people take
# HTTP on the loopback: no proxy of the environment is asked, and no certificates are read (30 ms).
_PLAIN: dict[str, Any] = {"timeout": ANSWER_S, "trust_env": False, "verify": False}


class BackdoorClient:
    """A door to one simulator process.

    Args:
        url: ``backdoor`` of the endpoint file.
        token: ``token`` of it.
    """

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, headers=_headers(token), **_PLAIN)
        self._url = url

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, within_s: float | None = ANSWER_S
    ) -> Any:
        """One request; what it answers. `within_s`: longest wait, s; None waits for ever, as for people.

        Raises:
            CommunicationError: nobody answers (2301), or not in time (2302).
            CommandRejected: refused, with the reason (4301).
            DeviceError: the simulator has failed (3301).
        """
        try:
            response = await self._client.request(method, path, json=body, timeout=within_s)
        except httpx.HTTPError as error:
            raise _unreachable(self._url, error) from None
        return _judged(response)

    async def state(self) -> dict[str, Any]:
        """The plant's truth, clock, servers, faults."""
        return dict(await self.call("GET", "/state"))

    async def clock(self) -> dict[str, Any]:
        """Simulated time in s, speed, slip in s."""
        return dict(await self.call("GET", "/clock"))

    async def pause(self) -> dict[str, Any]:
        """Let simulated time stand still."""
        return dict(await self.call("POST", "/pause"))

    async def run(self) -> dict[str, Any]:
        """Let simulated time go on."""
        return dict(await self.call("POST", "/run"))

    async def speed(self, factor: float) -> dict[str, Any]:
        """Plant seconds per second from now on."""
        return dict(await self.call("POST", "/speed", {"factor": factor}))

    async def faults(self) -> list[dict[str, Any]]:
        """Planted faults."""
        return list(await self.call("GET", "/faults"))

    async def plant(self, room: str, spec: str) -> dict[str, Any]:
        """Plant ``NAME[:VALUE][@WHEN]`` in a room."""
        return dict(await self.call("POST", "/faults", {"spec": spec, "room": room}))

    async def clear(self, room: str, name: str) -> dict[str, Any]:
        """Take a fault away."""
        return dict(await self.call("DELETE", f"/faults/{quote(name, safe='')}?room={quote(room, safe='')}"))

    async def server(self, name: str, action: str) -> dict[str, Any]:
        """``start``, ``stop``, ``kill``, ``suspend``, ``resume`` or ``silent`` for a server."""
        return dict(await self.call("POST", f"/servers/{quote(name, safe='')}/{quote(action, safe='')}", within_s=START_S))

    async def confirm(self, room: str, kind: str) -> bool:
        """Ask the operator of a room, who does what a person does at that moment; takes the time people take."""
        return bool(
            (await self.call("POST", f"/people/{quote(room, safe='')}/confirm", {"kind": kind}, within_s=LONG))["answer"]
        )

    async def person(self, room: str, deed: str, **body: str) -> dict[str, Any]:
        """Another deed of the operator: ``lay-patient``, ``secure-room``, ``press`` (role), ``answer`` (kind)."""
        return dict(await self.call("POST", f"/people/{quote(room, safe='')}/{quote(deed, safe='')}", body, within_s=LONG))

    async def stop_people(self, room: str) -> None:
        """Let the operator of a room do nothing more by himself."""
        await self.call("POST", f"/people/{quote(room, safe='')}/stop", {})

    async def machine_limited_s(self, room: str, beam: int) -> float:
        """What an oracle would have needed for a beam of this session, s."""
        answer = await self.call("GET", f"/measures/machine-limited?room={quote(room, safe='')}&beam={beam}")
        return float(answer["machine_limited_s"])

    async def prescribe(self, prescription: Prescription) -> None:
        """A session begins: what may be delivered, for the invariants."""
        await self.call("POST", "/prescription", prescription_to_json(prescription))

    async def violations(self) -> list[Violation]:
        """Invariants that broke since the session began, oldest first."""
        return [violation_from_json(row) for row in await self.call("GET", "/violations")]

    async def shadow(self, payload: Mapping[str, Any]) -> None:
        """Tell the plant's model what real devices read."""
        await self.call("POST", "/shadow", payload)


def call_door(url: str, token: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """One request without a loop; see `BackdoorClient.call`."""
    try:
        with httpx.Client(base_url=url, headers=_headers(token), **_PLAIN) as client:
            response = client.request(method, path, json=body, timeout=START_S)
    except httpx.HTTPError as error:
        raise _unreachable(url, error) from None
    return _judged(response)


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _unreachable(url: str, error: httpx.HTTPError) -> BeamlineError:
    late = isinstance(error, httpx.TimeoutException)
    what = "does not answer in time" if late else f"is not there: {error}"
    return CommunicationError(
        f"the simulator's backdoor at {url} {what}",
        code=NO_ANSWER if late else NOBODY,
        device=DEVICE,
        hint="is `iongantry simulate` still running?",
        retryable=True,
    )


def _judged(response: httpx.Response) -> Any:
    try:
        content = response.json()
    except ValueError:
        content = {}
    if response.is_success:
        return content
    reason = content.get("reason", "") if isinstance(content, dict) else ""
    text = f"the simulator refuses: {reason or response.status_code}"
    if response.status_code >= 500:
        raise DeviceError(text, code=FAULT, device=DEVICE, hint="see what the simulator process says")
    raise CommandRejected(text, code=REFUSED, device=DEVICE)
