"""The command line starts at once: what it does not need for a command is not imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from controller.cli import main
try:
    main()
except SystemExit as done:
    print(json.dumps({"code": done.code or 0, "modules": sorted(sys.modules)}), file=sys.stderr)
"""
OURS = {"controller", "drivers", "interlocks", "simulators"}
# Each of these costs between 20 and 300 ms.
HEAVY = {
    *("aiomqtt", "cryptography", "epics", "google_crc32c", "jinja2", "matplotlib", "numpy", "pyarrow", "pydicom", "pymodbus"),
    *("amqtt", "httpx", "serial", "serial_asyncio_fast", "softioc", "starlette", "transitions", "uvicorn"),
}


def started(*arguments: str) -> set[str]:
    """Modules imported by a command that ends well."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["code"] == 0, done.stderr
    return set(told["modules"])


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("arguments", [("--help",), ("treat", "--help"), ("plan", "--help")])
def test_help_imports_nothing_heavy_and_nothing_of_ours_but_the_command_line(arguments):
    modules = started(*arguments)
    assert not packages(modules) & HEAVY
    ours = {module for module in modules if module.partition(".")[0] in OURS}
    assert not {module for module in ours - {"controller", "controller.early_end"} if not module.startswith("controller.cli")}


def test_checking_a_plan_needs_neither_a_plant_nor_what_writes_outputs(tmp_path):
    plan = str(tmp_path / "plan.dcm")
    started("plan", "--shape", "qa-grid", "-o", plan)
    modules = started("check", plan)
    assert not packages(modules) & {"interlocks", "jinja2", "matplotlib", "pyarrow", "simulators", "transitions"}
    assert not {module for module in modules if module.startswith(("drivers.devices", "drivers.wire"))}


def test_a_treatment_without_outputs_imports_nothing_that_writes_them(tmp_path):
    script = """
import sys
from pathlib import Path
from controller.admission import TreatOptions
from controller.treatment import run_treatment
result = run_treatment(TreatOptions(plan=Path(sys.argv[1])))
print(result.status, *{module.partition(".")[0] for module in sys.modules})
"""
    plan = str(tmp_path / "plan.dcm")
    started("plan", "--shape", "qa-grid", "-o", plan)
    done = subprocess.run([sys.executable, "-c", script, plan], capture_output=True, text=True, timeout=60, check=True)
    status, *loaded = done.stdout.split()
    assert status == "complete"
    assert not set(loaded) & {"aiomqtt", "epics", "jinja2", "matplotlib", "pyarrow", "pydicom", "pymodbus", "serial"}
