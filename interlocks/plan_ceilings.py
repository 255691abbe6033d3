"""A second reading of the plan: what a beam may give at most, per field, layer and spot, in the plan's own unit.

Shares no code and no library with the controller's reader: own splitting of DICOM, own arithmetic. It reads only what a ceiling
needs, and refuses what it does not understand, with every reason that it finds. Not responsible for whether a plan is
deliverable, for conversion into counts, nor for comparing ceilings with grants (`plan_watch`).
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

RT_ION_PLAN = b"1.2.840.10008.5.1.4.1.1.481.8"
UID = b"1.2.840.10008.1.2"
SYNTAXES = {UID: (True, "<"), UID + b".1": (False, "<"), UID + b".1.99": (False, "<"), UID + b".2": (False, ">")}
LARGEST_BYTES = 256 << 20  # assumed; guards memory
TOLERANCE = 1e-5  # of the final weight: weights are float32, cumulative weights decimals (worst seen in public plans 3.5e-6)
LONG_LENGTH = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
UNDEFINED, ITEM, ITEM_END, SEQUENCE_END = 0xFFFFFFFF, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# Sequences that are looked into; with implicit VR nothing else tells that they are.
BEAMS, POINTS, GROUPS, REFERENCED = 0x300A03A2, 0x300A03A8, 0x300A0070, 0x300C0004
DEEPEST = 24  # assumed; guards the stack


class PlanNotUnderstood(ValueError):
    """The plan was refused; `reasons` has all of them."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


class Layer(NamedTuple):
    """Ceilings of one energy, in the unit of the beam. `spot`: the largest of one painting."""

    energy_mev_u: float
    total: float
    spot: float


@dataclass(frozen=True)
class Beam:
    """Ceilings of one beam. `unit` is MU or NP (particles), `species` 1000 Z + A."""

    number: int
    unit: str
    species: int
    gantry_deg: float
    total: float
    layers: tuple[Layer, ...]

    @property
    def spot(self) -> float:
        """Largest spot of one painting."""
        return max(layer.spot for layer in self.layers)


@dataclass(frozen=True)
class Plan:
    """All treatment beams of a file. `hash` is its identity on the wires (docs/wires.md)."""

    sha256: str
    hash: int
    beams: tuple[Beam, ...]


def read(data: bytes) -> Plan:
    """The ceilings of a plan: a DICOM RT Ion Plan, or a GSI raster scan file. Raises PlanNotUnderstood with every reason."""
    reasons: list[str] = []
    beams: list[Beam] = []
    try:
        if len(data) > LARGEST_BYTES:
            raise PlanNotUnderstood([f"{len(data)} bytes are more than {LARGEST_BYTES}"])
        beams = _raster(data, reasons) if data[:256].lstrip().startswith(b"rstfile") else _dicom(data, reasons)
    except PlanNotUnderstood as refused:
        reasons += refused.reasons
    except (struct.error, zlib.error, IndexError, OverflowError) as error:
        reasons.append(f"the file is cut short or damaged: {error}")
    if not reasons and len({beam.number & 0xFFFF for beam in beams}) < max(1, len(beams)):
        reasons.append("there is no beam to treat, or beam numbers cannot be told apart on the wire")
    if reasons:
        raise PlanNotUnderstood(reasons)
    sha256 = hashlib.sha256(data).hexdigest()
    return Plan(sha256, int(sha256[:8], 16) & 0x7FFFFFFF or 1, tuple(beams))


# --- DICOM: bytes to nested dictionaries, tag: (VR, bytes) or list of items ------------------------------------------------


def _dicom(data: bytes, reasons: list[str]) -> list[Beam]:
    if data[128:132] != b"DICM":
        raise PlanNotUnderstood(["neither DICOM nor a raster scan file"])
    end = 132
    while data[end : end + 2] == b"\x02\x00":  # the file meta information
        end = _value(data, end, False, "<")[3] + _value(data, end, False, "<")[2]
    syntax = _elements(data, 132, end, (False, "<"), 0)[0].get(0x00020010, (b"", b""))[1].strip(b" \0")
    if syntax not in SYNTAXES:
        raise PlanNotUnderstood([f"transfer syntax {syntax!r} is not read here"])
    coding = SYNTAXES[syntax]
    if syntax.endswith(b".99"):
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        data, end = inflater.decompress(data[end:], LARGEST_BYTES), 0
        if not inflater.eof:
            raise PlanNotUnderstood(["the deflated part is too large or cut short"])
    root = _elements(data, end, len(data), coding, 0)[0]
    if root.get(0x00080016, (b"", b""))[1].strip(b" \0") != RT_ION_PLAN:
        raise PlanNotUnderstood(["not an RT Ion Plan"])
    groups = [_list(group, REFERENCED) for group in _list(root, GROUPS) if _list(group, REFERENCED)]
    if len(groups) != 1:
        raise PlanNotUnderstood([f"{len(groups)} fraction groups reference beams, not 1"])
    metersets: dict[float | None, float | None] = {}
    for reference in groups[0]:
        number = _number(reference, 0x300C0006, "ReferencedBeamNumber", reasons)
        reasons += _wrong((number in metersets, f"beam {number} is referenced twice"))
        metersets[number] = _number(reference, 0x300A0086, "BeamMeterset", reasons, needed=False)
    beams: list[Beam] = []
    for item in [beam for beam in _list(root, BEAMS) if _text(beam, 0x300A00CE) != "SETUP"]:
        number = _number(item, 0x300A00C0, "BeamNumber", reasons)
        mine: list[str] = []
        if number is None or (meterset := metersets.get(number)) is None:
            mine.append("no BeamMeterset")
        elif meterset != 0.0:
            beams += _beam(item, round(number), meterset, coding[1], mine)
        reasons += [f"beam {number}: {why}" for why in mine]
    return beams


def _value(data: bytes, at: int, implicit: bool, order: str) -> tuple[int, bytes, int, int]:
    """(tag, VR, length, start of the value) of the element at `at`."""
    group, element, length = struct.unpack_from(order + "HHL", data, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, b"", length, at + 8
    vr, length = struct.unpack_from(order + "2sH", data, at + 4)
    if not (vr.isalpha() and vr.isupper()):
        raise PlanNotUnderstood([f"{vr!r} at byte {at + 4} is no value representation"])
    if vr in LONG_LENGTH:
        return tag, vr, struct.unpack_from(order + "L", data, at + 8)[0], at + 12
    return tag, vr, length, at + 8


def _elements(data: bytes, at: int, end: int, coding: tuple[bool, str], depth: int) -> tuple[dict[int, Any], int]:
    """Elements up to `end`, or to the end of an item of undefined length; and where they end."""
    if depth > DEEPEST:
        raise PlanNotUnderstood(["sequences are nested too deep"])
    found: dict[int, Any] = {}
    while at < end:
        if data[at : at + 4] == b"\0\0\0\0" and not any(data[at:end]):
            break  # padding
        tag, vr, length, at = _value(data, at, *coding)
        if tag == ITEM_END:
            return found, at
        if tag in found:
            raise PlanNotUnderstood([f"element {tag:08X} occurs twice"])
        if length == UNDEFINED or (length and (tag in (BEAMS, POINTS, GROUPS, REFERENCED) or vr == b"SQ")):
            stop = end if length == UNDEFINED else at + length
            found[tag], at = _items(data, at, stop, length == UNDEFINED, (True, "<") if vr == b"UN" else coding, depth + 1)
        else:
            found[tag] = (vr, data[at : at + length])
            at += length
        if at > end:
            raise PlanNotUnderstood([f"element {tag:08X} is longer than what is left of it"])
    return found, at


def _items(data: bytes, at: int, end: int, open_: bool, coding: tuple[bool, str], depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while at < end:
        tag, _, length, at = _value(data, at, True, coding[1])
        if tag == SEQUENCE_END and open_:
            return items, at
        if tag != ITEM or (length != UNDEFINED and at + length > end):
            raise PlanNotUnderstood([f"a sequence is damaged near byte {at}"])
        item, at = _elements(data, at, end if length == UNDEFINED else at + length, coding, depth)
        items.append(item)
    if open_:
        raise PlanNotUnderstood(["a sequence has no end"])
    return items, at


def _list(item: Mapping[int, Any], tag: int) -> list[Any]:
    found = item.get(tag, [])
    return found if isinstance(found, list) else []


def _text(item: Mapping[int, Any], tag: int) -> str:
    found = item.get(tag)
    return found[1].strip(b" \0").decode("ascii", "replace").upper() if isinstance(found, tuple) else ""


def _number(item: Mapping[int, Any], tag: int, name: str, reasons: list[str], needed: bool = True) -> float | None:
    """A decimal or integer string; None when it is absent (a reason where it is needed) or no number (always one)."""
    vr, value = item.get(tag, (b"", b"")) if not isinstance(item.get(tag), list) else (b"SQ", b"")
    text = value.strip(b" \0")
    if not text and not needed:
        return None
    if vr not in (b"", b"DS", b"IS", b"UN") or not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        reasons.append(f"{name} is {'missing' if not text else 'no number: ' + repr(text[:40])}")
        return None
    return float(text)


# --- one beam: pairs of control points (PS3.3 C.8.8.25.7) -----------------------------------------------------------------


def _beam(item: Mapping[int, Any], number: int, meterset: float, order: str, reasons: list[str]) -> list[Beam]:
    unit, kind, points = _text(item, 0x300A00B3), _text(item, 0x300A00C6), _list(item, POINTS)
    final = _number(item, 0x300A010E, "FinalCumulativeMetersetWeight", reasons) or 0.0
    declared = _number(item, 0x300A0110, "NumberOfControlPoints", reasons)
    species = 1001.0
    if kind == "ION":
        mass, atomic = (_number(item, tag, "mass or atomic number", reasons) or 0.0 for tag in (0x300A0302, 0x300A0304))
        species = 1000.0 * atomic + mass
    angle = _number(points[0], 0x300A011E, "GantryAngle", reasons) if points else None
    reasons += _wrong(
        (unit not in ("MU", "NP"), f"unit {unit!r} is not MU or NP"),
        (kind not in ("PROTON", "ION") or not 1001.0 <= species < 120_000.0, f"species {kind!r} {species:g} is unknown"),
        (_text(item, 0x300A0308) != "MODULATED", "ScanMode is not MODULATED"),
        (not points or len(points) % 2 != 0 or declared != len(points), f"{len(points)} control points, {declared} declared"),
        (not (final > 0.0 and meterset > 0.0), f"meterset {meterset:g} or final weight {final:g} is not above 0"),
        (angle is not None and abs(angle) > 360.0, f"gantry angle {angle} deg"),
    )
    if reasons or angle is None:
        return []
    layers, energy, reached = [], None, 0.0
    for index in range(0, len(points), 2):
        mine: list[str] = []
        one, two = points[index : index + 2]
        energy = _number(one, 0x300A0114, "NominalBeamEnergy", mine, needed=energy is None) or energy
        start, stop = (_number(point, 0x300A0134, "CumulativeMetersetWeight", mine) or 0.0 for point in (one, two))
        weights, zeros = _weights(one, order, mine), _weights(two, order, mine) if 0x300A0396 in two else []
        paintings = _number(one, 0x300A039A, "NumberOfPaintings", mine, needed=False) or 1.0
        again = [_number(two, tag, "a repeated number", mine, needed=False) for tag in (0x300A0114, 0x300A039A)]
        indices = [_number(point, 0x300A0112, "ControlPointIndex", mine) for point in (one, two)]
        angles = [_number(point, 0x300A011E, "GantryAngle", mine, needed=False) for point in (one, two)]
        total = math.fsum(weights)
        mine += _wrong(
            (not weights or not all(0.0 <= w <= final * (1.0 + TOLERANCE) for w in weights), "no weights, or wrong ones"),
            (any(zeros) or len(zeros) not in (0, len(weights)), "the second of the pair carries other spots"),
            (again[0] not in (None, energy) or again[1] not in (None, paintings), "a value differs within the pair"),
            (indices != [index, index + 1], f"indices {indices}"),
            (any(turned not in (None, angle) for turned in angles), "the gantry angle changes"),
            (not (energy or 0.0) > 0.0, f"energy {energy}"),
            (paintings not in range(1, 1001), f"{paintings} paintings"),
            (not abs(start - reached) <= TOLERANCE * final, f"cumulative weight {start} after {reached}"),
            (not abs(stop - start - total) <= TOLERANCE * final, f"weights sum up to {total}, not {stop - start}"),
        )
        reached = stop
        reasons += [f"control point {index}: {why}" for why in mine]
        if not mine and energy is not None:
            layers.append(Layer(energy, total * meterset / final, max(weights) * meterset / final / paintings))
    reasons += _wrong((not abs(reached - final) <= TOLERANCE * final, f"weights reach {reached}, and not {final}"))
    return [Beam(number, unit, round(species), angle, meterset, tuple(layers))] if not reasons else []


def _wrong(*found: tuple[bool, str]) -> list[str]:
    return [why for wrong, why in found if wrong]


def _weights(point: Mapping[int, Any], order: str, reasons: list[str]) -> list[float]:
    """ScanSpotMetersetWeights, as many as there are spots. One spot makes a single value: the bytes are the same."""
    declared = _number(point, 0x300A0392, "NumberOfScanSpotPositions", reasons)
    vr, value = point.get(0x300A0396, (b"FL", b"")) if isinstance(point.get(0x300A0396), tuple) else (b"SQ", b"")
    if vr not in (b"", b"FL", b"OF", b"UN") or declared is None or len(value) != 4 * declared:
        reasons.append(f"{declared} spots, weights of {len(value)} bytes")
        return []
    return list(struct.unpack(f"{order}{len(value) // 4}f", value))


# --- GSI raster scan file --------------------------------------------------------------------------------------------------


def _raster(data: bytes, reasons: list[str]) -> list[Beam]:
    head, *parts = re.split(rb"^submachine#", data, flags=re.MULTILINE)
    keys = [line.split() for line in head.splitlines() if line.strip()]
    header = {words[0]: words[1:] for words in keys}
    if len(header) != len(keys) or header.get(b"rstfile") != [b"20030630"]:
        raise PlanNotUnderstood(["a header line occurs twice, or the version is not 20030630"])
    one = {key: _floats(header.get(key, []), 1)[0] for key in (b"charge", b"mass", b"gantryangle", b"#submachines")}
    layers, every = [], list[float]()
    for part in parts:
        lines = part.splitlines()
        _, energy, _, _ = _floats(lines[0].split(), 4)
        declared, points = lines[1].split(), lines[3].split()
        if declared[:1] != [b"#particles"] or lines[2].split()[:1] != [b"stepsize"] or points[:1] != [b"#points"]:
            raise PlanNotUnderstood([f"submachine of {energy:g} MeV/u: its lines are out of order"])
        spots = [_floats(line.split(), 3)[2] for line in lines[4:] if line.strip()]
        every += spots
        _particles(f"submachine of {energy:g} MeV/u", declared[1:], spots, math.fsum(spots), reasons)
        whole = energy > 0.0 and _floats(points[1:], 1)[0] == len(spots)
        reasons += _wrong((not whole, f"submachine of {energy:g} MeV/u: {len(spots)} points, {points[1:]} declared"))
        layers.append(Layer(energy, math.fsum(spots), max(spots, default=0.0)))
    if len(layers) != one[b"#submachines"] or not layers:
        raise PlanNotUnderstood([f"{len(layers)} submachines, {one[b'#submachines']:g} declared"])
    total, species = math.fsum(layer.total for layer in layers), 1000.0 * one[b"charge"] + one[b"mass"]
    _particles("header", header.get(b"#particles", []), every, total, reasons)
    known = species == round(species) and 1001.0 <= species < 120_000.0 and abs(one[b"gantryangle"]) <= 360.0
    reasons += _wrong((not known, f"species {species:g} or gantry angle {one[b'gantryangle']:g} deg"))
    return [Beam(1, "NP", round(species), one[b"gantryangle"], total, tuple(layers))]


def _floats(words: list[bytes], count: int) -> list[float]:
    if len(words) != count or not all(NUMBER.fullmatch(word) for word in words):
        raise PlanNotUnderstood([f"{count} number(s) expected, found {b' '.join(words)[:40]!r}"])
    return [float(word) for word in words]


def _particles(where: str, declared: list[bytes], spots: list[float], total: float, reasons: list[str]) -> None:
    """A `#particles MIN MAX TOTAL` line, printed with six digits."""
    found = [min(spots, default=0.0), max(spots, default=0.0), total]
    told = _floats(declared, 3)
    agree = all(abs(a - b) <= TOLERANCE * max(b, 1.0) for a, b in zip(told, found, strict=True))
    reasons += _wrong((not (spots and found[0] >= 0.0 and agree), f"{where}: #particles says {told}, the points {found}"))
