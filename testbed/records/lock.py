"""One controller at a time writes a run's folder."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.errors import RefusedError
from testbed.records.manifest import LOCK_NAME, MANIFEST_NAME

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder against a second controller; a run that could not even begin leaves no folder.

    Raises:
        RefusedError: Another controller holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{folder.name} is being run by another testbed",
                hint="wait until it ends, or stop it with Ctrl-C",
            ) from None
        try:
            yield
        finally:
            if not (folder / MANIFEST_NAME).exists():
                shutil.rmtree(folder)
