"""A real ring or encoder in the place of the model's: the ring is where the real one says, and fails safe without it.

While a real ring is followed the model's own paths count no more; between two readings it is carried on at its speed. Not
responsible for where readings come from, nor for how old they may get (`simulators.shadow`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from simulators.physics import motion
from simulators.plant.encoder import Encoder
from simulators.plant.kernel import Kernel
from simulators.plant.ring_body import RingBody
from simulators.plant.ring_torque import RingTorque
from simulators.plant.ring_watch import RingEncoders, StandstillWatch

NOISE_DEG = 0.01  # a resting ring that reads this near to where the model has it has not moved, assumed


@dataclass(frozen=True, slots=True)
class RealRing:
    """A real ring, as its drives say.

    Attributes:
        braked: a brake holds it.
    """

    braked: bool


class FollowsReal(ABC):
    """The side of a ring that lets a real one stand in for it; the ring provides the parts."""

    kernel: Kernel
    room: str
    device: str
    body: RingBody
    torque: RingTorque
    encoders: RingEncoders
    real: RealRing | None = None
    _still: StandstillWatch

    def follow_real(self, position_deg: float, speed_deg_s: float, *, torque: bool, braked: bool) -> None:
        """A real ring stands in for this one: it is where its drives say."""
        if self.real is None or self.real.braked != braked:
            self.kernel.emit(self.device, "brake", room=self.room, device=self.device, applied=braked)
        self.real = RealRing(braked)
        self.torque.follow_real(torque, braked)
        now = self.body.motor(self.kernel.now_ns)
        if speed_deg_s or now.speed or abs(position_deg - now.position) >= NOISE_DEG:
            path = motion.coast(position_deg, speed_deg_s, 0.0) if speed_deg_s else motion.rest(position_deg)
            way = speed_deg_s or position_deg - now.position  # also a step takes up the play of the gears
            self._follow_path(path, (way > 0.0) - (way < 0.0))
            self._announce(speed_deg_s != 0.0)
        self._still.doubt(False, "real")

    def lose_real(self, drive: int) -> None:
        """A real drive is not heard any more: nothing says that the ring stands, or that its drives make no torque."""
        self._hold(self.encoders.motors[drive])
        self._still.doubt(True, "real")
        self.torque.lose_real()
        if self.real is not None:  # nobody knows where it goes on to
            self._follow_path(motion.rest(self.body.motor(self.kernel.now_ns).position))
            self._announce(False)

    def read_encoder(self, mdeg: float, mdeg_per_s: float, *, drive: int | None = None) -> None:
        """A real encoder reads this, and goes on at this speed: of a drive, or the load encoder."""
        encoder = self.encoders.load if drive is None else self.encoders.motors[drive]
        encoder.follow_real(mdeg, mdeg_per_s)
        self.encoders.look_ahead()

    def load_encoder_valid(self, valid: bool) -> None:
        """A real load encoder says that its value is valid, or is not heard any more: then nothing proves standstill."""
        if not valid:
            self._hold(self.encoders.load)
        self.encoders.load.valid = valid
        self._still.doubt(not valid, "load encoder")

    def _hold(self, encoder: Encoder) -> None:
        """Nobody knows what it reads now: it keeps what it had."""
        encoder.follow_real(encoder.read_mdeg(0.0, self.kernel.now_ns))
        self.encoders.look_ahead()

    @abstractmethod
    def _follow_path(self, path: motion.Trajectory, direction: int = 0) -> None: ...

    @abstractmethod
    def _announce(self, moving: bool, **data: float) -> None: ...
