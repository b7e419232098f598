"""How many hosts are connected to at the same time, without waiting for those that do not answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed.hosts.deadline import Deadline

__all__ = ["Gate"]


class Gate:
    """Lets so many in at a time. Who stays long keeps nobody out: after a while his place is another's too.

    A key exchange costs our processor some ten milliseconds, and a host on the way may take few logins at once
    (``MaxStartups``); a host that is dead costs nothing but time.

    Args:
        places: How many may be inside.
        patience_s: After how many seconds one who is inside counts no longer.
        clock: Gives the seconds of a monotonic clock.
    """

    def __init__(
        self, places: int, patience_s: float = 1.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._places = places
        self._patience_s = patience_s
        self._clock = clock
        self._inside: dict[object, float] = {}
        self._changed = threading.Condition()

    @contextmanager
    def place(self, deadline: Deadline) -> Iterator[None]:
        """Wait for a place, by the deadline at most, and keep it while the block runs."""
        me = object()
        with self._changed:
            while not deadline.passed and (wait_s := self._wait_s()) > 0:
                self._changed.wait(deadline.timeout_s(wait_s))
            self._inside[me] = self._clock()
        try:
            yield
        finally:
            with self._changed:
                del self._inside[me]
                self._changed.notify()

    def _wait_s(self) -> float:
        """Return for how long there is no place, if nobody leaves; 0 where there is one."""
        oldest_allowed = self._clock() - self._patience_s
        young = sorted(since for since in self._inside.values() if since > oldest_allowed)
        if len(young) < self._places:
            return 0.0
        # When as many have grown old that one place is free. A hair more, or the wait ends just before.
        return math.nextafter(young[len(young) - self._places] - oldest_allowed, math.inf)
