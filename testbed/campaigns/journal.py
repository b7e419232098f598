"""The journal of a run: every step, written before it begins and after it ended.

One JSON object a line, appended and flushed to disk, so that whatever ends the controller leaves a true account.
Read as it stands by people, and by a resumed run to know how often it was started.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.hosts.steps import Step

__all__ = ["Entry", "Journal", "is_collected", "read_journal"]


@dataclass(frozen=True)
class Entry:
    """One line of a journal.

    Attributes:
        session: How often the run had been started when this was written, from 1.
        number: The step's place in that session's plan, from 0.
        phase: The phase's name.
        state: ``begin``, ``end`` or ``failed``.
        line: The step as the dry run prints it.
        t_unix_s: When, on the controller's clock.
        detail: What went wrong, for ``failed``.
    """

    session: int
    number: int
    phase: str
    state: str
    line: str
    t_unix_s: float
    detail: str = ""


class Journal:
    """Appends to a run's journal; safe to use from several threads."""

    def __init__(self, path: Path, session: int) -> None:
        self._lock = threading.Lock()
        self._session = session
        self._file = path.open("a", encoding="utf-8")

    def write(self, number: int, phase: str, state: str, step: Step, detail: str = "") -> None:
        """Append one entry and see it onto the disk."""
        entry: dict[str, Any] = {
            "session": self._session,
            "number": number,
            "phase": phase,
            "state": state,
            "line": step.line(),
            "t_unix_s": round(time.time(), 6),
        }
        if detail:
            entry["detail"] = detail
        with self._lock:
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> list[Entry]:
    """Return a journal's entries; a last line that a crash cut off is passed over."""
    entries: list[Entry] = []
    if not path.exists():
        return entries
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(Entry(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return entries


def is_collected(entries: Sequence[Entry], hosts: Collection[str]) -> bool:
    """Return whether the logs of some hosts were fetched since the last trial that ran on them, if any did.

    Args:
        entries: The journal.
        hosts: The hosts that log.
    """
    trials = [place for place, entry in enumerate(entries) if entry.phase.startswith("trial ")]
    if not trials:
        return True
    since: dict[int, dict[str, set[str]]] = {}
    for entry in entries[trials[-1] + 1 :]:
        if entry.phase == "collect":
            since.setdefault(entry.session, {}).setdefault(entry.state, set()).add(entry.line)
    return any(
        states.get("begin") == (ended := states.get("end", set()))
        and set(hosts) <= {line.partition(":")[0] for line in ended}
        for states in since.values()
    )
