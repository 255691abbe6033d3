"""Two X-ray images registered to the plan's references: the couch correction that would bring the patient to the planned place.

The images themselves, and their registration, are the imaging system's; in a simulated world that is a callable of the plant.
Not responsible for whether a correction is allowed or made.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.clock import now_ns
from drivers.hal.errors import DataError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Reading

EXPOSURE_S = 4.0  # assumed: two exposures and their registration
BAD_CORRECTION = 5201


class OrthogonalImager:
    """`Imager` of a room.

    Args:
        name: device, for example ``"G1-imager"``.
        config: its entry in the facility file.
        register: the imaging system: takes both images now and answers the correction in `COUCH_AXES`.
        bus: where ``images.registered`` is told.
        exposure_s: time that images and registration take.
    """

    def __init__(
        self,
        name: str,
        config: Device,
        register: Callable[[], Mapping[str, float]],
        bus: EventBus,
        exposure_s: float = EXPOSURE_S,
    ) -> None:
        self._name = name
        self._config = config
        self._register = register
        self._bus = bus
        self._exposure_s = exposure_s
        self._last: tuple[int, dict[str, float]] | None = None

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    async def connect(self) -> None:
        """Nothing to open: the imaging system is asked when images are wanted."""

    async def close(self) -> None:
        """Nothing to close."""

    def readings(self) -> Sequence[Reading[object]]:
        """The last correction; empty before the first."""
        if self._last is None:
            return ()
        t_ns, correction = self._last
        return [
            Reading(f"{self._name}.{axis}", value, axis.rsplit("_", 1)[1], t_ns, simulated=self._config.simulated)
            for axis, value in correction.items()
        ]

    async def registered_correction(self) -> Mapping[str, float]:
        """Take two images and register them. Raises DataError when the answer is not six finite numbers."""
        await asyncio.sleep(self._exposure_s)
        answer = self._register()
        missing = [axis for axis in COUCH_AXES if axis not in answer]
        if missing or len(answer) != len(COUCH_AXES):
            raise DataError(
                f"registration gives {', '.join(answer) or 'nothing'}; needed: {', '.join(COUCH_AXES)}",
                code=BAD_CORRECTION,
                device=self._name,
                hint="take the images again",
            )
        correction = {axis: float(answer[axis]) for axis in COUCH_AXES}
        bad = [axis for axis, value in correction.items() if not math.isfinite(value)]
        if bad:
            raise DataError(f"registration gives no number for {', '.join(bad)}", code=BAD_CORRECTION, device=self._name)
        self._last = (now_ns(), correction)
        self._bus.emit(self._name, "images.registered", **{axis: round(value, 3) for axis, value in correction.items()})
        return correction
