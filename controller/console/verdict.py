"""What the operator reads when a fraction is over: how it ended, what each beam got, what tripped and what to do.

Not responsible for what is shown while it runs (`progress`), nor for the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controller.record.outcome import FractionOutcome
from drivers.hal.clock import NS_PER_S

TRIPS_SHOWN = 12
_HEADLINE = {
    "complete": "complete: delivered as prescribed",
    "partial": "ended early",
    "refused": "refused before any motion or beam",
    "fault": "FAULT",
}


def verdict_lines(outcome: FractionOutcome, summary: Mapping[str, Any]) -> Iterator[str]:
    """Plain lines, most important first."""
    marks = [mark for mark, given in (("simulated", outcome.machine.simulated), ("research", outcome.research)) if given]
    headline = _HEADLINE[outcome.status.value]
    if outcome.known_within_an_interval:
        headline = "delivered, but its dose is known only within a signed interval"
    yield f"{headline} ({summary['termination']}; {', '.join(marks)})"
    if outcome.reason:
        yield f"  because: {outcome.reason}"
    for beam in summary["beams"]:
        yield (
            f"  beam {beam['number']} {beam['name']}: {beam['meterset_delivered_primary']:.6g} of "
            f"{beam['meterset_planned']:.6g} {beam['unit']} in {beam['spots_delivered']} of {beam['spots']} spots, "
            f"{beam['irradiation_s']:.1f} s"
        )
    trips = summary["interlocks"]
    for trip in trips[:TRIPS_SHOWN]:
        order = "first out" if trip["first_out"] else "then"
        yield f"  {order:<9} {trip['t_ns'] / NS_PER_S:9.3f} s  {trip['name']}: {trip['description']}"
    if len(trips) > TRIPS_SHOWN:
        yield f"  and {len(trips) - TRIPS_SHOWN} more, see the report"
    for interval in outcome.intervals:
        yield f"  signed: {interval}"
    for override in outcome.overrides:
        yield f"  overridden: {override.detail} ({override.name}: {override.reason})"
