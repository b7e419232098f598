"""Marks: what a process says it needs of the objects, for as long as it lives.

A mark is a file that its maker keeps locked. The kernel lets go of the lock whatever becomes of the process, so that a
mark is never in force longer than it should be.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Dict, Iterable, Iterator

__all__ = ["Mark", "guarded", "marked"]

_FOLDER = ".marks"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class Mark:
    """Keeps objects from being removed until it is closed, or this process ends. Keep it.

    Args:
        name: Who needs them, such as ``worker``.
        digests: The objects.
        objects: Their folder.
    """

    def __init__(self, name: str, digests: Iterable[str], objects: Path) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} names no mark: small letters, digits, - and _, at most 40")
        objects.mkdir(mode=0o700, parents=True, exist_ok=True)
        with guarded(objects) as folder:
            self._path = folder / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.json"
            self._file = open(self._path, "w")  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._file.write(json.dumps(sorted(set(digests))))
            self._file.flush()

    def close(self) -> None:
        """Need the objects no more."""
        if not self._file.closed:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            self._file.close()


@contextlib.contextmanager
def guarded(objects: Path) -> Iterator[Path]:
    """Keep others from making marks meanwhile; yields the folder of the marks."""
    folder = objects / _FOLDER
    if not objects.is_dir():
        yield folder  # there is nothing to need
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def marked(folder: Path) -> Dict[str, str]:
    """Return who needs which object, by digest; marks of processes that have ended are removed.

    Args:
        folder: The folder of the marks, :func:`guarded`.
    """
    needed: Dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                for digest in json.loads(file.read()):
                    needed.setdefault(digest, path.name.partition(".")[0])
            else:
                path.unlink()
    return needed
