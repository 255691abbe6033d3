"""The interlock matrix as a console needs it: by row, who resets it, what to do, whether it may be bypassed.

A joiner: it reads the interlock system's own limits, so that nobody else in the controller has to know them. Not responsible
for evaluating anything, nor for what a room shows (`controller.serving`).
"""

from __future__ import annotations

from controller.surroundings import InterlockRow
from interlocks.matrix import SHIPPED, Limits, LimitsError, load
from interlocks.overlay import overlay_of
from interlocks.signature import verifier

MS_PER_H = 3.6e6


def rows_of(limits: Limits) -> dict[str, InterlockRow]:
    """Every row that the interlock system evaluates, by id."""
    return {
        row.id: InterlockRow(
            id=row.id,
            code=row.code,
            what=row.what,
            advice=row.advice,
            latches=row.latch,
            reset_role=row.reset_role,
            invalid_reset_role=limits.invalid_reset_role,
            bypassable="service" in row.bypassable_in and row.klass != "PERS",
            longest_bypass_s=limits.bypass_max_h * MS_PER_H / 1000.0,
        )
        for row in limits.software
    }


def facility_rows(facility: str) -> dict[str, InterlockRow]:
    """The rows of a shipped facility, its overlay included."""
    return rows_of(load(overlay=overlay_of(facility)))


def unsigned_limits(facility: str) -> str:
    """Why the limits here, with a facility's overlay, are not what two persons signed; empty when they are.

    The interlock daemon refuses such limits by itself; only simulated rooms run with them.
    """
    try:
        load(SHIPPED, verifier(), overlay_of(facility))
    except (LimitsError, ValueError, OSError) as error:
        return " ".join(str(error).split())
    return ""
