"""From the name of a trip to the line that decides it: one row of the interlock matrix in words, with the places to look.

`iongantry explain-trip RING_ANGLE` (or its first-out code, or its words as on the screen) prints the row, its inputs with their
registers, the function that judges them, and what brings the permit back, each with file and line. Not responsible for what is
tripped now (that is on the status line and in the console), nor for anything that the interlock system does: it only reads that
package's tables.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlocks import conditions, inputs, matrix
from interlocks.engine import STOPS, Engine
from interlocks.first_out import NOT_KNOWN
from interlocks.matrix import Action, Interlock, Limits
from interlocks.plan_watch import PlanWatch
from interlocks.proof import ProofTest

PACKAGE = Path(matrix.__file__).parent
NEAR = 6  # rows that are named where none was found
WORD = 4  # letters of a word that tells one row from another
WHEN = {
    "always": "always",
    "armed": "while a treatment is armed, or not known not to be",
    "requested": "while armed, once the request relay was closed",
    "beam": "while beam is measured, or not known not to be",
    "moving": "while standstill is not reported",
    "never": "never as a trip",
}
INTERNAL: dict[str, Callable[..., Any]] = {  # kinds that are no condition of values
    "boot": Engine.step,
    "stall": Engine.step,  # from the time between steps, and InterlockNode.gap_ms
    "bypass": Engine._condition,
    "stale": Engine._condition,
    "feedback": Engine._condition,
}


class NoSuchRow(ValueError):
    """There is no row of that name, code or words; the text says which come near."""


def find(limits: Limits, wanted: str) -> Interlock:
    """The row of an id, a first-out code, or what it means as on the screen, in any case. Raises NoSuchRow."""
    said = wanted.strip().casefold()
    for row in limits.rows:  # behind a colon the values are told
        if said in (row.id.casefold(), str(row.code)) or f"{said}:".startswith(f"{row.what.casefold()}:"):
            return row
    names = difflib.get_close_matches(wanted.upper(), [row.id for row in limits.rows], 4, 0.4)
    near = list(dict.fromkeys([*[row.id for row in alike(limits, wanted, 1)][:NEAR], *names]))
    raise NoSuchRow(f"no interlock is called {wanted!r}; near: {', '.join(near) or 'none'} (all: docs/interlocks.md)")


def alike(limits: Limits, wanted: str, least: int) -> list[Interlock]:
    """Rows whose id or meaning has at least so many of these words, those with most of them first."""

    def words(text: str) -> set[str]:
        return {word for word in re.split(r"[\W_]+", text.casefold()) if len(word) >= WORD}

    shared = {row.id: len(words(wanted) & words(f"{row.id} {row.what}")) for row in limits.rows}
    return sorted((row for row in limits.rows if shared[row.id] >= least), key=lambda row: -shared[row.id])


def place(function: Callable[..., Any]) -> str:
    """File and line of a function."""
    path = Path(inspect.getsourcefile(function) or "")
    return f"{PACKAGE.name}/{path.name}:{inspect.getsourcelines(function)[1]}"


def line_of(file: str, pattern: str) -> str:
    """File and line of the first match in the package."""
    for number, text in enumerate((PACKAGE / file).read_text(encoding="utf-8").splitlines(), start=1):
        if re.search(pattern, text):
            return f"{PACKAGE.name}/{file}:{number}"
    return f"{PACKAGE.name}/{file}"


def register_words(name: str) -> str:
    """Where an input comes from."""
    signal = inputs.SIGNALS[name]
    stem, _, tail = name.partition("_")
    ways = (
        rf"\b{name}\b",
        rf"_bits\({signal.register},.*\b{tail}\b",
        rf"\b{stem}_.*\b{signal.register}\b",
        rf"\b{stem}_",
        "^SIGNALS",
    )
    where = next(found for pattern in ways if ":" in (found := line_of("inputs.py", pattern)))
    own = signal.register >= inputs.OWN_FIRST
    what = f"register {signal.register}" + (f" to {signal.register + signal.words - 1}" if signal.words > 1 else "")
    bit = f", bit {signal.mask.bit_length() - 1}" if signal.mask else ""
    sign = ", signed" if signal.signed else ""
    worker = ProofTest.age_s if name == "proof_age_s" else PlanWatch.registers
    node = f"worked out by the interlock system itself in {place(worker)}, as " if own else "room safety node 1, "
    return f"{name}: {node}{what}{bit}{sign} ({where})"


def motion_words(row: Interlock) -> str:
    """What the row does to the motion permit."""
    if not STOPS.isdisjoint(row.actions):
        return "withheld until the row is reset: gantry and couch stop, brakes, torque off"
    if Action.INHIBIT_MOTION in row.actions:
        if row.kind in ("boot", "stall"):
            return "gone while this lasts, because no pulse comes; not withheld afterwards"
        return "withheld while the cause is there: gantry and couch stop, brakes, torque off; given back without a reset"
    return "not withheld"


def explain(limits: Limits, wanted: str) -> str:
    """The row in words. Raises NoSuchRow."""
    row = find(limits, wanted)
    figures = ", ".join(f"{key} {value}" for key, value in row.params.items()) + (f" ({row.unit})" if row.unit else "")
    lines = [
        f"{row.id}, first-out code {row.code}, class {row.klass}: {row.what}",
        f"row       {line_of('limits.toml', re.escape(f'[interlock.{row.id}]'))}",
    ]
    software = row.acts == "software"
    if not software:
        acted = f"by {row.by}, within {row.deadline_ms:g} ms; no program of the interlock system decides it"
        lines += [f"decided   {acted}", f"figures   {figures}"]
    else:
        judge = conditions.CHANNEL.get(row.kind) or conditions.JOINT.get(row.kind) or INTERNAL[row.kind]
        text = f"decided   {row.kind} in {place(judge)}" + (f": {figures}" if figures else "")
        lines += [text, f"          called by {place(Engine._judge)} (believed? phase, debounce, hold, bypass, latch)"]
        lines += [f"{'inputs' if not index else '':10}{register_words(name)}" for index, name in enumerate(row.inputs)]
        withholds = "withholds the permit outside of that too" if row.withholds else "withholds nothing before it has tripped"
        lines += [
            f"trips     {WHEN[row.trips]}; {withholds}",
            f"deadline  {row.deadline_ms:g} ms from the change to the decision; must last {row.debounce_ms:g} ms",
        ]
        if row.kind == "feedback":
            lines.append(
                "          in time in which the relay was looked at: not while this system stood still or had no answer"
            )
        if row.inputs and row.kind != "stale":
            lines.append(f"{NOT_KNOWN[0]:10}inputs that are missing or stale: bad at once, and told as such. {NOT_KNOWN[1]}")
    back = (
        f"by {row.reset_role}, once the cause is gone and no beam is requested"
        if row.latch
        else "by itself when the cause is gone"
    )
    asked = f"; {limits.invalid_reset_role}, if inputs were only not believed" if row.latch and row.inputs else ""
    lines += [
        f"actions   {', '.join(action.name for action in row.actions)}{'; the permit B is withheld for every one' * software}",
        *([f"motion    {motion_words(row)} ({line_of('engine.py', 'def stops_motion')})"] if software else []),
        f"reset     {back}{asked} ({place(Engine.resettable)})",
        f"bypass    {'in service mode, by two people' if row.bypassable_in else 'never'}",
        f"source    {row.source}",
        *([f"do        {row.advice}"] if row.advice else []),
    ]
    by_words = wanted.strip().casefold() not in (row.id.casefold(), str(row.code))
    lines += [f"see also  {r.id}: {r.what}" for r in alike(limits, row.what, 2) if by_words and r is not row]
    return "\n".join(lines)
