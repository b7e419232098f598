import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "pandas", "pyarrow", "plotly"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["inventory", "check", "inventory/emulated.yaml"],
        ["inventory", "show", "inventory/emulated.yaml"],
        ["emulate", "status"],
        ["doctor", "--help"],
        ["probe", "--help"],
        ["provision", "--help"],
        ["runs", "--help"],
        ["shape", "--help"],
    ],
)
def test_verbs_that_need_no_model_do_not_import_one(arguments):
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sorted(sys.modules), file=sys.stderr))\n"
        "from testbed.cli.main import run\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    loaded = done.stderr.rpartition("LOADED")[2].split()
    assert "testbed.cli.main" in loaded, done.stderr
    assert not HEAVY & set(loaded)
    assert done.returncode in (0, 1, 3), done.stderr  # 3: who is not root has no lab
