"""All of the device code, under whichever Python runs these tests: the project's, or that of a board."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IMPORT = """
import importlib.abc, importlib.machinery, sys
from pathlib import Path
from unittest.mock import MagicMock

class Elsewhere(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("numpy", "torch", "transformers", "huggingface_hub"):
            return None
        if sys.argv[1] == "none":
            raise ImportError(name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return MagicMock()
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Elsewhere())
done = 0
for top in sys.argv[2:]:
    found = sorted(Path(top).glob("**/*.py")) if Path(top).is_dir() else [Path(top)]
    assert found, top
    for path in found:
        parts = path.with_suffix("").parts
        if parts[-1] != "__main__":
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        else:
            compile(path.read_text(), str(path), "exec")
        done += 1
print(done)
"""

#: What runs on a board, or at the base station before a model is there, without torch and without numpy.
PLAIN = [
    *("payloads/artifacts", "payloads/board", "payloads/boardlog", "payloads/linkd", "payloads/services"),
    *("payloads/wire", "payloads/wdmoe/serve", "payloads/wdmoe/allocation/bandwidth.py"),
    *(
        f"payloads/{name}.py"
        for name in ("metrics", "metrics_http", "tensors", "station/bsctl", "station/control")
    ),
    *(f"payloads/wdmoe/{name}.py" for name in ("families/__init__", "gating", "pace", "latency", "bs/spec")),
    *(
        f"payloads/semcast/{name}.py"
        for name in ("about", "kept", "messages", "multicast", "receivers", "spec")
    ),
]


@pytest.mark.parametrize(("others", "what"), [("none", PLAIN), ("stand-ins", ["payloads"])])
def test_every_module_is_imported(others: str, what: list) -> None:
    """Stand-ins for what a board may lack show whether this Python understands the rest of a module."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT, others, *what],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(what)


def test_the_worker_says_how_it_is_started() -> None:
    """It needs torch for its work, and not for its usage."""
    script = (
        "import sys; from unittest.mock import MagicMock; sys.modules['torch'] = MagicMock(); "
        "from payloads.wdmoe.worker import expert_worker; expert_worker.main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--listen" in done.stdout
