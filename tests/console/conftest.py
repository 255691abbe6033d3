"""Fixtures of the console's tests."""

from __future__ import annotations

import pytest
from console_site import console_site


@pytest.fixture
async def site(tmp_path):
    """A console in front of one stand-in room."""
    async with console_site(tmp_path) as made:
        yield made
