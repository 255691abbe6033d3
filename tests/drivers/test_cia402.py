"""The drive profile, against a table written by hand from the standard."""

from __future__ import annotations

import pytest

from drivers.hal.errors import DataError
from drivers.wire.codecs import registers
from drivers.wire.codecs.cia402 import (
    Command,
    DriveState,
    command_towards_enabled,
    drive_state,
    fault_text,
    state_after,
)

# Statusword patterns of IEC 61800-7-201: bits 6, 5, 3, 2, 1, 0 (x: does not matter), state.
PATTERNS = [
    ("0x0000", DriveState.NOT_READY),
    ("1x0000", DriveState.SWITCH_ON_DISABLED),
    ("010001", DriveState.READY),
    ("010011", DriveState.SWITCHED_ON),
    ("010111", DriveState.OPERATION_ENABLED),
    ("000111", DriveState.QUICK_STOP),
    ("0x1111", DriveState.FAULT_REACTION),
    ("0x1000", DriveState.FAULT),
]
BITS = (6, 5, 3, 2, 1, 0)

# Controlword patterns: bits 7, 3, 2, 1, 0.
CONTROLWORDS = [
    (Command.SHUTDOWN, "0x110"),
    (Command.SWITCH_ON, "00111"),
    (Command.ENABLE_OPERATION, "01111"),
    (Command.NEW_SET_POINT, "01111"),
    (Command.DISABLE_VOLTAGE, "0xx0x"),
    (Command.QUICK_STOP, "0x01x"),
    (Command.FAULT_RESET, "1xxxx"),
]

# Transitions: from, command, to (numbers of the standard in the comments).
TRANSITIONS = [
    (DriveState.SWITCH_ON_DISABLED, Command.SHUTDOWN, DriveState.READY),  # 2
    (DriveState.READY, Command.SWITCH_ON, DriveState.SWITCHED_ON),  # 3
    (DriveState.SWITCHED_ON, Command.ENABLE_OPERATION, DriveState.OPERATION_ENABLED),  # 4
    (DriveState.OPERATION_ENABLED, Command.SWITCH_ON, DriveState.SWITCHED_ON),  # 5
    (DriveState.SWITCHED_ON, Command.SHUTDOWN, DriveState.READY),  # 6
    (DriveState.READY, Command.DISABLE_VOLTAGE, DriveState.SWITCH_ON_DISABLED),  # 7
    (DriveState.READY, Command.QUICK_STOP, DriveState.SWITCH_ON_DISABLED),  # 7
    (DriveState.OPERATION_ENABLED, Command.SHUTDOWN, DriveState.READY),  # 8
    (DriveState.OPERATION_ENABLED, Command.DISABLE_VOLTAGE, DriveState.SWITCH_ON_DISABLED),  # 9
    (DriveState.SWITCHED_ON, Command.DISABLE_VOLTAGE, DriveState.SWITCH_ON_DISABLED),  # 10
    (DriveState.SWITCHED_ON, Command.QUICK_STOP, DriveState.SWITCH_ON_DISABLED),  # 10
    (DriveState.OPERATION_ENABLED, Command.QUICK_STOP, DriveState.QUICK_STOP),  # 11
    (DriveState.QUICK_STOP, Command.DISABLE_VOLTAGE, DriveState.SWITCH_ON_DISABLED),  # 12
    (DriveState.FAULT, Command.FAULT_RESET, DriveState.SWITCH_ON_DISABLED),  # 15
]


def fits(pattern: str, word: int, bits: tuple[int, ...]) -> bool:
    return all(p == "x" or int(p) == word >> bit & 1 for p, bit in zip(pattern, bits, strict=True))


@pytest.mark.parametrize("low", range(0x80))
def test_every_statusword_means_what_the_standard_says(low: int) -> None:
    for upper in (0x0000, 0x0200, 0x1600, 0xFF80):
        matching = [state for pattern, state in PATTERNS if fits(pattern, low, BITS)]
        assert drive_state(low | upper) is (matching[0] if matching else DriveState.UNKNOWN)
        assert len(matching) <= 1


@pytest.mark.parametrize(("command", "pattern"), CONTROLWORDS)
def test_controlwords_carry_the_bits_of_the_standard(command: Command, pattern: str) -> None:
    assert fits(pattern, command, (7, 3, 2, 1, 0))


@pytest.mark.parametrize(("state", "command", "after"), TRANSITIONS)
def test_commands_lead_where_the_standard_says(state: DriveState, command: Command, after: DriveState) -> None:
    assert state_after(state, command) is after


def test_no_command_leaves_a_fault_but_the_reset() -> None:
    for command in Command:
        if command is not Command.FAULT_RESET:
            assert state_after(DriveState.FAULT, command) is DriveState.FAULT
            assert state_after(DriveState.FAULT_REACTION, command) is DriveState.FAULT_REACTION


def test_a_quick_stop_is_never_left_towards_motion() -> None:
    for command in (Command.SHUTDOWN, Command.SWITCH_ON, Command.ENABLE_OPERATION, Command.NEW_SET_POINT):
        assert state_after(DriveState.QUICK_STOP, command) is DriveState.QUICK_STOP


def test_the_way_up_reaches_operation_enabled_and_no_other_state_has_one() -> None:
    state = DriveState.SWITCH_ON_DISABLED
    seen = [state]
    while (command := command_towards_enabled(state)) is not None:
        state = state_after(state, command)
        seen.append(state)
    assert seen == [
        DriveState.SWITCH_ON_DISABLED,
        DriveState.READY,
        DriveState.SWITCHED_ON,
        DriveState.OPERATION_ENABLED,
    ]
    for stuck in (DriveState.FAULT, DriveState.FAULT_REACTION, DriveState.QUICK_STOP, DriveState.NOT_READY, DriveState.UNKNOWN):
        assert command_towards_enabled(stuck) is None


def test_faults_have_words() -> None:
    assert fault_text(0x8611) == "0x8611 (following error)"
    assert "not in the table" in fault_text(0x1234)


@pytest.mark.parametrize("value", [0, 1, -1, 180_000, -180_000, 2**31 - 1, -(2**31)])
def test_numbers_survive_two_registers(value: int) -> None:
    high, low = registers.words_of_int32(value)
    assert (0 <= high <= 0xFFFF, 0 <= low <= 0xFFFF) == (True, True)
    assert registers.int32((high, low)) == value
    assert registers.int32((7, high, low), 1) == value


def test_wide_and_scaled_numbers() -> None:
    assert registers.uint64((1, 2, 3, 4)) == 0x0001_0002_0003_0004
    assert registers.int16(0xFFFF) == -1
    assert registers.words_of_milli(-0.0015) == registers.words_of_int32(-2)
    assert registers.words_of_int32s([1, -1]) == [0, 1, 0xFFFF, 0xFFFF]


@pytest.mark.parametrize("value", [2.2e6, -2.2e6, float("nan"), float("inf")])
def test_what_does_not_fit_registers_is_refused(value: float) -> None:
    with pytest.raises(DataError):
        registers.words_of_milli(value)
    with pytest.raises(DataError):
        registers.words_of_int32(2**31)
