"""The tests of the device code, under the Pythons of JetPack 5, 6 and 7.

They lie in ``tests/payloads``, are written for Python 3.8 and need nothing but pytest and Hypothesis. What
``scripts/setup.sh`` installs for them is in one folder, for all Pythons.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".cache" / "board-tests"


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.12"])
def test_the_device_codes_own_tests_pass(version, old_python):
    python = old_python(version)
    if not (PACKAGES / "pytest").is_dir():
        pytest.skip(f"there is no pytest for Python {version} here: scripts/test installs it in {PACKAGES}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # A short path: the tests make sockets in their folders.
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        done = subprocess.run(
            [
                *(python, "-m", "pytest", "tests/payloads", "-q", "-p", "no:cacheprovider"),
                *("-m", "not emulated and not unhurried", "--basetemp", f"{folder}/t"),
            ],
            cwd=ROOT,
            env={
                **environment,
                "PYTHONPATH": str(PACKAGES),
                "PYTHONPYCACHEPREFIX": str(PACKAGES / "bytecode"),
                "TESTBED_EXAMPLES": "10",
                "TESTBED_CONTROLLER_PYTHON": sys.executable,
            },
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-20_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, said
    assert int(passed[1]) > 400, said
