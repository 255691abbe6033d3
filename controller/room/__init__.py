"""One treatment room: its states, its machine, and the session that walks a patient through it."""
