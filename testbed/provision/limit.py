"""When to stop: once more than so many of the hosts have failed, something is wrong with all of them."""

from __future__ import annotations

import threading

from testbed.errors import HostError

__all__ = ["FailLimit"]


class FailLimit:
    """Counts the hosts that failed, and says when no more work is to be begun. Safe to use from any thread.

    Args:
        hosts: How many hosts there are.
        percent: How many of a hundred may fail; at 100 all the others are always done.
    """

    def __init__(self, hosts: int, percent: float = 100.0) -> None:
        self._hosts = hosts
        self._percent = percent
        self._failed = 0
        self._lock = threading.Lock()

    def note(self, *, failed: bool) -> None:
        """Count a host that is done."""
        with self._lock:
            self._failed += failed

    @property
    def passed(self) -> bool:
        """Whether more have failed than may."""
        with self._lock:
            return 100 * self._failed > self._percent * self._hosts

    def check(self, host: str) -> None:
        """Raise where no more is to be begun on a host.

        Raises:
            HostError: More hosts have failed than may.
        """
        if self.passed:
            raise HostError(
                host,
                f"left as it is, since more than {self._percent:g} % of the hosts failed",
                hint="put the others right, or allow more by --fail-percent; then run it again",
            )
