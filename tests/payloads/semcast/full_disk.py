"""A disk that is full."""

from __future__ import annotations

import os
from pathlib import Path

from payloads.semcast.kept import Keeper


class FullKeeper(Keeper):
    """A keeper of images on a disk that is full."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        assert self._file is not None
        self._file.close()
        self._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")
