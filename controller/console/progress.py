"""Live progress of a treatment on a terminal; plain lines where the output is piped. A view of the event bus, nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from drivers.hal.clock import NS_PER_S
from drivers.hal.events import Event

if TYPE_CHECKING:
    from rich.live import Live


@dataclass(slots=True)
class Picture:
    """What the operator is shown, kept up to date from events."""

    state: str = "standby"
    beam: str = "-"
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

    def take(self, event: Event) -> bool:
        """Fold one event in; True when it is worth a line of its own on a plain output."""
        self.t_ns = event.t_ns
        data = event.data
        match event.kind:
            case "room.state":
                self.state = str(data["state"])
                return True
            case "gantry.angle":
                self.gantry_angle_deg = float(data["angle_deg"])
            case "beam.selected":
                self.beam = f"{data['beam_number']} {data['name']}"
                self.layers, self.layer = int(data["layers"]), 0
                self.spots_planned, self.spots = int(data["spots"]), 0
                self.meterset_planned, self.meterset = float(data["meterset"]), 0.0
                self.unit = str(data["unit"])
                return True
            case "pass.started":
                self.layer = int(data["layer"]) + 1
                self.energy_mev_u = float(data["energy_mev_u"])
            case "pass.ended":
                self.spots += int(data["spots"])
                self.meterset += float(data["meterset"])
                self.spill = int(data["spill"])
                return True
            case "trip" | "override" | "refused":
                return True
        return False

    def line(self, event: Event) -> str:
        """One plain line for an event."""
        clock = f"{event.t_ns / NS_PER_S:9.1f} s"
        match event.kind:
            case "room.state":
                return f"{clock}  {self.state}"
            case "beam.selected":
                return f"{clock}  beam {self.beam}: {self.layers} layers, {self.spots_planned} spots, " + (
                    f"{self.meterset_planned:.6g} {self.unit}"
                )
            case "pass.ended":
                return (
                    f"{clock}  beam {self.beam}  layer {self.layer}/{self.layers}  {self.energy_mev_u:.1f} MeV/u  "
                    f"spots {self.spots}/{self.spots_planned}  {self.unit} {self.meterset:.5g}/{self.meterset_planned:.5g}  "
                    f"spill {self.spill}"
                )
            case "trip":
                return f"{clock}  TRIP {event.data.get('cause', '')}: {event.data.get('message', '')}"
        return f"{clock}  {event.kind} {dict(event.data)}"

    def table(self) -> Any:
        """The live panel."""
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        angle = "-" if self.gantry_angle_deg is None else f"{self.gantry_angle_deg:.2f} deg"
        energy = "-" if self.energy_mev_u is None else f"{self.energy_mev_u:.1f} MeV/u"
        done = self.meterset / self.meterset_planned if self.meterset_planned else 0.0
        bar = "#" * round(24 * min(done, 1.0))
        for name, value in (
            ("state", f"[bold]{self.state}[/]"),
            ("beam", self.beam),
            ("gantry", angle),
            ("layer", f"{self.layer}/{self.layers}   {energy}   spill {self.spill}"),
            ("spots", f"{self.spots}/{self.spots_planned}"),
            ("meterset", f"{self.meterset:.2f}/{self.meterset_planned:.2f} {self.unit}  {bar:<24}"),
            ("time", f"{self.t_ns / NS_PER_S:.1f} s"),
        ):
            table.add_row(f"[dim]{name}[/]", value)
        return table


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
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self._picture.table(), console=Console(file=self._stream), refresh_per_second=8, transient=True)
            self._live.start()
        return self.show

    def __exit__(self, *_exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Listener of the event bus."""
        worth_a_line = self._picture.take(event)
        if self._live is not None:
            self._live.update(self._picture.table())
        elif worth_a_line:
            print(self._picture.line(event), file=self._stream)


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
