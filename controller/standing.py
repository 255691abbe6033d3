"""Where each beam of a treatment stands over all its sessions, from the ledger, and what may follow: for people and programs.

Not responsible for changing anything (`recover`, `resume`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.intake import Intake, Refused
from controller.record.ledger import BeamState, Ledger, Received
from controller.record.outcome import SignedInterval
from controller.record.store import DiskStore
from controller.request import Earlier, Request

COMPLETE_WITHIN = 0.005  # of the beam's planned counts: the acceptance limit of a beam's meterset


@dataclass(frozen=True, slots=True, eq=False)
class BeamStanding:
    """A beam over all sessions; counts of monitor 1."""

    number: int
    name: str
    state: BeamState
    counts1_planned: int
    counts1_lower: int
    counts1_upper: int
    reason: str
    advice: str
    signed: str = ""  # who accepted what is in doubt, and on what

    @property
    def as_prescribed(self) -> bool:
        """Whether the whole beam is known to have been given."""
        short = self.counts1_planned - self.counts1_lower
        return self.state is BeamState.COMPLETE and short <= COMPLETE_WITHIN * self.counts1_planned

    def line(self) -> str:
        """For the operator, with what may follow."""
        return f"{self.words()}; {self.advice}"

    def words(self) -> str:
        """What is known of the beam; complete only where that is one number."""
        where = f"beam {self.number} {self.name}".rstrip()
        if self.state is BeamState.UNTOUCHED:
            return f"{where}: not begun"
        low, high = self.counts1_lower, self.counts1_upper
        planned = max(self.counts1_planned, 1)
        bounds, share = f"{low} counts", f"{100 * low / planned:.2f}"
        if low != high:
            bounds, share = f"between {low} and {high} counts", f"{share} to {100 * high / planned:.2f}"
        why = f" ({self.reason})" if self.reason else ""
        awaited = self.state in (BeamState.LOCKED, BeamState.OPEN)  # another signature than those that are there
        signed = f"; {'what was in doubt before was ' if awaited else ''}accepted by {self.signed}" if self.signed else ""
        state = "given" if self.state is BeamState.COMPLETE and low != high else self.state.value
        return f"{where}: {state}, received {bounds}, {share} % of plan{why}{signed}"

    def report(self) -> dict[str, Any]:
        """For programs."""
        return {name: getattr(self, name) for name in self.__slots__} | {"state": self.state.value}


def open_state(request: Request, directory: Path) -> Ledger:
    """The ledger of a treatment, for questions outside any loop. Raises Refused when there is none, DataError, StorageError."""
    state = request.state_directory(directory) / "ledger"
    if not state.is_dir():
        raise Refused(
            [
                f"{state.absolute()}: there is no ledger; without it nobody knows what was received. It was there when "
                f"{directory} was treated: if the facility's state was moved, name it with --state"
            ]
        )
    return Ledger(DiskStore(), state, boot_id=request.seed, clock=lambda: 0)


def received_of(ledger: Ledger, request: Request) -> dict[int, Received]:
    """What the ledger says of every beam of a request, by beam number."""
    return {n: ledger.delivered(request.plan_uid, request.fraction, n) for n in request.beams}


def signed_intervals(ledger: Ledger, intake: Intake, fraction: int, earlier: Earlier) -> tuple[SignedInterval, ...]:
    """Beams of a treatment whose dose, over all sessions until now, had to be accepted by a signature."""
    found = []
    for number in earlier.beams or tuple(beam.number for beam in intake.beams):
        received = ledger.delivered(intake.plan.uid, fraction, number)
        if received.signatures:
            found.append(
                SignedInterval(
                    number,
                    int(received.planned.sum()),
                    int(received.lower.sum()),
                    int(received.upper.sum()),
                    *(_joined(getattr(s, name) for s in received.signatures) for name in ("doubt", "signed_by", "reason")),
                )
            )
    return tuple(found)


def _joined(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(word for word in words if word))


def _session_of(journal: str) -> str:
    """Which one a journal is of, in words; sessions are counted from 1, as people do."""
    resumed = re.fullmatch(r"resume-(\d+)", Path(journal).parent.name)
    return f" in session {int(resumed[1]) + 1}" if resumed else ""


def standings(received: Mapping[int, Received], names: Mapping[int, str], directory: Path) -> tuple[BeamStanding, ...]:
    """One row per beam. `names` may lack some."""
    return tuple(_standing(r, names.get(n, ""), directory) for n, r in received.items())


def _standing(received: Received, name: str, directory: Path) -> BeamStanding:
    advice = {
        BeamState.UNTOUCHED: f"`iongantry resume {directory}` treats it",
        BeamState.OPEN: f"`iongantry recover {directory}` first",
        BeamState.PARTIAL: f"`iongantry resume {directory}` finishes it",
        BeamState.COMPLETE: "nothing is left to do",
        BeamState.LOCKED: f"a physicist must accept this: `iongantry recover {directory} --sign NAME --reason TEXT`",
    }[received.state]
    planned, lower, upper = (int(a.sum()) for a in (received.planned, received.lower, received.upper))
    reason = received.reason if received.state is not BeamState.COMPLETE else ""
    if received.state is BeamState.OPEN:  # what the ledger holds is the reason of the session before
        reason = f"the program ended while beam was on{_session_of(received.journal)}; not yet reconciled"
    signed = _joined(f"{s.signed_by}: {s.reason}" for s in received.signatures)
    return BeamStanding(received.key.beam_number, name, received.state, planned, lower, upper, reason, advice, signed)
