"""The beam library's file: JSON with one row a line, a digest of every row, and a signature over the header that lists them.

A changed, missing or added row is refused by its place; a changed header by the signature. Numbers carry seven significant
digits.

Not responsible for keys (`signing`) or for what the rows mean (`library`).
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from controller.beam.library import AngleMap, BeamLibrary, LibraryRow, Qa
from controller.beam.signing import SigningKey, trusted_keys, verify
from drivers.hal.errors import ConfigError, DataError
from drivers.hal.facility import SHIPPED, Facility

FORMAT = "iongantry-beam-library/1"
COLUMNS = (
    "species",
    "room",
    "port_deg",
    "focus",
    "energy_kev_u",
    "qa",
    "date",
    "dipole_a",
    "quadrupole_a",
    "scanner_a",
    "monitor",
)
COLUMNS_END = ("counts1_per_ion", "counts2_per_ion", "sigma_x_mm", "sigma_y_mm")


def _round(value: float) -> float:
    return float(f"{value:.7g}")


def _row_line(row: LibraryRow) -> str:
    values: list[Any] = ["row"]
    for name in (*COLUMNS, *COLUMNS_END):
        value = getattr(row, name)
        if isinstance(value, Qa):
            value = value.value
        elif isinstance(value, float):
            value = _round(value)
        elif isinstance(value, tuple):
            value = [_round(v) for v in value]
        values.append(value)
    return json.dumps(values, separators=(",", ":"), allow_nan=False)


def _angle_line(angles: AngleMap) -> str:
    columns = [[_round(v) for v in column] for column in (angles.angle_deg, angles.dx_mm, angles.dy_mm)]
    return json.dumps(["angles", angles.room, angles.qa.value, angles.date, *columns], separators=(",", ":"), allow_nan=False)


def _digest(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:32]


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def library_text(library: BeamLibrary, key: SigningKey) -> str:
    """The signed file of a library."""
    lines = [*map(_row_line, library.rows), *map(_angle_line, library.angle_maps)]
    header = {
        "format": FORMAT,
        "facility": library.facility,
        "version": library.version,
        "date": library.date,
        "origin": library.origin,
        "key_id": key.id,
        "columns": [*COLUMNS, *COLUMNS_END],
        "digests": [_digest(line) for line in lines],
    }
    signature = key.sign(_canonical(header))
    head = f'"header": {json.dumps(header, separators=(",", ":"))},\n"signature": "{signature}",\n"rows": [\n'
    return "{\n" + head + ",\n".join(lines) + "\n]\n}\n"


def parse_library(text: str, facility: Facility, trusted: dict[str, bytes], where: str) -> BeamLibrary:
    """Verify and read a library file.

    Raises:
        DataError: not a library (5303), signed by nobody we trust (5301), wrong signature (5302), changed rows (5304), made for
            another facility (5306).
    """
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    try:
        document = json.loads("{" + ",".join(line for line in lines if line.startswith(('"header":', '"signature":'))) + "}")
        header, signature = document["header"], str(document["signature"])
        digests, signer = list(header["digests"]), str(header["key_id"])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}, expected {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is not a beam library: {error}", code=5303, hint="restore the released file") from None
    verify(_canonical(header), signature, signer, trusted, where)
    body = [line for line in lines if line.startswith("[")]
    changed = [line for line, digest in zip(body, digests, strict=False) if _digest(line) != digest]
    if changed or len(body) != len(digests):
        named = f"; the first is {changed[0][:60]}" if changed else ""
        raise DataError(
            f"{where}: {len(changed)} of {len(digests)} rows were changed, {len(body)} are there{named}",
            code=5304,
            hint="restore the released file",
        )
    if header["facility"] != facility.name:
        raise DataError(f"{where} was made for {header['facility']}, not for {facility.name}", code=5306, hint="take its own")
    rows: list[LibraryRow] = []
    angles: list[AngleMap] = []
    for line in body:
        kind, *values = json.loads(line)
        if kind == "row":
            rows.append(_row(values))
        else:
            room, qa, date, angle_deg, dx_mm, dy_mm = values
            angles.append(AngleMap(room, Qa(qa), date, tuple(angle_deg), tuple(dx_mm), tuple(dy_mm)))
    return BeamLibrary(
        facility=facility.name,
        version=int(header["version"]),
        date=str(header["date"]),
        origin=str(header["origin"]),
        meterset=facility.meterset,
        rows=tuple(rows),
        angle_maps=tuple(angles),
        signed_by=signer,
    )


def _row(values: list[Any]) -> LibraryRow:
    species, room, port, focus, energy, qa, date, dipoles, quadrupoles, scanner, monitor, counts1, counts2, sx, sy = values
    return LibraryRow(
        species=species,
        room=room,
        port_deg=port,
        focus=focus,
        energy_kev_u=energy,
        qa=Qa(qa),
        date=date,
        dipole_a=tuple(dipoles),
        quadrupole_a=tuple(quadrupoles),
        scanner_a=tuple(scanner),
        monitor=tuple(monitor),
        counts1_per_ion=counts1,
        counts2_per_ion=counts2,
        sigma_x_mm=sx,
        sigma_y_mm=sy,
    )


def load_library(facility: Facility, path: Path | None = None, keys_dir: Path | None = None) -> BeamLibrary:
    """Load and verify the library of a facility.

    Args:
        facility: whose library; gives the meaning of a monitor unit.
        path: the file; None takes the one that ships with the facility's name.
        keys_dir: `STATE/keys`, whose `*.pub` are trusted beside the shipped keys.

    Raises:
        ConfigError: there is no such file (1303), or a public key file is bad (1302).
        DataError: see `parse_library`.
    """
    try:
        if path is not None:
            text, where = path.read_text(encoding="utf-8"), str(path)
        else:
            file = resources.files("controller.beam") / "libraries" / f"{facility.name}.json"
            text, where = file.read_text(encoding="utf-8"), f"beam library of {facility.name}"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no beam library for {facility.name}: {error}",
            code=1303,
            hint=f"run `iongantry commission`; libraries ship for {', '.join(SHIPPED)}",
        ) from None
    return parse_library(text, facility, trusted_keys(keys_dir), where)


def write_library(library: BeamLibrary, path: Path, key: SigningKey) -> None:
    """Sign a library and write its file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(library_text(library, key), encoding="utf-8")
    draft.replace(path)
