"""The stand-in room and the console in front of it belong to the console's own tests; terminals are tried against them, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "console"))
