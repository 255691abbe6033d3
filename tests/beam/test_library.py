"""The beam library gives the right settings, refuses what is not released, and notices every change to its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.beam.library import AngleMap, BeamLibrary, LibraryRow, NotReleased, Qa, withdraw
from controller.beam.library_file import library_text, load_library, parse_library, write_library
from controller.beam.signing import load_or_create_key, new_key, trusted_keys
from drivers.hal.errors import ConfigError, DataError
from drivers.hal.facility import Facility, Meterset, parse_facility
from drivers.hal.ions import CARBON, IONS, Ion

MINIMAL_FACILITY = """
name = "bench"
title = "a bench"
purpose = "research"
[accelerator]
cycle_s = 2
flattop_max_s = 60
energy_step_s = 0.1
species_switch_s = 45
cutoff_us = 200
[[accelerator.species]]
symbol = "C"
energy_min_mev_u = 56
energy_max_mev_u = 430
intensity_min_per_s = 1e6
intensity_max_per_s = 1e9
ions_per_cycle = 1e9
[meterset]
[rooms]
[devices]
"""


@pytest.fixture
def facility() -> Facility:
    return parse_facility(MINIMAL_FACILITY, "bench")


def saturated_current_a(ion: Ion, energy_mev_u: float) -> float:
    """A magnet that saturates by 2 % at the highest rigidity: what interpolation has to follow."""
    rigidity = ion.rigidity_tm(energy_mev_u)
    return 30.0 * rigidity * (1.0 + 0.02 * (rigidity / 6.62) ** 2)


def row(ion: Ion, energy_mev_u: float, room: str = "G1", port_deg: float | None = None) -> LibraryRow:
    rigidity, stopping = ion.rigidity_tm(energy_mev_u), (ion.atomic_number / ion.beta(energy_mev_u)) ** 2
    current = saturated_current_a(ion, energy_mev_u)
    return LibraryRow(
        species=ion.symbol,
        room=room,
        port_deg=port_deg,
        focus=1,
        energy_kev_u=round(energy_mev_u * 1000),
        qa=Qa.RELEASED,
        date="2026-11-20",
        dipole_a=(current, current * 1.1),
        quadrupole_a=(current / 3, -current / 4),
        scanner_a=(0.1 * rigidity, 0.5 * rigidity, 0.01 * rigidity, -0.2 * rigidity, 0.02 * rigidity, 0.6 * rigidity),
        monitor=(0.1, 1.143, -0.2, 1.143),
        counts1_per_ion=1.9e-4 * stopping,
        counts2_per_ion=1.7e-4 * stopping,
        sigma_x_mm=2.0 + 100.0 / energy_mev_u,
        sigma_y_mm=2.1 + 100.0 / energy_mev_u,
    )


ANGLES = AngleMap("G1", Qa.RELEASED, "2026-11-20", (-180.0, -90.0, 0.0, 90.0), (0.4, 0.1, 0.0, 0.3), (0.0, -0.2, 0.0, 0.2))


def library(energies: np.ndarray | None = None, **changes: object) -> BeamLibrary:
    nodes = np.geomspace(56.0, 430.0, 20) if energies is None else energies
    rows = tuple(row(ion, float(round(e, 3))) for ion in (IONS["C"], IONS["He"]) for e in nodes)
    values = {
        "facility": "bench",
        "version": 3,
        "date": "2026-11-20",
        "origin": "simulated",
        "meterset": Meterset(),
        "rows": rows,
        "angle_maps": (ANGLES,),
        **changes,
    }
    return BeamLibrary(**values)  # type: ignore[arg-type]


def test_a_node_gives_back_what_was_measured() -> None:
    beams = library()
    node = beams.rows[7]
    entry = beams.lookup("C", node.energy_kev_u / 1000, "G1", 0.0)
    assert np.allclose(entry.dipole_a, node.dipole_a, rtol=1e-12) and np.allclose(entry.quadrupole_a, node.quadrupole_a)
    assert entry.scanner_map.xx_a_mm == pytest.approx(node.scanner_a[1]) and entry.counts1_per_ion == pytest.approx(
        node.counts1_per_ion
    )
    assert entry.scanner_map.energy_kev_u == node.energy_kev_u and entry.scanner_map.library_version == 3


@pytest.mark.parametrize("energy_mev_u", [60.3, 99.0, 173.7, 288.8, 421.0])
def test_currents_between_nodes_follow_a_saturating_magnet_to_a_part_in_ten_thousand(energy_mev_u: float) -> None:
    entry = library().lookup(CARBON, energy_mev_u, "G1", 0.0)
    # 12.5 mrad of scanner kick are 100 mm: 1e-4 of it is 0.01 mm.
    assert entry.dipole_a[0] == pytest.approx(saturated_current_a(CARBON, energy_mev_u), rel=1e-4)
    rigidity = CARBON.rigidity_tm(energy_mev_u)
    assert entry.scanner_map.xx_a_mm == pytest.approx(0.5 * rigidity, rel=1e-9)


def test_the_map_takes_back_the_shift_of_the_gantry_angle() -> None:
    beams = library()
    straight, turned = (beams.lookup("C", 200.0, "G1", a).scanner_map for a in (0.0, 135.0))
    shift_x, shift_y = (0.3 + 0.4) / 2, (0.2 + 0.0) / 2  # half way between 90 and 180 deg
    # The current that reaches a point at 135 deg is that which reaches the point less the shift at 0 deg.
    for x, y in ((0.0, 0.0), (50.0, -80.0)):
        moved_x = straight.x0_a + straight.xx_a_mm * (x - shift_x) + straight.xy_a_mm * (y - shift_y)
        moved_y = straight.y0_a + straight.yx_a_mm * (x - shift_x) + straight.yy_a_mm * (y - shift_y)
        assert turned.x0_a + turned.xx_a_mm * x + turned.xy_a_mm * y == pytest.approx(moved_x)
        assert turned.y0_a + turned.yx_a_mm * x + turned.yy_a_mm * y == pytest.approx(moved_y)
    assert beams.lookup("C", 200.0, "G1", 180.0).scanner_map == beams.lookup("C", 200.0, "G1", -180.0).scanner_map


def test_a_withdrawn_row_refuses_its_neighbourhood_and_nothing_else() -> None:
    beams = library()
    node = beams.rows[5]
    after = withdraw(beams, [node], "2026-11-21")
    assert after.version == beams.version + 1
    for energy in (node.energy_kev_u / 1000, node.energy_kev_u / 1000 + 0.5, node.energy_kev_u / 1000 - 0.5):
        with pytest.raises(NotReleased, match="withdrawn") as refusal:
            after.lookup("C", energy, "G1", 0.0)
        assert f"{node.energy_kev_u / 1000:g}" in str(refusal.value)
        after.lookup("He", energy, "G1", 0.0)
    after.lookup("C", beams.rows[6].energy_kev_u / 1000, "G1", 0.0)
    after.lookup("C", beams.rows[4].energy_kev_u / 1000, "G1", 0.0)


@pytest.mark.parametrize(
    ("species", "energy", "room", "message"),
    [
        ("O", 200.0, "G1", "no rows for O in G1"),
        ("C", 200.0, "G9", "no rows for C in G9"),
        ("C", 430.5, "G1", "56 to 430 MeV/u, not 430.5"),
        ("C", 55.9, "G1", "56 to 430 MeV/u, not 55.9"),
    ],
)
def test_what_was_never_measured_is_refused_with_the_reason(species: str, energy: float, room: str, message: str) -> None:
    with pytest.raises(NotReleased, match=message):
        library().lookup(species, energy, room, 0.0)


def test_a_gantry_without_a_released_angle_map_is_refused() -> None:
    for maps in ((), (replace(ANGLES, qa=Qa.WITHDRAWN),)):
        with pytest.raises(NotReleased, match="angle map"):
            library(angle_maps=maps).lookup("C", 200.0, "G1", 0.0)


def test_a_fixed_room_is_asked_by_port_and_needs_no_angle_map() -> None:
    rows = tuple(row(CARBON, e, "F1", port) for port in (0.0, 90.0) for e in (100.0, 200.0))
    beams = library(rows=rows, angle_maps=())
    assert beams.lookup("C", 150.0, "F1", 90.05).angle_deg == 90.05
    with pytest.raises(NotReleased, match=r"at 45 deg \(ports: 0, 90\)"):
        beams.lookup("C", 150.0, "F1", 45.0)


def test_a_monitor_unit_is_a_charge_or_a_number_of_protons() -> None:
    beams = library()
    assert beams.mu_to_counts("C", 300.0, 2.5) == 2500.0
    assert beams.ions_per_mu("C", 300.0) == pytest.approx(1000.0 * beams.ions_per_count("C", 300.0))
    protons = Meterset(protons_per_mu=((70.0, 1e8), (230.0, 2e8)))
    rows = tuple(row(IONS["p"], e) for e in (70.0, 150.0, 230.0))
    beams = library(rows=rows, meterset=protons)
    assert beams.ions_per_mu("p", 150.0) == pytest.approx(1.5e8)
    assert beams.mu_to_counts("p", 150.0, 2.0) == pytest.approx(3e8 * beams.counts_per_ion("p", 150.0))


def test_a_written_library_is_read_back_whole(tmp_path: Path, facility: Facility) -> None:
    keys = tmp_path / "keys"
    key = load_or_create_key(keys)
    assert (keys / "beam-library.key").stat().st_mode & 0o077 == 0, "others may not read the private key"
    assert load_or_create_key(keys).id == key.id
    path = tmp_path / "bench.json"
    beams = library()
    write_library(beams, path, key)
    assert json.loads(path.read_text())["header"]["version"] == 3, "the file is JSON for everybody"
    again = load_library(facility, path, keys)
    assert again.signed_by == key.id and len(again.rows) == len(beams.rows)
    for energy in (56.0, 123.4, 430.0):
        one, two = (b.lookup("He", energy, "G1", 30.0) for b in (beams, again))
        assert np.allclose(one.dipole_a, two.dipole_a, rtol=1e-6)
        assert one.scanner_map.x0_a == pytest.approx(two.scanner_map.x0_a, rel=1e-5)
    with pytest.raises(DataError, match="not trusted here"):
        load_library(facility, path)


def test_every_kind_of_change_to_the_file_is_refused(facility: Facility) -> None:
    key, other = new_key(), new_key()
    trusted = {key.id: key.public}
    text = library_text(library(), key)
    parse_library(text, facility, trusted, "library")
    parse_library(text.replace("\n", "\r\n"), facility, trusted, "library")
    lines = text.splitlines(keepends=True)
    rows = [i for i, line in enumerate(lines) if line.startswith('["row"')]
    refusals = {
        "a digit of a row": (
            [*lines[: rows[4]], lines[rows[4]].replace("released", "withdrawn"), *lines[rows[5] :]],
            "rows were changed",
        ),
        "a row left out": (lines[: rows[4]] + lines[rows[5] :], "rows were changed"),
        "rows swapped": ([*lines[: rows[4]], lines[rows[5]], lines[rows[4]], *lines[rows[6] :]], "2 of .* rows were changed"),
        "a row doubled": ([*lines[: rows[4]], lines[rows[4]], *lines[rows[4] :]], "rows were changed"),
        "the version": ([line.replace('"version":3', '"version":4') for line in lines], "signature"),
        "the facility": ([line.replace('"facility":"bench"', '"facility":"asan"') for line in lines], "signature"),
        "the end cut off": (lines[: rows[9]], "rows were changed"),
        "the head cut off": (lines[3:], "not a beam library"),
    }
    for what, (changed, message) in refusals.items():
        with pytest.raises(DataError, match=message):
            parse_library("".join(changed), facility, trusted, what)
    with pytest.raises(DataError, match="signature"):
        parse_library(library_text(library(), other).replace(other.id, key.id), facility, trusted, "another's signature")
    with pytest.raises(DataError, match="was made for elsewhere"):
        parse_library(library_text(library(facility="elsewhere"), key), facility, trusted, "library")


def test_a_missing_library_says_what_to_run(facility: Facility, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="iongantry commission"):
        load_library(facility)
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "bad.pub").write_text("zz")
    with pytest.raises(ConfigError, match="32 bytes"):
        trusted_keys(keys)
