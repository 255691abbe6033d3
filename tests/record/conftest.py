"""What the record's tests share: a small journalled beam, and the directory of the witnesses on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
