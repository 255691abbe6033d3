"""Live progress of a treatment on a terminal; plain lines where the output is piped. A view of the event bus, nothing else.

Not responsible for the verdict afterwards (`verdict`).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from drivers.hal.clock import NS_PER_S
from drivers.hal.events import Event

if TYPE_CHECKING:
    from rich.live import Live

NEWS_SHOWN = 4
BAR_WIDTH = 30
ROUTINE_HOLD = "tuning"  # between two layers; anything else that holds the beam is news
BOOT = "POWER_UP"  # every interlock system starts tripped
_STYLES = {
    "preparatory": "cyan",
    "ready": "bold green",
    "irradiating": "bold yellow",
    "interrupted": "bold magenta",
    "terminated": "bold",
    "fault": "bold red",
}


@dataclass(slots=True)
class Picture:
    """What the operator is shown, kept up to date from events."""

    title: str = ""
    state: str = "standby"
    why: str = ""
    beam: str = "-"
    number: int = 0
    beams: int = 0
    layer: int = 0
    layers: int = 0
    spots: int = 0
    spots_planned: int = 0
    meterset: float = 0.0
    meterset_planned: float = 0.0
    unit: str = "MU"
    gantry_angle_deg: float | None = None
    energy_mev_u: float | None = None
    spill: int = 0
    t_ns: int = 0
    news: deque[str] = field(default_factory=lambda: deque(maxlen=NEWS_SHOWN))

    def take(self, event: Event) -> str:
        """Fold one event in; what it says on a plain output, or nothing when it is not worth a line of its own."""
        self.t_ns = event.t_ns
        data = event.data
        match event.kind:
            case "treatment.started":
                self.beams = len(data["beams"])
                simulated = "SIMULATED  " if data["simulated"] else ""
                self.title = (
                    f"{simulated}{data['room']} of {data['facility']}  {data['plan_label']}, fraction {data['fraction']}"
                )
                return self.title
            case "room.state":
                return self._take_state(str(data["state"]), str(data.get("why") or ""))
            case "gantry.angle":
                self.gantry_angle_deg = float(data["angle_deg"])
            case "beam.selected":
                self._take_beam(data)
                planned = f"{self.meterset_planned:.6g} {self.unit}"
                return f"beam {self.beam}: {self.layers} layers, {self.spots_planned} spots, {planned}"
            case "pass.started":
                self.layer = int(data["layer"]) + 1
                self.energy_mev_u = float(data["energy_mev_u"])
            case "pass.ended":
                self.spots += int(data["spots"])
                self.meterset += float(data["meterset"])
                self.spill = int(data["spill"]) or self.spill
                return (
                    f"beam {self.beam}  layer {self.layer}/{self.layers}  {self.energy_mev_u or 0.0:.1f} MeV/u  "
                    f"spots {self.spots}/{self.spots_planned}  {self.meterset:.5g}/{self.meterset_planned:.5g} {self.unit}  "
                    f"spill {self.spill}"
                )
            case _:
                news = _news(event)
                if news:
                    self.news.append(news)
                return news
        return ""

    def _take_state(self, state: str, why: str) -> str:
        before, self.state, self.why = self.state, state, why
        held = state == "irradiating.held"
        if (held and why == ROUTINE_HOLD) or (before == "irradiating.held" and state == "irradiating.beam_on"):
            return ""
        return f"{state}{f': {why}' if why else ''}"

    def _take_beam(self, data: Any) -> None:
        self.beam = f"{data['beam_number']} {data['name']}"
        self.number += 1
        self.layers, self.layer, self.energy_mev_u = int(data["layers"]), 0, None
        self.spots_planned, self.spots = int(data["spots"]), 0
        self.meterset_planned, self.meterset = float(data["meterset"]), 0.0
        self.unit = str(data["unit"])

    def __rich__(self) -> Any:
        """The live panel, as it is when it is drawn."""
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        angle = "-" if self.gantry_angle_deg is None else f"{self.gantry_angle_deg:.2f} deg"
        energy = "" if self.energy_mev_u is None else f"   {self.energy_mev_u:.1f} MeV/u   spill {self.spill}"
        share = min(self.meterset / self.meterset_planned, 1.0) if self.meterset_planned else 0.0
        dose = Table.grid(padding=(0, 2))
        dose.add_row(
            f"{self.meterset:.2f} of {self.meterset_planned:.2f} {self.unit}",
            ProgressBar(total=1.0, completed=share, width=BAR_WIDTH),
            f"{100 * share:.0f} %",
        )
        table = Table.grid(padding=(0, 2))
        state = Text(self.state, style=_STYLES.get(self.state.split(".")[0], "dim"))
        rows: list[tuple[str, Any]] = [
            ("state", state.append(f"  {self.why}" if self.why else "", style="not bold")),
            ("beam", f"{self.beam}   ({self.number} of {self.beams})"),
            ("gantry", angle),
            ("layer", f"{self.layer} of {self.layers}{energy}"),
            ("spots", f"{self.spots} of {self.spots_planned}"),
            ("meterset", dose),
            ("time", f"{self.t_ns / NS_PER_S:.1f} s"),
        ]
        for name, value in rows:
            table.add_row(Text(name, style="dim"), value if not isinstance(value, str) else Text(value))
        for line in tuple(self.news):
            table.add_row(
                "", Text(line, style="red" if line.startswith("TRIP") else "yellow", overflow="ellipsis", no_wrap=True)
            )
        return Panel(
            table, title=Text(self.title), title_align="left", border_style=_STYLES.get(self.state.split(".")[0], "dim")
        )


def _news(event: Event) -> str:
    """What is neither a state nor a layer and still concerns the operator."""
    data = event.data
    match event.kind:
        case "trip":
            numbers = f" ({data['value']}; limit {data['limit']})" if data.get("limit") else ""
            return f"TRIP {data['cause']}: {data['message']}{numbers}{f'; {hint}' if (hint := data.get('hint')) else ''}"
        case "interlock.trip" if data["id"] != BOOT:
            return f"TRIP {data['id']}: {data['cause']}{f'; {advice}' if (advice := data.get('advice')) else ''}"
        case "override":
            return f"overridden: {data['name']}: {data['reason']}"
        case "refused":
            return f"refused in {data['state']}: {data['reason']}"
        case "fault.planted":
            return f"fault planted: {data['name']}"
        case "results.awaited":
            return f"the delivery unit is away: waiting up to {data['for_s']:.0f} s for what it gave; start its server"
        case "program.exception":
            return f"PROGRAM FAULT {data['error']}"
        case "finding":
            return f"finding: {data['message']}"
    return ""


class Progress:
    """Shows a `Picture` of the bus while a treatment runs.

    Args:
        stream: where to write; a terminal gets a live panel, anything else plain lines.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._picture = Picture()
        self._live: Live | None = None

    def __enter__(self) -> Callable[[Event], None]:
        return self.show

    def __exit__(self, *_exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Listener of the event bus."""
        line = self._picture.take(event)
        if self._stream.isatty():
            if self._live is None:
                self._start()
        elif line:
            self._stream.write(f"{event.t_ns / NS_PER_S:9.1f} s  {line}\n")

    def _start(self) -> None:
        """Begin with the first event: what is refused before shows no panel."""
        from rich.console import Console
        from rich.live import Live

        self._live = Live(self._picture, console=Console(file=self._stream), refresh_per_second=8, transient=True)
        self._live.start()


def commission_line(event: Event) -> str:
    """One plain line for what commissioning measured; empty for events that are no news."""
    data = event.data
    if event.kind != "commission.row":
        return ""
    port = "" if data["port_deg"] is None else f" at {data['port_deg']:g} deg"
    return (
        f"{event.source.removeprefix('commission.')}{port}  {data['species']:<2} {data['energy_mev_u']:6.1f} MeV/u  "
        f"spots off by {data['error_mean_mm']:.3f} mm in the mean, {data['error_max_mm']:.3f} mm at most; "
        f"counts per ion within {100 * data['counts_rel']:.2f} %  {'released' if data['released'] else 'WITHDRAWN'}"
    )
