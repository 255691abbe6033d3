"""The plant on the wires: Modbus, EPICS process variables, messages."""
