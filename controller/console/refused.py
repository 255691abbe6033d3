"""Why a request is not done: a status, and words for the one who asked. Not responsible for answering (`api`, `guard`)."""

from __future__ import annotations

import json
from collections.abc import Mapping


class Refused(Exception):
    """A request that is not done.

    Args:
        status: of HTTP.
        reason: what is wrong, with value and limit; never anything secret.
        hint: what to do.
        code: of the `BeamlineError` behind it, if any.
        headers: of the answer.
    """

    def __init__(
        self, status: int, reason: str, hint: str = "", *, code: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.hint = hint
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """As answered: `ErrorView`."""
        return json.dumps({"code": self.code, "reason": self.reason, "hint": self.hint}).encode()


def unauthorized(reason: str, hint: str = "sign in again") -> Refused:
    """Nobody known asks."""
    return Refused(401, reason, hint, headers={"WWW-Authenticate": "Bearer"})


def too_many(reason: str, retry_s: float) -> Refused:
    """Not so often."""
    wait_s = str(max(1, round(retry_s + 0.5)))
    return Refused(429, reason, f"wait {wait_s} s, then try again", headers={"Retry-After": wait_s})
