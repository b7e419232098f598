"""The log of a service: what it wrote, and what happened to it; bounded, since boards have small disks."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = [
    "LOG_BYTES",
    "failure",
    "last_end",
    "last_words",
    "line_of",
    "note",
    "note_start",
    "open_log",
    "rotate",
    "tail",
]

LOG_BYTES = 4 << 20
_MARK = "[services] "
_START_MARK = "[services] ---- "
_LINE_LENGTH = 300


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


def last_end(folder: Path, *, again: bool) -> tuple[str, str]:
    """Return how the service ended last, and the last line that it wrote before; empty strings where there is none.

    Args:
        folder: The service's folder.
        again: Whether it has been started again since then: the start before the last one counts.
    """
    rows = _rows(folder)
    starts = [index for index, row in enumerate(rows) if row.startswith(_START_MARK)]
    if again and starts:
        rows, starts = rows[: starts[-1]], starts[:-1]
    since = rows[starts[-1] + 1 :] if starts else rows
    marks = [row for row in since if row.startswith(_MARK)]
    # A mark of ours: the time, the state that it came to, and why.
    reason = marks[-1].partition(": ")[2] if marks else ""
    return reason, line_of("\n".join(row for row in since if not row.startswith(_MARK)))


def line_of(words: str) -> str:
    """Return the last line of some words that says something, cut where it is very long."""
    said = [line.strip() for line in words.splitlines() if line.strip()]
    line = said[-1] if said else ""
    return line if len(line) <= _LINE_LENGTH else line[:_LINE_LENGTH] + "..."


def failure(name: str, reason: str, words: str) -> str:
    """Return what is said of a service that did not start.

    The last line holds all that matters, for those who show one line only.

    Args:
        name: The service's name.
        reason: What became of it.
        words: Its last lines.
    """
    line = line_of(words)
    if not line:
        return f"{name}: {reason}; it wrote nothing"
    above = f"the last words of {name}:\n{words}\n" if words.strip() != line else ""
    return f"{above}{name}: {reason}: {line}"


def _rows(folder: Path) -> list[str]:
    text = ""
    for name in ("log.1", "log"):
        try:
            text += (folder / name).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            continue
    return text.splitlines()
