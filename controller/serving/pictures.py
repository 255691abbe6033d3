"""How far a treatment is, beam by beam, and its layers for the spot map: kept up to date from the event bus.

Planned values come from the schedule, delivered ones from the pieces that the delivery unit reported, those of earlier sessions
from the ledger as this session took it up. A view, never a participant. Not responsible for the record (`controller.record`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.console.views import BeamProgress, SpotsView
from controller.delivery.layers import GrantRun
from controller.fraction import BeamRun, Fraction
from controller.intake import Intake
from controller.plan.schedule import Pass
from controller.record.ledger import Received
from controller.serving.cut_off import root_of_journal
from drivers.hal.events import Event

Publish = Callable[[SpotsView], None]
WAITING, CURRENT = "waiting", "current"


@dataclass(frozen=True, slots=True)
class Origin:
    """Which session of which treatment a layer is of: 0 is the first, n the n-th delivery of what was left."""

    treatment: str
    session: int

    @classmethod
    def of_journal(cls, journal: Path) -> Origin:
        """Of the session that is written there: the first in its treatment's directory, the others in `resume-n` inside it."""
        root = root_of_journal(journal)
        return cls(root.name, 0 if journal.parent == root else int(journal.parent.name.removeprefix("resume-")))


@dataclass(slots=True)
class _Beam:
    number: int
    name: str
    angle_deg: float
    planned: float
    unit: str
    layers: int
    spots: int
    layer: int = 0
    delivered: float = 0.0
    spots_delivered: int = 0
    status: str = WAITING
    begun: set[int] = field(default_factory=set)


class Picture:
    """Of one treatment.

    Args:
        intake: what is treated.
        publish: told each layer as it changes.
    """

    def __init__(self, intake: Intake, publish: Publish) -> None:
        self._publish = publish
        self._beams = {
            beam.number: _Beam(
                beam.number,
                beam.name,
                beam.gantry_angle_deg,
                sum(float(p.meterset.sum()) for p in schedule.passes),
                beam.meterset_unit,
                len({p.layer_index for p in schedule.passes}),
                sum(int(p.spot_index.size) for p in schedule.passes),
            )
            for beam, schedule in zip(intake.beams, intake.schedules, strict=True)
        }
        self._fraction: Fraction | None = None
        self._origin = Origin("", 0)
        self._earlier: list[SpotsView] = []
        self._layers: dict[tuple[int, int, int], SpotsView] = {}
        self.current: int | None = None
        self.layer: int | None = None  # plan's index of the layer that was begun last
        self.painting: int | None = None

    def follow(self, fraction: Fraction) -> None:
        """The fraction whose results are shown."""
        self._fraction = fraction
        self._origin = Origin.of_journal(fraction.written_in)

    def take(self, event: Event) -> None:
        """Fold one event in."""
        match event.kind:
            case "beam.selected":
                self._select(int(event.data["beam_number"]))
            case "pass.started" | "pass.ended":
                self._pass(event, ended=event.kind == "pass.ended")

    def settle(self) -> None:
        """The fraction is over: how each beam ended."""
        self.current = self.layer = self.painting = None
        if self._fraction is not None:
            for outcome in self._fraction.outcomes:
                self._beams[outcome.beam.number].status = outcome.status.value

    def beams(self) -> list[BeamProgress]:
        """Every beam, in the plan's order."""
        return [
            BeamProgress(
                number=beam.number,
                name=beam.name,
                gantry_angle_deg=beam.angle_deg,
                meterset_planned=beam.planned,
                meterset_delivered=beam.delivered,
                unit=beam.unit,
                layers=beam.layers,
                layer=len(beam.begun),
                spots_planned=beam.spots,
                spots_delivered=beam.spots_delivered,
                status=beam.status,
            )
            for beam in self._beams.values()
        ]

    def spots(self) -> list[SpotsView]:
        """Layers of the current beam so far, or of the last one; first what earlier sessions gave of it."""
        return [*self._earlier, *self._layers.values()]

    def _select(self, number: int) -> None:
        self.settle()
        self.current = number
        self._beams[number].status = CURRENT
        self._layers.clear()
        run = self._fraction.current if self._fraction is not None else None
        before = self._fraction.before.get(number) if self._fraction is not None else None
        self._earlier = earlier_views(run, before, self._origin) if run is not None and before is not None else []
        for view in self._earlier:
            self._publish(view)

    def _pass(self, event: Event, *, ended: bool) -> None:
        run = self._fraction.current if self._fraction is not None else None
        number, layer = int(event.data["beam_number"]), int(event.data["layer"])
        beam = self._beams.get(number)
        if run is None or beam is None or run.beam.number != number:
            return
        beam.begun.add(layer)
        if not ended:
            self.layer, self.painting = layer, int(event.data["painting"])
        if ended:
            beam.delivered += float(event.data["meterset"])
            beam.spots_delivered = min(beam.spots, beam.spots_delivered + int(event.data["spots"]))
        key = number, layer, int(event.data["painting"])
        view = layer_view(run, key, self._origin)
        if view is not None:
            self._layers[key] = view
            self._publish(view)


def earlier_views(run: BeamRun, before: Received, origin: Origin) -> list[SpotsView]:
    """What earlier sessions gave of a beam, layer by layer; a layer of which nothing was given is not among them.

    Where it is known within bounds the upper one is shown: so much counts as given.
    """
    owed = {scheduled.layer_index: scheduled.energy_mev_u for scheduled in run.schedule.passes}
    ends = np.cumsum([layer.spots for layer in run.beam.layers])
    found = []
    for index, (layer, given, planned) in enumerate(
        zip(run.beam.layers, np.split(before.upper, ends[:-1]), np.split(before.planned, ends[:-1]), strict=True)
    ):
        if not given.any():
            continue
        per_count = layer.meterset_total / max(float(planned.sum()), 1.0)
        found.append(
            SpotsView(
                treatment=origin.treatment,
                session=origin.session,
                earlier=True,
                beam_number=run.beam.number,
                layer_index=index,
                energy_mev_u=owed.get(index, layer.energy_mev_u),
                painting=0,
                x_mm=np.round(layer.x_mm, 3).tolist(),
                y_mm=np.round(layer.y_mm, 3).tolist(),
                mu_planned=np.round(layer.meterset, 6).tolist(),
                mu_delivered=np.round(given * per_count, 6).tolist(),
                complete=index not in owed,
            )
        )
    return found


def layer_view(run: BeamRun, key: tuple[int, int, int], origin: Origin) -> SpotsView | None:
    """One layer of a beam: planned, and delivered by all grants that it has had results of."""
    number, layer, painting = key
    scheduled = next((p for p in run.schedule.passes if (p.layer_index, p.painting) == (layer, painting)), None)
    if scheduled is None:
        return None
    runs = run.delivery.delivered.runs if run.delivery is not None else []
    received = _received(scheduled, [r for r in runs if r.scheduled is scheduled])
    per_count = float(scheduled.meterset.sum()) / max(float(scheduled.counts1.sum()), 1.0)
    return SpotsView(
        treatment=origin.treatment,
        session=origin.session,
        beam_number=number,
        layer_index=layer,
        energy_mev_u=scheduled.energy_mev_u,
        painting=painting,
        x_mm=(scheduled.x_um / 1000.0).tolist(),
        y_mm=(scheduled.y_um / 1000.0).tolist(),
        mu_planned=np.round(scheduled.meterset, 6).tolist(),
        mu_delivered=np.round(received * per_count, 6).tolist(),
        complete=bool((received + scheduled.quantum_counts >= scheduled.counts1).all()),
    )


def _received(scheduled: Pass, runs: list[GrantRun]) -> NDArray[np.int64]:
    """Counts of monitor 1 per spot of a pass."""
    total = np.zeros(scheduled.counts1.shape, dtype=np.int64)
    for run in runs:
        if run.pieces.size:
            total += run.received()
    return total
