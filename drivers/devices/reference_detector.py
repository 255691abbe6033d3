"""The reference detector at the isocentre (screen and Faraday cup), for commissioning and QA only, on process variables.

It measures where the beam crosses the isocentre plane, how wide it is and how many ions arrive, apart from the nozzle's
monitors. It has no status that lives: every use asks first who answers. Not responsible for putting it where a patient could
be: people install it, and a room with it is in service mode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivers.devices.pv_identity import WRONG_DEVICE
from drivers.devices.pv_link import GET_TRIES
from drivers.hal.errors import CommunicationError, DataError, DeviceError
from drivers.wire.channels import Channels, Sample, as_float_array, as_int, as_text

# One measured piece of a granted row; positions in IEC gantry axes at the isocentre plane.
SPOT_DTYPE = np.dtype(
    [
        ("grant_id", np.float64),
        ("row", np.float64),
        ("x_mm", np.float64),
        ("y_mm", np.float64),
        ("sigma_x_mm", np.float64),
        ("sigma_y_mm", np.float64),
        ("ions", np.float64),
    ]
)


class ReferenceDetectorClient:
    """Reads the detector of one room.

    Args:
        name: device name, for messages.
        prefix: PV prefix, for example ``"ASAN:G1:QA"``.
        channels: the wire.
        identity: what it must answer; empty: what it answers first.
    """

    def __init__(self, name: str, prefix: str, channels: Channels, identity: str = "") -> None:
        self._name = name
        self._channels = channels
        self._identity = identity
        self._identity_rb = f"{prefix}:ID:RB"
        self._install_sp = f"{prefix}:INSTALL:SP"
        self._spots_rb = f"{prefix}:SPOTS:RB"

    async def install(self, installed: bool) -> None:
        """Begin a measurement (readings start empty), or end it.

        Raises:
            DataError: it is not taken (5141).
            DeviceError: another detector answers (3101).
            CommunicationError: no answer.
        """
        await self._same()
        await self._channels.put(self._install_sp, int(installed))
        if as_int(self._install_sp, await self._get(self._install_sp)) != int(installed):
            raise DataError("the reference detector does not follow", code=5141, device=self._name, hint="look at its mount")

    async def spots(self, grant_id: int) -> NDArray[np.void]:
        """Pieces of one grant in order of delivery, dtype SPOT_DTYPE.

        Raises:
            DataError: the table is broken (5142).
            DeviceError: another detector answers (3101).
            CommunicationError: no answer.
        """
        await self._same()
        values = as_float_array(self._spots_rb, await self._get(self._spots_rb))
        columns = len(SPOT_DTYPE.names or ())
        if values.size % columns:
            raise DataError(f"{values.size} numbers are no rows of {columns}", code=5142, device=self._name)
        table = np.ascontiguousarray(values).view(SPOT_DTYPE)
        return np.asarray(table[table["grant_id"] == grant_id])

    async def _same(self) -> None:
        """Ask who answers: without a heartbeat nothing else would show that it was exchanged."""
        answered = as_text(self._identity_rb, await self._get(self._identity_rb))
        if self._identity and answered != self._identity:
            raise DeviceError(
                f"{self._identity_rb} answers {answered!r}, expected {self._identity!r}",
                code=WRONG_DEVICE,
                device=self._name,
                hint="look which detector is mounted, and commission anew",
            )
        self._identity = answered

    async def _get(self, name: str) -> Sample:
        """Ask, and after silence once more."""
        for _ in range(GET_TRIES - 1):
            try:
                return await self._channels.get(name)
            except CommunicationError:
                if not self._channels.connected(name):
                    raise
        return await self._channels.get(name)
