"""A counter of the time spent busy, in a file that any other process may read."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Optional

__all__ = ["BusyCounter", "wait_until"]

STEP_NS = 20_000_000
#: The end of a wait is spent looking at the clock: a sleep wakes up to 0.1 ms late.
SPIN_NS = 120_000


class BusyCounter:
    """Eight bytes, little-endian, unsigned: nanoseconds spent busy. They only ever grow.

    Attributes:
        path: The file. It goes on from the value that it holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.truncate(8)
            self._map = mmap.mmap(file.fileno(), 8)
        # One aligned 8-byte store: a reader never sees half of a value.
        self._cell = memoryview(self._map).cast("Q")

    def add(self, nanoseconds: int) -> None:
        """Count so many nanoseconds."""
        self._cell[0] += nanoseconds

    def value(self) -> int:
        """Return the counter."""
        return int(self._cell[0])


def wait_until(end_ns: int, busy: Optional[BusyCounter]) -> None:
    """Wait until a time of the monotonic clock, and count the wait in small steps as it passes."""
    now_ns = time.monotonic_ns()
    while now_ns < end_ns:
        begun_ns = now_ns
        sleep_ns = min(end_ns - now_ns - SPIN_NS, STEP_NS)
        if sleep_ns > 0:
            time.sleep(sleep_ns / 1e9)
            now_ns = time.monotonic_ns()
        else:
            while now_ns < end_ns:
                now_ns = time.monotonic_ns()
        if busy is not None:
            busy.add(now_ns - begun_ns)
