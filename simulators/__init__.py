"""The plant as it is: physics, equipment, and the servers that put it on the wires."""
