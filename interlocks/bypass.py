"""A bypass: one interlock, for a while, in service mode, asked for by one person and approved by another.

Held in memory alone, so none survives a restart. Expiry is monotonic time: a clock that is set changes nothing. Personnel
interlocks refuse; treatment is impossible while any bypass is set (row BYPASS_ACTIVE). Not responsible for who the persons are.
"""

from __future__ import annotations

from typing import NamedTuple

from interlocks.matrix import Interlock


class BypassRefused(ValueError):
    """A bypass that may not be; the text says why."""


class Bypass(NamedTuple):
    """A bypass in force until `expires_ns` (monotonic)."""

    id: str
    owner: str
    approver: str
    reason: str
    expires_ns: int


def grant(
    row: Interlock, owner: str, approver: str, reason: str, now_ns: int, duration_ns: int, longest_ns: int, service: bool
) -> Bypass:
    """A new bypass, or BypassRefused. `service`: the room's mode switch is known to stand on service."""
    refusals = (
        (row.klass == "PERS", "it protects people and is never bypassed"),
        ("service" not in row.bypassable_in, "its row allows no bypass"),
        (not service, "the room is not in service mode"),
        (not owner.strip() or not approver.strip() or not reason.strip(), "owner, approver and reason are all needed"),
        (owner.strip().casefold() == approver.strip().casefold(), "owner and approver are the same person"),
        (not 0 < duration_ns <= longest_ns, f"duration {duration_ns / 3.6e12:.2f} h is not within {longest_ns / 3.6e12:g} h"),
    )
    if why := next((why for refused, why in refusals if refused), ""):
        raise BypassRefused(f"bypass of {row.id} refused: {why}")
    return Bypass(row.id, owner, approver, reason, now_ns + duration_ns)
