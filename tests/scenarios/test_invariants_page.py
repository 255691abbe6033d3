"""The page of invariants says what the code judges."""

from __future__ import annotations

from simulators.invariants_table import PAGE, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m simulators.invariants_table"
