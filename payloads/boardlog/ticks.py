"""A steady beat, and files that lose nothing: what the loggers are made of."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Callable, Iterator

__all__ = ["Lines", "Stop", "next_tick", "ticks"]


class Stop:
    """Turns SIGTERM and SIGINT into something that a wait ends on."""

    def __init__(self) -> None:
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def wait(self, seconds: float) -> bool:
        """Wait for a while; return True as soon as the process was told to stop."""
        readable, _, _ = select.select([self._read_end], [], [], max(seconds, 0.0))
        return bool(readable)


def next_tick(tick: int, elapsed_ns: int, period_ns: int) -> int:
    """Return the number of the tick after ``tick``.

    Ticks are at multiples of the period, so that no delay adds up; those that are over are left out, so that
    no delay is followed by a burst.
    """
    return max(tick + 1, -(-elapsed_ns // period_ns))


def ticks(hz: float, stopped: Callable[[float], bool]) -> Iterator[None]:
    """Yield at a steady rate until ``stopped``, which waits for the seconds given, returns True."""
    period_ns = round(1e9 / hz)
    begun_ns, tick = time.monotonic_ns(), 0
    while not stopped((begun_ns + tick * period_ns - time.monotonic_ns()) / 1e9):
        yield
        tick = next_tick(tick, time.monotonic_ns() - begun_ns, period_ns)


class Lines:
    """A text file that grows by whole lines, written at once: nothing is lost when its writer is killed."""

    def __init__(self, path: Path, header: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._drop_unfinished_line()
        if os.fstat(self._descriptor).st_size == 0:
            self.write(header + "\n")

    def _drop_unfinished_line(self) -> None:
        """Cut off what an earlier writer left of a line when the disk was full or the power failed."""
        size = os.fstat(self._descriptor).st_size
        begin = max(0, size - 65536)
        tail = os.pread(self._descriptor, 65536, begin)
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._descriptor, begin + tail.rfind(b"\n") + 1)

    def write(self, text: str) -> None:
        """Append text."""
        block = text.encode()
        while block:
            block = block[os.write(self._descriptor, block) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
