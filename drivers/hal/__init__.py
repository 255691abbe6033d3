"""Vocabulary of the beamline without I/O: capabilities, readings, errors, time, events, ions, frames, facility."""
