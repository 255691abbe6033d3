"""Who may sign in, and as what: names, roles and argon2id hashes in one file that is replaced as a whole.

At the first start there is one user for each role, with a random password each that stands in a file of its own until it
is changed. Nobody holds the roles service and physicist at once. A password is tried in a thread, one at a time, so that a
flood of sign-ins takes one core at most; a name that does not exist takes as long as a wrong password.
Not responsible for who is signed in (`tokens`) nor for how often somebody may try (`limits`).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from controller.console.refused import Refused, too_many
from controller.record.whole_file import whole_file
from controller.roles import Role
from drivers.hal.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PASSWORD_MIN, PASSWORD_MAX = 12, 256
USERS_MAX = 500
WAITING_MAX = 16  # sign-ins that wait for the one that is tried; about 0.1 s each
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that is taken for something else


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may sign in.

    Attributes:
        name: unique, as typed.
        roles: one of them is chosen at the sign-in.
        hash: argon2id, with its parameters and salt.
        first_password: whether it is still the one that was made for the user.
        made_utc: when.
    """

    name: str
    roles: tuple[Role, ...]
    hash: str
    first_password: bool
    made_utc: str

    def __repr__(self) -> str:
        return f"User({self.name!r}, {', '.join(self.roles)})"


class Users:
    """The file of users.

    Args:
        directory: of the state; holds `users.json` and, at first, `first-passwords.txt`.
        hasher: argon2id; its default is RFC 9106's second choice on one lane: 64 MiB, three passes.
    """

    def __init__(self, directory: Path, hasher: PasswordHasher | None = None) -> None:
        self.path = directory / "users.json"
        self.first_path = directory / "first-passwords.txt"
        self._hasher = hasher or PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=1)
        self._users: dict[str, User] = {}
        self._trying = asyncio.Lock()
        self._waiting = 0
        self._nobody = ""

    def open(self) -> bool:
        """Read the file, or make it with one user a role; True when it was made. Raises ConfigError."""
        self._nobody = self._hasher.hash(secrets.token_urlsafe(16))
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self._first_start()
            return True
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}", code=1071, hint="is it yours?") from error
        try:
            self._users = {name: _user(name, entry) for name, entry in json.loads(text)["users"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "restore it, or move it away to begin with new users"
            raise ConfigError(f"{self.path} is no file of users: {error}", code=1072, hint=hint) from None
        return False

    def all(self) -> list[User]:
        """By name."""
        return sorted(self._users.values(), key=lambda user: user.name)

    def get(self, name: str) -> User | None:
        """By name."""
        return self._users.get(name)

    async def check(self, name: str, password: str) -> User | None:
        """Whose password it is; None for a wrong one and for a name that does not exist, after the same time.

        Raises Refused 429: too many wait.
        """
        if self._waiting >= WAITING_MAX:
            raise too_many(f"{WAITING_MAX} sign-ins wait already", 2.0)
        user = self._users.get(name)
        self._waiting += 1
        try:
            async with self._trying:
                right = await asyncio.to_thread(self._verify, user.hash if user is not None else self._nobody, password)
        finally:
            self._waiting -= 1
        return user if right and user is not None and self._users.get(name) is user else None

    async def add(self, name: str, roles: Iterable[Role], password: str | None = None) -> str:
        """A new user; returns the password, made where none is given. Raises Refused 409, 422."""
        chosen = tuple(dict.fromkeys(roles))
        if not NAME.fullmatch(name):
            raise Refused(422, "a name has 1 to 64 letters, digits, and . _ - after the first", "choose another name")
        if not chosen:
            raise Refused(422, "a user has at least one role", f"roles: {', '.join(Role)}")
        if {Role.SERVICE, Role.PHYSICIST} <= set(chosen):
            raise Refused(409, "nobody holds the roles service and physicist at once", "make two users, for two people")
        if name in self._users:
            raise Refused(409, f"there is a user {name} already", "choose another name")
        if len(self._users) >= USERS_MAX:
            raise Refused(409, f"there are {USERS_MAX} users", "remove those who left")
        if password is None:
            password = _made_password()
        else:
            _judge_password(name, password)
        made = await self._hashed(password)
        if name in self._users:
            raise Refused(409, f"there is a user {name} already", "choose another name")
        self._replace({**self._users, name: User(name, chosen, made, True, _utc())})
        return password

    async def change_password(self, user: User, password: str) -> None:
        """Raises Refused 404, 409, 422."""
        _judge_password(user.name, password)
        made = await self._hashed(password)
        if self._users.get(user.name) is None:
            raise Refused(404, "this user was removed")
        self._replace({**self._users, user.name: replace(user, hash=made, first_password=False)})
        self._strike_first(user.name)

    def remove(self, name: str) -> None:
        """Raises Refused 404, 409: the last one who may make users stays."""
        if name not in self._users:
            raise Refused(404, f"there is no user {name}")
        left = {other: user for other, user in self._users.items() if other != name}
        if not any(Role.SECURITY_ADMIN in user.roles for user in left.values()):
            raise Refused(409, f"{name} is the last security_admin", "make another one first")
        self._replace(left)
        self._strike_first(name)

    # --- inside -----------------------------------------------------------------------------------------------------------

    async def _hashed(self, password: str) -> str:
        async with self._trying:
            return await asyncio.to_thread(self._hasher.hash, password)

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False

    def _first_start(self) -> None:
        passwords = {str(role): _made_password() for role in Role}
        made = {name: self._hasher.hash(password) for name, password in passwords.items()}
        users = {name: User(name, (Role(name),), hashed, True, _utc()) for name, hashed in made.items()}
        head = "Passwords made at the first start, one user for each role. A line goes when its password is changed.\n"
        lines = "".join(f"{name} {password}\n" for name, password in passwords.items())
        _write_secret(self.first_path, head + lines)
        self._replace(users)

    def _replace(self, users: Mapping[str, User]) -> None:
        document = {name: {**asdict(user), "name": None} for name, user in users.items()}
        for entry in document.values():
            del entry["name"]
        _write_secret(self.path, json.dumps({"version": 1, "users": document}, indent=1) + "\n")
        self._users = dict(users)

    def _strike_first(self, name: str) -> None:
        try:
            lines = self.first_path.read_text(encoding="utf-8").splitlines(keepends=True)
        except OSError:
            return
        left = [line for line in lines if line.split(" ", 1)[0] != name]
        if len(left) <= 1:
            self.first_path.unlink(missing_ok=True)
        else:
            _write_secret(self.first_path, "".join(left))


def _user(name: str, entry: Mapping[str, Any]) -> User:
    roles = tuple(Role(role) for role in entry["roles"])
    if {Role.SERVICE, Role.PHYSICIST} <= set(roles):
        raise ValueError(f"{name} holds the roles service and physicist at once")
    return User(name, roles, str(entry["hash"]), bool(entry["first_password"]), str(entry["made_utc"]))


def _judge_password(name: str, password: str) -> None:
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        hint = "four words that do not belong together"
        raise Refused(422, f"a password has {PASSWORD_MIN} to {PASSWORD_MAX} characters", hint)
    if name.lower() in password.lower():
        raise Refused(409, "the password has the name in it", "choose another")


def _made_password() -> str:
    """About 79 random bits in four groups that can be typed."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(4))


def _write_secret(path: Path, text: str) -> None:
    """Nobody else reads it, not even while it is written. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft:
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", code=1073, hint="free the disk, or the rights") from error


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
