"""Why a room was tripped: one frozen value, how severe it is, and how an exception becomes one.

Not responsible for where a cause leads (that is a row of `states.TRIPS`) and not for interlocks: a cause is what the
controller noticed, the hardware has acted long before.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from drivers.hal.errors import BeamlineError


class Severity(IntEnum):
    """What a cause asks for. The words are those of IEC 60601-2-64: an interruption can resume, a termination cannot."""

    PAUSE = 1  # interrupt; a fresh beam-on may resume while all conditions hold
    TERMINATE = 2  # end this field; everything has to be selected again
    FAULT = 3  # the program or the plant is not understood, or an emergency stop: acknowledge before anything else


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason, written for the operator.

    Attributes:
        name: dotted and stable, for example ``"chain.door"``; the record and the tests use it.
        severity: what it asks for.
        message: what is wrong, in words.
        device: where.
        value: what was seen, with its unit.
        limit: what is allowed, with its unit.
        hint: what to do.
        t_ns: loop time at which it was noticed.
    """

    name: str
    severity: Severity
    message: str
    device: str = ""
    value: str = ""
    limit: str = ""
    hint: str = ""
    t_ns: int = 0

    def __str__(self) -> str:
        where = f"{self.device}: " if self.device else ""
        numbers = f" ({self.value}; limit {self.limit})" if self.limit else f" ({self.value})" if self.value else ""
        return f"{self.name}: {where}{self.message}{numbers}" + (f"; {self.hint}" if self.hint else "")

    def as_data(self) -> dict[str, Any]:
        """The cause as data of an event."""
        return {
            "cause": self.name,
            "severity": self.severity.name.lower(),
            "message": self.message,
            "device": self.device,
            "value": self.value,
            "limit": self.limit,
            "hint": self.hint,
        }


def cause_of(error: BaseException, where: str, t_ns: int) -> Cause:
    """Turn an exception into a cause.

    An error raised on purpose names what is wrong and ends the field. Anything else was not foreseen and is a fault: what the
    program no longer understands must not go on.

    Args:
        error: what was raised.
        where: the state or the callback in which it was raised, for example ``"preparatory.tuning"``.
        t_ns: loop time in ns.
    """
    if isinstance(error, BeamlineError):
        return Cause(
            f"error.{error.code}",
            Severity.TERMINATE,
            f"{error.message} (in {where})",
            device=error.device,
            hint=error.hint,
            t_ns=t_ns,
        )
    if isinstance(error, TimeoutError):
        return Cause(
            "program.timeout",
            Severity.FAULT,
            f"{where} did not end in time: {error}" if str(error) else f"{where} did not end in time",
            hint="look for a device that no longer answers, then acknowledge",
            t_ns=t_ns,
        )
    return Cause(
        "program.exception",
        Severity.FAULT,
        f"{type(error).__name__} in {where}: {error}",
        hint="keep the event file, reconcile the open dose, then acknowledge",
        t_ns=t_ns,
    )
