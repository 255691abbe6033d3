"""The daily end-to-end proof test: somebody makes every contact bad and good again, then the beam-off path is timed.

Walked are the inputs of all `equal` rows that come over the wire, but for those of a request for beam; analogue figures are
compared with each other all day and are not walked. Then this system stops its pulses and times the relays' contacts falling.
What counts is monotonic time since the last test that passed: none after a restart. Not responsible for forcing inputs (people,
test boxes) nor for what an old test means (row PROOF_TEST).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlocks.inputs import OWN_FIRST, SIGNALS, Sample
from interlocks.matrix import Limits, wanted
from interlocks.permit import RELAY_MS

NEVER_S = 0x7FFFFFFF
IDLE = {"armed": 0, "permit_r": 0, "beam_present": 0}  # a proof test needs, and keeps, these


class ProofTest:
    """One test at a time, and when the last one passed.

    Args:
        limits: the matrix; says which inputs there are, and whether a test is required at all.
    """

    def __init__(self, limits: Limits) -> None:
        self._required = limits.proof_required
        self._limit_ns = round((RELAY_MS + 2 * limits.poll_ms) * 1e6)  # a pulse may just have left; a poll sees it fallen
        rows = [row for row in limits.software if row.kind == "equal" and row.trips != "requested"]
        pairs = [pair for row in rows for pair in zip(row.inputs, wanted(row), strict=True)]
        self._good = {name: value for name, value in pairs if SIGNALS[name].register < OWN_FIRST}
        self._passed_ns: int | None = None
        self._owner = ""  # of the open test; empty when none is
        self._left: dict[str, bool] = {}  # inputs still to be walked, and whether they were seen bad
        self._withheld_ns: int | None = None

    @property
    def withholds(self) -> bool:
        """Whether the pulses stand still to time the relays."""
        return self._withheld_ns is not None

    @property
    def left(self) -> tuple[str, ...]:
        """Inputs of the open test that were not yet seen bad and good again."""
        return tuple(self._left)

    def age_s(self, now_ns: int) -> int:
        """Seconds since the last test that passed; NEVER_S without one or during one, 0 where none is required."""
        if not self._required:
            return 0
        if self._passed_ns is None or self._owner:
            return NEVER_S
        return min(NEVER_S, max(0, now_ns - self._passed_ns) // 1_000_000_000)

    def begin(self, owner: str) -> dict[str, Any]:
        """Begin, or begin anew; the record for the journal. ValueError: nobody's name was given."""
        if not owner.strip():
            raise ValueError("a proof test needs the name of whoever does it")
        self._owner, self._left, self._withheld_ns = owner.strip(), dict.fromkeys(self._good, False), None
        return self._record("begun")

    def end(self, why: str = "ended by hand") -> dict[str, Any] | None:
        """End the open test without a result. The last one that passed keeps its age."""
        return self._close("abandoned", why=why) if self._owner else None

    def step(self, now_ns: int, samples: Mapping[str, Sample], permit: bool) -> dict[str, Any] | None:
        """Look at the inputs. Returns a record when the test has passed, failed, or was abandoned."""
        if not self._owner:
            return None
        if not samples or not all(samples[name].good for name in IDLE):
            return self._close("failed", why="inputs could not be believed")
        if any(samples[name].value != value for name, value in IDLE.items()):
            return self._close("abandoned", why="a treatment was armed, or beam was requested or present")
        for name in self.left:
            sample = samples[name]
            if sample.value != self._good[name]:
                self._left[name] = True
            elif self._left[name]:
                del self._left[name]
        if self._left:
            return None
        if self._withheld_ns is None:
            if permit and samples["permit_b"].value == samples["motion_permit"].value == 1:
                self._withheld_ns = now_ns
            return None
        taken_ns = now_ns - self._withheld_ns
        if taken_ns > self._limit_ns:
            return self._close("failed", why="a relay did not fall in time", beam_off_ms=taken_ns / 1e6)
        if any(samples[name].value for name in ("permit_b", "beam_enabled", "motion_permit")):
            return None
        self._passed_ns = now_ns
        return self._close("passed", beam_off_ms=taken_ns / 1e6)

    def _close(self, state: str, **more: Any) -> dict[str, Any]:
        record = self._record(state, left=self.left, **more)
        self._owner, self._left, self._withheld_ns = "", {}, None
        return record

    def _record(self, state: str, **more: Any) -> dict[str, Any]:
        return {"kind": "proof", "owner": self._owner, "state": state, "limit_ms": self._limit_ns / 1e6, **more}
