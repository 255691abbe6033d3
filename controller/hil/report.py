"""Writes what a rig check found: `hil.json` with every check and trace, `report.html` for people.

One self-contained page without scripts; nothing is loaded. Not responsible for verdicts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controller.hil import charts
from controller.hil.judge_line import TURN_ROUND_S, AnswerTimes, line_time_s
from controller.hil.run import HilResult
from controller.hil.verdict import Verdict
from controller.report_page import render_page

TEMPLATE = "report_template.html"
FORMAT = 1
MARKS = {Verdict.PASS: "✓ pass", Verdict.FAIL: "✗ fail", Verdict.NOT_DONE: "− not done"}


def write_report(result: HilResult, directory: Path) -> None:
    """Write both files. Raises OSError."""
    (directory / "hil.json").write_text(json.dumps(as_dict(result), indent=1) + "\n", encoding="utf-8")
    (directory / "report.html").write_text(render(result), encoding="utf-8")


def as_dict(result: HilResult, *, traces: bool = True) -> dict[str, Any]:
    """Everything, for machines. `traces=False` leaves the samples out."""
    target = result.target
    times = AnswerTimes.of(result.answers_s)
    told: dict[str, Any] = {
        "format": FORMAT,
        "device": target.name,
        "kind": target.kind,
        "facility": target.facility.name,
        "room": target.room.name,
        "simulated": target.simulated,
        "started_utc": result.started_utc.isoformat(),
        "duration_s": round(result.duration_s, 3),
        "verdict": "pass" if result.passed else "fail",
        "interrupted": result.interrupted,
        "left": result.left,
        "endpoints": {place.label: place.address for place in target.places},
        "identity": result.identity,
        "rig": target.rig.model_dump(),
        "checks": [check.as_dict() for check in result.checks],
        "values": result.values,
        "answers_ms": None
        if times is None
        else {"count": times.count, "p50": times.p50_ms, "p95": times.p95_ms, "p99": times.p99_ms, "max": times.max_ms},
    }
    if traces:
        columns = ("t_s", "statusword", "position_deg", "speed_deg_s", "torque_percent", "error_code", "safety", "counter")
        t0_s = min((trace.samples[0].t_s for trace in result.traces if trace.samples), default=0.0)
        told["traces"] = [
            {
                "label": trace.label,
                "columns": columns,
                "samples": [[round(s.t_s - t0_s, 6), *(getattr(s, column) for column in columns[1:])] for s in trace.samples],
                "words": [[round(t_s - t0_s, 6), word] for t_s, word in trace.marks],
            }
            for trace in result.traces
        ]
        told["series"] = {"name": result.series_name, "points": [list(point) for point in result.series]}
    return told


def headline(result: HilResult) -> str:
    """The verdict in words."""
    failed, missing = result.of(Verdict.FAIL), result.of(Verdict.NOT_DONE)
    done = f"{len(result.checks) - len(failed) - len(missing)} of {len(result.checks)} checks passed"
    if result.left.startswith("NOT SAFE"):
        return f"{done}; {result.left}"
    if result.interrupted:
        return f"Stopped by the technician: {done}, {len(failed)} failed"
    if failed:
        return f"{len(failed)} failed: {', '.join(check.requirement.name.lower() for check in failed)}"
    return f"Conforms: {done}" + (f", {len(missing)} not done" if missing else "")


def render(result: HilResult) -> str:
    """The page as text."""
    return render_page(
        "controller.hil",
        TEMPLATE,
        result=result,
        target=result.target,
        good=result.passed,
        headline=headline(result),
        marks=MARKS,
        facts=_facts(result),
        figures=_figures(result),
    )


def _facts(result: HilResult) -> list[tuple[str, str]]:
    target, rig = result.target, result.target.rig
    facts = [("Endpoint", ", ".join(dict.fromkeys(place.address for place in target.places)))]
    facts += [(f"Identity of {label}", words) for label, words in result.identity.items()]
    if result.traces:
        acceleration = rig.acceleration_deg_s2 or (target.room.gantry.acceleration_deg_s2 if target.room.gantry else 0.0)
        facts += [
            ("Local stop", rig.local_stop or "none (simulated)"),
            ("Travel", f"{rig.travel_deg:g} deg"),
            ("Speed, acceleration", f"{rig.speed_deg_s:g} deg/s, {acceleration:g} deg/s2"),
            ("Stated quick stop", f"{rig.quick_stop_deg_s2:g} deg/s2"),
        ]
    facts += list(result.values.items())
    return [*facts, ("Left", result.left), ("Duration", f"{result.duration_s:.1f} s")]


def _figures(result: HilResult) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for episode in result.episodes:
        for trace in result.traces:
            samples = [s for s in trace.samples if episode.from_s <= s.t_s <= episode.to_s]
            if len(samples) < 2:
                continue
            title = f"{episode.name} ({trace.label})" if len(result.traces) > 1 else episode.name
            found.append((f"{title}: position", charts.position(samples, episode)))
            if episode.profile is not None:
                found.append((f"{title}: following error", charts.following(samples, episode, result.target.rig.following_deg)))
            else:
                found.append((f"{title}: speed", charts.speed(samples, episode)))
    if len(result.series) > 1:
        found.append((f"{result.series_name} at rest", charts.series(result.series, result.series_name)))
    if result.answers_s:
        limit_ms = 1000.0 * (line_time_s(result.block, result.target.places[0].baud) + TURN_ROUND_S)
        found.append(("Answer times of the line", charts.answers(result.answers_s, limit_ms)))
    return found
