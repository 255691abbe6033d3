"""Why something that was asked of a running simulator was not done: the reason, and what kind of reason it is."""

from __future__ import annotations

WRONG = 400  # what was asked makes no sense
UNKNOWN = 404  # there is nothing of that name
NOT_NOW = 409  # not in the present state


class Refusal(Exception):
    """Refused, with nothing changed; `status` is the HTTP status that says so."""

    def __init__(self, reason: str, status: int = WRONG) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
