"""Who answers at a device's process variables, asked at each connect and after each reconnection.

All variables of a device come and go with its server, so the identity's own connection stands for all of them. A reconnection
is seen where the channels count connections (`CountsConnections`); elsewhere when the variable is found without connection, and
by its value, which is told anew. While the identity is not confirmed nobody believes anything. Not responsible for what is done
then (`pv_link`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from drivers.devices.connect import end_task
from drivers.hal.errors import BeamlineError, CommunicationError, DeviceError
from drivers.wire.channels import Channels, CountsConnections, Sample, as_text

WRONG_DEVICE = 3101
NOT_CONFIRMED = 2107
BACKOFF_S = (0.2, 5.0)  # first and longest pause between questions, assumed


class PvIdentity:
    """The identity of one device.

    Args:
        device: its name, for messages.
        expected: what it must answer; empty: what it answers first.
        channels: the wire.
        changed: called when the identity was confirmed, or refused.

    Attributes:
        refused: the error that names both identities, while a wrong device answers.
        says_simulated: whether what it says of itself has the word in it.
    """

    def __init__(self, device: str, expected: str, channels: Channels, changed: Callable[[], None]) -> None:
        self.refused: DeviceError | None = None
        self.says_simulated = False
        self._device = device
        self._expected = expected
        self._channels = channels
        self._counting = channels if isinstance(channels, CountsConnections) else None  # found out once: the look is slow
        self._changed = changed
        self._pv: str | None = None
        self._confirmed: int | None = None  # the connection for which the identity was confirmed
        self._question: asyncio.Task[None] | None = None

    def begin(self, pv: str | None) -> None:
        """Ask `pv` from now on; None: the device has no identity, and everything it says counts."""
        self._pv = pv
        self._confirmed = None
        self.refused = None

    def end(self) -> None:
        """Ask no more."""
        if self._question is not None:
            self._question.cancel()

    async def ended(self) -> None:
        """Wait until no question is under way."""
        await end_task(self._question)
        self._question = None

    @property
    def known(self) -> bool:
        """Whether the device that answers now is the right one."""
        if self._pv is None:
            return True
        if not self._channels.connected(self._pv):
            self._confirmed = None
        return self._confirmed is not None and self._confirmed == self._connection(self._pv)

    def lost(self) -> None:
        """The device was seen without connection: whoever comes back has to say who it is."""
        self._confirmed = None

    def unknown(self) -> BeamlineError:
        """The error of whoever needs the device while it is not known."""
        if self.refused is not None:
            return self.refused
        return CommunicationError(
            f"it was connected again, and {self._pv} has not been answered since",
            code=NOT_CONFIRMED,
            device=self._device,
            hint="it is being asked",
            retryable=True,
        )

    async def confirm(self) -> None:
        """Ask who answers, unless that is known.

        Raises:
            CommunicationError: no answer, or the connection changed meanwhile.
            DeviceError: another device answers (3101).
        """
        if self._pv is None or self.known:
            return
        before = self._connection(self._pv)
        sample = await self._channels.get(self._pv)
        connection = self._connection(self._pv)
        if before not in (0, connection):  # it was connected anew while it was asked
            raise self.unknown()
        self._judge(self._pv, sample, connection)
        if self.refused is not None:
            raise self.refused

    def take(self, sample: Sample) -> None:
        """The identity as a monitor tells it: over each new connection."""
        if self._pv is not None:
            self._judge(self._pv, sample, self._connection(self._pv))

    def ask(self) -> None:
        """Ask in the background until the identity is confirmed, with growing pauses."""
        if self._question is None or self._question.done():
            self._question = asyncio.get_running_loop().create_task(self._ask(), name=f"{self._device}-identity")

    async def _ask(self) -> None:
        pause_s, longest_s = BACKOFF_S
        while not self.known:
            try:
                await self.confirm()
            except BeamlineError:
                await asyncio.sleep(pause_s)
                pause_s = min(2.0 * pause_s, longest_s)

    def _judge(self, pv: str, sample: Sample, connection: int) -> None:
        try:
            answered = as_text(pv, sample)
        except BeamlineError:
            answered = repr(sample.value)
        if answered == (self._expected or answered):
            self._expected = answered
            self.says_simulated = self.says_simulated or "simulat" in answered.lower()
            news = self._confirmed != connection or self.refused is not None
            self._confirmed, self.refused = connection, None
        else:
            self._confirmed, news = None, True
            self.refused = DeviceError(
                f"{pv} answers {answered!r}, expected {self._expected!r}",
                code=WRONG_DEVICE,
                device=self._device,
                hint="check the endpoint and the prefix in the facility file",
            )
        if news:
            self._changed()

    def _connection(self, pv: str) -> int:
        return self._counting.connections(pv) if self._counting is not None else 0
