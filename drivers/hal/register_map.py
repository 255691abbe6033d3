"""Names and widths of the registers that drivers use; the facility file says where they begin, docs/wires.md what they mean."""

from __future__ import annotations

# Width in registers of each value that a driver reads or writes (docs/wires.md).
REGISTER_WIDTHS: dict[str, dict[str, int]] = {
    "drive": {
        "identity": 4,
        "command_token": 2,
        "controlword": 1,
        "mode": 1,
        "target": 2,
        "velocity": 2,
        "acceleration": 2,
        "statusword": 1,
        "mode_display": 1,
        "position": 2,
        "speed": 2,
        "torque": 1,
        "error_code": 1,
        "safety": 1,
        "counter": 1,
        "cycles": 2,
    },
    "load_encoder": {"identity": 4, "status": 1, "position": 2, "counter": 1},
    "couch": {
        "identity": 4,
        "command_token": 2,
        "controlword": 1,
        "targets": 12,
        "statusword": 1,
        "error_code": 1,
        "actuals": 12,
        "brakes": 1,
        "counter": 1,
        "cycles": 2,
    },
    "nozzle": {
        "identity": 4,
        "command_token": 2,
        "shifter_mask": 1,
        "snout_target": 2,
        "ripple_filter_target": 1,
        "status": 1,
        "shifter_mask_actual": 1,
        "snout": 2,
        "ripple_filter": 1,
        "shifter_mask_seen": 1,
        "counter": 1,
        "cycles": 2,
    },
    "safety": {
        "identity": 4,
        "counter": 1,
        "room_bits": 1,
        "contributions": 1,
        "chain_a": 1,
        "search_state": 1,
        "ring_angle": 2,
        "motor_angle": 2,
        "standstill": 1,
        "counts1": 4,
        "counts2": 4,
        "position_error": 2,
        "magnet_deviation": 2,
        "species": 2,
        "signal_per_ion": 2,
        "monitor_health": 1,
        "room_mode": 1,
        "heartbeat": 1,
        "request_pulse": 1,
        "room_token": 1,
        "preset_angle": 2,
        "preset_species": 2,
        "armed": 1,
        "preset_plan": 2,
        "preset_beam": 1,
    },
    "permit_relay": {
        "identity": 4,
        "pulse": 1,
        "boot_id": 1,
        "first_out": 1,
        "active_trips": 1,
        "first_out_value": 2,
        "first_out_limit": 2,
        "first_out_input": 1,
        "motion_code": 1,
        "relay_closed": 1,
        "motion_closed": 1,
    },
}

# A device that drops commands which are too old has both; a device that cannot has neither.
AGED_COMMANDS = ("command_token", "cycles")

# A room whose interlock system has a motion relay has both; one without cannot say whether anything may move.
MOTION_RELAY = ("motion_code", "motion_closed")

# The command register right behind the token, in the tables of devices that move: one frame carries both.
COMMANDED: dict[str, str] = {"drive": "controlword", "couch": "controlword", "nozzle": "shifter_mask"}

# The register tables that a driver needs.
TABLES_OF = {
    "gantry": ("drive", "load_encoder"),
    "couch": ("couch",),
    "nozzle": ("nozzle",),
    "room_access": ("safety",),
    "interlock_view": ("permit_relay",),
}
