"""The shipped limits and overlays are signed by the shipped key. After a change of them: make sign-limits."""

import json
from pathlib import Path

import pytest

from interlocks.matrix import SHIPPED, LimitsError, load
from interlocks.overlay import overlay_of
from interlocks.signature import SHIPPED_KEY, verifier

AGAIN = "sign again: make sign-limits"
OVERLAYS = sorted(SHIPPED.with_name("limits.d").glob("*.toml"))


def test_the_shipped_limits_are_signed_by_two_people():
    try:
        limits = load(verify=verifier())
    except (LimitsError, ValueError) as error:
        pytest.fail(f"{error}\n{AGAIN}")
    block = json.loads(limits.signature)
    assert block["author"] != block["approver"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_each_shipped_overlay_is_signed_and_accepted(overlay):
    try:
        limits = load(verify=verifier(), overlay=overlay)
    except (LimitsError, ValueError) as error:
        pytest.fail(f"{error}\n{AGAIN}")
    assert limits.conversion
    assert overlay_of(overlay.stem) == overlay


def test_the_private_half_is_not_here():
    assert {"asan", "qst", "research"} <= {path.stem for path in OVERLAYS}
    assert SHIPPED_KEY.is_file()
    files = [path for path in Path(SHIPPED).parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert not [path.name for path in files if b"PRIVATE KEY" in path.read_bytes() or path.suffix in (".key", ".pem")]
