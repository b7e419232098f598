"""What of a split is done: a small file that vouches for itself, so that a split that was cut off goes on.

The first line says what is split and how; each other line names an object that lies on the disk. A line begins with a
checksum over itself and the one before, so that a line that was torn, or is of another journal, ends what is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Made", "ShardJournal", "read_journal"]

CHECK_DIGITS = 16
#: The longest that a line waits to be forced to the disk; only a power cut could lose it.
FORCED_EVERY_S = 1.0


@dataclass(frozen=True)
class Made:
    """An object that lies on the disk.

    Attributes:
        object: Its sha256.
        bytes: Its size.
        mtime_ns: When its file was last changed: with the size, what tells that nobody touched it since.
    """

    object: str
    bytes: int
    mtime_ns: int


def read_journal(path: Path) -> tuple[dict[str, Any] | None, dict[str, Made]]:
    """Return a journal's first line and its objects by name, up to the first line that cannot be believed."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return None, {}
    head: dict[str, Any] | None = None
    made: dict[str, Made] = {}
    check = ""
    for line in lines[:-1]:  # what stands behind the last end of a line is torn, or nothing
        given, _, body = line.partition(b" ")
        check = _check(check, body)
        if given.decode("ascii", "replace") != check:
            break
        try:
            value = json.loads(body)
            if head is None:
                head = dict(value)
            else:
                name = str(value.pop("name"))
                made[name] = Made(**value)
        except (ValueError, TypeError, KeyError, AttributeError):
            break
    return head, made


class ShardJournal:
    """A journal that is written.

    Args:
        path: The file; it is made anew, with what is still true.
        head: What is split and how.
        made: What is done already.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], made: Mapping[str, Made]) -> None:
        self._check = ""
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            file.write(self._line(dict(head)))
            for name, entry in made.items():
                file.write(self._line({"name": name, **asdict(entry)}))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self._file = path.open("ab", buffering=0)
        self._forced_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Force what is written to the disk, and write no more."""
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, name: str, made: Made) -> None:
        """Write that an object is done; its bytes must be on the disk already."""
        self._file.write(self._line({"name": name, **asdict(made)}))
        now = time.monotonic()
        if now - self._forced_s > FORCED_EVERY_S:
            os.fsync(self._file.fileno())
            self._forced_s = now

    def _line(self, value: Mapping[str, Any]) -> bytes:
        body = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
        self._check = _check(self._check, body)
        return self._check.encode() + b" " + body + b"\n"


def _check(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:CHECK_DIGITS]
