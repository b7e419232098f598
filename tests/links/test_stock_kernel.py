"""What this machine's kernel may lack, tried for real: linkd under Debian's stock kernel as user-mode Linux.

A process takes long to start there, so only what cannot be tried elsewhere is run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.emulated

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/stock_kernel"
#: The roots that a stock Debian's interfaces have, and what it can shape with.
DEPEND_ON_THE_KERNEL = (
    "test_emulated_restore.py::test_sigterm_restores[an fq_codel]",
    "test_emulated_restore.py::test_sigterm_restores[an fq]",
    "test_emulated_session.py::test_capabilities_are_found_and_nothing_is_left",
)
PYTHONS_OWN = {"PYTHONUNBUFFERED": "", "PYTHONDONTWRITEBYTECODE": "1"}


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("stock_kernel", SCRIPT.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def _stock_kernel() -> None:
    if reason := _module().missing():
        pytest.skip(reason)


def stock_kernel(*words: str, limit_s: float = 120) -> subprocess.CompletedProcess[str]:
    # The script has its own limit; this one only guards the tests against the script.
    return subprocess.run(
        [str(SCRIPT), "--timeout", str(limit_s), *words],
        env={**os.environ, **PYTHONS_OWN, "TESTBED_VENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=limit_s + 60,
    )


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def test_a_command_runs_as_root_under_another_kernel() -> None:
    done = stock_kernel("sh", "-c", "uname -r; id -u; pwd; echo two >&2; exit 7")
    assert done.returncode == 7, _said(done)
    release, user, folder = done.stdout.splitlines()
    assert release != os.uname().release
    assert (user, folder, done.stderr) == ("0", str(ROOT), "two\n")


def test_what_is_written_stays_only_where_it_was_asked_for(tmp_path: Path) -> None:
    kept, lost = tmp_path / "kept", ROOT / "written-under-the-stock-kernel"
    kept.mkdir()
    done = stock_kernel(
        "--keep", str(kept), "sh", "-c", f"echo a >{kept}/file && echo b >{lost} && cat {lost}"
    )
    assert (done.returncode, done.stdout) == (0, "b\n"), _said(done)
    assert (kept / "file").read_text() == "a\n"
    assert not lost.exists()


def test_a_command_that_does_not_end_is_ended() -> None:
    before = _kernels()
    done = stock_kernel("sleep", "1000", limit_s=5)
    assert done.returncode == 124, _said(done)
    assert "was stopped" in done.stderr
    left = _kernels() - before
    # Another run of these tests on this machine may have begun one meanwhile, which ends by itself.
    deadline = time.monotonic() + 600
    while left & _kernels():
        assert time.monotonic() < deadline, "a process of the kernel lives on"
        time.sleep(0.05)


def test_a_command_that_is_not_there() -> None:
    done = stock_kernel("no-such-command")
    assert (done.returncode, done.stderr) == (127, "==> no-such-command: No such file or directory\n")


def _every_test_passes(*tests: str) -> None:
    """Nothing is missing under the stock kernel that could skip one."""
    names = [f"tests/payloads/linkd/{test}" for test in tests]
    done = stock_kernel("python", "-m", "pytest", "-p", "no:cacheprovider", *names, limit_s=400)
    assert done.returncode == 0, _said(done)
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, _said(done)


@pytest.mark.alone
def test_the_netem_leaf() -> None:
    _every_test_passes("test_netem_leaf.py")


def test_restoring_and_capabilities() -> None:
    _every_test_passes(*DEPEND_ON_THE_KERNEL)


def _kernels() -> set[str]:
    """The processes of stock kernels that are alive."""
    alive = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if "(linux.uml)" in text and text.rpartition(")")[2].split()[0] != "Z":
            alive.add(status.parent.name)
    return alive
