"""The room's questions in words, the same at every console: each number that is to be accepted with its limit and its unit.

Pure. Not responsible for who is asked, nor for what an answer does (`prompts` at a terminal, `controller.serving.questions` for
a console over its line).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN_FROM = 0.005  # mm and deg; what is less is 0.00 as it is shown


def question_text(kind: str, facts: Mapping[str, Any]) -> str:
    """What is asked.

    Args:
        kind: value of `controller.room.ports.Confirm`; another one is its own text.
        facts: as the room told them, with what is known of the beam beside (`controller.what_is_left`).
    """
    beam = f"beam {facts.get('beam_number', '?')} {facts.get('beam_name', '')}".rstrip()
    dose = f"{facts.get('meterset', 0.0):.6g} {facts.get('meterset_unit', '')}".rstrip()
    left = f" ({facts['remainder']})" if facts.get("remainder") else ""
    match kind:
        case "identify":
            name = ", ".join(filter(None, str(facts.get("patient_name") or "").split("^")))
            return (
                f"Is this patient {name or '(no name)'}, ID {facts.get('patient_id') or '(none)'}, plan "
                f"{facts.get('plan_label')}, fraction {facts.get('fraction')}, {beam}, {dose}{left}, in room "
                f"{facts.get('room')}?"
            )
        case "move_on":
            stopped = f"{facts.get('device')}: {facts.get('stopped')}"
            return f"{stopped}. Nothing withholds motion now. Look into the room: is everything clear, and shall it go on?"
        case "positioned":
            corrected = _axes(facts.get("correction") or {}, facts.get("correction_limit") or {})
            remaining = _axes(facts.get("residual") or {}, facts.get("residual_limit") or {})
            return (
                f"Is the position for {beam} accepted? Remaining deviation {remaining}; corrected before by {corrected}. "
                "Then leave the room and search it."
            )
        case "beam_on":
            limit = f" (limit {facts['gantry_limit_deg']:g} deg off)" if "gantry_limit_deg" in facts else ""
            return f"Beam on for {beam}, {dose}{left}, gantry at {facts.get('gantry_deg', 0.0):.1f} deg{limit}?"
        case "resume":
            return f"Beam on again for {beam}, {dose}{left}?"
    return kind


def _axes(values: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """``lateral +0.31 mm, vertical -0.10 mm (limit 1 mm), no angle (limit 1 deg)``: what was measured, and what is allowed."""
    said = []
    for unit, none in (("mm", "no length"), ("deg", "no angle")):
        shown = [
            f"{axis.removesuffix(f'_{unit}')} {value:+.2f} {unit}"
            for axis, value in values.items()
            if axis.endswith(f"_{unit}") and abs(value) >= SHOWN_FROM
        ]
        allowed = sorted({limit for axis, limit in limits.items() if axis.endswith(f"_{unit}")})
        limit = f" (limit {' to '.join(f'{each:g}' for each in allowed)} {unit})" if allowed else ""
        said.append(f"{', '.join(shown) or none}{limit}")
    return ", ".join(said)
