"""One way to write values as bytes: the same values give the same bytes, in the journal, the ledger and the event file.

JSON with sorted keys and no spaces, UTF-8; numbers of numpy become plain numbers; what is not a finite number is refused in
durable records and written as null in views.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np

from drivers.hal.errors import DataError


def plain(value: Any) -> Any:
    """JSON-able form of one value that `json` does not know. Enum: its value; path: its text; set: sorted list."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


_STRICT = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=plain)


def canonical_bytes(value: Any) -> bytes:
    """Canonical JSON of a durable value. Raises DataError (5101) for NaN, infinity and what has no canonical form."""
    try:
        return _STRICT.encode(value).encode("utf-8")
    except (ValueError, TypeError) as error:
        raise DataError(f"cannot be recorded: {error}", code=5101, hint="this is a fault of the program") from error


def lenient_bytes(value: Any) -> bytes:
    """Canonical JSON for views: numbers that are not finite become null, unknown objects their repr."""
    try:
        return _STRICT.encode(value).encode("utf-8")
    except (ValueError, TypeError):
        return _STRICT.encode(_finite(value)).encode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_finite(item) for item in value]
    try:
        return plain(value)
    except TypeError:
        return repr(value)
