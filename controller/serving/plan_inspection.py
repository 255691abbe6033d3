"""Reads a plan file that was received and holds it against every room, in a process of its own.

`python -m controller.serving.plan_inspection FILE FACILITY [LIBRARY KEYS]` prints one JSON object. A room that treats must not
share its time with the parser of whatever somebody sent. Not responsible for filing (`plans`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controller.intake import Refused, beam_facts, take_in
from drivers.hal.errors import BeamlineError, DataError
from drivers.hal.facility import Facility, load_facility

HEAD_BYTES = 64 * 1024  # the file meta information has some hundred
DICM_AT = 128
SYNTAX = b"\x02\x00\x10\x00UI"  # (0002,0010) as PS3.10 has it, always explicit little endian
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPORT = "export it uncompressed"
READ_S = 120.0  # wall time for the largest plan on a loaded computer; assumed


def inspect(path: Path, facility: str, library: Path | None = None, keys: Path | None = None) -> dict[str, Any]:
    """What is in a plan file, and by room why it cannot be treated there; ``{"reasons": [...]}`` when it cannot be read.

    Approval is not among the objections of a room: who approves here is another question, and asked for by the store.
    """
    from controller.plan.errors import PlanRefused
    from controller.plan.reading import read_plan

    try:
        installed = load_facility(facility)
        if is_deflated(path):
            return {"reasons": [f"the plan is deflated (transfer syntax {DEFLATED}); nothing is unpacked here: {EXPORT}"]}
        plan = read_plan(path)
    except OSError as error:
        return {"reasons": [f"the plan cannot be read: {error.strerror or error}"]}
    except PlanRefused as refused:
        return {"reasons": [str(reason) for reason in refused.reasons]}
    except BeamlineError as error:
        return {"reasons": error.as_reasons}
    return {
        "reasons": [],
        "sha256": plan.sha256,
        "kind": plan.kind,
        "uid": plan.uid,
        "label": plan.label,
        "intent": plan.intent,
        "approval": plan.approval,
        "patient_id": plan.patient.id,
        "patient_name": str(getattr(plan.patient, "name", "")),
        "species": ", ".join(ion.symbol for ion in plan.ions),
        "machine": ", ".join(sorted({beam.machine_name for beam in plan.beams})),
        "fractions": max(plan.fractions_planned, 1),
        "notes": list(plan.notes),
        "beams": [{**beam_facts(beam), "machine": beam.machine_name} for beam in plan.beams],
        "objections": {room: _objections(path, facility, installed, room, library, keys) for room in installed.rooms},
    }


def is_deflated(path: Path) -> bool:
    """Whether a DICOM file says that its data set is deflated; told from its first bytes. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    at = head.find(SYNTAX, DICM_AT + 4)
    if head[DICM_AT : DICM_AT + 4] != b"DICM" or at < 0:
        return False
    first = at + len(SYNTAX) + 2
    length = int.from_bytes(head[first - 2 : first], "little")
    return head[first : first + length].strip(b" \0") == DEFLATED.encode("ascii")


def _objections(
    path: Path, facility: str, installed: Facility, room: str, library: Path | None, keys: Path | None
) -> list[str]:
    try:
        take_in(path, facility, room, (), {}, library, keys)
    except Refused as refused:
        return list(refused.reasons)
    return []


async def inspect_apart(path: Path, facility: str, library: Path | None = None, keys: Path | None = None) -> dict[str, Any]:
    """`inspect` in another process, ended when it takes too long. Raises DataError when it dies."""
    arguments = [str(path), facility, *([str(library), str(keys)] if library is not None else [])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controller.serving.plan_inspection", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(READ_S):
            said, words = await process.communicate()
    except TimeoutError:
        raise DataError("the plan takes too long to read", code=5161, hint="is it a plan at all?") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = words.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise DataError(f"the plan could not be read: {last[0][:300]}", code=5162, hint="this is a fault of the program")
    return dict(json.loads(said))


def main(arguments: Sequence[str]) -> int:
    """The process."""
    path, facility, *rest = arguments
    library, keys = (Path(rest[0]), Path(rest[1])) if rest else (None, None)
    sys.stdout.write(json.dumps(inspect(Path(path), facility, library, keys)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
