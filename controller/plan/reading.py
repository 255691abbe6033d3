"""The one door for plan files: reads the bytes once, tells the format, and hands over to its reader.

Not responsible for judging whether a plan can be delivered (`deliverability`).
"""

from __future__ import annotations

from pathlib import Path

from controller.plan.dicom import FILE_BYTES_MAX, read_dicom
from controller.plan.errors import PlanRefused, Refusal, Why
from controller.plan.model import Plan
from controller.plan.rst import looks_like_rst, read_rst


def read_plan(path: str | Path) -> Plan:
    """Read a plan: DICOM RT Ion Plan, or GSI raster scan file (`.rst`).

    Args:
        path: the file.

    Returns:
        The plan, with `kind` telling the format, checked for integrity.

    Raises:
        PlanRefused: with every reason at once.
    """
    file = Path(path)
    try:
        if not file.is_file():
            what = "the plan is a directory" if file.is_dir() else "there is no such plan file"
            raise PlanRefused([Refusal(Why.UNREADABLE, what, value=str(file))], source=file.name)
        size = file.stat().st_size
        if size > FILE_BYTES_MAX:
            raise PlanRefused(
                [Refusal(Why.TOO_LARGE, "the file is too large", value=f"{size} bytes", limit=f"{FILE_BYTES_MAX} bytes")],
                source=file.name,
            )
        data = file.read_bytes()
    except OSError as error:
        raise PlanRefused([Refusal(Why.UNREADABLE, "the file cannot be read", value=str(error))], source=file.name) from None
    return read_rst(file, data) if looks_like_rst(data) else read_dicom(file, data)
