"""A file that is there is whole: what is written for people gets its name when all of it is on the disk, or never.

For outputs after the beam. Not responsible for what must be durable before beam (`store`), whose writer names its own failures.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the name `path` when the block ends, and vanishes when the block fails.

    Raises:
        OSError: it cannot be made durable or renamed; nothing is left of it.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
