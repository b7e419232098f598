"""Begins the probe: what its other parts use."""

import os
import subprocess
from typing import List, Optional


def read(path: str) -> Optional[str]:
    """Return the text of a file, or None where it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None


def output(argv: List[str], timeout_s: float = 10) -> Optional[str]:
    """Return what a program prints, or None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def number_in(folder: str, *names: str) -> Optional[int]:
    """Return the number in the first of some files that holds one."""
    texts = [str(read(os.path.join(folder, name))) for name in names]
    return next((int(text) for text in texts if text.isdigit()), None)
