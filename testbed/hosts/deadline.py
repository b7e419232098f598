"""One moment by which something must be done, passed down instead of timeouts that add up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Deadline"]


class Deadline:
    """A moment on the monotonic clock.

    Args:
        seconds: How far away it is; ``math.inf`` for never.
        clock: Gives the seconds of a monotonic clock.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    @property
    def remaining_s(self) -> float:
        """The seconds that are left, never below 0."""
        return max(0.0, self._end - self._clock())

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return self.remaining_s <= 0

    def __str__(self) -> str:
        """Return for people how far away it was."""
        return f"{self.seconds:.3g} s" if self.seconds < 1000 else f"{self.seconds:.0f} s"

    def timeout_s(self, at_most: float = math.inf) -> float:
        """Return a timeout for one wait: what is left, but no more than ``at_most``."""
        return min(self.remaining_s, at_most)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the time that the block takes not count: a wait for one's turn among others."""
        before = self._clock()
        try:
            yield
        finally:
            self._end += self._clock() - before

    def sooner(self, seconds: float) -> Deadline:
        """Return a deadline that far away, but no later than this one."""
        return Deadline(min(seconds, self.remaining_s), clock=self._clock)
