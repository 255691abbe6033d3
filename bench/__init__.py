"""Measures of the program, each a module of its own; `python -m bench` runs them (`make bench`). See docs/measures.md."""
