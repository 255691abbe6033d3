"""Own formulas of the plant: ranges, optics, dose, motion, noise. Imports nothing of ours."""
