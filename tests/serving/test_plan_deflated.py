"""A deflated plan is refused before anything of it is unpacked."""

from __future__ import annotations

import zlib
from pathlib import Path

from controller.serving import plan_inspection

EXAMPLE = Path(__file__).parents[2] / "examples" / "carbon_sphere.dcm"


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    return b"\x02\x00" + number.to_bytes(2, "little") + vr + len(value).to_bytes(2, "little") + value


def _bomb(path: Path) -> Path:
    syntax = _element(0x10, b"UI", b"1.2.840.10008.1.2.1.99")
    meta = _element(0x00, b"UL", len(syntax).to_bytes(4, "little")) + syntax
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = packer.compress(bytes(4 * 1024 * 1024)) + packer.flush()
    path.write_bytes(bytes(128) + b"DICM" + meta + body)
    return path


def test_a_deflated_plan_is_refused_and_never_read(tmp_path, monkeypatch):
    def unread(_path):
        raise AssertionError("the plan was read")

    monkeypatch.setattr("controller.plan.reading.read_plan", unread)
    (reason,) = plan_inspection.inspect(_bomb(tmp_path / "plan.dcm"), "asan")["reasons"]
    assert "deflated" in reason
    assert "export it uncompressed" in reason


def test_a_plain_plan_is_not_taken_for_one():
    assert not plan_inspection.is_deflated(EXAMPLE)


def test_a_file_that_is_no_dicom_is_left_to_the_reader(tmp_path):
    short = tmp_path / "plan.rst"
    short.write_bytes(b"rstfile 20030630")
    assert not plan_inspection.is_deflated(short)
