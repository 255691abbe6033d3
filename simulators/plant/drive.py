"""The CiA 402 state machine of a simulated drive: controlword in, statusword out, in the plant's own code.

Follows IEC 61800-7-201 (CiA 402): states, transitions by controlword bits 0 to 3 and 7, the set-point handshake of profile
position mode. What a transition does to torque, brakes and motion is asked of the drive's `Firmware` (`gantry`, `couch`),
because the drives of one ring act together. Not responsible for motion, and it shares nothing with the controller's codec.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

PROFILE_POSITION = 1

# Controlword bits.
NEW_SET_POINT = 1 << 4
FAULT_RESET = 1 << 7
HALT = 1 << 8

# Statusword bits beside the state.
VOLTAGE_ENABLED = 1 << 4
REMOTE = 1 << 9
TARGET_REACHED = 1 << 10
INTERNAL_LIMIT = 1 << 11
SET_POINT_ACKNOWLEDGE = 1 << 12
FOLLOWING_ERROR = 1 << 13

# Error codes (object 603F) that our drives use.
ERROR_NONE = 0
ERROR_OVERCURRENT = 0x2310
ERROR_BRAKE = 0x5441
ERROR_LIMITS = 0x6320
ERROR_ENCODER = 0x7305
ERROR_FOLLOWING = 0x8611
ERROR_SUPERVISION = 0x8700


class DriveState(Enum):
    """States of the power drive system; the value is the state's pattern in the statusword."""

    SWITCH_ON_DISABLED = 0x40
    READY_TO_SWITCH_ON = 0x21
    SWITCHED_ON = 0x23
    OPERATION_ENABLED = 0x27
    QUICK_STOP_ACTIVE = 0x07
    FAULT_REACTION_ACTIVE = 0x0F
    FAULT = 0x08


class Command(Enum):
    """What a controlword asks for."""

    DISABLE_VOLTAGE = "disable voltage"
    QUICK_STOP = "quick stop"
    SHUTDOWN = "shutdown"
    SWITCH_ON = "switch on"
    ENABLE_OPERATION = "enable operation"


def command_of(controlword: int) -> Command:
    """Command in bits 0 to 3 (fault reset, bit 7, is an edge and judged by the drive)."""
    if not controlword & 0b0010:
        return Command.DISABLE_VOLTAGE
    if not controlword & 0b0100:
        return Command.QUICK_STOP
    if not controlword & 0b0001:
        return Command.SHUTDOWN
    return Command.ENABLE_OPERATION if controlword & 0b1000 else Command.SWITCH_ON


class Firmware(Protocol):
    """What the drives of one machine do together."""

    def power_available(self, drive: Drive) -> bool:
        """Whether the drive may leave `SWITCH_ON_DISABLED` (no safe torque off)."""
        ...

    def may_reset(self, drive: Drive) -> bool:
        """Whether the cause of a fault is gone."""
        ...

    def enable(self, drive: Drive) -> None:
        """Bring torque up and the brake off, then call `drive.enabled()`."""
        ...

    def disable(self, drive: Drive, to: DriveState) -> None:
        """Stop, set the brake, take torque away, then call `drive.enter(to)`."""
        ...

    def quick_stop(self, drive: Drive) -> None:
        """Stop as fast as allowed, brake, torque off, then `drive.enter(SWITCH_ON_DISABLED)`."""
        ...

    def new_set_point(self, drive: Drive) -> bool:
        """A new target; True when it is taken."""
        ...

    def halt(self, drive: Drive) -> None:
        """Stop along the profile and hold."""
        ...


class Drive:
    """One drive: its state, its objects, its handshake.

    Args:
        firmware: what moves.
        name: for truth events.

    Attributes:
        state: see `DriveState`.
        error_code: CiA 402 object 603F; the first cause stays until reset.
        enabling: operation was asked for and torque or brake are not ready yet.
    """

    def __init__(self, firmware: Firmware, name: str) -> None:
        self._firmware = firmware
        self.name = name
        self.state = DriveState.SWITCH_ON_DISABLED
        self.controlword = 0
        self.mode = PROFILE_POSITION
        self.error_code = ERROR_NONE
        self.enabling = False
        self.set_point_acknowledged = False
        self.target_reached = False
        self.internal_limit = False
        self.following_error = False

    @property
    def statusword(self) -> int:
        """CiA 402 object 6041."""
        state = self.state
        word = state.value | REMOTE
        if state in (DriveState.SWITCHED_ON, DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP_ACTIVE):
            word |= VOLTAGE_ENABLED
        if self.target_reached:
            word |= TARGET_REACHED
        if self.internal_limit:
            word |= INTERNAL_LIMIT
        if self.set_point_acknowledged:
            word |= SET_POINT_ACKNOWLEDGE
        if self.following_error:
            word |= FOLLOWING_ERROR
        return word

    @property
    def operational(self) -> bool:
        """Whether the drive follows set-points."""
        return self.state is DriveState.OPERATION_ENABLED

    @property
    def faulted(self) -> bool:
        """Whether a fault is there, or being reacted to."""
        return self.state in (DriveState.FAULT, DriveState.FAULT_REACTION_ACTIVE)

    def enter(self, state: DriveState) -> None:
        """Be in a state (called by the firmware when an action has come to its end)."""
        self.state = state
        if state is not DriveState.OPERATION_ENABLED:
            self.enabling = False
            self.set_point_acknowledged = False
            self.target_reached = False

    def enabled(self) -> None:
        """Torque is proven and the brake is off: operation is enabled."""
        self.enabling = False
        self.enter(DriveState.OPERATION_ENABLED)

    def fail(self, code: int) -> None:
        """React to a fault; `state` becomes FAULT when the firmware has finished reacting."""
        if self.error_code == ERROR_NONE:
            self.error_code = code
        self.enter(DriveState.FAULT_REACTION_ACTIVE)

    def only_stops(self, word: int) -> bool:
        """Whether a controlword can do nothing but bring the drive nearer to rest, so that its age does not matter."""
        command = command_of(word)
        if word & FAULT_RESET and self.state is DriveState.FAULT:
            return False
        if command in (Command.DISABLE_VOLTAGE, Command.QUICK_STOP):
            return True
        if command is Command.ENABLE_OPERATION:
            return self.operational and bool(word & HALT)
        return self.operational or self.enabling

    def write_controlword(self, word: int) -> None:
        """Take a controlword; commands that the state does not allow change nothing, as CiA 402 says."""
        rising = word & ~self.controlword
        self.controlword = word
        state = self.state
        if state is DriveState.FAULT:
            if rising & FAULT_RESET and self._firmware.may_reset(self):
                self.error_code = ERROR_NONE
                self.following_error = self.internal_limit = False
                self.enter(DriveState.SWITCH_ON_DISABLED)
            return
        if state in (DriveState.FAULT_REACTION_ACTIVE, DriveState.QUICK_STOP_ACTIVE):
            return
        command = command_of(word)
        if state is DriveState.OPERATION_ENABLED:
            self._while_enabled(command, word, rising)
        else:
            self._while_disabled(command)

    def _while_disabled(self, command: Command) -> None:
        state, firmware = self.state, self._firmware
        if state is DriveState.SWITCH_ON_DISABLED:
            if command is Command.SHUTDOWN and firmware.power_available(self):
                self.enter(DriveState.READY_TO_SWITCH_ON)
            return
        target = {
            Command.DISABLE_VOLTAGE: DriveState.SWITCH_ON_DISABLED,
            Command.QUICK_STOP: DriveState.SWITCH_ON_DISABLED,
            Command.SHUTDOWN: DriveState.READY_TO_SWITCH_ON,
            Command.SWITCH_ON: DriveState.SWITCHED_ON,
            Command.ENABLE_OPERATION: DriveState.SWITCHED_ON,
        }[command]
        if self.enabling and command is not Command.ENABLE_OPERATION:
            firmware.disable(self, target)
            return
        if state is not target:
            self.enter(target)
        if command is Command.ENABLE_OPERATION and not self.enabling:
            self.enabling = True
            firmware.enable(self)

    def _while_enabled(self, command: Command, word: int, rising: int) -> None:
        firmware = self._firmware
        if command is Command.QUICK_STOP:
            self.enter(DriveState.QUICK_STOP_ACTIVE)
            firmware.quick_stop(self)
        elif command is Command.DISABLE_VOLTAGE:
            firmware.disable(self, DriveState.SWITCH_ON_DISABLED)
        elif command is Command.SHUTDOWN:
            firmware.disable(self, DriveState.READY_TO_SWITCH_ON)
        elif command is Command.SWITCH_ON:
            firmware.disable(self, DriveState.SWITCHED_ON)
        else:
            if rising & HALT:
                firmware.halt(self)
            if rising & NEW_SET_POINT and not word & HALT and firmware.new_set_point(self):
                self.set_point_acknowledged = True
                self.target_reached = False
            if not word & NEW_SET_POINT:
                self.set_point_acknowledged = False
