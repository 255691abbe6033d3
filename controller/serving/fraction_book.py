"""What was given of each fraction of the plans that a facility holds, and what may be loaded next; from the ledger alone.

Shown beside a plan, and what is meant when a plan is loaded and no fraction is named. Not responsible for judging what is
loaded (`loading`, `controller.resume`): a proposal binds nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.console.views import FractionView, NextFraction, PlanView
from controller.record.ledger import BeamState
from controller.serving.attempts import Attempt, Attempts
from controller.serving.console_words import RECONCILE, SIGN
from controller.serving.cut_off import Given, LedgerBook, loaded_in, root_of_journal
from controller.serving.fraction_words import DONE, ended_words, judged
from controller.serving.ground import Ground
from drivers.hal.errors import BeamlineError, CommandRejected

NOTHING_NEXT = 4458


class FractionBook:
    """Of one room.

    Args:
        ground: the room.
        ledger: of the facility.
    """

    def __init__(self, ground: Ground, ledger: LedgerBook) -> None:
        self._ground = ground
        self._ledger = ledger
        self._attempts = Attempts(ground)

    def told(self, plans: Sequence[PlanView]) -> list[PlanView]:
        """The plans with what was given of them. In a worker; a ledger that cannot be read now is told in words."""
        try:
            given = self._ledger.given({plan.uid for plan in plans})
        except BeamlineError as error:
            words = f"what was given is not known: the ledger cannot be read: {error}"
            return [plan.model_copy(update={"standing": words}) for plan in plans]
        last = {attempt.plan_id: attempt for attempt in self._attempts.every()}
        return [self._told(plan, given.get(plan.uid, {}), last.get(plan.id)) for plan in plans]

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
            done = [fraction for fraction in told.history if fraction.status in DONE]
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

    def ended(self, held: Mapping[str, Any], fraction: int, why: str, asked: Sequence[int]) -> str:
        """How a fraction of a plan stands after a treatment of it; `held` is what is known of the plan. In a worker."""
        try:
            given = self._ledger.given({str(held["uid"])}).get(str(held["uid"]), {}).get(fraction, {})
        except BeamlineError as error:
            return f"fraction {fraction} has ended; what was given is not known: {error}"
        return ended_words(fraction, metersets(held["beams"]), given, why, asked)

    def looking_back(self, held_of: Callable[[str], Mapping[str, Any]]) -> str:
        """How the last treatment in this room ended, where its fraction is not finished; for a room that begins. In a worker.

        Args:
            held_of: what is known of a plan, by its id. Raises CommandRejected.
        """
        here = [attempt for attempt in self._attempts.every() if attempt.room == self._ground.room]
        if not here or not (last := here[-1]).plan_id:
            return ""
        try:
            held = held_of(last.plan_id)
            given = self._ledger.given({str(held["uid"])}).get(str(held["uid"]), {}).get(last.fraction, {})
        except BeamlineError:
            return ""  # an unreadable ledger is told elsewhere
        if judged(last.fraction, metersets(held["beams"]), given).status in DONE:
            return ""
        return ended_words(last.fraction, metersets(held["beams"]), given, last.reason, last.beams)

    def _no(self, why: str, hint: str) -> CommandRejected:
        return CommandRejected(why, code=NOTHING_NEXT, device=self._ground.room, hint=hint)

    def _told(self, plan: PlanView, given: Mapping[int, Mapping[int, Given]], last: Attempt | None) -> PlanView:
        history = [self._fraction(plan, number, beams) for number, beams in sorted(given.items())]
        following = self._next(plan, history, given)
        if last is not None and not last.over and self._ledger.in_session(plan.uid, self._ground.treatments / last.id):
            last = None  # it is under way
        standing = _standing(plan, history, following, last)
        return plan.model_copy(update={"history": history, "next": following, "standing": standing})

    def _fraction(self, plan: PlanView, number: int, beams: Mapping[int, Given]) -> FractionView:
        last = list(beams.values())[-1]
        directory = self._ground.treatments / root_of_journal(Path(last.journal)).name
        is_open = any(each.state is BeamState.OPEN for each in beams.values())
        under_way = is_open and self._ledger.in_session(plan.uid, directory)
        return judged(number, metersets(plan.beams), beams, under_way=under_way, treatment=directory.name)

    def _next(
        self, plan: PlanView, history: Sequence[FractionView], given: Mapping[int, Mapping[int, Given]]
    ) -> NextFraction | None:
        """The first fraction that was begun and is not finished; else the first that was never begun."""
        for fraction in history:
            if fraction.status in DONE:
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


def _standing(plan: PlanView, history: Sequence[FractionView], following: NextFraction | None, last: Attempt | None) -> str:
    done = [fraction.number for fraction in history if fraction.status == "complete"]
    said = [f"fraction{'s' if len(done) > 1 else ''} {_runs(done)} of {plan.fractions} complete"] if done else []
    said += [f"fraction {fraction.number} {fraction.words}" for fraction in history if fraction.status != "complete"]
    begun = bool(said)
    if not begun:
        said.append(f"no fraction of {plan.fractions} was begun")
    finished = {fraction.number for fraction in history if fraction.status in DONE}
    if last is not None and last.reason and last.fraction not in finished:
        said.append(f"the last attempt at fraction {last.fraction} ended: {last.reason}")
    elif not begun:
        return said[0]
    if following is not None:
        beams = f", beam {', '.join(map(str, following.beams))}" if following.beams else ""
        what = (
            f"what is left of fraction {following.fraction}" if following.remainder else f"fraction {following.fraction}{beams}"
        )
        return f"{'; '.join(said)}. Next: {what}"
    statuses = {fraction.status for fraction in history}
    advice = RECONCILE if "reconcile" in statuses else SIGN if "signature" in statuses else ""
    return f"{'; '.join(said)}. {advice[:1].upper()}{advice[1:]}".rstrip(". ")


def metersets(beams: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Planned, by beam number, of the beams of a plan."""
    return {int(beam["number"]): float(beam["meterset"]) for beam in beams}


def _runs(numbers: Sequence[int]) -> str:
    """``1 to 4, 6``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
