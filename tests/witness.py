"""Foreign judges: system programs, and of the DICOM files highdicom's offline tables of the standard and dicom3tools' dciodvfy.

`missing_attributes` checks Type 1 (present and not empty) and Type 2 (present) of every mandatory module and of every optional
module of which something is there, nested sequences included. Conditions of Type 1C and 2C are beyond these tables.
"""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pydicom.dataset import Dataset


def system_program(name: str, package: str) -> str:
    """Path of a program; the test is skipped where it is not installed, and fails in continuous integration."""
    program = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if program is None:
        message = f"{name} (Debian package {package}) is not installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return program


@functools.cache
def _tables():
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")
    directory = Path(highdicom.__file__).parent / "_standard"
    names = ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    return tuple(json.loads((directory / f"{name}.json").read_text(encoding="utf-8")) for name in names)


def missing_attributes(dataset: Dataset, *, modules: tuple[str, ...] = ()) -> list[str]:
    """Every Type 1 or 2 attribute that is missing or empty, as `module: Sequence[0].Keyword (type)`.

    `modules` adds conditional or optional modules that must be there.
    """
    iods, iod_modules, attributes = _tables()
    faults = []
    for module in iod_modules[iods[dataset.SOPClassUID]]:
        key = module["key"]
        rows = attributes[key]
        top = {row["keyword"] for row in rows if not row["path"]}
        used = module["usage"] == "M" or key in modules or (module["usage"] == "C" and any(k in dataset for k in top))
        if not used and not any(row["type"] == "1" and not row["path"] and row["keyword"] in dataset for row in rows):
            continue
        for row in rows:
            if row["type"] not in ("1", "2"):
                continue
            for where, item in _items(dataset, row["path"], ""):
                keyword = row["keyword"]
                if keyword not in item:
                    faults.append(f"{key}: {where}{keyword} is missing (type {row['type']})")
                elif row["type"] == "1" and _empty(item, keyword):
                    faults.append(f"{key}: {where}{keyword} is empty (type 1)")
    return faults


def _items(dataset, path, where):
    if not path:
        yield where, dataset
        return
    for number, item in enumerate(dataset.get(path[0]) or []):
        yield from _items(item, path[1:], f"{where}{path[0]}[{number}].")


def _empty(item, keyword):
    element = item[keyword]
    return len(element.value) == 0 if element.VR == "SQ" else element.is_empty


def dciodvfy_errors(path: Path) -> list[str]:
    """Lines of dciodvfy that say Error."""
    program = system_program("dciodvfy", "dicom3tools")
    result = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    assert any("RTIonBeamsTreatmentRecord" in line or "RTIonPlan" in line for line in lines), "\n".join(lines)
    return [line for line in lines if line.startswith("Error")]
