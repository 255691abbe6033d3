"""From a plan and what was asked to a fraction that may begin: options, admission, its directory. Nothing moves here.

Admission runs in a worker. Not responsible for treating it (`treating`), nor for who may ask (the desk).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.admission import OVERRIDES, Admitted, TreatOptions, admit, open_ledger
from controller.console.views import SpotsView, TreatmentView
from controller.intake import Refused
from controller.request import Earlier
from controller.resume import ResumeOptions, admit_remainder
from controller.serving.console_words import for_console
from controller.serving.cut_off import LOADED as LOADED_FILE
from controller.serving.cut_off import root_of_journal
from controller.serving.ground import Ground
from controller.serving.pictures import Picture
from controller.serving.plans import Held
from drivers.hal.errors import BeamlineError, CommandRejected

BAD_ARGUMENT = 4454
LOADED, WRITING = "loaded", "writing"
SLUG_MAX = 32


@dataclass(slots=True, eq=False)
class Loaded:
    """The fraction that is treated, or was treated last."""

    id: str
    held: Held
    options: TreatOptions
    admitted: Admitted
    earlier: Earlier
    output: Path
    by: str
    started: datetime
    picture: Picture
    status: str = LOADED
    reason: str = ""
    counts_base: tuple[int, int] = (0, 0)
    failures: list[str] = field(default_factory=list)
    begun: bool = False  # the room has left standby for it
    ended: str = ""  # how it ended and what may follow, once that is known

    def words(self, *, asked: bool, under_way: bool) -> str:
        """For a room in standby. It goes out to archive and broker, too: no patient, no plan."""
        fraction = f"{'what is left of ' if self.earlier.session else ''}fraction {self.options.fraction}"
        if not under_way:
            return self.ended
        if self.status == WRITING:
            return f"{fraction} has ended: its outputs are being written"
        if self.begun and not asked:
            return f"a field of {fraction} has ended"
        return f"{fraction} is loaded: {'confirm patient, plan and room' if asked else 'the room makes ready'}"

    def view(self) -> TreatmentView:
        """As shown."""
        plan = self.admitted.intake.plan
        return TreatmentView(
            id=self.id,
            plan_id=self.held.id,
            plan_uid=plan.uid,
            plan_label=plan.label,
            plan_sha256=plan.sha256,
            patient_id=plan.patient.id,
            patient_name=plan.patient.name,
            fraction=self.options.fraction,
            remainder=bool(self.earlier.session),
            beams=self.picture.beams(),
            current=self.picture.current,
            status=self.status,
            reason=self.reason,
            overrides=dict(self.options.overrides),
            started_utc=self.started.isoformat(timespec="seconds"),
        )


class Loader:
    """Of one room.

    Args:
        ground: the room.
        publish: told layers of the spot map as they change.
    """

    def __init__(self, ground: Ground, publish: Callable[[SpotsView], None]) -> None:
        self._ground = ground
        self._publish = publish

    def options(self, held: Held, arguments: Mapping[str, Any]) -> TreatOptions:
        """Of a fraction that was named; the directory of its outputs is made with its admission. Raises CommandRejected."""
        fraction, beams = arguments.get("fraction", 0), arguments.get("beams") or ()
        overrides = arguments.get("overrides") or {}
        wrong = []
        if isinstance(fraction, bool) or not isinstance(fraction, int) or fraction < 1:
            wrong.append("fraction: a number from 1")
        if not isinstance(beams, list | tuple) or not all(isinstance(b, int) and not isinstance(b, bool) for b in beams):
            wrong.append("beams: a list of beam numbers")
        if not isinstance(overrides, Mapping) or not all(
            name in OVERRIDES and isinstance(reason, str) and reason.strip() for name, reason in overrides.items()
        ):
            wrong.append(f"overrides: a reason by name, of {', '.join(OVERRIDES)}")
        if wrong:
            raise CommandRejected("; ".join(wrong), code=BAD_ARGUMENT, device=self._ground.room, hint="nothing was loaded")
        ground = self._ground
        return TreatOptions(
            plan=held.path,
            facility=ground.called,
            room=ground.room,
            beams=tuple(beams),
            fraction=fraction,
            seed=ground.seed,
            overrides=dict(overrides),
            state=ground.state,
            endpoints=ground.endpoints,
        )

    def admit(self, held: Held, options: TreatOptions, who: str) -> Loaded:
        """In a worker. Raises Refused."""
        try:
            admitted = admit(options)
        except Refused as refused:
            raise Refused(for_console(refused.reasons)) from None
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{self._ground.room}-{_slug(held.about['label'])}-f{options.fraction}"
        output = _claimed(self._ground.treatments / name)
        options = replace(options, output=output)
        plan = admitted.intake.plan
        told = {
            "room": self._ground.room,
            "plan_id": held.id,
            "label": plan.label,
            "patient_id": plan.patient.id,
            "fraction": options.fraction,
            "beams": [beam.number for beam in admitted.intake.beams],
            "by": who,
        }
        (output / LOADED_FILE).write_text(json.dumps(told), encoding="utf-8")
        return self._loaded(output.name, held, options, admitted, Earlier(), output, who)

    def admit_remainder(self, held: Held, options: TreatOptions, who: str) -> Loaded:
        """In a worker. Raises Refused."""
        if options.beams:
            raise Refused(["beams: what is left of every beam of the treatment is taken up; leave the list away"])
        root = self._root_of(str(held.about["uid"]), options.fraction, [int(beam["number"]) for beam in held.about["beams"]])
        try:
            left = admit_remainder(ResumeOptions(root, seed=options.seed, endpoints=options.endpoints))
        except Refused as refused:
            raise Refused(for_console(refused.reasons)) from None
        if options.overrides:
            raise Refused(["overrides: those of the treatment hold for what is left of it"])
        return self._loaded(root.name, held, left.options, left.admitted, left.earlier, left.output, who)

    def _root_of(self, uid: str, fraction: int, beams: Sequence[int]) -> Path:
        """The directory of the treatment that a ledger's entries of a fraction name. Raises Refused."""
        try:
            with open_ledger(self._ground.state, boot_id=self._ground.boot_id) as ledger:
                journals = [ledger.delivered(uid, fraction, beam).journal for beam in beams]
        except BeamlineError as error:
            raise Refused([f"ledger: {error}"]) from None
        roots = {root_of_journal(Path(journal)) for journal in journals if journal}
        if not roots:
            raise Refused([f"fraction {fraction} of this plan was never begun: there is no remainder"])
        if len(roots) > 1:
            raise Refused([f"fraction {fraction} was begun in several treatments: {', '.join(sorted(r.name for r in roots))}"])
        return roots.pop()

    def _loaded(
        self, name: str, held: Held, options: TreatOptions, admitted: Admitted, earlier: Earlier, output: Path, who: str
    ) -> Loaded:
        picture = Picture(admitted.intake, self._publish)
        return Loaded(name, held, options, admitted, earlier, output, who, datetime.now(UTC), picture)


def _claimed(wanted: Path) -> Path:
    """A directory of that name that was not there before, made now; with -2, -3, ... behind it where others were faster.

    Its name is the treatment's id: two treatments of one second, or of a clock that was put back, must never share one. The
    path is absolute, because the ledger names it. Raises Refused.
    """
    path, number = wanted, 1
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise Refused([f"{path}: cannot be made: {error.strerror or error}"]) from None
        else:
            return path.resolve()


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:SLUG_MAX].strip("-") or "plan"
