"""Why a plan is refused: numbered reasons, and the errors that carry them.

A refusal names what is wrong, where in the plan, the value, the limit and what to do. All reasons are collected before
anything is raised: an operator must not meet them one at a time. Not responsible for printing them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from drivers.hal.errors import BeamlineError


class Why(IntEnum):
    """Kinds of refusal: 60xx the file, 61xx its integrity, 62xx deliverability, 63xx schedule and making of plans."""

    UNREADABLE = 6001
    NOT_DICOM = 6002
    TRUNCATED = 6003
    WRONG_SOP_CLASS = 6004
    TOO_LARGE = 6005
    NOT_RST = 6006

    NO_BEAMS = 6101
    DUPLICATE_BEAM = 6102
    COUNT_DISAGREES = 6103
    MISSING = 6104
    BAD_VALUE = 6105
    BAD_WEIGHT = 6106
    CUMULATIVE_FALLS = 6107
    CUMULATIVE_MISSES = 6108
    PAIR_WEIGHTS = 6109
    PAIR_DIFFERS = 6110
    NO_METERSET = 6111
    BAD_UNIT = 6112
    BAD_SPECIES = 6113
    FRACTION_SCHEME = 6114
    BAD_POSITION = 6115

    MACHINE = 6201
    APPROVAL = 6202
    SPECIES = 6203
    ENERGY = 6204
    FIELD = 6205
    SPOT_MINIMUM = 6206
    CUT_OFF = 6207
    RESOLUTION = 6208
    GANTRY = 6209
    COUCH = 6210
    SNOUT = 6211
    RANGE_SHIFTER = 6212
    BEAM_TYPE = 6213
    SUPPORT = 6214
    FIXATION = 6215
    SCAN_MODE = 6216
    CHANGES = 6217
    ACCESSORY = 6218
    COUNTS = 6219
    LIBRARY = 6220
    DELIVERY_TYPE = 6221
    DURATION = 6222
    NO_SUCH_BEAM = 6223

    SCHEDULE = 6301
    RECIPE = 6302


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason.

    Args:
        why: the kind of reason.
        what: a short sentence: what is wrong.
        where: the place, for example ``"beam 2, control point 14"``; empty for the file or the plan as a whole.
        value: the value found, with its unit.
        limit: what it is held against, with its unit.
        hint: what to do.
        override: name of the override that lifts this reason in a simulated or service world; empty when none does.
    """

    why: Why
    what: str
    where: str = ""
    value: str = ""
    limit: str = ""
    hint: str = ""
    override: str = ""

    def __str__(self) -> str:
        return f"[{int(self.why)}] {self.sentence}"

    @property
    def sentence(self) -> str:
        """The reason in one line, without its number."""
        where = f"{self.where}: " if self.where else ""
        value = f": {self.value}" if self.value else ""
        limit = f" (limit {self.limit})" if self.limit else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.what}{value}{limit}{hint}"

    def as_dict(self) -> dict[str, str | int]:
        """Plain values for JSON."""
        return {
            "code": int(self.why),
            "kind": self.why.name.lower(),
            "what": self.what,
            "where": self.where,
            "value": self.value,
            "limit": self.limit,
            "hint": self.hint,
            "override": self.override,
        }


class PlanError(BeamlineError):
    """Something about a plan stops the work."""

    family = 6000


class PlanRefused(PlanError):
    """A plan cannot be read, is inconsistent or cannot be delivered; `reasons` holds every reason, in the order of the plan."""

    def __init__(self, reasons: Iterable[Refusal], *, source: str = ""):
        self.reasons: tuple[Refusal, ...] = tuple(reasons)
        self.source = source
        count = len(self.reasons)
        head = f"plan {source} refused: " if source else "plan refused: "
        text = self.reasons[0].sentence if count == 1 else f"{count} reasons\n" + "\n".join(f"  {r}" for r in self.reasons)
        super().__init__(head + text, code=int(self.reasons[0].why) if self.reasons else 6000)
