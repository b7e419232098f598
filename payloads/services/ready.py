"""The word that a service gives when it serves."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["announce_ready"]


def announce_ready() -> None:
    """Make the ready file that ``start`` waits for; do nothing in a process that no supervisor started."""
    path = os.environ.get("TESTBED_READY")
    if path:
        Path(path).touch()
