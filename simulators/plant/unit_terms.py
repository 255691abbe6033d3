"""Words of the delivery unit on the wire: states, holds, reasons, flags of pieces (docs/wires.md), as the plant has them."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class UnitState(IntEnum):
    """State of the unit."""

    IDLE = 0
    GRANTED = 1
    DELIVERING = 2
    HELD = 3
    FINISHED = 4
    ENDED_EARLY = 5
    LATCHED = 6


class Hold(IntFlag):
    """Why an open grant is held."""

    NONE = 0
    GATE = 1
    CONTROLLER = 2
    SPILL = 4
    ENERGY = 8
    PAUSE = 16


class Reason(IntEnum):
    """Why a grant ended, or the unit latched."""

    NONE = 0
    FINISHED = 1
    ABORTED = 2
    PERMIT = 3
    POSITION = 4
    DOSE_1 = 5
    DOSE_2 = 6
    DISAGREE = 7
    RATE = 8
    TOKEN = 9
    DEAD = 10
    SECOND_UNIT = 11
    STRAY = 12
    SUPPLY = 13


NOT_LATCHING = frozenset({Reason.NONE, Reason.FINISHED, Reason.ABORTED, Reason.PERMIT})


class Flag(IntFlag):
    """How a piece ended."""

    NONE = 0
    ROW_ENDED = 1
    CUT_GATE = 2
    CUT_SPILL = 4
    CUT_PERMIT = 8
    CUT_UNIT = 16
    GATE_OPEN = 32
    CUT_CONTROLLER = 64


def cut_flag(hold: Hold) -> Flag:
    """The flag of a piece that was cut by a hold; the first of several in the order gate, controller, spill or energy, unit."""
    if hold & Hold.GATE:
        return Flag.CUT_GATE
    if hold & Hold.CONTROLLER:
        return Flag.CUT_CONTROLLER
    return Flag.CUT_SPILL if hold & (Hold.SPILL | Hold.ENERGY) else Flag.CUT_UNIT


def ended_flag(reason: Reason) -> Flag:
    """The flag of a piece that was cut by the end of its grant."""
    return {Reason.ABORTED: Flag.CUT_CONTROLLER, Reason.PERMIT: Flag.CUT_PERMIT}.get(reason, Flag.CUT_UNIT)
