"""Commissioning again finds what the shipped library says, through devices, servers and interlocks of a simulated world."""

from __future__ import annotations

import numpy as np
import pytest

from controller.beam import commission
from controller.beam.fit import Shot, fitted, guess_map, node_energies_mev_u, pattern_mm
from controller.beam.library import NotReleased, Qa
from controller.beam.library_file import load_library
from controller.commissioning import commission_room
from drivers.hal.errors import DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Meterset, load_facility
from drivers.hal.ions import CARBON
from simulators.clock import run
from simulators.plant.magnets import BeamlineMagnets


@pytest.mark.parametrize(
    ("facility_name", "room", "species", "energy_mev_u"), [("asan", "F1", "C", 250.0), ("research", "R1", "p", 120.0)]
)
def test_another_commissioning_finds_the_shipped_rows(facility_name: str, room: str, species: str, energy_mev_u: float) -> None:
    facility = load_facility(facility_name)
    shipped = load_library(facility)
    measured = run(
        commission_room(facility, room, 99, EventBus(), "2031-01-01", species={"C", species}, energies_mev_u=[energy_mev_u])
    )
    own = [row for row in measured.rows if row.species == species]
    assert own and all(row.qa is Qa.RELEASED for row in own)
    for row in own:
        entry = shipped.lookup(species, energy_mev_u, room, row.port_deg or 0.0)
        m = entry.scanner_map
        # Displacements in mm at the isocentre plane, of beam and of its measurement, at the edge of the field.
        half = 0.45 * facility.room(room).nozzle.field_x_mm
        assert (row.scanner_a[0] - m.x0_a) / m.xx_a_mm == pytest.approx(0.0, abs=0.1)
        assert (row.scanner_a[3] - m.y0_a) / m.yy_a_mm == pytest.approx(0.0, abs=0.1)
        assert (row.scanner_a[1] / m.xx_a_mm - 1.0) * half == pytest.approx(0.0, abs=0.1)
        assert (row.scanner_a[5] / m.yy_a_mm - 1.0) * half == pytest.approx(0.0, abs=0.1)
        assert row.monitor[0] == pytest.approx(m.monitor_x0_mm, abs=0.1) and row.monitor[1] == pytest.approx(
            m.monitor_xgain, rel=1e-3
        )
        assert np.allclose(row.dipole_a, entry.dipole_a, rtol=3e-4)
        assert row.counts1_per_ion == pytest.approx(m.counts1_per_ion, rel=3e-3)
        assert row.counts2_per_ion == pytest.approx(m.counts2_per_ion, rel=3e-3)
        assert row.sigma_x_mm == pytest.approx(entry.sigma_x_mm, rel=0.02)
    if measured.angle_map is not None:
        old = next(m for m in shipped.angle_maps if m.room == room)
        assert np.allclose(measured.angle_map.dx_mm, old.dx_mm, atol=0.06) and np.allclose(
            measured.angle_map.dy_mm, old.dy_mm, atol=0.06
        )


def test_a_magnet_that_does_not_steer_is_found_before_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BeamlineMagnets.set_currents

    def stuck(self: BeamlineMagnets, token: int, currents_a: np.ndarray) -> None:
        currents = currents_a.copy()
        dipoles = currents[: len(self.names)]
        dipoles[-1] = dipoles[0] / self.nameplate()[1] * self.nameplate()[len(self.names)]
        original(self, token, currents)

    monkeypatch.setattr(BeamlineMagnets, "set_currents", stuck)
    with pytest.raises(DeviceError, match="steering"):
        run(commission_room(load_facility("asan"), "F1", 3, EventBus(), "2031-01-01", species={"C"}, energies_mev_u=[250.0]))


def test_a_row_that_fails_its_second_pattern_is_withdrawn_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commission, "ERROR_MAX_MM", 0.001)
    facility = load_facility("asan")
    measured = run(commission_room(facility, "F1", 3, EventBus(), "2031-01-01", species={"C"}, energies_mev_u=[300.0]))
    assert [row.qa for row in measured.rows] == [Qa.WITHDRAWN, Qa.WITHDRAWN]
    library = commission.library_of(facility, [measured], version=9, date="2031-01-01", origin="simulated")
    with pytest.raises(NotReleased, match="withdrawn"):
        library.lookup("C", 300.0, "F1", 90.0)


def test_a_fit_gives_back_a_rotated_and_shifted_scanner_exactly() -> None:
    x, y = pattern_mm(80.0, 60.0, 5)
    guess = guess_map(CARBON, 300.0, load_facility("asan").room("G1").nozzle, Meterset())
    # The truth: gains 1 % and -2 % off, turned by 3 mrad, shifted; strips with gain and offset of their own.
    true_x, true_y = 0.4 + 1.01 * x - 0.003 * y, -0.7 + 0.003 * x + 0.98 * y
    strip_x, strip_y = (true_x - 0.2) / 1.15, (true_y + 0.1) / 1.13
    shot = Shot(guess, x, y, true_x, true_y, strip_x, strip_y, 3.0, 3.0, 130_000, 120_000, 1e7)
    fit, rest_mm = fitted(shot)
    assert rest_mm < 1e-9 and fit.counts1_per_ion == 0.013 and fit.counts2_per_ion == 0.012
    current_x = fit.x0_a + fit.xx_a_mm * 50.0 + fit.xy_a_mm * -20.0
    current_y = fit.y0_a + fit.yx_a_mm * 50.0 + fit.yy_a_mm * -20.0
    sent = np.linalg.solve([[1.01, -0.003], [0.003, 0.98]], [50.0 - 0.4, -20.0 + 0.7])
    assert current_x == pytest.approx(guess.xx_a_mm * sent[0]) and current_y == pytest.approx(guess.yy_a_mm * sent[1])
    assert (fit.monitor_x0_mm, fit.monitor_xgain) == pytest.approx((0.2, 1.15))
    assert (fit.monitor_y0_mm, fit.monitor_ygain) == pytest.approx((-0.1, 1.13))


def test_nodes_are_offered_energies_from_end_to_end() -> None:
    offer = load_facility("asan").accelerator.offer("He")
    assert offer is not None
    nodes = node_energies_mev_u(offer, 16)
    assert nodes[0] == 230.0 and nodes[-1] == 56.0 and nodes == sorted(set(nodes), reverse=True)
    assert all(e % 0.5 == 0.0 for e in nodes)
