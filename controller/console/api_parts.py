"""What every route needs: the hub, who asks, and the errors it may answer with, for the interface document.

Not responsible for refusing (`guard` has done so before a route is reached).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, Header, Path, Request, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from controller.console.api_models import CONSOLE_PATTERN, ErrorView
from controller.console.hub import Hub
from controller.console.refused import Refused, unauthorized
from controller.console.tokens import Session
from controller.roles import RULES, Mode, judge
from controller.room.states import State

_bearer = HTTPBearer(auto_error=False, description="The token of a sign-in (POST /api/login).")
WORDS = {
    400: "the body could not be read",
    401: "not signed in",
    403: "not for this role",
    404: "there is no such thing",
    408: "the body did not come",
    409: "not in this state",
    413: "too large",
    415: "compressed, packed, or of another media type than is taken",
    421: "meant for another host",
    422: "not well formed",
    425: "too old: look at the room, then act again",
    429: "too many",
    503: "the room's process is not reached",
    504: "the room's process did not answer: it is not known what became of it",
    507: "the disk is full",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses`: those of every route, and more."""
    return {status: {"model": ErrorView, "description": WORDS[status]} for status in (408, 413, 415, 421, 422, 429, *statuses)}


async def only_asked(request: Request) -> None:
    """A query that asks for what there is not is refused: a mistyped limit is not to pass for none. Raises Refused 422."""
    asked = _asked(request.scope["endpoint"])
    names = [name for name, _value in request.query_params.multi_items()]
    if unknown := sorted(set(names) - asked):
        told = ", ".join(repr(name[:64]) for name in unknown[:4])
        raise Refused(422, f"there is no parameter {told} in this query", f"parameters: {', '.join(sorted(asked)) or 'none'}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(422, f"query: {', '.join(twice)} is given more than once", "give it once")


@cache
def _asked(endpoint: Callable[..., Any]) -> frozenset[str]:
    """Names of a route's parameters that are annotated as of the query."""
    hints = get_type_hints(endpoint, include_extras=True)
    return frozenset(
        name
        for name, hint in hints.items()
        if any(isinstance(part, params.Query) for part in getattr(hint, "__metadata__", ()))
    )


def the_hub(request: Request) -> Hub:
    """What the parts of this process share."""
    hub: Hub = request.app.state.hub
    return hub


async def the_session(
    request: Request,
    _token: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Session:
    """Who asks, as the guard found. Raises Refused 401."""
    session: Session | None = getattr(request.state, "session", None)
    if session is None:
        raise unauthorized("this needs a sign-in", "POST /api/login, then send the token as Bearer")
    return session


async def the_session_that_acts(
    session: Annotated[Session, Depends(the_session)],
    _x_console: Annotated[
        str | None, Header(alias="X-Console", pattern=CONSOLE_PATTERN, description="as at the sign-in")
    ] = None,
) -> Session:
    """Who asks for a change: the request says its console too, and the guard has compared it."""
    return session


ONLY_ASKED = [Depends(only_asked)]  # of every route below /api
HubOf = Annotated[Hub, Depends(the_hub)]
Reader = Annotated[Session, Depends(the_session)]
Doer = Annotated[Session, Depends(the_session_that_acts)]
RoomName = Annotated[str, Path(max_length=64, description="a room of the facility, for example G1")]


def shown(hub: Hub, room: str) -> dict[str, Any]:
    """The last view of a room. Raises Refused 404, 503."""
    import json

    view: dict[str, Any] = json.loads(hub.shown(room))
    return view


def may(hub: Hub, session: Session, name: str) -> None:
    """Whether the table allows a command of the console's own (users) in every room as it stands.

    Raises Refused 403, 409.
    """
    if not any(session.role in roles for roles in RULES[name].roles.values()):
        raise Refused(403, f"{name} is not for the role {session.role}", code=4402)
    for room, link in hub.links.items():
        if not link.connected or link.last_view is None:
            continue  # nobody treats there
        view = shown(hub, room)
        rejection = judge(name, session.role, Mode(view["mode"]), State(view["state"]))
        if rejection is not None:
            status = 403 if rejection.code == 4402 else 409
            raise Refused(status, f"{room}: {rejection.message}", rejection.hint, code=rejection.code)
