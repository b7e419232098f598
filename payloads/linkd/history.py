"""What happened since the links were set: every change of a rate, and samples of the counters."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Deque, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from payloads.linkd.links import Link

__all__ = ["MAX_ENTRIES", "Change", "History", "Sample"]

MAX_ENTRIES = 200_000
#: With many devices fewer entries are kept: at most this many numbers in the samples, and half of it in the changes.
_MAX_NUMBERS = 16_000_000
_MAX_WHY_CHARACTERS = 300
_PER_CHUNK = 500


class Change(NamedTuple):
    """A change of rates, or the moment at which something else happened to them.

    Attributes:
        unix_s: When the kernel had taken it.
        cause: ``set``, ``block``, ``allocate``, ``rerate`` or ``hold``.
        why: What the one who asked for it said, the beginning of it.
        downlink_mbit: The rate in force of each device after it; None where the direction is left alone.
        uplink_mbit: The same for the uplink.
    """

    unix_s: float
    cause: str
    why: Optional[str]
    downlink_mbit: Tuple[Optional[float], ...]
    uplink_mbit: Tuple[Optional[float], ...]


class Sample(NamedTuple):
    """The counters of all classes at one moment; None where there is no class.

    Attributes:
        unix_s: When they were read.
        downlink_bytes: Bytes of frames sent to each device since the classes were made.
        uplink_bytes: The same from each device.
        downlink_backlog_bytes: Bytes that wait.
        uplink_backlog_bytes: The same for the uplink.
    """

    unix_s: float
    downlink_bytes: Sequence[Optional[int]]
    uplink_bytes: Sequence[Optional[int]]
    downlink_backlog_bytes: Sequence[Optional[int]]
    uplink_backlog_bytes: Sequence[Optional[int]]


class History:
    """A log with a bound: the oldest entries go first, and are counted.

    Args:
        devices: The devices' names; all lists are in their order.
        most: How many changes, and how many samples, are kept; with many devices fewer.
    """

    def __init__(self, devices: Sequence[str], most: int = MAX_ENTRIES) -> None:
        self._devices = list(devices)
        most = min(most, _MAX_NUMBERS // (4 * max(1, len(self._devices))))
        self._changes: Deque[Change] = deque(maxlen=most)
        self._samples: Deque[Sample] = deque(maxlen=most)
        self._changed = 0
        self._sampled = 0
        self.about: Dict[str, Any] = {}

    def change(self, unix_s: float, cause: str, why: Optional[str], links: Sequence[Link]) -> Change:
        """Keep a change."""
        down = tuple([link.downlink_mbit for link in links])
        up = tuple([link.uplink_mbit for link in links])
        entry = Change(unix_s, cause, why[:_MAX_WHY_CHARACTERS] if why else why, down, up)
        self._changes.append(entry)
        self._changed += 1
        return entry

    def sample(self, entry: Sample) -> None:
        """Keep a sample."""
        self._samples.append(entry)
        self._sampled += 1

    def head(self) -> Dict[str, Any]:
        """Return all of the answer but its two lists."""
        lost = self._changed - len(self._changes), self._sampled - len(self._samples)
        return {"devices": self._devices, **self.about, "lost": lost[0], "lost_samples": lost[1]}

    def chunks(self, head: Dict[str, Any]) -> Iterator[bytes]:
        """Yield the answer as one line of JSON in pieces, so that nobody waits for all of a long one.

        What is in it is what there was when this was called.
        """
        lists: List[Tuple[str, List[Any]]] = [
            ("changes", list(self._changes)),
            ("samples", list(self._samples)),
        ]

        def pieces() -> Iterator[bytes]:
            yield json.dumps(head)[:-1].encode()
            for name, entries in lists:
                yield f', "{name}": ['.encode()
                for start in range(0, len(entries), _PER_CHUNK):
                    text = json.dumps(entries[start : start + _PER_CHUNK])[1:-1]
                    yield (text if not start else ", " + text).encode()
                yield b"]"
            yield b"}\n"

        return pieces()
