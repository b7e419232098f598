"""The log of a service: what it wrote, and what happened to it; bounded, since boards have small disks."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["LOG_BYTES", "last_words", "note", "note_start", "open_log", "rotate", "tail"]

LOG_BYTES = 4 << 20
_MARK = "[services] "
_START_MARK = "[services] ---- "


def open_log(folder: Path) -> int:
    """Return a descriptor that appends to the service's log."""
    return os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def note(folder: Path, text: str) -> None:
    """Write a line of our own to the service's log."""
    _write(folder, _MARK, text)


def note_start(folder: Path, text: str) -> None:
    """Write the line after which the log of one more start begins."""
    _write(folder, _START_MARK, text)


def _write(folder: Path, mark: str, text: str) -> None:
    log = open_log(folder)
    try:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        os.write(log, f"{mark}{stamp} {text}\n".encode())
    finally:
        os.close(log)


def rotate(folder: Path, limit_bytes: int = LOG_BYTES) -> None:
    """Keep the log under ``limit_bytes``: the newest half goes to ``log.1`` and the log starts again.

    The service keeps its descriptor, so the file is cut and not replaced; what is written between the copy
    and the cut is lost.
    """
    path = folder / "log"
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    if size <= limit_bytes:
        return
    part = folder / ".log.1.part"
    with open(path, "r+b") as log:
        log.seek(size - limit_bytes // 2)
        with open(part, "wb") as kept:
            left = limit_bytes // 2
            while left > 0:
                block = log.read(min(1 << 16, left))
                if not block:
                    break
                kept.write(block)
                left -= len(block)
        part.replace(folder / "log.1")
        log.truncate(0)


def tail(folder: Path, lines: int) -> str:
    """Return the last lines of the log, or all that is kept for 0."""
    rows = _rows(folder)
    return "\n".join(rows[-lines:] if lines else rows)


def last_words(folder: Path, lines: int = 15) -> str:
    """Return the last lines that the service itself wrote since it was last started."""
    rows = _rows(folder)
    starts = [index for index, row in enumerate(rows) if row.startswith(_START_MARK)]
    since = rows[starts[-1] + 1 :] if starts else rows
    return "\n".join([row for row in since if not row.startswith(_MARK)][-lines:])


def _rows(folder: Path) -> list[str]:
    text = ""
    for name in ("log.1", "log"):
        try:
            text += (folder / name).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            continue
    return text.splitlines()
