"""The probe's part about Python, torch and jtop, against small modules that stand in for theirs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.hosts.probes import python as probe

# As much of torch as the probe's computation needs; %s may spoil it.
TORCH = """
__version__ = "2.5.0"
float32 = None
class version:
    cuda = "12.6"
class cuda:
    @staticmethod
    def is_available():
        return %(there)s
    @staticmethod
    def get_device_capability():
        return 8, 7
class Tensor:
    def __init__(self, rows):
        self.rows = rows
    def __matmul__(self, other):
        %(spoil)s
        return Tensor([[sum(a * b for a, b in zip(r, c)) for c in zip(*other.rows)] for r in self.rows])
    def cpu(self):
        return self
    def tolist(self):
        return self.rows
def tensor(rows, dtype=None, device=None):
    assert device == ("cuda" if cuda.is_available() else "cpu")
    return Tensor(rows)
"""

JTOP = """
class JtopException(Exception):
    pass
class jtop:
    def start(self):
        %s
    def close(self):
        pass
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder from which the Python that is looked at imports first."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return folder


def look(site: Path, *, there: bool = True, spoil: str = "pass") -> dict[str, Any]:
    (site / "torch.py").write_text(TORCH % {"there": there, "spoil": spoil})
    return probe.environment(sys.executable, ["torch"])


def test_torch_is_asked_for_a_small_product(site: Path) -> None:
    found = look(site)
    assert (found["cuda"], found["capability"], found["torch_built"]) == ("12.6", "8.7", "12.6")
    assert (found["torch_right"], found["torch_error"]) == (True, None)


def test_torch_without_its_gpu_computes_on_the_processor(site: Path) -> None:
    found = look(site, there=False)
    assert (found["cuda"], found["torch_built"], found["torch_right"]) == (None, "12.6", True)


def test_a_wrong_product_and_a_failing_one_are_told_apart(site: Path) -> None:
    wrong = look(site, spoil="self.rows = [[0] * 32] * 32")
    assert (wrong["torch_right"], wrong["torch_error"]) == (False, None)
    failing = look(site, spoil="raise RuntimeError('no kernel image\\nfor this GPU')")
    assert (failing["torch_right"], failing["torch_error"]) == (False, "RuntimeError: no kernel image")
    # It can be imported all the same.
    assert failing["modules"] == {"torch": "2.5.0"}


def client(site: Path, socket: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> dict[str, Any]:
    about = site / "jetson_stats-7.2.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: jetson-stats\nVersion: 7.2.2\n")
    (site / "jtop.py").write_text(JTOP % start)
    monkeypatch.setattr(probe, "JTOP_SOCKET", str(socket))
    return probe.jtop_client(sys.executable)


def test_the_service_is_asked_whether_it_answers(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = tmp_path / "socket"
    socket.touch()
    found = client(site, socket, monkeypatch, "pass")
    assert (found["version"], found["own"], found["error"]) == ("7.2.2", False, None)
    known = found["fingerprint"]
    assert probe.jtop_client(sys.executable, known) == {"fingerprint": known, "unchanged": True}
    # A service that was started anew is asked anew.
    socket.unlink()
    assert "unchanged" not in probe.jtop_client(sys.executable, known)


def test_a_service_that_refuses_says_why(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = tmp_path / "socket"
    socket.touch()
    words = "Mismatch version jtop service: [7.1.4] and client: [7.2.2]. Please run:\\n\\nsudo"
    found = client(site, socket, monkeypatch, f'raise JtopException("{words}")')
    assert found["error"] == f"JtopException: {words.partition(chr(92))[0]}"


def test_without_a_service_nobody_is_asked(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = client(site, tmp_path / "none", monkeypatch, "raise AssertionError")
    assert (found["version"], found["error"]) == ("7.2.2", None)


def test_a_python_that_is_missing_has_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "jtop_service_version", lambda: "7.2.2")
    found = probe.jtop_client("/none/python")
    assert (found.get("version"), found["service_version"]) == (None, "7.2.2")


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("#!/usr/bin/python3\nimport sys\n", ["/usr/bin/python3"]),
        ("#! /opt/venv/bin/python3.10 -s\n", ["/opt/venv/bin/python3.10"]),
        ("#!/usr/bin/env python3\n", ["python3"]),
        ('#!/bin/sh\nexec /opt/testbed/python -m jtop "$@"\n', ["/opt/testbed/python"]),
        ("#!/bin/sh\necho no\n", None),
        ("", None),
    ],
)
def test_the_python_of_the_service_is_found_in_its_program(
    text: str, argv: list[str] | None, tmp_path: Path
) -> None:
    program = tmp_path / "jtop"
    program.write_text(text)
    assert probe.jtop_interpreter(str(program)) == argv
    assert probe.jtop_interpreter(str(tmp_path / "none")) is None


def test_the_interpreter_of_an_environment_says_what_it_is() -> None:
    found = probe.base_python(sys.executable)
    assert found["base_version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["ensurepip"] is True
    assert probe.base_python("/none/python3") == {}


def test_what_is_run_there_is_read_by_an_old_python_too() -> None:
    for text in (probe.CHECK, probe.CLIENT, probe.BASE, probe.SERVICE, probe.FINGERPRINT):
        ast.parse(text, feature_version=(3, 6))


def test_an_interpreter_is_not_started_while_all_its_files_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    starts = tmp_path / "starts"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho >>{starts}\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def started(known: str) -> tuple[bool, str]:
        starts.write_text("")
        seen = probe.seen_by(str(python), known)
        return bool(starts.read_text()), seen

    before, seen = started("")
    assert (before, started(seen)) == (True, (False, seen))
    (packages / "more.pth").write_text("")  # something was installed
    again, other = started(seen)
    assert again
    assert other != seen
    assert started(other) == (False, other)
    (packages / "more.pth").write_text("/srv\n")  # or written over, which its folder does not show
    assert started(other)[0]
    _, other = started("")
    monkeypatch.setenv("PYTHONPATH", "/srv")  # or the login is another one
    assert started(other)[0]
    _, other = started("")
    python.write_text(python.read_text() + "# another one\n")
    assert started(other)[0]
    assert probe.seen_by("/none/python", other) == ""
