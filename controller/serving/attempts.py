"""What the last session of every treatment ended with, from the files it left; the ledger knows nothing of what gave nothing.

A treatment that failed while the room was prepared claimed no beam: why, stands in its summary alone. Not responsible for what
was given (`cut_off`, `fraction_words`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.serving.console_words import plain_reason
from controller.serving.cut_off import loaded_in, room_of
from controller.serving.ground import Ground

DIED, DIED_IN_BEAM = "the program was cut off", "the program was cut off in beam"
LOOKED_AT_MAX = 200  # treatments, the latest first; assumed


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last session of one treatment.

    Attributes:
        id: of the treatment.
        beams: that were asked for; empty: not known.
        reason: why it ended early, in words; empty where it did not.
        over: whether its outputs are there; else it is under way, or its program ended.
        at_ns: when its directory was last changed, ns of the file system's clock.
    """

    id: str
    room: str
    plan_id: str
    fraction: int
    beams: tuple[int, ...]
    reason: str
    over: bool
    at_ns: int


class Attempts:
    """Of all rooms of a facility; read again only where something changed.

    Args:
        ground: names the directory of the treatments.
    """

    def __init__(self, ground: Ground) -> None:
        self._root = ground.treatments
        self._read: dict[str, tuple[tuple[int, int], Path, Attempt]] = {}

    def of(self, directory: Path) -> Attempt:
        """Of one treatment."""
        known, changed_ns = self._read.get(directory.name), _changed_ns(directory)
        last = known[1] if known is not None and known[0][0] == changed_ns else sessions_of(directory)[-1]
        stamp = changed_ns, _changed_ns(last)
        if known is not None and known[0] == stamp:
            return known[2]
        loaded, summary = loaded_in(directory), _json(last / "summary.json")
        made = Attempt(
            id=directory.name,
            room=room_of(directory),
            plan_id=str(loaded.get("plan_id", "")),
            fraction=int(loaded.get("fraction") or 0),
            beams=tuple(int(beam) for beam in loaded.get("beams") or ()),
            reason=_reason(last, summary),
            over=summary is not None,
            at_ns=max(stamp),
        )
        self._read[directory.name] = stamp, last, made
        return made

    def every(self) -> list[Attempt]:
        """Of the latest treatments, by their last change."""
        try:
            names = sorted((path.name for path in self._root.iterdir() if path.is_dir()), reverse=True)[:LOOKED_AT_MAX]
        except OSError:
            return []
        return sorted((self.of(self._root / name) for name in names), key=lambda attempt: (attempt.at_ns, attempt.id))


def sessions_of(directory: Path) -> list[Path]:
    """The directory of a treatment, and those of its later sessions, in order."""
    return [directory, *sorted(directory.glob("resume-*"), key=lambda path: (len(path.name), path.name))]


def _reason(last: Path, summary: dict[str, Any] | None) -> str:
    if summary is None:
        return DIED_IN_BEAM if (last / "salvage").is_dir() else DIED
    if summary.get("status") == "complete":
        return ""
    return plain_reason(str(summary.get("reason") or ""))


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None
