"""What can go wrong on a wire, as words of the command line: ``wire-KIND:WIRE[/PART][@WHEN][+SECONDS]``.

WIRE is a wire's name (``G1-motion``, ``G1-safety``, ``epics``, ``mqtt``); PART narrows it: a node of a stream
(``G1-motion/2``), a pattern of variables or topics (``epics/ASAN:G1:DU:*``). WHEN is ``start`` (the default), ``t=SECONDS``
of loop time, ``beam`` or ``beam+SECONDS`` (the first grant that is started), or ``grant=N`` (the N-th grant that is sent);
the last ``+SECONDS`` says how long it lasts, and without it the fault stays. After ``beam`` both have to be said:
``@beam+0+2``.

Not responsible for what a fault does to a wire (`disturb`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

Carrier = Literal["stream", "channels", "messages"]
PREFIX = "wire-"


@dataclass(frozen=True, slots=True)
class WireFaultKind:
    """One kind of fault.

    Attributes:
        name: as written, without ``wire-``.
        carriers: on which wires it exists.
        does: what happens to what travels.
        expected: what must follow.
    """

    name: str
    carriers: frozenset[Carrier]
    does: str
    expected: str


_S: frozenset[Carrier] = frozenset({"stream"})
_C: frozenset[Carrier] = frozenset({"channels"})
_M: frozenset[Carrier] = frozenset({"messages"})
_SAFE = "in beam it goes off, the run ends with a record or goes on once the wire is sound again"

KINDS: dict[str, WireFaultKind] = {
    kind.name: kind
    for kind in (
        WireFaultKind("silence", _S | _C | _M, "nothing comes any more, what is sent is lost", f"values become stale; {_SAFE}"),
        WireFaultKind("garbage", _S | _M, "answers become random bytes of the same length", f"told as garbage; {_SAFE}"),
        WireFaultKind("truncation", _S, "answers lose their second half", f"told as garbage; {_SAFE}"),
        WireFaultKind("checksum", _S, "one bit of each answer is turned: checksum (RTU) or header (TCP) is wrong", _SAFE),
        WireFaultKind("delay", _S | _C | _M, "all comes half a second late", f"no late answer passes for another; {_SAFE}"),
        WireFaultKind("duplicate", _S | _C | _M, "everything comes twice", "nothing follows: a second copy changes nothing"),
        WireFaultKind("reorder", _S, "answers overtake each other", f"no answer passes for another; {_SAFE}"),
        WireFaultKind("shuffle", _C, "updates of different variables overtake each other by up to 50 ms", "nothing follows"),
        WireFaultKind("disconnect", _S | _C | _M, "the connection is lost and cannot be made again", f"told once; {_SAFE}"),
        WireFaultKind(
            "identity", _S | _C, "the connection is lost, and then another device answers", f"it is refused by name; {_SAFE}"
        ),
        WireFaultKind("vanish", _C, "a variable is not there any more", f"told as not connected; {_SAFE}"),
        WireFaultKind("nan", _C, "numbers become NaN", f"told as no number; {_SAFE}"),
        WireFaultKind("text", _C, "text comes where a number belongs", f"told as no number; {_SAFE}"),
        WireFaultKind("flood", _M, "10,000 messages of junk a second", "what waits is bounded; nothing else suffers"),
        WireFaultKind("retained", _M, "old messages come again, kept by the broker", "nothing follows: they are not taken"),
    )
}


@dataclass(frozen=True, slots=True)
class Start:
    """When a fault begins: kind ``start``, ``t``, ``beam`` or ``grant``, and the number that goes with it."""

    kind: str = "start"
    number: float = 0.0


@dataclass(frozen=True, slots=True)
class WireFault:
    """A fault of one wire.

    Attributes:
        wire: name of the wire.
        kind: a name in `KINDS`.
        start: when it begins.
        duration_s: how long it lasts; None: for good.
        seed: of what is random in it.
        part: node of a stream, or pattern of variables or topics; ``*``: all.
    """

    wire: str
    kind: str
    start: Start = Start()
    duration_s: float | None = None
    seed: int = 0
    part: str = "*"

    def __str__(self) -> str:
        part = "" if self.part == "*" else f"/{self.part}"
        return f"{PREFIX}{self.kind}:{self.wire}{part}"


def carrier_of(wire: str) -> Carrier:
    """What a wire of this name is."""
    return "channels" if wire == "epics" else "messages" if wire == "mqtt" else "stream"


def is_wire_fault(text: str) -> bool:
    """Whether a ``--fault`` is one of a wire."""
    return text.startswith(PREFIX)


def parse_wire_fault(text: str, seed: int = 0) -> WireFault:
    """One ``wire-KIND:WIRE[/PART][@WHEN][+SECONDS]``. Raises ValueError with what is wrong and what is known."""
    head, at, tail = text.partition("@")
    if not at:
        head, _, tail = text.partition("+")
        tail = f"start+{tail}" if tail else "start"
    name, _, place = head.removeprefix(PREFIX).partition(":")
    wire, _, part = place.partition("/")
    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(f"fault {PREFIX + name!r} is unknown; known on wires: {', '.join(PREFIX + known for known in KINDS)}")
    if not wire:
        raise ValueError(f"fault {PREFIX}{name}: needs a wire, as in {PREFIX}{name}:G1-motion")
    if carrier_of(wire) not in kind.carriers:
        raise ValueError(f"fault {PREFIX}{name}: there is no such thing on {wire}, only on {', '.join(sorted(kind.carriers))}")
    start, duration_s = _parse_when(PREFIX + name, tail)
    return WireFault(wire, name, start, duration_s, seed, part or "*")


def unsuited_wire_faults(faults: Iterable[WireFault], wires: Collection[str]) -> list[str]:
    """Which faults lie on wires that are not there."""
    known = ", ".join(sorted(wires))
    return [f"fault {fault}: there is no wire {fault.wire}; wires: {known}" for fault in faults if fault.wire not in wires]


def _parse_when(name: str, text: str) -> tuple[Start, float | None]:
    number = r"(\d+(?:\.\d*)?(?:e-?\d+)?)"
    for pattern, kind in (
        (rf"start(?:\+{number})?", "start"),
        (rf"t={number}(?:\+{number})?", "t"),
        (rf"beam(?:\+{number}(?:\+{number})?)?", "beam"),
        (rf"grant={number}(?:\+{number})?", "grant"),
    ):
        if (found := re.fullmatch(pattern, text)) is None:
            continue
        values = [float(value) if value is not None else None for value in found.groups()]
        duration_s = values[-1]
        if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
            break
        return Start(kind, (values[0] or 0.0) if len(values) == 2 else 0.0), duration_s
    raise ValueError(
        f"fault {name}: when {text!r}: expected start, t=SECONDS, beam, beam+SECONDS or grant=N, and +SECONDS above 0 if it "
        "is to end"
    )
