"""What testbed noted on a host before it changed it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Recorded", "records_of"]


@dataclass(frozen=True)
class Recorded:
    """What there was before one change.

    Attributes:
        item: What was changed.
        recorded: What there was: all that its undoing needs.
        unix_s: When, on the host's clock.
    """

    item: str
    recorded: Mapping[str, Any] = field(default_factory=dict)
    unix_s: float = 0.0


def records_of(lines: Iterable[str]) -> tuple[Recorded, ...]:
    """Return the entries of a host's record, oldest first. A line that was cut off stands for no change."""
    entries = []
    for line in lines:
        with suppress(ValueError, TypeError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("recorded"), dict) and "item" in entry:
                entries.append(Recorded(str(entry["item"]), entry["recorded"], float(entry.get("unix", 0.0))))
    return tuple(entries)
