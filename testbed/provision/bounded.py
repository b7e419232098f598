"""The way to one host by a deadline: no step outlasts it, and none begins after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from testbed.config.inventory import Host
from testbed.errors import DeadlineError
from testbed.hosts.deadline import Deadline
from testbed.hosts.fleet import Fleet
from testbed.hosts.steps import Command, Completed, Fetch, Put
from testbed.hosts.transport import OnLine, Stream

__all__ = ["Bounded"]

S = TypeVar("S", Command, Put, Fetch)
R = TypeVar("R")


class Bounded:
    """A transport over a host's connection of the moment, whatever becomes of that in between.

    Args:
        fleet: The hosts' connections.
        host: The host.
        deadline: When all must be done.
    """

    def __init__(self, fleet: Fleet, host: Host, deadline: Deadline) -> None:
        self.deadline = deadline
        self._fleet = fleet
        self._host = host

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Completed:
        """Run a command, see :meth:`Transport.run`."""
        transport = self._fleet.transport(self._host.name)
        return self._by(command, lambda step: transport.run(step, on_line=on_line))

    def put(self, put: Put) -> None:
        """Write one file, see :meth:`Transport.put`."""
        self._by(put, self._fleet.transport(self._host.name).put)

    def fetch(self, fetch: Fetch) -> None:
        """Copy from the host, see :meth:`Transport.fetch`."""
        self._by(fetch, self._fleet.transport(self._host.name).fetch)

    def stream(self, command: Command) -> Stream:
        """Start a command that goes on running, see :meth:`Transport.stream`."""
        return self._by(command, self._fleet.transport(self._host.name).stream)

    def close(self) -> None:
        """Do nothing: the connection is the fleet's."""

    def check(self, title: str) -> None:
        """Raise where the deadline has passed.

        Args:
            title: What would have been next.

        Raises:
            DeadlineError: It has.
        """
        if self.deadline.passed:
            raise self._late(f"next would have been: {title}")

    def _by(self, step: S, action: Callable[[S], R]) -> R:
        self.check(step.title)
        try:
            return action(replace(step, timeout_s=self.deadline.timeout_s(step.timeout_s)))
        except DeadlineError as error:
            if self.deadline.passed:
                raise self._late(f"it was at: {step.title}") from error
            raise

    def _late(self, where: str) -> DeadlineError:
        text = f"not done within {self.deadline}; {where}"
        return DeadlineError(self._host.name, text, hint="allow more by --host-timeout, and run it again")
