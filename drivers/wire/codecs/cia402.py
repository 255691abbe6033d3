"""CiA 402 drive profile (IEC 61800-7-201): what a statusword says, and the controlword that asks for a state.

Not responsible for registers or for when to ask: that is `drivers.devices.gantry`.
"""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag


class DriveState(Enum):
    """States of the drive's power state machine."""

    NOT_READY = "not ready to switch on"
    SWITCH_ON_DISABLED = "switch on disabled"
    READY = "ready to switch on"
    SWITCHED_ON = "switched on"
    OPERATION_ENABLED = "operation enabled"
    QUICK_STOP = "quick stop active"
    FAULT_REACTION = "fault reaction active"
    FAULT = "fault"
    UNKNOWN = "unknown"


# Statusword, object 6041h: bits 0-3, 5, 6 code the state; bit 5 does not count where the quick stop plays no part.
_WITH_QUICK_STOP = 0x6F
_WITHOUT_QUICK_STOP = 0x4F
_STATES = (
    (_WITHOUT_QUICK_STOP, 0x00, DriveState.NOT_READY),
    (_WITHOUT_QUICK_STOP, 0x40, DriveState.SWITCH_ON_DISABLED),
    (_WITH_QUICK_STOP, 0x21, DriveState.READY),
    (_WITH_QUICK_STOP, 0x23, DriveState.SWITCHED_ON),
    (_WITH_QUICK_STOP, 0x27, DriveState.OPERATION_ENABLED),
    (_WITH_QUICK_STOP, 0x07, DriveState.QUICK_STOP),
    (_WITHOUT_QUICK_STOP, 0x0F, DriveState.FAULT_REACTION),
    (_WITHOUT_QUICK_STOP, 0x08, DriveState.FAULT),
)


def _table() -> tuple[DriveState, ...]:
    states = []
    for word in range(0x80):
        matching = [state for mask, value, state in _STATES if word & mask == value]
        states.append(matching[0] if matching else DriveState.UNKNOWN)
    return tuple(states)


_STATE_OF_LOW_BITS = _table()


def drive_state(statusword: int) -> DriveState:
    """The state coded in a statusword; UNKNOWN for a pattern that the profile does not define."""
    return _STATE_OF_LOW_BITS[statusword & 0x7F]


class Status(IntFlag):
    """Bits of the statusword that do not code the state (profile position mode)."""

    VOLTAGE_ENABLED = 1 << 4
    WARNING = 1 << 7
    REMOTE = 1 << 9
    TARGET_REACHED = 1 << 10
    INTERNAL_LIMIT = 1 << 11
    SET_POINT_ACKNOWLEDGE = 1 << 12
    FOLLOWING_ERROR = 1 << 13


class Command(IntEnum):
    """Controlwords, object 6040h."""

    DISABLE_VOLTAGE = 0x00
    QUICK_STOP = 0x02
    SHUTDOWN = 0x06
    SWITCH_ON = 0x07  # from operation enabled the same word is "disable operation"
    ENABLE_OPERATION = 0x0F
    NEW_SET_POINT = 0x1F  # operation enabled with bit 4: take the target position now
    FAULT_RESET = 0x80  # acts on its rising edge


PROFILE_POSITION = 1  # modes of operation, object 6060h

# The way up, one step at a time: the state one is in, the controlword that leads to the next one.
_NEXT_UP = {
    DriveState.SWITCH_ON_DISABLED: Command.SHUTDOWN,
    DriveState.READY: Command.SWITCH_ON,
    DriveState.SWITCHED_ON: Command.ENABLE_OPERATION,
}


def command_towards_enabled(state: DriveState) -> Command | None:
    """The controlword for the next step towards operation enabled; None from a fault, from a quick stop, and when there."""
    return _NEXT_UP.get(state)


def state_after(state: DriveState, command: Command) -> DriveState:
    """The state in which a healthy drive ends up after a command, by the profile's table of transitions."""
    if state in (DriveState.NOT_READY, DriveState.FAULT_REACTION, DriveState.UNKNOWN):
        return state
    if state is DriveState.FAULT:
        return DriveState.SWITCH_ON_DISABLED if command is Command.FAULT_RESET else state
    if command is Command.FAULT_RESET:
        return state
    if command is Command.DISABLE_VOLTAGE:
        return DriveState.SWITCH_ON_DISABLED
    if command is Command.QUICK_STOP:
        turning = state in (DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP)
        return DriveState.QUICK_STOP if turning else DriveState.SWITCH_ON_DISABLED
    if state is DriveState.QUICK_STOP:
        return state
    if command is Command.SHUTDOWN:
        return DriveState.READY
    if state is DriveState.SWITCH_ON_DISABLED:
        return state
    if command is Command.SWITCH_ON:
        return DriveState.SWITCHED_ON
    return DriveState.OPERATION_ENABLED if state is not DriveState.READY else DriveState.SWITCHED_ON


class Safety(IntFlag):
    """Safety word of our drives: functions of IEC 61800-5-2, brake and torque (docs/wires.md, register 40)."""

    STO = 1
    SS1 = 2
    SBC = 4
    SLS = 8
    SOS = 16
    TORQUE_PROVEN = 32


FAULTS = {
    0x8611: "following error",
    0x7305: "encoder",
    0x5441: "brake",
    0x8700: "supervision: polling was lost",
    0x6320: "travel limits",
    0x2310: "overcurrent",
}


def fault_text(error_code: int) -> str:
    """Words for object 603Fh."""
    return f"0x{error_code:04X} ({FAULTS.get(error_code, 'not in the table')})"
