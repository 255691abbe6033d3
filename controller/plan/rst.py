"""Reading GSI raster scan files (`.rst`, rstfile 20030630): particle numbers per point and energy, as TRiP98 writes them.

    rstfile 20030630            a header of keywords, one a line
    projectile 12C              with charge and mass, which must agree
    #submachines 17
    #particles MIN MAX TOTAL
    submachine# 91 229.76 2 3.7     index, MeV/u, focus index, FWHM in mm
    #particles MIN MAX TOTAL
    stepsize 2 2
    #points 779
    26 -26 55715.1              x mm, y mm, particles

The unit is NP. A raster scan file has no approval, no fractions and no identity of its own: approval is empty, one fraction
is planned, and the UID is derived from the hash of the file. Angles are taken as written. As strict as the DICOM reader:
counts and totals must agree (numbers are printed with six digits, so totals are held to 1e-5).
"""

from __future__ import annotations

import hashlib
import math
import uuid
from pathlib import Path

import numpy as np

from controller.plan.errors import PlanRefused, Refusal, Why
from controller.plan.model import Accessories, Beam, CouchTargets, Layer, Patient, Plan, plan_hash_of, read_only
from drivers.hal.ions import IONS, Ion, ion_by_numbers

RST_VERSION = "20030630"
TOTAL_TOLERANCE = 1e-5
PARTICLES_MAX = 1e14  # assumed, as for NP plans in DICOM
POSITION_MAX_MM = 1e4  # assumed
POINTS_MAX = 10_000_000  # assumed; guards memory
_NAMESPACE = uuid.UUID("6f3a5b0e-0c53-5f6e-9a51-2f4f3e1d7c11")  # fixed: the same file has the same UID everywhere
_HEADER = frozenset(
    (
        "sistable",
        "patient_id",
        "machine#",
        "projectile",
        "charge",
        "mass",
        "gantryangle",
        "couchangle",
        "stereotacticcoordinates",
        "bolus",
        "ripplefilter",
        "#submachines",
        "#particles",
    )
)


class _Stop(Exception):
    """Reading cannot go on; the reason has been given."""


class _Lines:
    """Lines with a position, for messages."""

    def __init__(self, text: str, reasons: list[Refusal]):
        self.lines = text.split("\n")
        while self.lines and not self.lines[-1].strip():
            self.lines.pop()
        self.at = 0
        self.reasons = reasons

    def refuse(self, why: Why, what: str, *, where: str = "", value: str = "", limit: str = "", hint: str = "") -> None:
        self.reasons.append(Refusal(why, what, where or f"line {self.at}", value, limit, hint))

    def stop(self, why: Why, what: str, *, value: str = "", limit: str = "") -> _Stop:
        self.refuse(why, what, value=value, limit=limit)
        return _Stop()

    @property
    def left(self) -> int:
        return len(self.lines) - self.at

    def peek(self) -> list[str]:
        return self.lines[self.at].split() if self.left else []

    def take(self, keyword: str) -> list[str]:
        """The words after a keyword that must stand on the next line."""
        if not self.left:
            raise self.stop(Why.TRUNCATED, "the file is cut short", value="end of file", limit=f"{keyword} expected")
        words = self.lines[self.at].split()
        self.at += 1
        if not words or words[0] != keyword:
            raise self.stop(Why.NOT_RST, "unexpected line", value=repr(" ".join(words)[:60]), limit=f"{keyword} expected")
        return words[1:]

    def numbers(self, keyword: str, count: int) -> list[float]:
        """Exactly `count` finite numbers after a keyword."""
        words = self.take(keyword)
        if len(words) != count:
            raise self.stop(Why.COUNT_DISAGREES, f"{keyword} needs {count} value(s)", value=str(len(words)))
        return [self.number(keyword, word) for word in words]

    def number(self, keyword: str, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise self.stop(Why.BAD_VALUE, f"{keyword} is not a number", value=repr(word[:40])) from None
        if not math.isfinite(value):
            raise self.stop(Why.BAD_VALUE, f"{keyword} is not finite", value=word)
        return value

    def count(self, keyword: str, word: str, maximum: int) -> int:
        value = self.number(keyword, word)
        if value != int(value) or not 0 < value <= maximum:
            raise self.stop(Why.BAD_VALUE, f"{keyword} is not a sensible count", value=word, limit=f"1 to {maximum}")
        return int(value)


def looks_like_rst(data: bytes) -> bool:
    """Whether a file begins as a raster scan file."""
    return data[:256].lstrip().startswith(b"rstfile")


def read_rst(path: Path, data: bytes) -> Plan:
    """Read a raster scan file from its bytes.

    Args:
        path: where the bytes came from, for messages and `Plan.source`.
        data: the whole file.

    Raises:
        PlanRefused: with every reason that could be found; a broken structure ends the reading where it breaks.
    """
    reasons: list[Refusal] = []
    plan = None
    try:
        plan = _read(_Lines(data.decode("ascii"), reasons), path, data)
    except UnicodeDecodeError as error:
        reasons.append(
            Refusal(Why.NOT_RST, "not plain text", value=f"byte {data[error.start]:#04x} at {error.start}", limit="ASCII")
        )
    except _Stop:
        pass
    if reasons or plan is None:
        raise PlanRefused(reasons, source=path.name)
    return plan


def _read(lines: _Lines, path: Path, data: bytes) -> Plan:
    version = lines.take("rstfile")
    if version != [RST_VERSION]:
        lines.refuse(Why.NOT_RST, "unknown version of raster scan file", value=" ".join(version), limit=RST_VERSION)
    header: dict[str, list[str]] = {}
    notes: list[str] = []
    while lines.left and lines.peek()[:1] != ["submachine#"]:
        words = lines.peek()
        lines.at += 1
        if not words:
            continue
        if words[0] in header:
            lines.refuse(Why.NOT_RST, f"{words[0]} occurs twice")
        elif words[0] not in _HEADER:
            notes.append(f"header line {' '.join(words)[:60]!r} is not used")
        header[words[0]] = words[1:]
    ion = _projectile(lines, header)
    declared = lines.count("#submachines", _one(lines, header, "#submachines"), 10_000)
    angles = [lines.number(key, _one(lines, header, key)) for key in ("gantryangle", "couchangle")]
    bolus = lines.number("bolus", (header.get("bolus") or ["0"])[0])
    if ripple := " ".join(header.get("ripplefilter", [])):
        notes.append(f"ripple filter of the plan: {ripple}")
    layers = _layers(lines)
    if len(layers) != declared:
        lines.refuse(
            Why.COUNT_DISAGREES, "#submachines disagrees with the file", value=str(declared), limit=f"{len(layers)} found"
        )
    meterset = float(sum(layer.meterset_total for layer in layers))
    _check_particles(
        lines,
        header.get("#particles", []),
        [np.array([layer.meterset.max(), layer.meterset.min()]) for layer in layers],
        meterset,
    )
    sha256 = hashlib.sha256(data).hexdigest()
    name = header.get("patient_id", [""])
    machine = _one(lines, header, "machine#")
    if ion is None:
        raise _Stop
    beam = Beam(
        number=1,
        name=path.stem,
        description="",
        machine_name=f"machine# {machine}",
        radiation_type="PROTON" if ion.mass_number == 1 else "ION",
        ion=ion,
        charge_state=ion.atomic_number,
        meterset_unit="NP",
        meterset=meterset,
        final_cumulative_weight=meterset,
        gantry_angle_deg=angles[0],
        layers=tuple(layers),
        control_points=2 * len(layers),
        couch=CouchTargets(angle_deg=angles[1]),
        accessories=Accessories(boli=1 if bolus else 0),
    )
    return Plan(
        uid=f"2.25.{uuid.uuid5(_NAMESPACE, sha256).int}",
        sop_class_uid="",
        label=path.stem,
        name=path.name,
        approval="",
        intent="RESEARCH",
        fractions_planned=1,
        beams=(beam,),
        sha256=sha256,
        plan_hash=plan_hash_of(sha256),
        source=str(path),
        kind="rst",
        patient=Patient(id=name[0] if name else ""),
        notes=tuple(notes),
    )


def _one(lines: _Lines, header: dict[str, list[str]], key: str) -> str:
    """The single value of a header line that must be there."""
    values = header.get(key)
    if values is None or len(values) != 1:
        raise lines.stop(Why.MISSING, f"{key} is missing or has not one value", value=" ".join(values or []))
    return values[0]


def _projectile(lines: _Lines, header: dict[str, list[str]]) -> Ion | None:
    """The ion, from charge and mass, held against the projectile's name."""
    charge = lines.number("charge", _one(lines, header, "charge"))
    mass = lines.number("mass", _one(lines, header, "mass"))
    name = _one(lines, header, "projectile")
    ion = ion_by_numbers(int(charge), int(mass)) if charge == int(charge) and mass == int(mass) else None
    if ion is None:
        known = ", ".join(f"{i.symbol} {i.atomic_number}/{i.mass_number}" for i in IONS.values())
        lines.refuse(
            Why.BAD_SPECIES, "the projectile is unknown", where="header", value=f"charge {charge:g}, mass {mass:g}", limit=known
        )
        return None
    chemical = "H" if ion.symbol == "p" else ion.symbol
    if name != f"{ion.mass_number}{chemical}":
        lines.refuse(
            Why.BAD_SPECIES,
            "projectile disagrees with charge and mass",
            where="header",
            value=name,
            limit=f"{ion.mass_number}{chemical}",
        )
    return ion


def _layers(lines: _Lines) -> list[Layer]:
    layers: list[Layer] = []
    cumulative = 0.0
    while lines.left:
        # submachine# index energy focus fwhm
        _, energy, focus, fwhm = lines.numbers("submachine#", 4)
        where = f"submachine at line {lines.at}"
        if energy <= 0.0 or fwhm <= 0.0:
            lines.refuse(Why.BAD_VALUE, "energy or focus is not positive", where=where, value=f"{energy:g} MeV/u, {fwhm:g} mm")
        particles = lines.take("#particles")
        lines.numbers("stepsize", 2)
        words = lines.take("#points")
        count = lines.count("#points", words[0] if len(words) == 1 else " ".join(words), POINTS_MAX)
        if count > lines.left:
            raise lines.stop(Why.TRUNCATED, "the file is cut short", value=f"{lines.left} points", limit=f"{count} declared")
        table = _points(lines, count)
        weights = table[:, 2].copy()
        if not (np.all(np.isfinite(table)) and np.all(weights >= 0.0)):
            bad = ~(np.isfinite(table).all(axis=1) & (weights >= 0.0))
            lines.refuse(
                Why.BAD_WEIGHT,
                "a point is not finite or its particle number negative",
                where=where,
                value=f"{table[int(np.argmax(bad))].tolist()}",
            )
            weights = np.zeros(count)
        elif weights.sum() > PARTICLES_MAX or np.abs(table[:, :2]).max() > POSITION_MAX_MM:
            lines.refuse(
                Why.BAD_WEIGHT,
                "particle numbers or positions are not plausible",
                where=where,
                limit=f"{PARTICLES_MAX:g}, {POSITION_MAX_MM:g} mm",
            )
        else:
            _check_particles(lines, particles, [weights], float(weights.sum()), where)
        total = float(weights.sum())
        layers.append(
            Layer(
                index=len(layers),
                control_point_index=2 * len(layers),
                cumulative_weight_start=cumulative,
                cumulative_weight_end=cumulative + total,
                energy_mev_u=energy,
                x_mm=read_only(table[:, 0].copy()),
                y_mm=read_only(table[:, 1].copy()),
                meterset=read_only(weights),
                tune_id=f"{focus:g}",
                spot_size_fwhm_mm=(fwhm, fwhm),
            )
        )
        cumulative += total
    if not layers:
        raise lines.stop(Why.NO_BEAMS, "the file has no submachine", value="0 points")
    return layers


def _points(lines: _Lines, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The next `count` lines as an array of shape (count, 3)."""
    block = lines.lines[lines.at : lines.at + count]
    words = " ".join(block).split()
    try:
        table = np.array(words, dtype=np.float64)
        if table.size == 3 * count and all(len(line.split()) == 3 for line in (block[0], block[-1])):
            lines.at += count
            return table.reshape(count, 3)
    except ValueError:
        pass
    for line in block:
        lines.at += 1
        parts = line.split()
        if parts and parts[0].startswith(("submachine", "#", "stepsize")):
            raise lines.stop(
                Why.COUNT_DISAGREES, "fewer points than #points declares", value=repr(line[:40]), limit=f"{count} points"
            )
        if len(parts) != 3:
            raise lines.stop(Why.COUNT_DISAGREES, "a point needs 3 values", value=repr(line[:40]))
        for part in parts:
            lines.number("a point", part)
    raise lines.stop(Why.COUNT_DISAGREES, "points disagree with #points", value=f"{len(words) / 3:g}", limit=str(count))


def _check_particles(
    lines: _Lines,
    words: list[str],
    weights: list[np.ndarray[tuple[int], np.dtype[np.float64]]],
    total: float,
    where: str = "header",
) -> None:
    """A `#particles MIN MAX TOTAL` line against the points."""
    if len(words) != 3:
        lines.refuse(Why.COUNT_DISAGREES, "#particles needs 3 values", where=where, value=str(len(words)))
        return
    declared = [lines.number("#particles", word) for word in words]
    found = [min(float(w.min()) for w in weights), max(float(w.max()) for w in weights), total]
    for label, told, true in zip(("minimum", "maximum", "total"), declared, found, strict=True):
        if abs(told - true) > TOTAL_TOLERANCE * max(abs(true), 1.0):
            lines.refuse(
                Why.CUMULATIVE_MISSES,
                f"#particles {label} disagrees with the points",
                where=where,
                value=f"{told:.7g}",
                limit=f"{true:.7g} within 1e-5",
            )
