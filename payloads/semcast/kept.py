"""The images that a receiver keeps: one file for each trial, there when the trial is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Iterator, Optional

__all__ = ["PIXELS_FILE", "KeepError", "Keeper"]

PIXELS_FILE = "pixels.bin"
FILE_MODE, FOLDER_MODE = 0o600, 0o700


class KeepError(Exception):
    """Images cannot be written."""


class Keeper:
    """Writes a trial's images, uint8 rows of pixels of three colours, one image behind the other.

    Until :meth:`keep` all is in a folder beside the one that the trial will have.

    Args:
        folder: The trial's folder.

    Raises:
        KeepError: Nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".part")
        self._file: Optional[BinaryIO] = None
        with self._writing():
            self._drop()
            self._partial.mkdir(parents=True, mode=FOLDER_MODE)
            # mkdir's mode is subject to the umask and to what was there; what images show may be private.
            self._partial.chmod(FOLDER_MODE)
            descriptor = os.open(self._partial / PIXELS_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
            self._file = os.fdopen(descriptor, "wb")

    def add(self, pixels: bytes) -> None:
        """Write an image.

        Raises:
            KeepError: There is no room for it.
        """
        assert self._file is not None
        with self._writing():
            self._file.write(pixels)

    def keep(self) -> None:
        """Let the trial's folder appear; an older one of the same name goes.

        Raises:
            KeepError: There is no room for it.
        """
        assert self._file is not None
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._partial.rename(self._folder)

    def close(self) -> None:
        """Drop what is not kept."""
        # A full disk has no room for the last bytes either, and is why the others have to go.
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None
        with contextlib.suppress(OSError):
            self._drop()

    def _drop(self) -> None:
        if self._partial.exists():
            shutil.rmtree(self._partial)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KeepError(f"cannot keep images in {self._folder}: {error.strerror or error}") from error
