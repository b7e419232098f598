"""The Python of each JetPack, where this machine has it.

An emulated board's ``/usr/bin/python3`` is of the version that the board's JetPack comes with, as long as
this machine has such an interpreter: one of its packages, one of pyenv, or one of uv. Where it has none, the
board keeps this machine's own, and ``testbed emulate status`` says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["BOARD_PYTHON_FOLDER", "Interpreter", "find_python"]

BOARD_PYTHON_FOLDER = "/opt"
"""Where a board has an interpreter that is not one of this machine's packages."""
_ASK = "import sys; print(sys.base_prefix); print('.'.join(map(str, sys.version_info[:3])))"
_SYSTEM = ("/usr", "/usr/local")


@dataclass(frozen=True)
class Interpreter:
    """An interpreter of this machine.

    Attributes:
        version: Its whole version, such as ``3.10.13``.
        prefix: The folder that it is installed in.
        program: Its program below that folder, such as ``bin/python3.10``.
    """

    version: str
    prefix: str
    program: str

    @property
    def on_board(self) -> str:
        """Return the folder that a board has it in."""
        if self.prefix in _SYSTEM:
            return self.prefix
        short = ".".join(self.version.split(".")[:2])
        return f"{BOARD_PYTHON_FOLDER}/python{short}"


def _candidates(short: str, home: Path) -> Iterator[Path]:
    for system in ("/usr/bin", "/usr/local/bin"):
        yield Path(system) / f"python{short}"
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    uv = home / ".local/share/uv/python"
    for folder, pattern in ((pyenv, f"versions/{short}.*"), (uv, f"cpython-{short}.*")):
        try:
            found = sorted(folder.glob(pattern), reverse=True)
        except OSError:
            continue  # this user may not look there
        for one in found:
            yield one / "bin" / f"python{short}"
    on_path = shutil.which(f"python{short}")
    if on_path is not None:
        yield Path(on_path)


@cache
def find_python(short: str) -> Interpreter | None:
    """Return this machine's interpreter of a version, or None where it has none that works.

    Args:
        short: Major and minor version, such as ``3.10``.
    """
    for path in _candidates(short, Path.home()):
        try:
            done = subprocess.run(
                [path, "-I", "-S", "-c", _ASK], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.SubprocessError):
            continue  # one that is not there, cannot be run, or hangs
        lines = done.stdout.split()
        if done.returncode == 0 and len(lines) == 2 and lines[1].startswith(f"{short}."):
            return Interpreter(lines[1], lines[0], f"bin/python{short}")
    return None
