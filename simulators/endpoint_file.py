"""Writes the endpoint file of a simulator process: whole or not at all, for its owner's eyes only, and removes it again.

What may stand in it is `drivers.hal.endpoints`. Not responsible for what is true of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from drivers.hal.endpoints import EndpointMap, load_endpoints
from drivers.hal.errors import ConfigError

HEAD = "# Written by a running simulator process, and removed when it ends. Everything in it is simulated.\n"


def write_endpoints(endpoints: EndpointMap, path: Path) -> None:
    """Write the file in one go, readable by its owner only: it holds the key of the backdoor. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 - of the handle
        file.write(endpoints_text(endpoints))
    fresh.replace(path)


def remove_if_ours(path: Path, token: str) -> None:
    """Remove the file, unless somebody else has written it meanwhile."""
    with contextlib.suppress(OSError, ConfigError):
        if load_endpoints(path).token == token:
            path.unlink()


def endpoints_text(endpoints: EndpointMap) -> str:
    """As TOML."""
    lines = [
        f"format = {endpoints.format}",
        f"facility = {_text(endpoints.facility)}",
        f"speed = {endpoints.speed!r}",
        f"backdoor = {_text(endpoints.backdoor)}",
        f"token = {_text(endpoints.token)}",
    ]
    if endpoints.interlock_buttons:
        lines += ["", "[interlock_buttons]"]
        lines += [f"{_text(room)} = {_text(path)}" for room, path in endpoints.interlock_buttons.items()]
    for name, device in endpoints.devices.items():
        lines += ["", f"[devices.{_text(name)}]", f"endpoint = {_text(device.endpoint)}"]
        lines.append(f"simulated = {str(device.simulated).lower()}")
        if device.identity:
            lines.append(f"identity = {_text(device.identity)}")
    return HEAD + "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A basic string of TOML: JSON's, which escapes the same and more."""
    return json.dumps(value).replace("\x7f", "\\u007f")
