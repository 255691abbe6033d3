"""What the tools of the command line advise, in the words of somebody at a console: which page, which button, who.

Not responsible for what is advised (`controller.standing`, `controller.admission`, `controller.resume`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.serving.cut_off import root_of_journal

RECONCILE = "a physicist takes control and presses Reconcile under Treatments"
SIGN = "a physicist takes control and signs it under Treatments"
LEFT = "load it under Plans with 'only what an earlier delivery left'"
_ADVICE: Mapping[str, str] = {
    "untouched": LEFT,
    "open": RECONCILE,
    "partial": LEFT,
    "complete": "nothing is left to do",
    "locked": SIGN,
}
_WORDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"a physicist must (?:sign|accept this): `iongantry recover [^`]*`"), SIGN),
    (re.compile(r"a physicist must sign its interval"), SIGN),
    (re.compile(r"`iongantry recover [^`]*` first"), RECONCILE),
    (re.compile(r"`iongantry recover`"), "Reconcile under Treatments"),
    (re.compile(r"recover it\b"), RECONCILE),
    (re.compile(r"resume it\b"), LEFT),
)
_JOURNAL = re.compile(r"\bjournal (\S.*?/journal\.bin)\b")


def for_console(reasons: Sequence[str]) -> list[str]:
    """Reasons why a plan is not loaded, with what to do at the console."""
    return [_told(reason) for reason in reasons]


def plain_reason(reason: str) -> str:
    """Why a treatment ended, inside a longer line: without the name of the cause, numbers of the program and the full stop."""
    return _told(re.sub(r"^[a-z_]+\.\w+: |\[\d{4}\] ", "", reason.strip()).rstrip("."))


def _told(reason: str) -> str:
    reason = _JOURNAL.sub(lambda found: f"treatment {root_of_journal(Path(found[1])).name}", reason)
    for pattern, words in _WORDS:
        reason = pattern.sub(words, reason)
    return reason


def reconciled(value: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `reconcile`, with lines that name the console's way."""
    beams, lines = [], []
    told = list(value.get("lines", ()))
    for beam, line in zip(value.get("beams", ()), told, strict=False):
        advice = _ADVICE.get(str(beam.get("state")), str(beam.get("advice", "")))
        lines.append(line.removesuffix(str(beam.get("advice", ""))) + advice)
        beams.append({**beam, "advice": advice})
    lines += ["salvage record: among the files of the treatment" for _ in value.get("salvage", ())]
    lines += value.get("notes", ())
    return {**value, "beams": beams, "lines": lines}
