"""What was given of each fraction of the plans that a facility holds, and what may be loaded next; from the ledger alone.

Shown beside a plan, and what is meant when a plan is loaded and no fraction is named. Not responsible for judging what is
loaded (`loading`, `controller.resume`): a proposal binds nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.console.views import FractionStatus, FractionView, NextFraction, PlanView
from controller.record.ledger import BeamState
from controller.serving.console_words import LEFT, RECONCILE, SIGN
from controller.serving.cut_off import Given, LedgerBook, loaded_in, root_of_journal
from controller.serving.ground import Ground
from drivers.hal.errors import BeamlineError, CommandRejected

NOTHING_NEXT = 4458
_WORDS: Mapping[str, str] = {
    "complete": "complete",
    "partial": "partial",
    "under_way": "being treated",
    "reconcile": "to be reconciled",
    "signature": "to be signed",
}


class FractionBook:
    """Of one room.

    Args:
        ground: the room.
        ledger: of the facility.
    """

    def __init__(self, ground: Ground, ledger: LedgerBook) -> None:
        self._ground = ground
        self._ledger = ledger

    def told(self, plans: Sequence[PlanView]) -> list[PlanView]:
        """The plans with what was given of them. In a worker; a ledger that cannot be read now is told in words."""
        try:
            given = self._ledger.given({plan.uid for plan in plans})
        except BeamlineError as error:
            words = f"what was given is not known: the ledger cannot be read: {error}"
            return [plan.model_copy(update={"standing": words}) for plan in plans]
        return [self._told(plan, given.get(plan.uid, {})) for plan in plans]

    def meant(self, plan: PlanView, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `load_plan` with the fraction that was not named: the one that comes next of the plan. In a worker.

        A remainder is only meant where it was asked for: it is another dose than a fraction. Beams that were named stay.

        Raises:
            CommandRejected: 4458, every fraction is given, something has to be settled first, or what comes next is not what
                was asked for.
        """
        if "fraction" in arguments:
            return dict(arguments)
        (told,) = self.told([plan])
        following, left = told.next, bool(arguments.get("remainder", False))
        if following is None:
            done = [fraction for fraction in told.history if fraction.status == "complete"]
            if len(done) == len(told.history) >= plan.fractions:
                raise self._no(f"every fraction of this plan is given: {told.standing}", "nothing is left to load")
            raise self._no(f"which fraction comes next is not settled: {told.standing}", "settle that first")
        if following.remainder and not left:
            raise self._no(
                f"what comes next is no whole fraction but what is left of fraction {following.fraction}: {told.standing}",
                "ask for it with remainder true ('only what an earlier delivery left'), or name a fraction",
            )
        if left and not following.remainder:
            raise self._no(
                f"no earlier delivery left anything of this plan: {told.standing}",
                "leave remainder away, or name the fraction",
            )
        beams = {"beams": following.beams} if following.beams and arguments.get("beams") is None else {}
        return {**arguments, "fraction": following.fraction, **beams}

    def _no(self, why: str, hint: str) -> CommandRejected:
        return CommandRejected(why, code=NOTHING_NEXT, device=self._ground.room, hint=hint)

    def _told(self, plan: PlanView, given: Mapping[int, Mapping[int, Given]]) -> PlanView:
        history = [self._fraction(plan, number, beams) for number, beams in sorted(given.items())]
        following = self._next(plan, history, given)
        return plan.model_copy(update={"history": history, "next": following, "standing": _standing(plan, history, following)})

    def _fraction(self, plan: PlanView, number: int, beams: Mapping[int, Given]) -> FractionView:
        states = {each.state for each in beams.values()}
        planned = {int(beam["number"]): float(beam["meterset"]) for beam in plan.beams}
        states |= {BeamState.UNTOUCHED for beam in planned if beam not in beams}
        last = list(beams.values())[-1]
        directory = self._ground.treatments / root_of_journal(Path(last.journal)).name
        status: FractionStatus
        if BeamState.OPEN in states:
            status = "under_way" if self._ledger.in_session(plan.uid, directory) else "reconcile"
        elif BeamState.LOCKED in states:
            status = "signature"
        else:
            status = "complete" if states == {BeamState.COMPLETE} else "partial"
        shares = [(beams[beam].share if beam in beams else 0.0, meterset) for beam, meterset in planned.items()]
        whole = sum(planned.values())
        known = [share * meterset for share, meterset in shares if share is not None]
        share = sum(known) / whole if len(known) == len(shares) and whole else None
        return FractionView(number=number, status=status, share=share, treatment=directory.name)

    def _next(
        self, plan: PlanView, history: Sequence[FractionView], given: Mapping[int, Mapping[int, Given]]
    ) -> NextFraction | None:
        """The first fraction that was begun and is not finished; else the first that was never begun."""
        for fraction in history:
            if fraction.status == "complete":
                continue
            if fraction.status != "partial":
                return None
            beams = given[fraction.number]
            if any(each.state is BeamState.PARTIAL for each in beams.values()):
                return NextFraction(fraction=fraction.number, remainder=True)
            never = [int(beam["number"]) for beam in plan.beams if int(beam["number"]) not in beams]
            asked = loaded_in(self._ground.treatments / fraction.treatment).get("beams") or ()
            if any(number in asked for number in never):
                return NextFraction(fraction=fraction.number, remainder=True)
            return NextFraction(fraction=fraction.number, remainder=False, beams=never)
        begun = {fraction.number for fraction in history}
        free = next((number for number in range(1, plan.fractions + 1) if number not in begun), None)
        return None if free is None else NextFraction(fraction=free, remainder=False)


def _standing(plan: PlanView, history: Sequence[FractionView], following: NextFraction | None) -> str:
    done = [fraction.number for fraction in history if fraction.status == "complete"]
    said = [f"fraction{'s' if len(done) > 1 else ''} {_runs(done)} of {plan.fractions} complete"] if done else []
    for fraction in history:
        if fraction.status == "complete":
            continue
        share = "given in part, how much is not known" if fraction.share is None else f"{_percent(fraction.share)} given"
        said.append(f"fraction {fraction.number} {_WORDS[fraction.status]}, {share}")
    if not said:
        return f"no fraction of {plan.fractions} was begun"
    if following is not None:
        beams = f", beam {', '.join(map(str, following.beams))}" if following.beams else ""
        what = (
            f"what is left of fraction {following.fraction}" if following.remainder else f"fraction {following.fraction}{beams}"
        )
        return f"{'; '.join(said)}. Next: {what}"
    statuses = {fraction.status for fraction in history}
    advice = RECONCILE if "reconcile" in statuses else SIGN if "signature" in statuses else ""
    return f"{'; '.join(said)}. {advice[:1].upper()}{advice[1:]}".rstrip(". ")


def _runs(numbers: Sequence[int]) -> str:
    """``1 to 4, 6``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def ended_words(fraction: int, beams: Sequence[int], given: Mapping[int, Given]) -> str:
    """How a fraction stands after its treatment has ended, beam by beam, and what may follow."""
    said, states = [], set()
    for number in beams:
        each = given.get(number)
        state = each.state if each is not None else BeamState.UNTOUCHED
        states.add(state)
        if state is BeamState.UNTOUCHED or each is None:
            said.append(f"beam {number} was not begun")
        elif state is BeamState.PARTIAL and each.share is not None:
            said.append(f"beam {number} ended early at {_percent(each.share)}")
        elif state is BeamState.PARTIAL:
            said.append(f"beam {number} ended early")
        elif state is BeamState.COMPLETE:
            said.append(f"beam {number} is complete")
        else:
            said.append(f"what beam {number} was given is not settled")
    if states == {BeamState.COMPLETE}:
        return f"fraction {fraction} is complete"
    if states == {BeamState.UNTOUCHED}:
        return f"fraction {fraction} was not begun: nothing was given"
    told = f"fraction {fraction}: {', '.join(said)}"
    if states & {BeamState.OPEN, BeamState.LOCKED}:
        return f"{told}. Next: {RECONCILE if BeamState.OPEN in states else SIGN}"
    return f"{told}. Next: for what is left of fraction {fraction}, {LEFT}"


def _percent(share: float) -> str:
    """Never 100 % of what is not complete."""
    return f"{min(100 * share, 99.9):.1f} %"
