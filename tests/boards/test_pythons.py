"""The tests of the device code, under the Pythons of JetPack 5, 6 and 7.

They lie in ``tests/payloads``, are written for Python 3.8 and need nothing but pytest and Hypothesis. What
``scripts/setup.sh`` installs for them is in one folder, for all Pythons.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".cache" / "board-tests"
#: What a test of the device code may import beside it and the standard library.
HERE = {"hypothesis", "pyroute2", "pytest"}


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
                # Verbose, so that the last line names the test which ended the interpreter, should one do that.
                *(python, "-m", "pytest", "tests/payloads", "-v", "-p", "no:cacheprovider"),
                *("-p", "_hypothesis_pytestplugin"),
                *("-m", "not emulated and not unhurried", "--basetemp", f"{folder}/t"),
            ],
            cwd=ROOT,
            env={
                **environment,
                "PYTHONPATH": str(PACKAGES),
                # What else this interpreter has for pytest is of another version, and no part of this.
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONNOUSERSITE": "1",
                "PYTHONPYCACHEPREFIX": str(PACKAGES / "bytecode"),
                "TESTBED_EXAMPLES": "10",
                "TESTBED_CONTROLLER_PYTHON": sys.executable,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=3600,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-20_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, said
    assert int(passed[1]) > 400, said


@cache
def _imported(path):
    """What a file imports when it is imported itself: ``a.b`` and ``a.b.c`` of ``from a.b import c``."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@cache
def _file(module):
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _others(*paths):
    """What files need that is neither ours nor in the standard library, through all that they import."""
    found, seen, ahead = set(), set(), list(paths)
    while ahead:
        path = ahead.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _imported(path):
            top = module.split(".")[0]
            if top in ("payloads", "tests"):
                ahead += [_file(module)] if _file(module) else []
            elif top not in sys.stdlib_module_names:
                found.add(top)
    return found


def test_what_tests_the_device_code_alone_lies_where_it_is_run_under_all_pythons():
    """A test module elsewhere that imports payloads, and nothing that the older Pythons lack, is astray."""
    tests, astray = ROOT / "tests", []
    for path in sorted(tests.glob("**/test_*.py")):
        above = (folder / "conftest.py" for folder in path.parents if tests in folder.parents)
        needed = _others(path, *(file for file in above if file.is_file()))
        if tests / "payloads" in path.parents:
            assert needed <= HERE, f"{path} needs {needed - HERE}, which the Pythons of boards have not"
        elif needed <= HERE and any(module.startswith("payloads") for module in _imported(path)):
            astray.append(str(path.relative_to(ROOT)))
    assert astray == [], "these belong into tests/payloads"
