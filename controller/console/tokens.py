"""Sign-ins that are alive: short-lived tokens, each bound to one console and the peer it was made for.

A token is 256 random bits; only its SHA-256 is kept, so nothing here can give one away. It lapses after 15 minutes without
use and after 8 hours in any case, by loop time: setting a clock forward or back changes nothing. A console has one person at
a time. Not responsible for passwords (`users`) nor for what a role may do (`controller.roles`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.console.refused import Refused, unauthorized
from controller.roles import Role

IDLE_S = 15 * 60.0
LIFE_S = 8 * 3600.0
SESSIONS_MAX = 500
REMEMBERED_MAX = 1_000  # tokens that ended, so that their owner is told why


@dataclass(eq=False, slots=True)
class Session:
    """One person at one console.

    Attributes:
        name, role: who, as what.
        console, peer: where; the peer is an address without port.
        made_s, used_s: loop time, s.
        ended: why; empty while it is alive.
        streams: of this sign-in that are open.
        control_tokens: by room, as `take_control` answered.
    """

    name: str
    role: Role
    console: str
    peer: str
    made_s: float
    used_s: float
    ended: str = ""
    streams: int = 0
    control_tokens: dict[str, int] = field(default_factory=dict)
    _on_end: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def when_ended(self, act: Callable[[], None]) -> Callable[[], None]:
        """Call `act` when it ends; returns the removal."""
        self._on_end.append(act)
        return lambda: self._on_end.remove(act) if act in self._on_end else None

    def end(self, why: str) -> None:
        """No more."""
        self.ended = self.ended or why
        acts, self._on_end = self._on_end, []
        for act in acts:
            act()


class Tokens:
    """All sign-ins of this process; a new process knows none.

    Args:
        clock_s: loop time, s.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._alive: OrderedDict[bytes, Session] = OrderedDict()
        self._ended: OrderedDict[bytes, str] = OrderedDict()

    def issue(self, name: str, role: Role, console: str, peer: str) -> tuple[str, Session]:
        """A token for somebody whose password was right. Earlier sign-ins of that console end.

        Raises Refused 409: somebody else works there.
        """
        self._sweep()
        for session in list(self._alive.values()):
            if session.console != console:
                continue
            if session.streams and session.name != name:
                hint = "sign out there first, or choose another console name"
                raise Refused(409, f"{session.name} works at the console {console}", hint)
            self.end(session, f"{name} signed in at this console")
        if len(self._alive) >= SESSIONS_MAX:
            raise Refused(429, f"{SESSIONS_MAX} people are signed in", "sign out where nobody works")
        now_s = self._clock_s()
        session = Session(name, role, console, peer, now_s, now_s)
        return self._token_for(session), session

    def find(self, token: str, console: str | None, peer: str) -> Session:
        """Whose token it is; using it renews it.

        Args:
            token: as sent.
            console: as the request says; None where it says nothing.
            peer: where it comes from.

        Raises:
            Refused: 401 with words.
        """
        digest = _digest(token)
        session = self._alive.get(digest)
        if session is None:
            raise unauthorized(self._ended.get(digest, "this token is not known"))
        now_s = self._clock_s()
        if why := self._lapsed(session, now_s):
            self.end(session, why)
            raise unauthorized(why)
        if (console is not None and console != session.console) or peer != session.peer:
            raise unauthorized("this token belongs to another console", "sign in at this console")
        session.used_s = now_s
        return session

    def renew(self, session: Session) -> str:
        """A new token for the same sign-in; the old one is worth nothing from now on."""
        self._forget(session, "this token was replaced by a newer one")
        return self._token_for(session)

    def end(self, session: Session, why: str) -> None:
        """Sign out."""
        self._forget(session, why)
        session.end(why)

    def end_all_of(self, name: str, why: str, but: Session | None = None) -> None:
        """Sign somebody out everywhere."""
        for session in list(self._alive.values()):
            if session.name == name and session is not but:
                self.end(session, why)

    def expires_s(self, session: Session) -> float:
        """Until it lapses if nothing is done with it, s."""
        return max(0.0, min(session.used_s + IDLE_S, session.made_s + LIFE_S) - self._clock_s())

    def alive(self, session: Session) -> bool:
        """Whether it still counts; looking does not renew it."""
        if not session.ended and (why := self._lapsed(session, self._clock_s())):
            self.end(session, why)
        return not session.ended

    @property
    def count(self) -> int:
        """How many are signed in."""
        return len(self._alive)

    def _token_for(self, session: Session) -> str:
        token = secrets.token_urlsafe(32)
        self._alive[_digest(token)] = session
        return token

    def _lapsed(self, session: Session, now_s: float) -> str:
        if now_s - session.made_s > LIFE_S:
            return f"this sign-in is older than {LIFE_S / 3600:g} h"
        if now_s - session.used_s > IDLE_S:
            return f"this sign-in was not used for {IDLE_S / 60:g} min"
        return ""

    def _sweep(self) -> None:
        for session in list(self._alive.values()):
            self.alive(session)

    def _forget(self, session: Session, why: str) -> None:
        for digest in [digest for digest, other in self._alive.items() if other is session]:
            del self._alive[digest]
            self._ended[digest] = why
        while len(self._ended) > REMEMBERED_MAX:
            self._ended.popitem(last=False)


def _digest(token: str) -> bytes:
    """Looked up by its digest: how long that takes says nothing of a token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
