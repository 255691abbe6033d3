"""What the parts of the drive procedure share: verdicts, steps, episodes to draw, and the end for safety.

Not responsible for any check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controller.hil.drive_bench import DriveBench
from controller.hil.drive_hand import DriveHand
from controller.hil.judge_drive import Finding
from controller.hil.trace import Profile
from controller.hil.verdict import DRIVE_CHECKS, Notes


class Ended(Exception):
    """The procedure ends here; the text says why."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A part of the traces that is drawn: its name, where it begins and ends, what was asked for."""

    name: str
    from_s: float
    to_s: float
    profile: Profile | None = None
    start_s: float = 0.0  # when the profile began
    command_s: float | None = None  # when a stop was asked for


class DriveParts:
    """Base of the procedure.

    Args:
        bench: the drives.
        tell: told in words what is being done.

    Attributes:
        notes: verdicts on `DRIVE_CHECKS`.
        episodes: what is drawn in the report.
        identity: what each drive said of itself.
        left: how the drives were left.
    """

    def __init__(self, bench: DriveBench, tell: Callable[[str], None] | None = None) -> None:
        self.notes = Notes(DRIVE_CHECKS)
        self.episodes: list[Episode] = []
        self.identity: dict[str, str] = {}
        self.left = "never enabled"
        self._bench = bench
        self._hand = DriveHand(bench)
        self._tell = tell or (lambda _words: None)
        self._at = "identity"

    def _step(self, name: str, more: str = "") -> None:
        self._at = name
        self._tell(self.notes.requirement(name).name + more)

    def _blame(self, words: str) -> None:
        """What went wrong in the middle of a step belongs to the check that was being done."""
        self.notes.judge(self._at, False, words, "", words)

    def _judged(self, name: str, finding: Finding) -> None:
        self.notes.judge(name, *finding)

    def _end_if(self, name: str) -> None:
        """End for safety when a check has failed."""
        failed = [check for check in self.notes.failed if check.requirement.id == name]
        if failed:
            raise Ended(f"{failed[0].requirement.name} failed: {failed[0].reason}")
