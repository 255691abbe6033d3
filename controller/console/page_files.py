"""The files of the page: read from one directory, served by exact names, with an ETag each.

What is not in the directory's own list does not exist, so no path leads out of it. Not responsible for what they show.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is on the disk."""

    content: bytes
    type: str
    etag: str
    stamp: tuple[int, int]


class PageFiles:
    """All files of the page."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, PageFile] = {}

    def get(self, name: str) -> PageFile | None:
        """A file by its path below the directory, for example ``room.js``; read again when it was changed."""
        path = self._listed().get(name)
        if path is None:
            return None
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._files.get(name)
            if known is None or known.stamp != stamp:
                content = path.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
                known = self._files[name] = PageFile(content, TYPES[path.suffix], etag, stamp)
        except OSError:
            return None
        return known

    def _listed(self) -> dict[str, Path]:
        return {
            path.relative_to(self._directory).as_posix(): path
            for path in self._directory.rglob("*")
            if path.suffix in TYPES and path.is_file() and not path.is_symlink()
        }
