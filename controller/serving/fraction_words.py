"""How a fraction stands over all its sessions, and how that is said: one judgement, one wording, for every place that shows it.

A fraction is complete only where every beam is, and what each received is known. Where it is known between two bounds alone it
is "given", with the bounds, also after a physicist has signed them. Not responsible for the ledger (`cut_off.LedgerBook`), nor
for what may be loaded next (`fraction_book`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from controller.console.views import FractionStatus, FractionView
from controller.record.ledger import BeamState
from controller.serving.console_words import LEFT, RECONCILE, SIGN
from controller.serving.cut_off import Given

DONE: tuple[FractionStatus, ...] = ("complete", "given")  # nothing more of it is owed
_WORDS: Mapping[str, str] = {
    "partial": "partial",
    "under_way": "being treated",
    "reconcile": "to be reconciled",
    "signature": "to be signed",
}


def judged(
    number: int, planned: Mapping[int, float], given: Mapping[int, Given], *, under_way: bool = False, treatment: str = ""
) -> FractionView:
    """One fraction that was begun.

    Args:
        number: of the fraction.
        planned: meterset of each of its beams, by number.
        given: what the ledger says of those that were begun.
        under_way: whether some process treats it now.
        treatment: id of its last treatment.
    """
    states = {given[beam].state if beam in given else BeamState.UNTOUCHED for beam in planned}
    low, high = _bounds(planned, given)
    status: FractionStatus
    if BeamState.OPEN in states:
        status = "under_way" if under_way else "reconcile"
    elif BeamState.LOCKED in states:
        status = "signature"
    elif states == {BeamState.COMPLETE}:
        status = "complete" if all(given[beam].known for beam in planned) else "given"
    else:
        status = "partial"
    whole = sum(planned.values())
    shares = [(given[beam].share if beam in given else 0.0, meterset) for beam, meterset in planned.items()]
    known = [share * meterset for share, meterset in shares if share is not None]
    share = sum(known) / whole if len(known) == len(shares) and whole else None
    words = _words(status, share, low, high)
    return FractionView(number=number, status=status, share=share, low=low, high=high, treatment=treatment, words=words)


def _words(status: FractionStatus, share: float | None, low: float, high: float) -> str:
    if status == "complete":
        return "complete"
    if status == "given":
        return f"given, {between(low, high)}"
    if share is not None:
        return f"{_WORDS[status]}, {_percent(share)} given"
    if status in ("under_way", "reconcile"):  # the ledger counts all that was asked for
        return f"{_WORDS[status]}, given in part, how much is not known"
    return f"{_WORDS[status]}, {between(low, high)} given"


def ended_words(
    number: int, planned: Mapping[int, float], given: Mapping[int, Given], why: str = "", asked: Collection[int] = ()
) -> str:
    """How a fraction stands after a treatment of it has ended, beam by beam, and what may follow.

    Args:
        number, planned, given: as of `judged`.
        why: the treatment ended; said of what is not finished.
        asked: beams of the treatment; empty: all of them.
    """
    states = {beam: given[beam].state if beam in given else BeamState.UNTOUCHED for beam in planned}
    found = set(states.values())
    if found == {BeamState.COMPLETE}:
        return f"fraction {number} is {judged(number, planned, given).words}"
    ended = f"; the last attempt ended: {why}" if why else ""
    if found <= {BeamState.UNTOUCHED}:
        return f"fraction {number} was not begun: nothing was given{ended}. Next: load fraction {number} again under Plans"
    told = f"fraction {number}: {', '.join(_beam(beam, given.get(beam)) for beam in planned)}{ended}"
    if found & {BeamState.OPEN, BeamState.LOCKED}:
        return f"{told}. Next: {RECONCILE if BeamState.OPEN in found else SIGN}"
    never = [beam for beam, state in states.items() if state is BeamState.UNTOUCHED]
    if BeamState.PARTIAL not in found and asked and not set(never) & set(asked):
        return f"{told}. Next: beam {', '.join(map(str, never))} of fraction {number}, under Plans"
    return f"{told}. Next: for what is left of fraction {number}, {LEFT}"


def _beam(number: int, given: Given | None) -> str:
    state = given.state if given is not None else BeamState.UNTOUCHED
    if given is None or state is BeamState.UNTOUCHED:
        return f"beam {number} was not begun"
    if state is BeamState.PARTIAL:
        far = f" at {_percent(given.share)}" if given.share is not None else f", {between(*given.between)} given"
        return f"beam {number} ended early{far}"
    if state is BeamState.COMPLETE:
        return f"beam {number} is {'complete' if given.known else f'given, {between(*given.between)}'}"
    return f"what beam {number} was given is not settled"


def _bounds(planned: Mapping[int, float], given: Mapping[int, Given]) -> tuple[float, float]:
    """Of the fraction's meterset, as shares."""
    whole = sum(planned.values()) or 1.0
    pairs = [(meterset, given[beam].between) for beam, meterset in planned.items() if beam in given]
    return sum(m * low for m, (low, _) in pairs) / whole, sum(m * high for m, (_, high) in pairs) / whole


def between(low: float, high: float) -> str:
    """Two shares in words."""
    return f"between {100 * low:.2f} and {100 * high:.2f} % of plan"


def _percent(share: float) -> str:
    """Never 100 % of what is not complete."""
    return f"{min(100 * share, 99.9):.1f} %"
