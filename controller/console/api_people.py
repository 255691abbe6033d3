"""HTTP: sign in and out, one's own password, users. Not responsible for what makes a token or a hash (`tokens`, `users`)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request

from controller.console.api_models import (
    NAME_PATTERN,
    Changed,
    LoginBody,
    MeView,
    NewUserBody,
    NewUserView,
    PasswordBody,
    Removed,
    SignedOut,
    TokenView,
    UserView,
)
from controller.console.api_parts import ONLY_ASKED, Doer, HubOf, Reader, errors, may
from controller.console.hub import Hub
from controller.console.refused import Refused, too_many, unauthorized
from controller.console.tokens import Session
from controller.console.users import User
from controller.roles import Role
from drivers.hal.errors import BeamlineError

router = APIRouter(tags=["people"], dependencies=ONLY_ASKED)
WhoseName = Annotated[str, Path(pattern=NAME_PATTERN)]


@router.post("/api/login", responses=errors(400, 401, 409, 503), summary="Sign in at a console")
async def login(body: LoginBody, request: Request, hub: HubOf) -> TokenView:
    """Three wrong passwords are free; then each costs a wait, for that name from that address."""
    peer = request.client.host if request.client is not None else "?"
    wait_s = hub.failures.wait_s(body.name, peer)
    if wait_s > 0.0:
        raise too_many("too many wrong passwords", wait_s)
    user = await hub.users.check(body.name, body.password)
    if user is None:
        hub.failures.failed(body.name, peer)
        hub.count("sign-ins refused")
        await _note(hub, "sign_in.refused", name=body.name, console=body.console, peer=peer)
        raise unauthorized("name or password is wrong", "after three wrong ones each costs a wait")
    role = Role(body.role) if body.role is not None else user.roles[0]
    if role not in user.roles:
        raise Refused(403, f"{user.name} does not hold the role {role}", f"roles: {', '.join(user.roles)}")
    hub.failures.succeeded(body.name, peer)
    await _note(hub, "sign_in", name=user.name, role=role.value, console=body.console, peer=peer)
    token, session = hub.tokens.issue(user.name, role, body.console, peer)
    return _told(hub, user, session, token)


@router.post("/api/logout", responses=errors(401, 503), summary="Sign out")
async def logout(session: Doer, hub: HubOf) -> SignedOut:
    """The token is worth nothing from now on; streams of this console close."""
    hub.tokens.end(session, "signed out")
    await _note(hub, "sign_out", name=session.name, role=session.role.value, console=session.console, peer=session.peer)
    return SignedOut()


@router.post("/api/renew", responses=errors(401), summary="A new token for the same sign-in")
async def renew(session: Doer, hub: HubOf) -> TokenView:
    """The old token is worth nothing from now on; open streams stay."""
    return _told(hub, _user(hub, session), session, hub.tokens.renew(session))


@router.get("/api/me", responses=errors(401), summary="Who asks")
async def me(session: Reader, hub: HubOf) -> MeView:
    """Name, role and console of this sign-in."""
    user = _user(hub, session)
    return MeView(
        name=session.name,
        role=session.role.value,
        roles=[role.value for role in user.roles],
        console=session.console,
        expires_s=hub.tokens.expires_s(session),
        first_password=user.first_password,
    )


@router.post("/api/me/password", responses=errors(400, 401, 403, 404, 409, 503), summary="Change one's own password")
async def change_password(body: PasswordBody, session: Doer, hub: HubOf) -> Changed:
    """Other sign-ins of the same person end."""
    wait_s = hub.failures.wait_s(session.name, session.peer)
    if wait_s > 0.0:
        raise too_many("too many wrong passwords", wait_s)
    user = await hub.users.check(session.name, body.old)
    if user is None:
        hub.failures.failed(session.name, session.peer)
        await _note(hub, "password.refused", name=session.name, console=session.console, peer=session.peer)
        raise Refused(403, "the old password is wrong", "type it again")
    await hub.users.change_password(user, body.new)
    hub.tokens.end_all_of(user.name, "the password was changed", but=session)
    await _note(hub, "password", name=session.name, console=session.console, peer=session.peer)
    return Changed()


@router.get("/api/users", responses=errors(401, 403), summary="Everybody who may sign in")
async def users(session: Reader, hub: HubOf) -> list[UserView]:
    """For the security admin."""
    if session.role is not Role.SECURITY_ADMIN:
        raise Refused(403, f"users are not for the role {session.role}", f"allowed: {Role.SECURITY_ADMIN}", code=4402)
    return [_user_view(user) for user in hub.users.all()]


@router.post("/api/users", responses=errors(400, 401, 403, 409, 503), status_code=201, summary="Make a user")
async def add_user(body: NewUserBody, session: Doer, hub: HubOf) -> NewUserView:
    """For the security admin, while every room is idle. Nobody holds the roles service and physicist at once."""
    may(hub, session, "manage_users")
    await _note(hub, "user.add", by=session.name, console=session.console, name=body.name, roles=list(body.roles))
    password = await hub.users.add(body.name, [Role(role) for role in body.roles], body.password)
    return NewUserView(name=body.name, roles=body.roles, password=password if body.password is None else None)


@router.delete("/api/users/{name}", responses=errors(401, 403, 404, 409, 503), summary="Remove a user")
async def remove_user(name: WhoseName, session: Doer, hub: HubOf) -> Removed:
    """For the security admin, while every room is idle. That user's sign-ins end."""
    may(hub, session, "manage_users")
    await _note(hub, "user.remove", by=session.name, console=session.console, name=name)
    hub.users.remove(name)
    hub.tokens.end_all_of(name, "this user was removed")
    return Removed(removed=name)


async def _note(hub: Hub, kind: str, **data: object) -> None:
    """Into the console's audit, or it does not happen. Raises Refused 503."""
    try:
        await hub.people.note(kind, data)
    except BeamlineError as error:
        why = f"the console's audit cannot be written: {error.message}"
        raise Refused(503, why, "free the disk, then start the console again", code=error.code) from None


def _user(hub: Hub, session: Session) -> User:
    user = hub.users.get(session.name)
    if user is None:
        raise unauthorized("this user was removed")
    return user


def _told(hub: Hub, user: User, session: Session, token: str) -> TokenView:
    return TokenView(
        token=token,
        expires_s=hub.tokens.expires_s(session),
        name=session.name,
        role=session.role.value,
        roles=[role.value for role in user.roles],
        console=session.console,
        first_password=user.first_password,
    )


def _user_view(user: User) -> UserView:
    return UserView(
        name=user.name,
        roles=[role.value for role in user.roles],
        first_password=user.first_password,
        made_utc=user.made_utc,
    )
