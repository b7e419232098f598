"""How a payload tells its supervisor that it serves."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["announce_ready"]


def announce_ready() -> None:
    """Create the file that ``TESTBED_READY`` names; do nothing where it is not set."""
    path = os.environ.get("TESTBED_READY")
    if path:
        Path(path).write_text(f"{os.getpid()}\n")
