"""Equipment of the simulated facility. Imports `simulators.physics` and itself, nothing else of ours."""
