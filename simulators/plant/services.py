"""What a room and its beam line live on, and contacts beside the beam: plain signals to the safety node, each with faults.

Cooling flow by three meters, vacuum and power of the supplies by a contact each, the coils' temperature by three thermometers,
the radiation in the accessible area by a monitor, and the collision contact of the nozzle. Nothing here moves by itself: in a
healthy room these stand still. The collision contact opens chain A and takes torque away, without any program.

Not responsible for what follows from any other of them (the interlock system), nor for the coils themselves (`magnets`).
"""

from __future__ import annotations

from collections.abc import Callable

from simulators.plant.kernel import Kernel, Line

BACKGROUND_USV_H = 0.08  # assumed
BEAM_USV_H = 4.0  # with beam in the room; assumed
THERMOMETER_MK = 50  # steps in which the thermometers read; assumed


class RoomServices:
    """The services of one room.

    Args:
        kernel: plant time.
        room: name of the room.

    Attributes:
        flows_permille: what the three flow meters read, of the nominal flow.
        vacuum_good, power_good: contacts.
        collision: line, True while nothing touches the nozzle's contact.
        warmer_k: how much warmer the coils' bath is than it should be, K (a planted fault).
        thermometer_errors_k: how wrong each thermometer reads, K (planted faults).
        area_extra_usv_h: dose rate from elsewhere (a planted fault).
        hottest_k, trip_k: the hottest coil, and where it trips; set by the facility.
        beam: whether beam is in the room; set by the facility.
    """

    def __init__(self, kernel: Kernel, room: str) -> None:
        self.kernel = kernel
        self.flows_permille = [1000, 1000, 1000]
        self.vacuum_good = True
        self.power_good = True
        self.collision = Line(kernel, f"{room}.collision", True)
        self.warmer_k = 0.0
        self.thermometer_errors_k = [0.0, 0.0, 0.0]
        self.area_extra_usv_h = 0.0
        self.hottest_k: Callable[[], float] = lambda: 0.0
        self.trip_k = 6.0
        self.beam: Callable[[], bool] = lambda: False

    def coil_margins_mk(self) -> tuple[int, int, int]:
        """How far the hottest coil is below its trip temperature, as each thermometer reads it, mK; negative above."""
        below_k = self.trip_k - self.hottest_k() - self.warmer_k
        a, b, c = (round((below_k - error) * 1000.0 / THERMOMETER_MK) * THERMOMETER_MK for error in self.thermometer_errors_k)
        return a, b, c

    def area_usv_h(self) -> float:
        """Dose rate in the accessible area, uSv/h."""
        return BACKGROUND_USV_H + self.area_extra_usv_h + (BEAM_USV_H if self.beam() else 0.0)
