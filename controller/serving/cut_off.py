"""Treatments that were begun and have no end: found in the ledger, told to the room until they are settled.

A program that dies in beam leaves an open claim in the ledger and a treatment without a summary. Until somebody has reconciled
it the ledger counts everything that was claimed. Not responsible for reconciling (`controller.recover`), nor for the list of
treatments (`asking`).
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from controller.admission import LEDGER, open_ledger
from controller.console.alarm_table import RULES as RULES_OF_ALARMS
from controller.record.ledger import BeamState, Received
from controller.record.session_lock import occupied
from controller.record.store import Busy, DiskStore
from controller.serving.ground import Ground
from controller.standing import standings
from drivers.hal.errors import BeamlineError

LOADED = "loaded.json"  # who was to be treated with what, written when the plan was loaded
OPEN, CUT_OFF, UNBEGUN = "open", "cut_off", "unbegun"
Needs = Literal["", "reconcile", "signature"]
Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a treatment stands by the ledger alone.

    Attributes:
        status: as in the list of treatments.
        needs: what a physicist has to do.
        bounds: one line per beam; empty when no beam was begun.
        shares: part of the plan that a beam received, by beam number; None: known only within bounds, or not at all.
    """

    status: str
    needs: Needs = ""
    bounds: tuple[str, ...] = ()
    shares: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Given:
    """What one beam of a fraction received, over all sessions.

    Attributes:
        share: of the plan; None: known only within bounds.
        journal: of its last session.
        bounds: the share at least and at most; None: it is known.
    """

    state: BeamState
    share: float | None
    journal: str
    bounds: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        """Whether what was given is one number."""
        return self.share is not None

    @property
    def between(self) -> tuple[float, float]:
        """The share at least and at most."""
        return self.bounds or (self.share or 0.0, self.share or 0.0)


class LedgerBook:
    """What the ledger of a facility says of treatments; read again only when it has changed. Used by several threads.

    Args:
        state: the facility's directory.
        boot_id: of this process.
    """

    def __init__(self, state: Path, boot_id: int) -> None:
        self._state = state
        self._boot_id = boot_id
        self._lock = threading.Lock()
        self._read: Stamp | None = None
        self._unsettled: dict[str, tuple[Received, ...]] = {}
        self._given_read: Stamp | None = None
        self._given: dict[str, dict[int, dict[int, Given]]] = {}

    def stamp(self) -> Stamp:
        """Changes with every entry."""
        try:
            about = (self._state / LEDGER / "chain.bin").stat()
        except OSError:
            return 0, 0
        return about.st_mtime_ns, about.st_size

    def unsettled(self) -> Mapping[str, tuple[Received, ...]]:
        """Open and locked beams by treatment. As last read while the ledger is busy; raises DataError, StorageError, Busy."""
        with self._lock:
            stamp = self.stamp()
            if stamp[1] and stamp != self._read:
                with open_ledger(self._state, boot_id=self._boot_id) as ledger:
                    found = ledger.unsettled()
                told: dict[str, tuple[Received, ...]] = {}
                for received in found:
                    name = root_of_journal(Path(received.journal)).name
                    told[name] = (*told.get(name, ()), received)
                self._read, self._unsettled = stamp, told
            return self._unsettled

    def given(self, plan_uids: Collection[str]) -> Mapping[str, Mapping[int, Mapping[int, Given]]]:
        """Beams that were begun, by plan, fraction and number, of these plans. Raises DataError, StorageError, Busy."""
        with self._lock:
            stamp = self.stamp()
            if stamp != self._given_read:
                self._given_read, self._given = stamp, {}
            if new := {uid for uid in plan_uids if uid not in self._given}:
                told: dict[str, dict[int, dict[int, Given]]] = {uid: {} for uid in new}
                if stamp[1]:
                    with open_ledger(self._state, boot_id=self._boot_id) as ledger:
                        known = ledger.keys()
                        for key in [key for key in known if key.plan_uid in new]:
                            received = ledger.delivered(key.plan_uid, key.fraction, key.beam_number)
                            told[key.plan_uid].setdefault(key.fraction, {})[key.beam_number] = given_of(received)
                self._given = {**self._given, **told}
            return self._given

    def in_session(self, plan_uid: str, directory: Path) -> bool:
        """Whether some process treats this plan now, with outputs in this treatment's directory as far as it says."""
        who = occupied(DiskStore(), self._state / LEDGER, plan_uid)
        named = re.search(re.escape(str(directory.resolve())) + r"(?![\w-])", who)
        return bool(who) and (named is not None or "outputs " not in who)

    def ending(self, directory: Path, plan_uid: str, fraction: int, beams: Mapping[int, str]) -> Ending:
        """How a treatment without a summary stands; `beams` are names by number. Raises DataError, StorageError, Busy."""
        if self.in_session(plan_uid, directory):
            return Ending(OPEN)
        if not self.stamp()[1]:
            return Ending(UNBEGUN)
        with self._lock, open_ledger(self._state, boot_id=self._boot_id) as ledger:
            received = {number: ledger.delivered(plan_uid, fraction, number) for number in beams}
        return ending_of(received, beams)


def ending_of(received: Mapping[int, Received], names: Mapping[int, str]) -> Ending:
    """From what its beams received; none of them is being treated."""
    states = {r.state for r in received.values()}
    if states <= {BeamState.UNTOUCHED}:
        return Ending(UNBEGUN)
    bounds = tuple(row.words() for row in standings(received, names, Path()))
    shares = {number: _share(r) for number, r in received.items()}
    if BeamState.OPEN in states:
        return Ending(CUT_OFF, "reconcile", bounds, shares)
    if BeamState.LOCKED in states:
        return Ending(BeamState.LOCKED.value, "signature", bounds, shares)
    whole = states == {BeamState.COMPLETE}
    return Ending((BeamState.COMPLETE if whole else BeamState.PARTIAL).value, "", bounds, shares)


def given_of(received: Received) -> Given:
    """In short."""
    share, planned = _share(received), max(int(received.planned.sum()), 1)
    bounds = None if share is not None else (int(received.lower.sum()) / planned, int(received.upper.sum()) / planned)
    return Given(received.state, share, received.journal, bounds)


def _share(received: Received) -> float | None:
    """Of the plan; None where it is not one number."""
    if received.state is BeamState.UNTOUCHED:
        return 0.0
    low, high, planned = (int(a.sum()) for a in (received.lower, received.upper, received.planned))
    return low / planned if low == high and planned else None


class CutOff:
    """Tells a room of its unsettled treatments, and when each is settled.

    Args:
        ground: the room.
        book: the ledger.
        say: told each of them in a line, for whoever reads what the process prints.
    """

    def __init__(self, ground: Ground, book: LedgerBook, say: Callable[[str], None] = lambda _line: None) -> None:
        self._ground = ground
        self._say = say
        self._book = book
        self._seen: Stamp | None = None
        self._told: dict[str, str] = {}
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Look, if anything changed; call only while nothing is treated here. Raises nothing: an unreadable ledger is told."""
        if self._book.stamp() == self._seen:
            return
        async with self._looking:
            stamp = self._book.stamp()
            source = f"room.{self._ground.room}"
            try:
                found = await asyncio.to_thread(self._find)
            except Busy:
                return  # a moment later
            except BeamlineError as error:
                self._ground.bus.emit(source, "ledger.unreadable", error=str(error))
                self._seen = stamp
                return
            self._seen = stamp
            for name in [name for name in self._told if name not in found]:
                del self._told[name]
                self._ground.bus.emit(source, "treatment.settled", id=name)
            for name, state in found.items():
                if self._told.get(name) != state:
                    self._told[name] = state
                    event = self._ground.bus.emit(source, "treatment.cut_off", id=name, state=state)
                    self._say(f"{self._ground.room}: {RULES_OF_ALARMS[event.kind].words(event)}")

    def _find(self) -> dict[str, str]:
        """State by treatment: of this room, and not being treated by another process."""
        found = {}
        for name, beams in self._book.unsettled().items():
            directory = self._ground.treatments / name
            if not directory.is_dir() or room_of(directory) != self._ground.room:
                continue
            states = {r.state for r in beams}
            if BeamState.OPEN not in states:
                found[name] = BeamState.LOCKED.value
            elif not self._book.in_session(beams[0].key.plan_uid, directory):
                found[name] = BeamState.OPEN.value
        return found


def root_of_journal(journal: Path) -> Path:
    """Directory of the treatment whose journal this is; a resumed session lies inside it."""
    return journal.parent.parent if re.fullmatch(r"resume-\d+", journal.parent.name) else journal.parent


def loaded_in(directory: Path) -> dict[str, Any]:
    """What was loaded for a treatment; empty when it does not say."""
    try:
        return dict(json.loads((directory / LOADED).read_bytes()))
    except (OSError, ValueError):
        return {}


def room_of(directory: Path) -> str:
    """Room of a treatment; older ones have it in their name alone."""
    found = re.match(r"\d{8}T\d{6}Z-([^-]+)-", directory.name)
    return str(loaded_in(directory).get("room") or (found[1] if found else ""))


def names_of(beams: Sequence[Mapping[str, Any]], wanted: Sequence[int]) -> dict[int, str]:
    """Beam names by number, of those that were asked for; none asked for: all."""
    return {int(b["number"]): str(b.get("name", "")) for b in beams if not wanted or int(b["number"]) in wanted}
