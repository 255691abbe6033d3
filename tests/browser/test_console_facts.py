"""What the page shows beside a question: a number that is to be accepted has its limit and its unit behind it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(60)]

FACTS = {
    "room": "G1",
    "residual": {"lateral_mm": 0.31, "vertical_mm": -0.4, "pitch_deg": 0.05},
    "residual_limit": {"lateral_mm": 1.0, "vertical_mm": 1.0, "pitch_deg": 1.0},
    "correction": {"lateral_mm": 3.2, "pitch_deg": 0.0},
    "correction_limit": {"lateral_mm": 20.0, "pitch_deg": 3.0},
    "gantry_deg": 30.0,
    "gantry_limit_deg": 0.2,
    "images": 2,
}


def test_a_figure_that_is_to_be_accepted_stands_beside_its_limit(modules: Page) -> None:
    pairs = dict(modules.evaluate("async (facts) => (await import('/page/words.js')).factsOf(facts)", FACTS))
    assert pairs == {
        "Remaining deviation": "0.40 mm, 0.05° (limit 1.00 mm, 1.00°)",
        "Correction up to": "3.20 mm, 0.00° (limit 20.00 mm, 3.00°)",
        "Gantry": "30° (limit 0.20°)",
        "Room": "G1",
        "Images": "2",
    }
