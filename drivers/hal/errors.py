"""Errors of the beamline, in numbered families, written for the operator.

A message says what is wrong, where, the value, the limit and what to do. Families:
1xxx ConfigError, 2xxx CommunicationError, 3xxx DeviceError, 4xxx CommandRejected, 5xxx DataError;
6xxx PlanError lives in `controller.plan`.
"""

from __future__ import annotations


class BeamlineError(Exception):
    """Base of every error this program raises on purpose.

    Args:
        message: what is wrong, with value and limit.
        code: number within the family, for example 2003.
        device: where, for example ``"G1-drive-A"``; empty when no device is involved.
        hint: what to do.
        retryable: whether the same action may simply be tried again.
    """

    family = 0

    def __init__(self, message: str, *, code: int = 0, device: str = "", hint: str = "", retryable: bool = False):
        super().__init__(message)
        self.message = message
        self.code = code or self.family
        self.device = device
        self.hint = hint
        self.retryable = retryable

    def __str__(self) -> str:
        where = f"{self.device}: " if self.device else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"[{self.code}] {where}{self.message}{hint}"

    @property
    def as_reasons(self) -> list[str]:
        """The error as separate reasons: one a line below a first line that names the file, or the error itself."""
        head, *rest = self.message.splitlines() or [""]
        place = head.partition(":")[0]
        return [f"{place}: {line.strip()}" for line in rest] or [str(self)]


class ConfigError(BeamlineError):
    """A facility file, an endpoint or an option is wrong; nothing was started."""

    family = 1000


class CommunicationError(BeamlineError):
    """A wire is silent, broken or answers garbage."""

    family = 2000


class DeviceError(BeamlineError):
    """A device answered, and says or shows that it is not well."""

    family = 3000


class CommandRejected(BeamlineError):
    """A device or the room refused a command in its present state."""

    family = 4000


class DataError(BeamlineError):
    """A value arrived that cannot be right: wrong type, not finite, bad checksum, out of range."""

    family = 5000
