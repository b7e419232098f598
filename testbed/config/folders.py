"""Where testbed keeps what is the user's own, and what can be made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["built_models_folder", "cache_folder", "data_folder"]


def data_folder() -> Path:
    """Return the folder of what is kept for the user, ``$XDG_DATA_HOME/testbed``."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "testbed"


def cache_folder() -> Path:
    """Return the folder of what can be made again, ``$XDG_CACHE_HOME/testbed``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testbed"


def built_models_folder() -> Path:
    """Return the folder of models that are too large to come with testbed, and are built by its scripts."""
    return cache_folder() / "models"
